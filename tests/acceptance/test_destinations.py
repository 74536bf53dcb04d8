"""Ten destinations of which three are bad, and one that is away while results pile up: nobody waits for a neighbour."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from pynetdicom import evt

from service.demo.pacs import OwnPacs
from tests.acceptance.conftest import Service, wait
from tests.acceptance.kill import Recorder
from tests.acceptance.test_main_job import push, study_uid_of
from tests.support import REPOSITORY, free_port
from tests.toys import bright_study

_FULL = os.environ.get("OVERREAD_FULL") == "1"  # the figures of the README; CI takes fewer
_BAD = ("hole", "refusing", "misnamed")


class _Refusing(Recorder):
    """Refuses every object for good, until it is mended."""

    mended = False

    def _store(self, event: evt.Event) -> int:
        return super()._store(event) if self.mended else 0xC000


@contextmanager
def _black_hole(port: int) -> Iterator[None]:
    """Takes connections and never says a word."""
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", port)) as listener:

        def take() -> None:
            while True:
                try:
                    held.append(listener.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for connection in held:
                connection.close()


def _push_studies(tmp_path: Path, service: Service, number: int, *, first: int = 0, **attributes: Any) -> list[str]:
    uids = []
    for seed in range(first, first + number):
        folder = tmp_path / f"study{seed}"
        bright_study(folder, seed=seed, **attributes)
        push(folder, service)
        uids.append(study_uid_of(folder))
    return uids


def _seconds(service: Service) -> dict[str, list[float]]:
    """From the last slice to the confirmation, by destination."""
    found: dict[str, list[float]] = {}
    for line in service.events("delivery.confirmed"):
        found.setdefault(line["destination"], []).append(line["seconds_since_last_slice"])
    return found


def _p95(values: list[float]) -> float:
    return sorted(values)[int(0.95 * (len(values) - 1))]


def test_three_bad_ones_of_ten_hold_up_none_and_get_all_after_their_repair(service: Service, tmp_path: Path) -> None:
    studies = 12 if _FULL else 3
    with ExitStack() as stack:
        good = {f"good{number}": Recorder(tmp_path / f"good{number}") for number in range(7)}
        refusing, misnamed = _Refusing(tmp_path / "refusing"), Recorder(tmp_path / "misnamed")
        for pacs in (*good.values(), refusing, misnamed):
            stack.callback(pacs.stop)
        assert misnamed._server
        misnamed._server.ae.require_called_aet = True
        hole_port = free_port()
        for name, pacs in good.items():
            service.add_destination("DEMOPACS", pacs.port, name=name)
        service.start()
        before = _push_studies(tmp_path, service, studies)
        for uid in before:
            service.wait_for_study(uid, seconds=120)
        alone = _seconds(service)
        assert service.stop() == 0

        service.add_destination("DEMOPACS", hole_port, name="hole", more="timeout_seconds = 3")
        service.destinations = service.destinations.replace("timeout_seconds = 5\ntimeout_seconds", "timeout_seconds")
        service.add_destination("DEMOPACS", refusing.port, name="refusing")
        service.add_destination("WRONG", misnamed.port, name="misnamed")
        with _black_hole(hole_port):
            (tmp_path / "service.log").rename(tmp_path / "first.log")
            service.start()
            uids = _push_studies(tmp_path, service, studies, first=studies)
            for uid in uids:
                service.wait_for_study(uid, "delivering", seconds=120)
            wanted = {row["sop_uid"] for uid in uids for row in _deliveries(service, uid)}
            for name in good:
                wait(partial(_all_confirmed, service, name, uids), f"{name} to confirm everything", seconds=120)
            beside = _seconds(service)
            wait(
                lambda: all(row["state"] == "refused" for n in _BAD[1:] for row in _of(service, n, uids)),
                "the refusals",
                seconds=60,
            )
            explained = {it["name"]: it for it in service.get("/api/v1/destinations")}
            up = service.get("/metrics")
        print("\nlast slice to confirmation at the seven good ones, p95:")
        for title, times in (("alone", alone), ("beside three bad ones", beside)):
            values = [value for name in good for value in times[name]]
            print(f"  {title}: {_p95(values):.1f} s of {len(values)} results")

        assert explained["hole"]["line"] in ("pausing", "trying")
        assert "one result at a time tries it" in explained["hole"]["explained"]
        assert explained["hole"]["states"].keys() <= {"queued", "retrying"}
        assert 'overread_destination_up{destination="hole"} 0.0' in up
        assert 'overread_destination_up{destination="misnamed"} 1.0' in up, "it answers: it is not away"
        for name, words in (("refusing", "cannot understand"), ("misnamed", "correct the destination's ae_title")):
            assert explained[name]["states"] == {"refused": len(wanted)}
            assert "each says what to change" in explained[name]["explained"]
            assert all(words in row["reason"] for row in _of(service, name, uids))
        assert "C-ECHO is answered" in _of(service, "refusing", uids)[0]["reason"]
        assert "C-ECHO fails too" in _of(service, "misnamed", uids)[0]["reason"]
        attempts = [row["attempts"] for row in _of(service, "hole", uids)]
        assert sum(attempts) == 0, "what a destination that is away fails is not the results' fault"

        # Repaired: the line finds out by itself; what was refused waits for an operator's word.
        mended = Recorder(tmp_path / "hole", port=hole_port)
        stack.callback(mended.stop)
        refusing.mended = True
        misnamed._server.ae.require_called_aet = False
        assert _overread(service, "deliveries", "retry", "--destination", "misnamed") == 0
        body = json.dumps({"destination": "refusing"})
        assert len(service.post("/api/v1/deliveries/retry", body)["retried"]) == len(wanted)
        for uid in uids:
            service.wait_for_study(uid, seconds=120)
        for pacs in (mended, refusing, misnamed, *good.values()):
            mine = {uid: pacs.came[uid] for uid in wanted}
            assert all(len(hashes) == 1 for hashes in mine.values()), "each once"


def test_results_that_pile_up_go_in_the_order_of_their_urgency_without_a_storm(
    service: Service, tmp_path: Path
) -> None:
    studies = 34 if _FULL else 6  # of six objects each
    port = free_port()
    service.add_destination(
        "DEMOPACS", port, more='at_once = 1\nprofile = { capture = "findings", gsps = true, ko = true }'
    )
    service.start()
    urgent = []
    uids = []
    for seed in range(studies):
        stat = seed % 3 == 2
        made = _push_studies(tmp_path, service, 1, first=seed, RequestedProcedurePriority="STAT" if stat else "ROUTINE")
        uids += made
        urgent += made if stat else []
    for uid in uids:
        service.wait_for_study(uid, "delivering", seconds=240)
    waiting = service.get("/api/v1/deliveries?limit=1000")
    assert len(waiting) == 6 * studies
    wait(lambda: len(service.events("line.pausing")) >= (6 if _FULL else 4), "some attempts", seconds=600)
    tries = service.events("line.pausing")
    minutes = Counter(int((_time(line) - _time(tries[0])) // 60) for line in tries)
    print(f"\n{len(waiting)} results wait; attempts in each minute while the PACS was away: {dict(minutes)}")
    # One at a time, each pause about three times as long as the last.
    pauses = [line["seconds"] for line in tries]
    assert all(after > 1.5 * before for before, after in itertools.pairwise(pauses[:4])), pauses
    assert len(tries) <= 8

    order: list[str] = []

    class Ordered(OwnPacs):
        def _store(self, event: evt.Event) -> int:
            order.append(str(event.dataset.SOPInstanceUID))
            return super()._store(event)

    pacs = Ordered(tmp_path / "pacs", port=port)
    try:
        for uid in uids:
            service.wait_for_study(uid, seconds=600)
    finally:
        pacs.stop()
    study_of = {row["sop_uid"]: row["study_uid"] for row in waiting}
    assert Counter(order) == Counter(study_of.keys()), "each once"
    # The one that tried the line had been chosen before; after it the urgent ones come first.
    is_urgent = [study_of[uid] in urgent for uid in order]
    assert is_urgent == sorted(is_urgent, reverse=True)
    confirmed = Counter(int((_time(line) - _time(tries[0])) // 60) for line in service.events("delivery.confirmed"))
    print(f"confirmed in each minute: {dict(confirmed)}")


def _time(line: dict[str, Any]) -> float:
    return datetime.fromisoformat(line["time"]).timestamp()


def _deliveries(service: Service, uid: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = service.get(f"/api/v1/studies/{uid}")["deliveries"]
    return found


def _of(service: Service, name: str, uids: list[str]) -> list[dict[str, Any]]:
    return [row for uid in uids for row in _deliveries(service, uid) if row["destination"] == name]


def _all_confirmed(service: Service, name: str, uids: list[str]) -> bool:
    return {row["state"] for row in _of(service, name, uids)} == {"confirmed"}


def _overread(service: Service, *words: str) -> int:
    command = [sys.executable, "-m", "service", *words, "--config", str(service.config)]
    return subprocess.run(command, cwd=REPOSITORY, timeout=60, capture_output=True).returncode


def test_an_operator_reads_what_has_not_arrived_and_drops_it(service: Service, tmp_path: Path) -> None:
    refusing = _Refusing(tmp_path / "refusing")
    try:
        service.add_destination("DEMOPACS", refusing.port)
        service.start()
        (uid,) = _push_studies(tmp_path, service, 1)
        service.wait_for_study(uid, "undelivered")
        command = [sys.executable, "-m", "service", "deliveries", "list", "--config", str(service.config)]
        listed = subprocess.run([*command, "--json"], cwd=REPOSITORY, capture_output=True, timeout=60)
        rows = json.loads(listed.stdout)
        assert [row["state"] for row in rows] == ["refused", "refused"]
        assert all("cannot understand" in row["reason"] and "Way out" in row["reason"] for row in rows)
        shown = subprocess.run(command, cwd=REPOSITORY, capture_output=True, timeout=60).stdout.decode()
        assert "refused" in shown
        assert "C-ECHO is answered" in shown
        number = str(rows[0]["delivery_id"])
        assert _overread(service, "deliveries", "drop", number, "--reason", "sent by hand") == 0
        assert _overread(service, "deliveries", "drop", number) == 1, "it is dropped already"
        assert _overread(service, "deliveries", "retry") == 1, "which?"
        body = json.dumps({"numbers": [rows[1]["delivery_id"]], "reason": "not wanted"})
        assert service.post("/api/v1/deliveries/drop", body) == {"dropped": [rows[1]["delivery_id"]]}
        study = service.wait_for_study(uid)
        assert [row["reason"] for row in study["deliveries"]] == ["sent by hand", "not wanted"]
        assert refusing.came == {}
    finally:
        refusing.stop()
