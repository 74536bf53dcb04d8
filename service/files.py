"""Files as both ends of the product know them: typed TOML that is read, folders whose names are made durable."""

from __future__ import annotations

import errno
import os
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from service.errors import ConfigError


class Frozen(BaseModel):
    """A value from a file: never changed, never with a key that nobody reads."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


Kind = TypeVar("Kind", bound=Frozen)


def read_toml(path: Path, kind: type[Kind]) -> Kind:
    """Read a TOML file into its type.

    Raises
    ------
    ConfigError
        With the file, and the syntax or the keys that are wrong.
    """
    try:
        return kind.model_validate(tomllib.loads(path.read_text("utf-8")))
    except OSError as exc:
        raise ConfigError(
            doing=f"reading {path}",
            found=exc.strerror or type(exc).__name__,
            rule="the file is there, and may be read",
            way_out="name a file that exists, or make it",
        ) from exc
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(
            doing=f"reading {path}",
            found=str(exc),
            rule="it is one readable TOML file in UTF-8",
            way_out="mend its syntax",
        ) from exc
    except ValidationError as exc:
        found = [
            f"{'.'.join(str(part) for part in error['loc']) or 'the file'}: "
            + (
                "there is no such key"
                if error["type"] == "extra_forbidden"
                else error["msg"].removeprefix("Value error, ")
            )
            for error in exc.errors()
            # A list whose entries are all wrong counts as empty: that is no mistake of its own.
            if not (error["type"] == "too_short" and error["input"])
        ]
        raise ConfigError(
            doing=f"reading {path}",
            found="; ".join(found),
            rule="each key is one that the tables of deploy/README.md and models/README.md name, within its bounds",
            way_out="mend, add or remove the keys named here",
        ) from exc


def make_folder(path: Path) -> None:
    """Make a folder with all its parents, and make their names durable; where it is there, see that its name is.

    Whoever has returned from here may rely on the folder after a power cut, also where another process made it a moment
    ago, or one that was killed on the way: nothing is made in a new folder before its name is durable, so of the
    folders that are there only the last one's name may not be.

    Raises
    ------
    OSError
        If it can't be made, or something else has its name.
    """
    path = path.resolve()  # a name is made durable in the folder where it really is
    found, missing = path, list[Path]()
    while not found.exists():
        missing.append(found)
        found = found.parent
    with suppress(PermissionError):  # what is there in a folder that we may not even read is not of our making
        sync_folder(found.parent)
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)  # another process may have been faster
        sync_folder(folder.parent)
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable (fsync of the directory)."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
