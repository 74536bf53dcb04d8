"""What the scheduler does with the patches of many models and studies; counts, never times."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from service.analysis import faults
from service.analysis.schedule import Scheduler
from service.analysis.waiting import Stream
from service.errors import (
    BackendCrashed,
    BackendTimeout,
    BackendUnavailable,
    ContractBroken,
    NetworkFails,
    OutOfMemory,
    Stopping,
    Superseded,
    TooLarge,
)
from service.types import Array, Priority
from tests.fake_backend import GIB, FakeBackend, envelope, model, patch

Asked = Future[list[float]]
Ask = Callable[..., Asked]
PARTS = {"doing": "running", "found": "what a test wants", "rule": "none", "way_out": "none"}


@pytest.fixture
def made() -> Iterator[list[Scheduler]]:
    """Schedulers to be closed at the end."""
    schedulers: list[Scheduler] = []
    yield schedulers
    for scheduler in schedulers:
        scheduler.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as threads:
        yield threads


class Bench:
    """A scheduler over a fake backend, and studies that ask it."""

    def __init__(self, backend: FakeBackend, pool: ThreadPoolExecutor, *networks: str) -> None:
        self.backend, self.pool = backend, pool
        self.scheduler = Scheduler(backend)
        for network in networks:
            self.scheduler.add(model(network))

    def ask(self, network: str, numbers: range, stream: Stream | None = None) -> Asked:
        """Ask for patches, as a study does, in a thread of its own; the future has the answers."""

        def work() -> list[float]:
            answers = self.scheduler.map(stream or Stream(), network, (patch(number) for number in numbers))
            return [float(output[0, 0]) for (output,) in answers]

        return self.pool.submit(work)

    def wait_for_waiting(self, count: int) -> None:
        """Wait until so many patches wait."""
        for _ in range(2000):
            if len(self.scheduler._waiting) >= count:
                return
            threading.Event().wait(0.005)
        raise AssertionError(len(self.scheduler._waiting))


@pytest.fixture
def bench(made: list[Scheduler], pool: ThreadPoolExecutor) -> Callable[..., Bench]:
    def make(*networks: str, **settings: object) -> Bench:
        result = Bench(FakeBackend(**settings), pool, *networks)  # type: ignore[arg-type]
        made.append(result.scheduler)
        return result

    return make


def doubled(numbers: range) -> list[float]:
    return [2.0 * number for number in numbers]


# --- In order -------------------------------------------------------------------------------------------------------


def test_each_stream_gets_its_own_answers_in_its_own_order(bench: Callable[..., Bench]) -> None:
    at = bench("a", "b", slots=3, envelopes={"a": envelope(best=4)})
    asked = {start: at.ask("ab"[start % 2], range(100 * start, 100 * start + 40)) for start in range(6)}
    for start, future in asked.items():
        assert future.result(20) == doubled(range(100 * start, 100 * start + 40))


def test_a_stream_is_never_far_ahead_of_its_reader(bench: Callable[..., Bench]) -> None:
    at = bench("a", slots=2)
    taken: list[int] = []

    def patches() -> Iterator[Array]:
        for number in range(100):
            taken.append(number)
            yield patch(number)

    answers = at.scheduler.map(Stream(), "a", patches())
    for read in range(1, 20):
        next(answers)
        assert len(taken) <= read + 3
    answers.close()  # type: ignore[attr-defined]


def test_what_nobody_reads_any_more_is_not_run(bench: Callable[..., Bench]) -> None:
    at = bench("a")
    answers = at.scheduler.map(Stream(), "a", (patch(number) for number in range(50)))
    at.backend.hold()
    at.backend.let_go(1)
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert len(at.scheduler._waiting) == 0


def test_large_patches_are_kept_fewer_than_small_ones(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.analysis.schedule._AHEAD_BYTES", 5 * patch(0).nbytes)
    at = bench("a", slots=2, envelopes={"a": envelope(best=8)})
    taken: list[int] = []
    answers = at.scheduler.map(Stream(), "a", (taken.append(n) or patch(n) for n in range(100)))  # type: ignore[func-returns-value]
    next(answers)
    assert len(taken) == 5
    answers.close()  # type: ignore[attr-defined]


# --- Batches --------------------------------------------------------------------------------------------------------


def test_patches_of_different_studies_share_a_batch(bench: Callable[..., Bench]) -> None:
    at = bench("a", envelopes={"a": envelope(best=4)})
    at.backend.hold()
    first = at.ask("a", range(0, 1))
    at.backend.wait_for(1)
    others = [at.ask("a", range(10 * n, 10 * n + 1)) for n in (1, 2, 3, 4)]
    at.wait_for_waiting(4)
    at.backend.free()
    assert [f.result(20) for f in (first, *others)] == [[0], [20], [40], [60], [80]]
    assert [len(values) for _, values in at.backend.batches] == [1, 4]


def test_a_batch_waits_a_moment_for_the_patches_that_are_being_cut(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.analysis.schedule._FILL_SECONDS", 5.0)
    at = bench("a", envelopes={"a": envelope(best=4)})

    def slowly() -> Iterator[Array]:
        for number in range(8):
            threading.Event().wait(0.02)
            yield patch(number)

    assert len(list(at.scheduler.map(Stream(), "a", slowly()))) == 8
    assert [len(values) for _, values in at.backend.batches] == [4, 4]


def test_a_batch_that_nobody_fills_runs_all_the_same(bench: Callable[..., Bench]) -> None:
    at = bench("a", envelopes={"a": envelope(best=16)})
    assert at.ask("a", range(3)).result(20) == [0, 2, 4]


def test_a_network_that_gains_nothing_by_batches_gets_none(bench: Callable[..., Bench]) -> None:
    at = bench("a", slots=2)
    futures = [at.ask("a", range(10)) for _ in range(4)]
    for future in futures:
        future.result(20)
    assert {len(values) for _, values in at.backend.batches} == {1}


# --- What is urgent -------------------------------------------------------------------------------------------------


def test_an_urgent_study_overtakes_ten_ordinary_ones_at_the_next_patch(bench: Callable[..., Bench]) -> None:
    at = bench("liver", "lung")
    at.backend.hold()
    ordinary = [at.ask("liver", range(100 * n, 100 * n + 12)) for n in range(10)]
    at.wait_for_waiting(20)
    at.backend.let_go(3)
    at.backend.wait_for(4)
    begun = len(at.backend.batches)
    urgent = at.ask("lung", range(5000, 5006), Stream(priority=Priority.STAT))
    at.wait_for_waiting(31)
    at.backend.free()
    assert urgent.result(20) == doubled(range(5000, 5006))
    for number, future in enumerate(ordinary):
        assert future.result(20) == doubled(range(100 * number, 100 * number + 12)), "ordinary ones finish too"
    order = [network for network, _ in at.backend.batches]
    assert order.index("lung") - begun <= 1, "one patch was running when it came, and one may be the others' share"
    assert sum(network == "liver" for network in order[begun : order.index("lung") + 6]) <= 3


# --- Memory ---------------------------------------------------------------------------------------------------------


def test_two_networks_that_do_not_fit_together_take_turns(bench: Callable[..., Bench]) -> None:
    sizes = {"a": envelope(resident=4, batch=2), "b": envelope(resident=4, batch=2)}
    at = bench("a", "b", slots=2, memory_gib=8, envelopes=sizes)
    futures = [at.ask(name, range(60)) for name in ("a", "b", "a", "b")]
    for future in futures:
        assert future.result(20) == doubled(range(60))
    assert at.backend.most_bytes <= 8 * GIB
    changes = len(at.backend.loads) - 2
    assert changes >= 2, "each gets its turn before the other is done"
    assert changes <= 240 / 4, "but not at every patch"


def test_what_fits_stays(bench: Callable[..., Bench]) -> None:
    sizes = {name: envelope(resident=1, batch=1) for name in ("a", "b", "c")}
    at = bench("a", "b", "c", slots=2, memory_gib=6, envelopes=sizes)
    for future in [at.ask(name, range(20)) for name in ("a", "b", "c", "a")]:
        future.result(20)
    assert sorted(at.backend.loads) == ["a", "b", "c"]
    assert at.backend.unloads == []


def test_an_urgent_study_does_not_wait_for_its_networks_turn(bench: Callable[..., Bench]) -> None:
    sizes = {"a": envelope(resident=4, batch=2), "b": envelope(resident=4, batch=2)}
    at = bench("b", "a", memory_gib=8, envelopes=sizes)
    at.backend.hold()
    ordinary = [at.ask("a", range(50)) for _ in range(3)]
    at.wait_for_waiting(5)
    begun = len(at.backend.batches)
    urgent = at.ask("b", range(1), Stream(priority=Priority.STAT))
    at.wait_for_waiting(6)
    at.backend.free()
    urgent.result(20)
    assert [network for network, _ in at.backend.batches][begun:].index("b") <= 1
    for future in ordinary:
        future.result(20)


def test_a_network_too_large_for_the_limit_is_refused_when_it_is_added(bench: Callable[..., Bench]) -> None:
    at = bench("small", memory_gib=4, envelopes={"large": envelope(resident=3, batch=2)})
    with pytest.raises(TooLarge, match=r"5\.0 GiB"):
        at.scheduler.add(model("large"))
    with pytest.raises(TooLarge):
        at.scheduler.require("large")
    assert at.backend.unloads == ["large"]
    assert at.ask("small", range(3)).result(20) == [0, 2, 4]


def test_an_out_of_memory_answer_halves_the_batch_and_no_study_fails(bench: Callable[..., Bench]) -> None:
    at = bench("a", envelopes={"a": envelope(best=8)})
    at.backend.fault = lambda network, values: OutOfMemory(**PARTS) if len(values) > 2 else None
    at.backend.hold()
    futures = [at.ask("a", range(100 * n, 100 * n + 24)) for n in range(3)]
    at.wait_for_waiting(20)
    at.backend.free()
    for number, future in enumerate(futures):
        assert future.result(20) == doubled(range(100 * number, 100 * number + 24))
    sizes = [len(values) for _, values in at.backend.batches]
    assert sizes.count(8) == 1, "what did not fit once is not tried again"
    assert sizes.count(4) == 1
    assert max(sizes[sizes.index(4) + 1 :]) == 2


def test_a_patch_that_fits_only_alone_runs_alone(bench: Callable[..., Bench]) -> None:
    at = bench("a", "big", slots=2)
    running: list[str] = []

    def fault(network: str, values: list[float]) -> OutOfMemory | None:
        with at.backend._lock:
            crowded = len(at.backend._running) > 1
        running.append(network)
        return OutOfMemory(**PARTS) if network == "big" and crowded else None

    at.backend.fault = fault
    futures = [at.ask("a", range(40)), at.ask("big", range(10)), at.ask("a", range(40))]
    for future, count in zip(futures, (40, 10, 40), strict=True):
        assert future.result(20) == doubled(range(count))


def test_a_patch_that_does_not_fit_even_alone_is_its_studys_error_only(bench: Callable[..., Bench]) -> None:
    at = bench("a", "big")
    at.backend.fault = lambda network, values: OutOfMemory(**PARTS) if network == "big" else None
    good = at.ask("a", range(10))
    with pytest.raises(OutOfMemory):
        at.ask("big", range(3)).result(20)
    assert good.result(20) == doubled(range(10))


def test_of_more_networks_than_fit_the_last_ones_are_loaded_at_the_start(bench: Callable[..., Bench]) -> None:
    sizes = {name: envelope(resident=4, batch=1) for name in ("a", "b", "c")}
    at = bench("a", "b", "c", memory_gib=9, envelopes=sizes)
    assert [state.name for state in at.scheduler.states() if state.loaded] == ["b", "c"]


def test_a_load_that_finds_no_room_is_tried_again_with_the_others_gone(bench: Callable[..., Bench]) -> None:
    at = bench("a", memory_gib=10, envelopes={"a": envelope(resident=1), "b": envelope(resident=1)})
    at.backend.load_fault = lambda network: (
        OutOfMemory(**PARTS) if network == "b" and "a" in at.backend._loaded else None
    )
    at.scheduler.add(model("b"))
    assert at.backend.unloads == ["a"]


# --- What breaks ----------------------------------------------------------------------------------------------------


def test_a_suspect_runs_beside_nobody(bench: Callable[..., Bench]) -> None:
    at = bench("bad", "good", slots=2)
    crashed = threading.Event()

    def fault(network: str, values: list[float]) -> BackendCrashed | None:
        if network == "bad" and not crashed.is_set():
            at.backend.wait_for(2)
            crashed.set()
            return BackendCrashed(**PARTS)
        if len(at.backend.batches) <= 2:
            crashed.wait(20)
            threading.Event().wait(0.1)  # in which the suspect could begin
        return None

    at.backend.fault = fault
    futures = [at.ask("good", range(1)), at.ask("bad", range(1))]
    assert crashed.wait(20)
    futures.append(at.ask("good", range(5)))
    assert [future.result(20) for future in futures] == [[0], [0], [0, 2, 4, 6, 8]]
    order = [network for network, _ in at.backend.batches]
    again = len(order) - 1 - order[::-1].index("bad")
    assert at.backend.beside[again] == 0
    assert all(beside == 0 for beside in at.backend.beside[again + 1 : again + 2]), "nor did anybody join it"


@pytest.mark.parametrize("error", [BackendCrashed, BackendTimeout])
def test_the_patch_that_takes_the_runtime_down_fails_and_its_neighbours_do_not(
    bench: Callable[..., Bench], error: type[BackendCrashed]
) -> None:
    at = bench("a", "b", slots=2, envelopes={"a": envelope(best=4)})
    at.backend.fault = lambda network, values: error(**PARTS) if 13 in values else None
    good = [at.ask("a", range(100, 120)), at.ask("b", range(200, 220))]
    bad = at.ask("a", range(10, 20))
    with pytest.raises(NetworkFails, match="network a"):
        bad.result(20)
    assert [future.result(20) for future in good] == [doubled(range(100, 120)), doubled(range(200, 220))]
    assert [values for _, values in at.backend.batches if 13 in values][-1] == [13], "it was run once more, alone"


def test_a_network_that_fails_three_times_in_a_row_is_named_and_run_no_more(bench: Callable[..., Bench]) -> None:
    at = bench("a", "b")
    at.backend.fault = lambda network, values: BackendCrashed(**PARTS) if network == "a" else None
    for _ in range(faults.STRIKES):
        with pytest.raises(NetworkFails):
            at.ask("a", range(1)).result(20)
    begun = len(at.backend.batches)
    with pytest.raises(NetworkFails):
        at.ask("a", range(5)).result(20)
    assert len(at.backend.batches) == begun
    assert {state.name: bool(state.failing) for state in at.scheduler.states()} == {"a": True, "b": False}
    assert at.ask("b", range(3)).result(20) == [0, 2, 4]


def test_a_study_that_it_answers_takes_a_networks_strikes_back(bench: Callable[..., Bench]) -> None:
    at = bench("a")
    at.backend.fault = lambda network, values: BackendCrashed(**PARTS) if 13 in values else None
    for _ in range(2 * faults.STRIKES):
        with pytest.raises(NetworkFails):
            at.ask("a", range(13, 14)).result(20)
        at.ask("a", range(2)).result(20)
    assert not at.scheduler.states()[0].failing


def test_good_batches_of_studies_that_fail_take_no_strike_back(bench: Callable[..., Bench]) -> None:
    at = bench("a")
    at.backend.fault = lambda network, values: BackendCrashed(**PARTS) if 13 in values else None
    for _ in range(faults.STRIKES):
        with pytest.raises(NetworkFails):
            at.ask("a", range(20)).result(20)
    assert at.scheduler.states()[0].failing


def test_after_a_crash_the_networks_are_loaded_again(bench: Callable[..., Bench]) -> None:
    at = bench("a", "b")
    crashes = iter([BackendCrashed(**PARTS)])
    at.backend.fault = lambda network, values: next(crashes, None)
    assert at.ask("a", range(3)).result(20) == [0, 2, 4]
    assert at.ask("b", range(3)).result(20) == [0, 2, 4]
    assert sorted(at.backend.loads) == ["a", "a", "b", "b"]


def test_work_waits_for_a_backend_that_is_away(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "PAUSES", (0.01,))
    at = bench("a", "b", slots=2)
    away = [BackendUnavailable(**PARTS) for _ in range(10)]
    at.backend.fault = lambda network, values: away.pop() if away else None
    futures = [at.ask(name, range(30)) for name in ("a", "b")]
    for future in futures:
        assert future.result(20) == doubled(range(30))
    assert not away


def test_a_network_for_which_nobody_answers_keeps_no_other_one_waiting(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "PAUSES", (1000.0,))
    at = bench("away", "here")
    at.backend.fault = lambda network, values: BackendUnavailable(**PARTS) if network == "away" else None
    given_up = threading.Event()
    away = at.ask("away", range(3), Stream(cancelled=given_up))
    at.backend.wait_for(1)
    assert at.ask("here", range(30)).result(20) == doubled(range(30))
    assert len([network for network, _ in at.backend.batches if network == "away"]) == 1
    at.scheduler.cancel(given_up)
    with pytest.raises(Superseded):
        away.result(20)


def test_after_a_while_the_studies_are_told_that_nobody_answers(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "PAUSES", (0.01,))
    monkeypatch.setattr(faults, "PATIENCE_SECONDS", 0.05)
    at = bench("a", "b")
    at.backend.fault = lambda network, values: BackendUnavailable(**PARTS)
    for future in [at.ask(name, range(5)) for name in ("a", "b")]:
        with pytest.raises(BackendUnavailable):
            future.result(20)
    at.backend.fault = lambda network, values: None
    assert at.ask("a", range(5)).result(20) == doubled(range(5)), "later ones are tried anew"


def test_any_other_error_reaches_the_one_who_asked(bench: Callable[..., Bench]) -> None:
    at = bench("a", "b")
    at.backend.fault = lambda network, values: ContractBroken(**PARTS) if network == "a" else None
    good = at.ask("b", range(10))
    with pytest.raises(ContractBroken):
        at.ask("a", range(10)).result(20)
    assert good.result(20) == doubled(range(10))


def test_two_models_may_share_a_network_but_not_describe_it_differently(bench: Callable[..., Bench]) -> None:
    at = bench("a")
    at.scheduler.add(model("a", name="other"))
    assert at.backend.loads == ["a"]
    wrong = model("a", name="wrong")
    changed = wrong.networks[0].outputs[0].model_copy(update={"name": "another"})
    from dataclasses import replace

    with pytest.raises(ContractBroken, match="another model"):
        at.scheduler.add(replace(wrong, networks=(replace(wrong.networks[0], outputs=(changed,)),)))
    at.scheduler.require("other")
    with pytest.raises(ContractBroken):
        at.scheduler.require("wrong")


def test_a_model_that_could_not_be_loaded_for_now_is_loaded_when_it_is_asked(bench: Callable[..., Bench]) -> None:
    at = bench()
    at.backend.load_fault = lambda network: BackendUnavailable(**PARTS)
    with pytest.raises(BackendUnavailable):
        at.scheduler.add(model("a"))
    at.backend.load_fault = lambda network: None
    at.scheduler.require("a")
    assert at.ask("a", range(3)).result(20) == [0, 2, 4]


# --- The end --------------------------------------------------------------------------------------------------------


def test_a_superseded_study_gives_its_place_to_the_others(bench: Callable[..., Bench]) -> None:
    at = bench("a")
    at.backend.hold()
    superseded = threading.Event()
    old = [at.ask("a", range(100 * n, 100 * n + 50), Stream(cancelled=superseded)) for n in (1, 2)]
    other = at.ask("a", range(5))
    at.wait_for_waiting(7)
    at.scheduler.cancel(superseded)
    begun = len(at.backend.batches)
    at.backend.free()
    for future in old:
        with pytest.raises(Superseded):
            future.result(20)
    assert other.result(20) == doubled(range(5))
    assert len(at.backend.batches) - begun <= 5


def test_a_stopping_scheduler_refuses_what_waits_and_closes_the_backend(bench: Callable[..., Bench]) -> None:
    at = bench("a")
    at.backend.hold()
    future = at.ask("a", range(20))
    at.wait_for_waiting(2)
    at.scheduler.close()
    with pytest.raises(Stopping):
        future.result(20)
    with pytest.raises(Stopping):
        at.ask("a", range(1)).result(20)
    assert at.backend.closed


def test_no_thread_is_left_behind() -> None:
    before = threading.active_count()
    scheduler = Scheduler(FakeBackend(slots=3))
    assert threading.active_count() == before + 3
    scheduler.close()
    assert threading.active_count() == before
