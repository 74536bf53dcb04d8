"""A folder or a zip file, opened with care: nothing of an archive is written outside its own scratch folder."""

from __future__ import annotations

import json
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from service.imports.refusal import CannotImport

_SUFFIXES = (".json", ".onnx", ".ts")  # all that an import reads; checkpoints are large and stay in the archive
_NAMES = ("license", "licence", "license.txt", "licence.txt")
_GREATEST = {".json": 64 << 20, ".onnx": 8 << 30, ".ts": 8 << 30}  # bytes unpacked; a small zip may hold a huge file


class Opened(NamedTuple):
    """A model's folder."""

    folder: Path  # in which the marker lies
    name: str  # what that folder, or else the zip file, is called


@contextmanager
def opened(source: Path, marker: str) -> Iterator[Opened]:
    """The folder in which `marker` lies: `source` itself, one inside it, or one inside the zip file.

    Raises
    ------
    CannotImport
        If it is neither folder nor zip file, has no (or no one) such folder, or an unsafe entry.
    """
    if source.is_dir():
        names = [path.relative_to(source).as_posix() for path in source.rglob(PurePosixPath(marker).name)]
        folder = (source / _root(names, marker, source)).resolve()
        yield Opened(folder, folder.name)
        return
    with tempfile.TemporaryDirectory(prefix="overread-import-") as scratch:
        root = PurePosixPath(_unpacked(source, marker, Path(scratch)))
        yield Opened(Path(scratch) / root, root.name or source.stem)


def read_json(path: Path, name: str) -> dict[str, Any]:
    """A JSON object from a file of the model.

    Raises
    ------
    CannotImport
        If it is missing or no JSON object.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise CannotImport(
            doing=f"reading {name}",
            found=f"{type(exc).__name__}: {exc}",
            rule="it is a JSON file in UTF-8",
            way_out="export the model again; a configuration in YAML must be written as JSON",
        ) from exc
    if not isinstance(content, dict):
        raise CannotImport(
            doing=f"reading {name}",
            found=f"a {type(content).__name__}",
            rule="it holds one JSON object",
            way_out="export the model again",
        )
    return content


def _root(names: Sequence[str], marker: str, source: Path) -> str:
    """Folder of the marker, the least deep one; relative to the source, empty for the source itself."""
    depth = len(PurePosixPath(marker).parts)
    roots = sorted(
        PurePosixPath(*PurePosixPath(name).parts[:-depth])
        for name in names
        if PurePosixPath(name).parts[-depth:] == PurePosixPath(marker).parts
    )
    least = min((len(root.parts) for root in roots), default=0)
    roots = [root for root in roots if len(root.parts) == least]
    if len(roots) != 1:
        raise CannotImport(
            doing=f"opening {source.name}",
            found=f"{marker} in {', '.join(map(str, roots))}" if roots else f"no {marker}",
            rule=f"one model is imported at a time, from the folder or zip file that holds its {marker}",
            way_out="name the folder of one model" if roots else "name the model's own folder, or its zip file",
        )
    return str(roots[0])


def _unpacked(source: Path, marker: str, scratch: Path) -> str:
    doing = f"opening {source.name}"
    try:
        with zipfile.ZipFile(source) as archive:
            entries = archive.infolist()
            _check(entries, doing)
            for entry in entries:
                name = PurePosixPath(entry.filename)
                if entry.is_dir() or not (name.suffix in _SUFFIXES or name.name.lower() in _NAMES):
                    continue
                target = scratch / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as packed, target.open("wb") as file:
                    shutil.copyfileobj(packed, file, 1 << 20)
            return _root([entry.filename for entry in entries if not entry.is_dir()], marker, source)
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as exc:  # RuntimeError: it is encrypted
        raise CannotImport(
            doing=doing,
            found=f"{type(exc).__name__}: {exc}",
            rule="a model comes as a folder, or as a zip file that can be unpacked",
            way_out="name an existing folder or zip file; unpack it yourself if it is encrypted",
        ) from exc


def _check(entries: Sequence[zipfile.ZipInfo], doing: str) -> None:
    """Refuse the whole archive for one entry that has no business in it."""
    seen: set[str] = set()
    for entry in entries:
        name = entry.filename
        path = PurePosixPath(name)
        reason = ""
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
            reason = "leads out of the archive's folder"
        elif stat.S_ISLNK(entry.external_attr >> 16):
            reason = "is a link"
        elif name in seen:
            reason = "is there twice"
        elif entry.file_size > _GREATEST.get(path.suffix, entry.file_size):
            reason = f"unpacks to {entry.file_size} bytes"
        if reason:
            raise CannotImport(
                doing=doing,
                found=f"the entry {name!r} {reason}",
                rule="every entry of a model's zip file is a file inside its folder, once, of a sensible size",
                way_out="do not use this file; ask who made it for another one",
            )
        seen.add(name)
