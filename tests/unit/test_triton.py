"""The client's side of a Triton server without one: what its errors mean, and whose memory is used again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from service.backends.triton import TritonBackend
from service.backends.triton_channel import MEANING, translate
from service.backends.triton_contract import not_ready
from service.backends.triton_memory import KINDS, Shapes, is_written, mark
from service.backends.triton_pool import Pool
from service.errors import BackendCrashed, BackendTimeout, BackendUnavailable, ContractBroken, OutOfMemory
from service.settings.analysis import Triton
from service.types import Array, Backend

FAILURES = set(grpc.StatusCode) - {grpc.StatusCode.OK}


def _said(code: grpc.StatusCode | str, message: str = "no") -> InferenceServerException:
    return InferenceServerException(msg=message, status=str(code))


def test_it_is_a_backend() -> None:
    backend: Backend = TritonBackend("127.0.0.1:1", Triton(), patch_seconds=1.0)
    assert backend.name == "triton at 127.0.0.1:1"
    assert backend.memory_bytes == 0
    assert backend.slots >= 2
    assert backend.ready() is False
    backend.close()
    assert backend.ready() is False


# --- Errors ---------------------------------------------------------------------------------------------------------


def test_every_status_of_grpc_has_a_meaning() -> None:
    assert set(MEANING) == FAILURES


@pytest.mark.parametrize("code", sorted(FAILURES, key=str), ids=lambda code: code.name)
def test_a_status_becomes_its_error_in_four_parts(code: grpc.StatusCode) -> None:
    error = translate(_said(code, "two\nlines " + "x" * 500), "running a network")
    assert type(error) is MEANING[code]
    assert all(error.parts().values())
    assert error.doing == "running a network"
    assert error.found.startswith(f"{code.name}: two lines xxx")
    assert len(error.found) < 350


def test_a_status_that_nobody_knows_is_a_crash() -> None:
    assert type(translate(_said("StatusCode.NEW"), "x")) is BackendCrashed
    assert type(translate(InferenceServerException(msg="x"), "x")) is BackendCrashed


def test_a_server_that_is_late_with_less_than_inference_is_away() -> None:
    late = _said(grpc.StatusCode.DEADLINE_EXCEEDED)
    assert type(translate(late, "x")) is BackendTimeout
    assert type(translate(late, "x", brief=True)) is BackendUnavailable


@pytest.mark.parametrize(
    "message",
    [
        "onnx runtime error 6: Failed to allocate memory for requested buffer of size 1024",
        "CUDA failure 2: out of memory ; GPU=0",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "message: MemoryError: std::bad_alloc",
        "Available memory of 1 is smaller than requested bytes of 2",
    ],
)
def test_too_little_memory_is_tried_with_less(message: str) -> None:
    assert type(translate(_said(grpc.StatusCode.INTERNAL, message), "x")) is OutOfMemory


def test_a_server_that_manages_its_own_networks_is_nothing_to_wait_for() -> None:
    refused = _said(grpc.StatusCode.UNAVAILABLE, "explicit model load / unload is not allowed if polling is enabled")
    error = translate(refused, "x")
    assert type(error) is ContractBroken
    assert "manage_models" in error.way_out


def _entry(name: str, version: str, state: str, reason: str = "") -> Any:
    return service_pb2.RepositoryIndexResponse.ModelIndex(name=name, version=version, state=state, reason=reason)


@pytest.mark.parametrize(
    ("entries", "kind", "words"),
    [
        ([], ContractBroken, "not in the server's repository"),
        ([_entry("b", "1", "READY")], ContractBroken, "not in the server's repository"),
        ([_entry("a", "", "")], ContractBroken, "not loaded there"),
        ([_entry("a", "1", "UNAVAILABLE", "unloaded")], ContractBroken, "not loaded there"),
        ([_entry("a", "2", "READY")], ContractBroken, "not loaded there"),
        ([_entry("a", "1", "LOADING")], BackendUnavailable, "LOADING"),
        ([_entry("a", "1", "UNLOADING")], BackendUnavailable, "UNLOADING"),
        ([_entry("a", "1", "UNAVAILABLE", "Internal: no\nsuch file")], ContractBroken, "Internal: no such file"),
    ],
)
def test_why_a_network_is_not_ready_is_said(entries: list[Any], kind: type, words: str) -> None:
    error = not_ready("a", service_pb2.RepositoryIndexResponse(models=entries), manage=False)
    assert type(error) is kind
    assert words in error.found
    assert all(error.parts().values())


# --- Memory ---------------------------------------------------------------------------------------------------------


def test_an_answer_of_which_one_patch_is_missing_is_not_written() -> None:
    answer = np.empty((3, 1, 4, 4), np.float32)
    mark(answer)
    assert not is_written(answer)
    answer[:2] = 0.5
    assert not is_written(answer)
    answer[2] = np.nan  # an answer too, though a poor one
    assert is_written(answer)
    mark(answer)
    answer.reshape(3, -1)[:, :-1] = 0.5  # all but the last value of each
    assert not is_written(answer)


class _Region:
    """A region as `Pool` sees it."""

    made: list[_Region]
    known: set[_Region]
    in_use: set[_Region]

    def __init__(self, read: int, written: int) -> None:
        self.size, self.copied_bytes, self.closed = (read, written), 0, False
        self.made.append(self)

    def fits(self, read: int, written: int) -> bool:
        return read <= self.size[0] and written <= self.size[1]

    def register(self, client: Any, seconds: float) -> None:
        self.known.add(self)

    def unregister(self, client: Any, seconds: float) -> None:
        if self in self.in_use:
            raise _said(grpc.StatusCode.INTERNAL, "Cannot unregister shared memory region, it is currently in use")
        self.known.discard(self)

    def is_known(self, client: Any, seconds: float) -> bool:
        return self in self.known

    def write(self, patches: Sequence[Array], shapes: Shapes) -> tuple[str, tuple[str, int]]:
        raise NotImplementedError

    def read(self, shapes: Shapes) -> list[Array]:
        raise NotImplementedError

    def close(self) -> None:
        assert not self.closed
        self.closed = True


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Pool:
    _Region.made, _Region.known, _Region.in_use = [], set(), set()
    monkeypatch.setitem(KINDS, "system", _Region)
    return Pool(None, seconds=1.0)


def test_memory_is_used_again_and_grows(pool: Pool) -> None:
    first = pool.take("system", 10, 10)
    second = pool.take("system", 10, 10)
    assert first.region is not second.region
    pool.give(first)
    assert pool.take("system", 5, 10).region is first.region
    pool.give(second)
    third = pool.take("system", 20, 10)
    assert third.region is not second.region
    assert _Region.made[1].closed, "two in flight, two regions"
    assert len(_Region.known) == 2


def test_memory_of_an_unfinished_call_is_never_used_again(pool: Pool) -> None:
    lost = pool.take("system", 10, 10)
    pool.retire(lost)
    for _ in range(30):
        lent = pool.take("system", 10, 10)
        assert lent.region is not lost.region
        pool.give(lent)
    assert lost.region in _Region.known
    assert not _Region.made[0].closed
    _Region.known.clear()  # the server started anew
    pool.tidy()
    assert _Region.made[0].closed


def test_memory_of_a_server_that_was_away_is_registered_anew(pool: Pool) -> None:
    idle, busy = pool.take("system", 10, 10), pool.take("system", 10, 10)
    pool.give(idle)
    pool.forget()
    pool.give(busy)
    fresh = pool.take("system", 10, 10)
    assert fresh.region not in (idle.region, busy.region)


def test_unfinished_calls_do_not_pile_up(pool: Pool) -> None:
    for _ in range(50):
        pool.retire(pool.take("system", 10, 10))
    assert len(_Region.known) <= 18
    assert sum(not region.closed for region in _Region.made) <= 18


def test_memory_that_the_server_still_counts_as_in_use_goes_later(pool: Pool) -> None:
    small = pool.take("system", 10, 10)
    pool.give(small)
    _Region.in_use.add(_Region.made[0])
    pool.give(pool.take("system", 20, 20))
    assert not _Region.made[0].closed
    _Region.in_use.clear()
    pool.tidy()
    assert _Region.made[0].closed
    pool.close()
    assert all(region.closed for region in _Region.made)
    assert not _Region.known


def test_closing_does_not_wait_for_what_the_server_never_gives_back(pool: Pool) -> None:
    pool.give(pool.take("system", 10, 10))
    _Region.in_use.update(_Region.made)
    pool.close()
    assert all(region.closed for region in _Region.made)
