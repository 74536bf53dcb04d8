"""A process keeps what it is at work on, whatever else fails; and several say together how a destination does."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from service import pulse
from service.pulse import Pulse, alive, merged_lines
from service.store import Store
from service.tables import database_url


def test_what_is_at_work_is_kept_although_the_database_is_away_for_a_beat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "_BEAT_SECONDS", 0.01)
    store, kept, enough = Store(database_url(tmp_path, "")), [0], threading.Event()
    store.create_tables()

    def keep() -> None:
        kept[0] += 1
        if kept[0] == 1:
            raise RuntimeError("away")
        if kept[0] >= 5:
            enough.set()

    made = Pulse(store, name="a", parts=("work",), keep=[keep], status=lambda: {"lines": {}})
    made.start()
    assert enough.wait(20)
    made.stop()
    (row,) = alive(store.processes(), now=time.time())
    assert (row["name"], row["parts"]) == ("a", ["work"])
    assert alive(store.processes(), now=time.time(), but="a") == []
    assert alive(store.processes(), now=time.time() + pulse.ALIVE_SECONDS + 1) == []
    store.close()


def test_it_reports_seldom_for_each_report_is_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "_BEAT_SECONDS", 0.01)
    store, beats, enough = Store(database_url(tmp_path, "")), [0], threading.Event()
    reports: list[str] = []
    monkeypatch.setattr(store, "report", lambda name, **_: reports.append(name))

    def keep() -> None:
        beats[0] += 1
        if beats[0] >= 20:
            enough.set()

    made = Pulse(store, name="a", parts=("work",), keep=[keep], status=dict)
    made.start()
    assert enough.wait(5)
    made.stop()
    assert reports == ["a"]
    store.close()


def test_of_what_several_say_of_a_destination_the_worst_counts() -> None:
    well, away = {"line": "well", "failures": 0}, {"line": "pausing", "failures": 3}
    assert merged_lines([{"pacs": well}, {"pacs": away, "archive": well}]) == {"pacs": away, "archive": well}
    assert merged_lines([{"pacs": {"line": "well"}}, {"pacs": away}]) == {"pacs": away}, "of an older program"
