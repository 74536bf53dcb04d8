"""What fits beside what."""

from __future__ import annotations

from service.analysis.memory import Admission, Memory
from tests.fake_backend import GIB, envelope


def account(limit_gib: float = 10.0, **envelopes: tuple[float, float]) -> Memory:
    """A memory that knows networks by resident and batch size in GiB."""
    memory = Memory(round(limit_gib * GIB))
    for name, (resident, batch) in envelopes.items():
        memory.learn(name, envelope(resident=resident, batch=batch, best=4))
    return memory


def test_without_a_limit_everything_fits_and_stays() -> None:
    memory = account(0.0, a=(100, 100))
    assert memory.admit("a", 4) == Admission(size=4, load=True, unload=())
    assert memory.fits_alone("a")


def test_a_network_is_loaded_once() -> None:
    memory = account(a=(1, 1))
    assert memory.admit("a", 1) == Admission(size=1, load=True, unload=())
    memory.end("a", memory.begin("a", 1))
    assert memory.admit("a", 1) == Admission(size=1, load=False, unload=())


def test_running_batches_count() -> None:
    memory = account(a=(2, 2))
    first = memory.begin("a", 2)  # 2 + 4
    assert memory.used_bytes == 6 * GIB
    assert memory.admit("a", 2) == Admission(size=2, load=False, unload=())  # 6 + 4 is just the limit
    memory.begin("a", 2)
    assert memory.admit("a", 1) is None
    memory.end("a", first)
    assert memory.admit("a", 1) is not None


def test_a_batch_shrinks_before_another_network_is_unloaded() -> None:
    memory = account(a=(2, 2), b=(2, 1))
    memory.put("b")
    assert memory.admit("a", 4) == Admission(size=3, load=True, unload=())


def test_the_longest_unused_network_goes_and_no_more_than_needed() -> None:
    memory = account(a=(3, 1), b=(3, 1), c=(3, 1), d=(3, 1))
    for name in "abc":
        memory.end(name, memory.begin(name, 1))
    memory.end("a", memory.begin("a", 1))
    assert memory.loaded == ("b", "c", "a")
    assert memory.admit("d", 1) == Admission(size=1, load=True, unload=("b",))


def test_what_runs_and_what_is_kept_is_not_unloaded() -> None:
    memory = account(a=(5, 1), b=(5, 1))
    ticket = memory.begin("a", 1)
    assert memory.admit("b", 1) is None
    memory.end("a", ticket)
    assert memory.admit("b", 1, keep=["a"]) is None
    assert memory.admit("b", 1) == Admission(size=1, load=True, unload=("a",))


def test_what_never_fits_is_told() -> None:
    memory = account(a=(8, 3))
    assert not memory.fits_alone("a")
    assert memory.admit("a", 1) is None
    assert memory.least_bytes("a") == 11 * GIB


def test_a_size_that_was_not_measured_is_taken_in_proportion() -> None:
    memory = account(100.0, a=(0, 1))
    memory.begin("a", 8)
    assert memory.used_bytes == 8 * GIB
    memory.begin("a", 3)
    assert memory.used_bytes == 11 * GIB


def test_the_end_of_a_batch_whose_network_is_gone_counts_for_nothing() -> None:
    memory = account(a=(1, 1))
    ticket = memory.begin("a", 1)
    memory.drop_all()
    other = memory.begin("a", 1)
    memory.end("a", ticket)
    assert memory.used_bytes == 2 * GIB
    memory.end("a", other)
    assert memory.used_bytes == GIB
    assert memory.idle() == ("a",)
