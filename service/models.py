"""The models directory: which models are there, and which of them can run.

One broken folder hurts nobody: `survey` tells of it, and the other models run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from service import log
from service.errors import ConfigError, ServiceError
from service.spec import ModelSpec, read_spec
from service.types import Model, Network


def available(directory: Path) -> list[ModelSpec]:
    """The models of a directory, installed or not, by name; of one whose ``model.toml`` is wrong `survey` tells.

    Raises
    ------
    ConfigError
        If there is no such directory.
    """
    return [spec for _, spec in _read(directory) if isinstance(spec, ModelSpec)]


def network_file(directory: Path, network: str) -> Path:
    """Where a network's ONNX file lies, as in a Triton model repository."""
    return directory / network / "1" / "model.onnx"


def is_installed(directory: Path, spec: ModelSpec) -> bool:
    """Whether all networks of a model are there."""
    return all(network_file(directory, network).exists() for network in spec.networks())


def installed(directory: Path, names: Sequence[str] = ()) -> list[Model]:
    """The installed models, or those named, each with the identity of its weights.

    Without names, a broken one is logged and left out.

    Raises
    ------
    ConfigError
        If a named model is not there, not installed or broken, or if there is none that can run.
    """
    models, broken = survey(directory, names)
    for name in names:
        if name in broken:
            raise broken[name]
    for name, error in broken.items():
        log.warning("model.broken", error, model=name)
    if models:
        return models
    if broken:
        raise next(iter(broken.values()))
    specs = available(directory)
    raise ConfigError(
        doing=f"looking for installed models in {directory}",
        found="none",
        rule="at least one model is installed",
        way_out="overread models install " + (specs[0].name if specs else "NAME"),
    )


def survey(directory: Path, names: Sequence[str] = ()) -> tuple[list[Model], dict[str, ServiceError]]:
    """The models that can run, and those that can't, each with its error.

    Parameters
    ----------
    names
        The models wanted, in this order; empty: all that are installed, without demonstrations. One that is named and
        is not there is broken; one that is not named is passed over.

    Raises
    ------
    ConfigError
        If there is no such directory.
    """
    read = dict(_read(directory))
    models: list[Model] = []
    broken: dict[str, ServiceError] = {}
    for name in dict.fromkeys(names or read):
        spec = read.get(name)
        try:
            if isinstance(spec, ServiceError):
                raise spec
            if spec is not None and spec.demonstration and not names:
                continue
            if spec is not None and is_installed(directory, spec):
                models.append(model_of(spec, directory / name, directory))
            elif names:
                raise _not_there(directory, name, read)
        except ServiceError as exc:
            broken[name] = exc
    return _agreed(models, broken), broken


def model_of(spec: ModelSpec, folder: Path, *directories: Path) -> Model:
    """A model whose networks lie in the first of some directories that has them.

    Raises
    ------
    ConfigError
        If one of its files is not there, or is not the one that ``model.toml`` pins.
    """
    networks = tuple(_network(spec, name, directories) for name in spec.networks())
    together = hashlib.sha256()  # result UIDs depend on how this is derived
    for network in networks:
        together.update(bytes.fromhex(network.sha256))
    return Model(spec=spec, folder=folder, weights_sha256=together.hexdigest(), networks=networks)


def _network(spec: ModelSpec, name: str, directories: Sequence[Path]) -> Network:
    doing = f"reading the network {name} of {spec.name}"
    file = next((path for path in (network_file(d, name) for d in directories) if path.is_file()), None)
    try:
        if file is None:
            raise FileNotFoundError(0, "there is no such file", name)
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as exc:
        raise ConfigError(
            doing=doing,
            found=exc.strerror or type(exc).__name__,
            rule=f"its ONNX file is {name}/1/model.onnx in the models directory",
            way_out=f"overread models install {spec.name}",
        ) from exc
    pinned = spec.source.onnx_sha256.get(name, found)
    if found != pinned:
        raise ConfigError(
            doing=doing,
            found=f"{name}/1/model.onnx has the SHA-256 {found}",
            rule=f"[source.onnx_sha256] of model.toml pins {pinned}",
            way_out=f"do not use these weights; find out what changed them, or overread models install {spec.name} "
            "--replace",
        )
    stage = spec.networks()[name]
    assert stage.input  # a network stage has one
    return Network(
        name=name,
        file=file,
        sha256=found,
        input=stage.input,
        outputs=stage.outputs,
        half_precision=spec.half_precision,
    )


def _agreed(models: Sequence[Model], broken: dict[str, ServiceError]) -> list[Model]:
    """The models of those that share networks rightly.

    A network is loaded once. Where two models describe it differently, the file says who is wrong; where one of them
    needs 32 bit, both get them.
    """
    from service.graph import hold  # seldom needed, and heavy

    described: dict[str, list[Network]] = {}
    for model in models:
        for network in model.networks:
            described.setdefault(network.name, []).append(network)
    kept = []
    for model in models:
        try:
            for network in model.networks:
                if any((it.input, it.outputs) != (network.input, network.outputs) for it in described[network.name]):
                    hold(network)
        except ServiceError as exc:
            broken[model.spec.name] = exc
        else:
            kept.append(model)
    return [
        replace(
            model,
            networks=tuple(
                replace(network, half_precision=all(it.half_precision for it in described[network.name]))
                for network in model.networks
            ),
        )
        for model in kept
    ]


def _read(directory: Path) -> Iterator[tuple[str, ModelSpec | ServiceError]]:
    """Each model folder's name, with what its ``model.toml`` says or what is wrong with it."""
    if not directory.is_dir():
        raise ConfigError(
            doing=f"looking for models in {directory}",
            found="no such folder",
            rule="[analysis] models_directory is a folder of model folders",
            way_out="name the folder `models` of this project, or your own: there, or with --models-directory",
        )
    for path in sorted(directory.glob("*/model.toml")):
        if path.parent.name.startswith("."):  # an installation on its way
            continue
        try:
            yield path.parent.name, read_spec(path.parent)
        except ServiceError as exc:
            yield path.parent.name, exc


def _not_there(directory: Path, name: str, read: dict[str, ModelSpec | ServiceError]) -> ConfigError:
    return ConfigError(
        doing=f"choosing the model {name}",
        found="it is not installed" if name in read else f"no folder of that name in {directory}",
        rule="a model to be run is a folder with model.toml and the ONNX files of its networks",
        way_out=f"overread models install {name}" if name in read else f"choose from: {', '.join(read) or 'none'}",
    )
