"""What a network takes of a device: measured once on each, and kept in ``envelope.json`` beside the network."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, ValidationError

from service.files import Frozen
from service.types import Envelope, Network

LARGEST_BATCH: Final = 64  # beyond it the scheduler would wait longer for patches than it gains
_GAIN: Final = 0.95  # a doubled batch must take less of the time per patch than this, or no greater one is tried
_SLOW_SECONDS: Final = 1.5  # a patch that takes longer: nothing is gained by more batches, and the start would wait
_PATIENCE_SECONDS: Final = 20.0  # no greater batch is begun after so much measuring

Bytes = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
BatchSize = Annotated[int, Field(ge=1)]


class _OnDevice(Frozen):
    resident_bytes: Bytes
    batch_bytes: dict[BatchSize, Bytes] = Field(min_length=1)
    batch_seconds: dict[BatchSize, Seconds] = Field(min_length=1)
    load_seconds: float


class _Kept(Frozen):
    sha256: str  # of the ONNX file that was measured
    devices: dict[str, _OnDevice]


def read_envelope(network: Network, device: str) -> Envelope | None:
    """The envelope of a network on a device, if it was measured there with these very weights."""
    kept = _read(network)
    found = kept.devices.get(device) if kept else None
    if found is None or found.batch_bytes.keys() != found.batch_seconds.keys():
        return None
    return Envelope(
        device=device,
        resident_bytes=found.resident_bytes,
        batch_bytes=found.batch_bytes,
        batch_seconds=found.batch_seconds,
        load_seconds=found.load_seconds,
    )


def write_envelope(network: Network, envelope: Envelope) -> bool:
    """Keep an envelope beside those of other devices; those of other weights go.

    Returns
    -------
    bool
        False where the folder can't be written: it is then measured at each start.
    """
    kept = _read(network)
    measured = _OnDevice(
        resident_bytes=envelope.resident_bytes,
        batch_bytes=dict(envelope.batch_bytes),
        batch_seconds=dict(envelope.batch_seconds),
        load_seconds=envelope.load_seconds,
    )
    devices = {**(kept.devices if kept else {}), envelope.device: measured}
    text = _Kept(sha256=network.sha256, devices=devices).model_dump_json(indent=1) + "\n"
    path = _path(network)
    try:
        handle, temporary = tempfile.mkstemp(prefix=".envelope-", dir=path.parent)
    except OSError:
        return False
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).chmod(0o644)  # what the tables of `overread models` show is no secret
        Path(temporary).replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        return False
    return True


def measure_batches(
    run: Callable[[int], tuple[float, int] | None], *, memory_bytes: int, longest_seconds: float, largest: int
) -> tuple[dict[int, float], dict[int, int]]:
    """Try batches of 1, 2, 4, 8, ... as long as that is short, allowed, and gains something.

    Parameters
    ----------
    run
        Runs batches of a size: seconds of one (median), and bytes taken while it ran; None if they can't be run.
    memory_bytes
        What a batch may take.
    longest_seconds
        What a batch may last.
    largest
        The largest batch that is allowed.

    Returns
    -------
    seconds, bytes
        By batch size. Empty where not even one patch can be run.
    """
    seconds: dict[int, float] = {}
    taken: dict[int, int] = {}
    spent, size = 0.0, 1
    while size <= largest:
        measured = run(size)
        if measured is None:
            break
        seconds[size], taken[size] = measured
        spent += 3 * seconds[size]
        before = seconds.get(size // 2)
        if before is not None and seconds[size] / size > _GAIN * before / (size // 2):
            break
        if size > 1 and seconds[1] > _SLOW_SECONDS:
            break
        if spent > _PATIENCE_SECONDS or 2 * seconds[size] > longest_seconds or 2 * taken[size] > memory_bytes:
            break
        size *= 2
    return seconds, taken


def _path(network: Network) -> Path:
    return network.file.with_name("envelope.json")


def _read(network: Network) -> _Kept | None:
    try:
        kept = _Kept.model_validate_json(_path(network).read_bytes())
    except (OSError, ValidationError):  # none yet, or spoilt: it is measured again
        return None
    return kept if kept.sha256 == network.sha256 else None
