"""A log line is one JSON object, and never holds a patient's data."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service import log
from service.errors import BackendUnavailable

NAME = "Mustermann^Erika"


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("overread")
    before = list(root.handlers), root.level, ours.level
    noisy = {name: logging.getLogger(name).level for name in ("pynetdicom", "pydicom", "highdicom")}
    with warnings.catch_warnings():
        yield
    root.handlers[:], level, ours_level = before
    root.setLevel(level)
    ours.setLevel(ours_level)
    for name, was in noisy.items():
        logging.getLogger(name).setLevel(was)


def _lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    out, err = capsys.readouterr()
    assert out == ""
    return [json.loads(line) for line in err.splitlines()]


def test_an_event_is_one_json_line_with_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up()
    log.event("study.ready", study_uid="1.2.3", path=Path("a"), text="two\nlines")
    (line,) = _lines(capsys)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info", "event": "study.ready", "study_uid": "1.2.3", "path": "a", "text": "two\nlines"
    }  # fmt: skip


def test_a_warning_tells_the_errors_four_parts(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up()
    error = BackendUnavailable(doing="asking", found="nobody", rule="one answers", way_out="start it")
    log.warning("analysis.postponed", error, study_uid="1.2.3")
    log.failure("model.failed", error, study_uid="1.2.3")
    warned, failed = _lines(capsys)
    for line in (warned, failed):
        assert {key: line[key] for key in error.parts()} == error.parts()
    assert (warned["level"], failed["level"]) == ("warning", "error")


def test_a_failure_names_type_and_place_and_not_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up()

    def decode() -> None:
        raise ValueError(f"cannot decode {NAME}")

    try:
        try:
            decode()
        except ValueError as exc:
            raise RuntimeError(f"while reading {NAME}") from exc
    except RuntimeError as exc:
        log.failure("study.failed", exc, study_uid="1.2.3")
    (line,) = _lines(capsys)
    assert NAME not in json.dumps(line)
    assert line["exception"] == "RuntimeError"
    assert line["where"].startswith(f"{__file__}:")


def test_what_libraries_say_of_data_sets_is_not_heard(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up()
    for library in ("pydicom", "pydicom.charset", "pynetdicom", "pynetdicom.events", "highdicom.seg"):
        logging.getLogger(library).setLevel(logging.WARNING)  # as pydicom does when it is imported after this
        logging.getLogger(library).error("value %s", NAME)
    warnings.warn(f"invalid value {NAME}", stacklevel=1)
    try:
        raise KeyError(NAME)
    except KeyError:
        logging.getLogger("some.library").exception("it failed")
    logging.getLogger("some.library").info("hello")
    (line,) = _lines(capsys)
    assert NAME not in json.dumps(line)
    assert (line["event"], line["exception"]) == ("it failed", "KeyError")


def test_setting_up_twice_writes_each_line_once(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up()
    log.set_up()
    log.event("once")
    assert len(_lines(capsys)) == 1


def test_lines_go_to_the_present_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up()
    assert [getattr(h, "stream", None) for h in logging.getLogger().handlers] == [sys.stderr]
