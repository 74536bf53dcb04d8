"""A study at which the service's process ends, again and again: the others are answered, and in the end it is, too."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path

from service.demo.pacs import OwnPacs
from tests.acceptance import deadly
from tests.acceptance.conftest import Service
from tests.acceptance.test_main_job import push, study_uid_of
from tests.slow_models import write_slow_model
from tests.toys import bright_study

_MOST_STARTS = 9


def _outcomes(service: Service, uids: list[str]) -> list[list[str]]:
    found = [service.get(f"/api/v1/studies/{uid}") for uid in uids]
    return [[answer["outcome"] for answer in study["answers"]] for study in found]


def _until_it_ends_or_all_are_answered(service: Service, uids: list[str]) -> bool:
    assert service.process
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if service.process.poll() is not None:
            return False
        try:
            if all(_outcomes(service, uids)):
                return True
        except OSError:
            pass  # it has just ended
        time.sleep(0.2)
    raise AssertionError("neither ended nor answered")


def test_a_deadly_study_is_given_up_and_takes_no_other_along(service: Service, tmp_path: Path) -> None:
    folders = [tmp_path / "deadly", tmp_path / "beside"]
    for seed, folder in enumerate(folders):
        bright_study(folder, seed=seed)
    uids = [study_uid_of(folder) for folder in folders]
    shutil.rmtree(service.models / "bright")
    write_slow_model(service.models)  # what is begun beside the deadly one is not done before the end
    service.command = ("-m", "tests.acceptance.deadly")
    service.environment[deadly.STUDY] = uids[0]
    pacs = OwnPacs(tmp_path / "pacs")
    try:
        service.add_destination("DEMOPACS", pacs.port)
        service.start()
        for folder in reversed(folders):
            push(folder, service)
        starts = 1
        while not _until_it_ends_or_all_are_answered(service, uids):
            starts += 1
            assert starts <= _MOST_STARTS
            with suppress(RuntimeError):  # it may end before its page is there
                service.start()
        assert _outcomes(service, uids) == [["failed"], ["findings"]]
        (answer,) = service.wait_for_study(uids[0])["answers"]
        assert answer["reason"].startswith("the service ended 5 times while it was at work on it")
        assert [line["study_uid"] for line in service.events("study.given_up")] == [uids[0]]
        assert [it["kind"] for it in answer["objects"] if it["kind"] == "SR"], "the radiologist is told, too"
        steps = [step["step"] for step in service.get(f"/api/v1/studies/{uids[0]}/timeline")]
        assert steps.count("begun") == 6
        last = tmp_path / "last"
        bright_study(last, seed=7)
        push(last, service)
        assert service.wait_for_study(study_uid_of(last))["answers"][0]["outcome"] == "findings"
        assert service.stop() == 0
    finally:
        pacs.stop()
