"""[edge: disk] Results of finished stages, kept until their study is answered: another try need not compute them again.

A model of several stages may compute for a minute before its last one, and a crash would cost all of it. What later
stages need of an earlier one is its mask: small on disk, and quick to write.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Collection
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from service import __version__, log
from service.analysis.layout import Map
from service.analysis.resample import Grid
from service.files import sync_folder
from service.stage import Stage
from service.types import Model, SourceVolume

# Of computing: a result that took less is not kept. To keep one and to find it again costs 0.6 to 0.7 s for 250 x 512 x
# 512 voxels, nearly all of it to digest the volume twice; of a shorter stage a crash costs little more than that.
_WORTH_SECONDS = 2.0
_DIGEST_BYTES = 32
_FOLDER = "work"


def folder_of(directory: Path, study_uid: str, revision: int) -> Path:
    """Where the stages of one analysis are kept."""
    return directory / _FOLDER / study_uid / str(revision)


def clear_all_but(directory: Path, wanted: Collection[tuple[str, int]]) -> None:
    """Remove what was kept for analyses that nobody will take up again.

    A removed result is computed again, so that an analysis which begins meanwhile loses time only.

    Parameters
    ----------
    directory
        As in `folder_of`.
    wanted
        Study Instance UID and revision of all that are not answered yet, whichever process works on them.
    """
    names = {(study_uid, str(revision)) for study_uid, revision in wanted}
    for folder in (directory / _FOLDER).glob("*/*"):
        if not folder.parent.is_symlink() and (folder.parent.name, folder.name) not in names:
            KeptStages(folder).clear()


class KeptStages:
    """The results of the finished stages of one analysis, of all its models.

    Thread-safe; nothing here ever raises, for whatever can't be kept or read is computed.

    Parameters
    ----------
    folder
        Theirs alone. It is made when there is something to keep.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = Lock()
        self._fails = False

    def of(self, source: SourceVolume, model: Model, backend: str) -> StageKeeper:
        """Those of one model on one volume."""
        return StageKeeper(self, source, model, backend)

    def clear(self) -> None:
        """Remove them all, and the study's folder if it is empty then."""
        shutil.rmtree(self._folder, ignore_errors=True)
        with suppress(OSError):
            self._folder.parent.rmdir()

    def is_empty(self) -> bool:
        """Whether nothing is kept; cheap."""
        return not any(self._folder.glob("*"))

    def read(self, key: str) -> Map | None:
        """A result; None if there is none. A damaged one is removed."""
        path = self._folder / key
        try:
            return _decoded(path.read_bytes(), key)
        except FileNotFoundError:
            return None
        except Exception as exc:  # whatever a damaged file makes of the libraries that read it
            log.failure("stage.unreadable", exc, file=str(path))
            with suppress(OSError):
                path.unlink()
            return None

    def write(self, key: str, found: Map) -> None:
        """Keep a result; after the first failure nothing more is tried, nor said."""
        if self._fails:
            return
        try:
            self._write(key, _encoded(found, key))
        except Exception as exc:  # a full disk, as a rule: it costs what is kept, and not the answer
            with self._lock:
                known, self._fails = self._fails, True
            if not known:
                log.failure("stage.not_kept", exc, folder=str(self._folder))

    def _write(self, key: str, content: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)  # should a power cut take its name, the stage is computed
        draft = self._folder / f".{uuid.uuid4().hex}"
        try:
            with draft.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.rename(self._folder / key)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        sync_folder(self._folder)


class StageKeeper:
    """The kept stages of one model on one volume, each under a key of all that its result depends on.

    These are the images, and the volume that was read of them: its values and where they lie; the stage's own
    specification, its networks and what runs them; the mask in which it works; and this program. The model's name does
    not count: two that have a stage in common share its result.
    """

    def __init__(self, kept: KeptStages, source: SourceVolume, model: Model, backend: str) -> None:
        self._kept, self._source, self._model, self._backend = kept, source, model, backend

    def find(self, stage: Stage, region: Map | None) -> Map | None:
        """The kept result of a stage, if there is one.

        Parameters
        ----------
        region
            What the stage found in whose mask this one works.
        """
        if self._kept.is_empty():  # as at each first try: then nothing is read for the key
            return None
        began = time.perf_counter()
        found = self._kept.read(self._key(stage, region))
        if found:
            log.event(
                "stage.kept_used",
                series_uid=self._source.series.series_instance_uid,
                model=self._model.spec.name,
                stage=stage.name,
                seconds=round(time.perf_counter() - began, 3),
            )
        return found

    def keep(self, stage: Stage, region: Map | None, found: Map, *, seconds: float) -> None:
        """Keep what a stage found, if it took long enough to compute."""
        if seconds >= _WORTH_SECONDS:
            self._kept.write(self._key(stage, region), found)

    def _key(self, stage: Stage, region: Map | None) -> str:
        names = self._model.spec.networks_of(stage)
        networks = [(it.sha256, it.half_precision) for name in names for it in self._model.networks if it.name == name]
        assert len(networks) == len(names)
        said = [
            __version__,
            self._volume,
            stage.model_dump_json(),
            networks,
            self._backend,
            region and [_grid_of(region), _digest(_packed(region.mask))],
        ]
        return _digest(json.dumps(said).encode())

    @cached_property
    def _volume(self) -> str:
        """Digest of the volume's values, where they lie, and of which images they are."""
        volume = self._source.volume
        images = [instance.sop_instance_uid for instance in self._source.ordered]
        place = [images, volume.array.dtype.str, list(volume.spatial_shape), volume.affine.tolist()]
        digest = hashlib.blake2b(json.dumps(place).encode(), digest_size=_DIGEST_BYTES)
        for plane in volume.array:  # a copy, where it takes one, is of a slice
            digest.update(np.ascontiguousarray(plane).data.cast("B"))
        return digest.hexdigest()


# --- A result as bytes ----------------------------------------------------------------------------------------------


def _encoded(found: Map, key: str) -> bytes:
    """A digest, then (compressed) the grid as a line of JSON and the mask as bits."""
    body = zlib.compress(json.dumps(_grid_of(found)).encode() + b"\n" + _packed(found.mask), level=1)
    return bytes.fromhex(_digest(key.encode() + body)) + body


def _decoded(content: bytes, key: str) -> Map:
    body = content[_DIGEST_BYTES:]
    if content[:_DIGEST_BYTES] != bytes.fromhex(_digest(key.encode() + body)):
        raise ValueError("not what was written under this key")
    line, _, bits = zlib.decompress(body).partition(b"\n")
    shape, spacing, start = json.loads(line)
    grid = Grid(shape=tuple(shape), spacing_mm=tuple(spacing), start_mm=tuple(start))
    mask = np.unpackbits(np.frombuffer(bits, np.uint8), count=int(np.prod(grid.shape)))
    return Map(grid=grid, mask=mask.view(np.bool_).reshape(grid.shape), probability=None)


def _grid_of(found: Map) -> list[list[float]]:
    """The numbers of its grid; JSON gives each back as it was, to the last bit."""
    grid = found.grid
    return [list(grid.shape), [float(mm) for mm in grid.spacing_mm], [float(mm) for mm in grid.start_mm]]


def _packed(mask: NDArray[np.bool_]) -> bytes:
    """A mask, bool [slices, rows, columns], as bits."""
    return np.packbits(mask).tobytes()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()
