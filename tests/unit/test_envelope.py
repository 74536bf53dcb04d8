"""Envelopes: what is kept beside a network, for which device and weights, and how far batches are tried."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from service.backends.envelope import measure_batches, read_envelope, write_envelope
from service.types import Envelope, Network
from tests.graphs import doubling

CPU = "onnxruntime 1.31.1 CPU 2x1 threads"


def _envelope(device: str = CPU, resident: int = 1000) -> Envelope:
    return Envelope(
        device=device,
        resident_bytes=resident,
        batch_bytes={1: 10, 2: 20},
        batch_seconds={1: 0.5, 2: 0.75},
        load_seconds=3.5,
    )


@pytest.fixture
def network(tmp_path: Path) -> Network:
    return doubling(tmp_path)


def test_an_envelope_is_read_as_it_was_written(network: Network) -> None:
    assert read_envelope(network, CPU) is None
    assert write_envelope(network, _envelope())
    assert read_envelope(network, CPU) == _envelope()
    assert [path.name for path in network.file.parent.iterdir() if path != network.file] == ["envelope.json"]


def test_several_devices_have_one_each(network: Network) -> None:
    write_envelope(network, _envelope())
    write_envelope(network, _envelope("a GPU", 2000))
    write_envelope(network, _envelope("a GPU", 3000))
    assert read_envelope(network, CPU) == _envelope()
    assert read_envelope(network, "a GPU") == _envelope("a GPU", 3000)
    assert read_envelope(network, "onnxruntime 1.32.0 CPU 2x1 threads") is None


def test_other_weights_are_measured_anew(network: Network) -> None:
    write_envelope(network, _envelope())
    other = replace(network, sha256="0" * 64)
    assert read_envelope(other, CPU) is None
    write_envelope(other, _envelope("a GPU"))
    assert read_envelope(other, CPU) is None  # those of the old weights are gone
    assert read_envelope(network, CPU) is None


@pytest.mark.parametrize(
    "spoilt",
    [
        b"",
        b'{"sha256"',
        b"[]",
        b"\xff\xfe",
        {"batch_bytes": {}},
        {"batch_bytes": {"1": 10}},
        {"batch_seconds": {"1": -1.0, "2": 1.0}},
        {"resident_bytes": -5},
    ],
)
def test_a_spoilt_file_is_as_good_as_none(spoilt: bytes | dict[str, object], network: Network) -> None:
    write_envelope(network, _envelope())
    file = network.file.with_name("envelope.json")
    if isinstance(spoilt, dict):
        content = json.loads(file.read_bytes())
        content["devices"][CPU] |= spoilt
        file.write_text(json.dumps(content))
    else:
        file.write_bytes(spoilt)
    assert read_envelope(network, CPU) is None
    assert write_envelope(network, _envelope())
    assert read_envelope(network, CPU) == _envelope()


def test_a_folder_that_cant_be_written_is_said_to_be_so(network: Network) -> None:
    file = network.file.with_name("envelope.json")
    file.mkdir()
    assert not write_envelope(network, _envelope())
    assert read_envelope(network, CPU) is None
    assert {path.name for path in file.parent.iterdir()} == {"envelope.json", "model.onnx"}
    nowhere = replace(network, file=network.file.parent / "none" / "model.onnx")
    assert not write_envelope(nowhere, _envelope())


def test_the_smallest_batch_near_the_best_time_is_the_best() -> None:
    assert _envelope().best_batch == 2
    assert replace(_envelope(), batch_seconds={1: 1.0, 2: 1.92, 4: 3.84}).best_batch == 1


class _Runs:
    """A network whose batches take a fixed time and so much more per patch."""

    def __init__(self, fixed: float, patch: float, size: int = 100, most: int = 1000) -> None:
        self._fixed, self._patch, self._size, self._most = fixed, patch, size, most
        self.tried: list[int] = []

    def __call__(self, size: int) -> tuple[float, int] | None:
        self.tried.append(size)
        if size > self._most:
            return None
        return self._fixed + size * self._patch, size * self._size


@pytest.mark.parametrize(
    ("runs", "limits", "tried"),
    [
        (_Runs(0.0, 0.1), {}, [1, 2]),  # nothing is gained
        (_Runs(0.1, 0.1), {}, [1, 2, 4, 8, 16, 32]),  # 32 gain less than a twentieth over 16
        (_Runs(0.1, 1e-6), {}, [1, 2, 4, 8, 16, 32, 64]),
        (_Runs(0.1, 1e-6), {"largest": 4}, [1, 2, 4]),
        (_Runs(0.1, 1e-6), {"memory_bytes": 399}, [1, 2]),  # 4 patches would take 400
        (_Runs(0.1, 1e-6), {"memory_bytes": 1}, [1]),  # one patch is tried whatever is free
        (_Runs(0.0, 0.1, most=3), {}, [1, 2]),
        (_Runs(0.1, 1e-6, most=3), {}, [1, 2, 4]),  # the last one can't be run
        (_Runs(2.0, 0.1), {}, [1, 2]),  # slow: there is something to gain, but not the time to look for it
        (_Runs(0.6, 0.6), {"longest_seconds": 2.0}, [1]),  # two might take longer than is allowed
    ],
)
def test_greater_batches_are_tried_while_that_is_allowed_and_gains(
    runs: _Runs, limits: dict[str, int], tried: list[int]
) -> None:
    allowed = {"memory_bytes": 2**40, "longest_seconds": 1e9, "largest": 64, **limits}
    seconds, taken = measure_batches(
        runs,
        memory_bytes=int(allowed["memory_bytes"]),
        longest_seconds=allowed["longest_seconds"],
        largest=int(allowed["largest"]),
    )
    assert runs.tried == tried
    assert list(seconds) == list(taken) == [size for size in tried if runs(size)]
    assert taken[1] == 100


def test_a_network_that_cant_run_one_patch_has_no_batches() -> None:
    assert measure_batches(_Runs(0.1, 0.1, most=0), memory_bytes=1, longest_seconds=1.0, largest=64) == ({}, {})
