"""What a second pair of eyes found in the scheduler: each of these once hung, was unfair, or told the wrong study."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from service.analysis import faults
from service.analysis.faults import Faults
from service.analysis.waiting import Stream
from service.errors import (
    BackendCrashed,
    BackendUnavailable,
    ContractBroken,
    OutOfMemory,
)
from service.types import Array, Priority
from tests.fake_backend import envelope, model
from tests.unit.test_schedule import PARTS, Bench, bench, doubled, made, pool

__all__ = ["bench", "made", "pool"]  # fixtures


def threads_live(at: Bench) -> bool:
    return all(thread.is_alive() for thread in at.scheduler._threads)


def test_a_cascade_that_could_not_be_loaded_for_now_runs_all_its_networks_later(bench: Callable[..., Bench]) -> None:
    at = bench(slots=2)
    at.backend.load_fault = lambda network: BackendUnavailable(**PARTS)
    with pytest.raises(BackendUnavailable):
        at.scheduler.add(model("organ", "lesion"))
    at.backend.load_fault = lambda network: None
    at.scheduler.require("organ")
    for network in ("organ", "lesion"):
        assert at.ask(network, range(3)).result(20) == [0, 2, 4]


def test_a_network_that_nobody_added_is_an_error_and_no_hang(bench: Callable[..., Bench]) -> None:
    at = bench("a")
    with pytest.raises(ContractBroken, match="no model that was added"):
        at.ask("unknown", range(3)).result(20)
    assert threads_live(at)


def test_a_broken_model_takes_no_network_from_a_sound_one(bench: Callable[..., Bench]) -> None:
    at = bench("shared")
    at.backend.load_fault = lambda network: ContractBroken(**PARTS) if network == "own" else None
    with pytest.raises(ContractBroken):
        at.scheduler.add(model("shared", "own", name="broken"))
    assert at.ask("shared", range(3)).result(20) == [0, 2, 4]
    assert [state.name for state in at.scheduler.states()] == ["shared"]


def test_an_unload_that_fails_costs_no_thread(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    at = bench("a", "big")
    once = iter([OutOfMemory(**PARTS)])
    at.backend.fault = lambda network, values: next(once, None) if network == "big" else None

    def unload(network: str) -> None:
        raise BackendCrashed(**PARTS)

    monkeypatch.setattr(at.backend, "unload", unload)
    assert at.ask("big", range(3)).result(20) == [0, 2, 4]
    assert threads_live(at)


def test_a_patch_that_runs_alone_has_the_device_to_itself(bench: Callable[..., Bench]) -> None:
    at = bench("a", "big", slots=2)
    crowded, release = threading.Event(), threading.Event()

    def fault(network: str, values: list[float]) -> OutOfMemory | None:
        if network == "a":
            release.wait(20)
        elif "a" in at.backend._loaded:
            crowded.set()
            return OutOfMemory(**PARTS)
        return None

    at.backend.fault = fault
    small = at.ask("a", range(1))
    at.backend.wait_for(1)
    big = at.ask("big", range(1))
    assert crowded.wait(20)
    release.set()
    assert (small.result(20), big.result(20)) == ([0], [0])


def test_a_patch_that_is_refused_fails_its_own_study_and_not_its_neighbours(bench: Callable[..., Bench]) -> None:
    at = bench("a", envelopes={"a": envelope(best=4)})
    at.backend.fault = lambda network, values: ContractBroken(**PARTS) if 13 in values else None
    at.backend.hold()
    head = at.ask("a", range(1))
    at.backend.wait_for(1)
    good, bad = at.ask("a", range(100, 102)), at.ask("a", range(13, 14))
    at.wait_for_waiting(3)
    at.backend.free()
    assert head.result(20) == [0]
    with pytest.raises(ContractBroken):
        bad.result(20)
    assert good.result(20) == doubled(range(100, 102))
    assert sorted([100.0, 13.0, 101.0]) in [sorted(values) for _, values in at.backend.batches]


def test_an_answer_of_the_wrong_length_is_an_error_and_no_hang(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    at = bench("a")

    def infer(network: str, patches: Sequence[Array]) -> tuple[Array, ...]:
        return (np.zeros((len(patches) + 1, 1, 1), np.float32),)

    monkeypatch.setattr(at.backend, "infer", infer)
    with pytest.raises(ContractBroken, match="2 answers to 1 patches"):
        at.ask("a", range(1)).result(20)
    assert threads_live(at)


@pytest.mark.parametrize("priority", [Priority.ROUTINE, Priority.STAT])
def test_two_networks_of_one_study_take_turns_however_urgent_it_is(
    bench: Callable[..., Bench], priority: Priority
) -> None:
    sizes = {"a": envelope(resident=4, batch=1), "b": envelope(resident=4, batch=1)}
    at = bench("a", "b", slots=2, memory_gib=7, envelopes=sizes)

    def slowly(network: str, values: list[float]) -> None:
        threading.Event().wait(0.002)

    at.backend.fault = slowly
    before = len(at.backend.loads)
    for future in [at.ask(network, range(60), Stream(priority=priority)) for network in "ab"]:
        future.result(30)
    assert len(at.backend.loads) - before <= 120 / 4


def test_what_runs_while_another_network_crashes_stays_in_the_account(bench: Callable[..., Bench]) -> None:
    at = bench("a", "b", slots=2)
    crashed = threading.Event()

    def fault(network: str, values: list[float]) -> BackendCrashed | None:
        if network == "b":
            crashed.wait(20)
            while at.scheduler._memory.loaded:  # until the crash is known; b's own batch went on in the new runtime
                threading.Event().wait(0.005)
        elif not crashed.is_set():
            at.backend.wait_for(2)
            crashed.set()
            return BackendCrashed(**PARTS)
        return None

    at.backend.fault = fault
    futures = [at.ask(network, range(1)) for network in ("b", "a")]
    assert [future.result(20) for future in futures] == [[0], [0]]
    assert {state.name for state in at.scheduler.states() if state.loaded} == at.backend._loaded


def test_patience_begins_anew_after_a_long_time() -> None:
    known = Faults()
    assert known.away("a", now=0.0)
    assert known.away("a", now=faults.PATIENCE_SECONDS / 2)
    assert not known.away("a", now=faults.PATIENCE_SECONDS + 1)
    assert known.away("a", now=2000.0)
    assert known.away("a", now=9000.0), "nobody asked in between: the time does not count"
