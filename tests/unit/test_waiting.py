"""Who goes before whom."""

from __future__ import annotations

from service.analysis.waiting import SHARE, Stream, Waiting
from service.types import Priority
from tests.fake_backend import patch


def run(waiting: Waiting, count: int, *, best: int = 1) -> list[tuple[str, list[float]]]:
    """Take so many batches, the best choice each time."""
    taken = []
    for _ in range(count):
        group = waiting.groups(lambda network: best)[0]
        waiting.take(group)
        taken.append((group[0].network, [float(job.patch[0, 0]) for job in group]))
    return taken


def fill(waiting: Waiting, stream: Stream, network: str, numbers: range, cost_seconds: float = 1.0) -> None:
    for number in numbers:
        waiting.add(stream, network, patch(number), cost_seconds=cost_seconds, now=0.0)


def test_streams_share_the_devices_time_not_its_patches() -> None:
    waiting = Waiting()
    fill(waiting, Stream(), "slow", range(5), cost_seconds=10.0)
    fill(waiting, Stream(), "fast", range(50), cost_seconds=1.0)
    order = [network for network, _ in run(waiting, 33)]
    assert order.count("slow") == 3
    assert order.count("fast") == 30


def test_a_newcomer_does_not_stand_behind_all_that_waits() -> None:
    waiting = Waiting()
    fill(waiting, Stream(), "long", range(100))
    run(waiting, 10)
    fill(waiting, Stream(), "short", range(1))
    assert "short" in [network for network, _ in run(waiting, 2)]


def test_what_ran_alone_for_long_owes_nothing_to_a_newcomer() -> None:
    waiting = Waiting()
    fill(waiting, long := Stream(), "long", range(50))
    run(waiting, 50)
    fill(waiting, Stream(), "new", range(20))
    fill(waiting, long, "long", range(20))
    assert [network for network, _ in run(waiting, 20)].count("long") >= 9


def test_what_is_more_urgent_goes_first() -> None:
    waiting = Waiting()
    for priority in (Priority.LOW, Priority.ROUTINE, Priority.STAT, Priority.HIGH):
        fill(waiting, Stream(priority=priority), priority.name, range(1))
    assert [network for network, _ in run(waiting, 4)] == ["STAT", "HIGH", "ROUTINE", "LOW"]


def test_every_fourth_batch_is_for_what_is_less_urgent() -> None:
    waiting = Waiting()
    fill(waiting, Stream(priority=Priority.STAT), "urgent", range(40))
    fill(waiting, Stream(), "ordinary", range(40))
    order = [network for network, _ in run(waiting, 40)]
    assert order[:2] == ["urgent", "urgent"]
    assert order.count("ordinary") == 40 // SHARE
    assert max(len(part) for part in "".join("u" if n == "urgent" else "o" for n in order).split("o")) == SHARE - 1


def test_the_least_urgent_does_not_starve_behind_two_classes() -> None:
    waiting = Waiting()
    for priority in (Priority.STAT, Priority.ROUTINE, Priority.LOW):
        fill(waiting, Stream(priority=priority), priority.name, range(100))
    order = [network for network, _ in run(waiting, 80)]
    assert order.count("STAT") == 60
    assert order.count("LOW") == 10


def test_patches_of_several_studies_go_together_up_to_the_best_batch() -> None:
    waiting = Waiting()
    for study in range(3):
        fill(waiting, Stream(), "network", range(10 * study, 10 * study + 2))
    fill(waiting, Stream(), "other", range(1))
    assert run(waiting, 2, best=4) == [("network", [0, 10, 20, 1]), ("other", [0])]


def test_an_urgent_batch_takes_nobody_along() -> None:
    waiting = Waiting()
    fill(waiting, Stream(), "network", range(3))
    fill(waiting, Stream(priority=Priority.STAT), "network", range(7, 8))
    assert run(waiting, 2, best=4) == [("network", [7]), ("network", [0, 1, 2])]


def test_what_was_put_back_stands_where_it_stood() -> None:
    waiting = Waiting()
    fill(waiting, Stream(), "network", range(4))
    group = waiting.groups(lambda network: 2)[0]
    waiting.take(group)
    waiting.put_back(reversed(group))
    assert run(waiting, 4) == [("network", [number]) for number in range(4)]
