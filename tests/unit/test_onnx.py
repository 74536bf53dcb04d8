"""Networks in process: the right tensors or a broken contract in four parts, and right answers to many at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from service.analysis.onnx import OnnxBackend, translate
from service.errors import ContractBroken, OutOfMemory
from service.spec import read_spec
from service.types import Model
from tests.toys import REACH, WINDOW, write_model

SIZE = WINDOW + 2 * REACH


def _model(folder: Path) -> Model:
    return Model(spec=read_spec(folder), folder=folder, weights_sha256="")


def _backend(folder: Path, threads: int = 2) -> OnnxBackend:
    backend = OnnxBackend(threads=threads)
    backend.load(_model(folder))
    return backend


def _edit_toml(old: str, new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        text = (folder / "model.toml").read_text()
        assert old in text
        (folder / "model.toml").write_text(text.replace(old, new))

    return edit


def _replace_network(**tensors: tuple[int, list[int | str]]) -> Callable[[Path], None]:
    """A network that adds its inputs, with these tensors: name -> (type, shape); the last one is the output."""

    def edit(folder: Path) -> None:
        values = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in tensors.items()]
        names = list(tensors)
        nodes = [helper.make_node("Sum", names[:-1], names[-1:])]
        graph = helper.make_graph(nodes, "other", values[:-1], values[-1:])
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.save(made, str(folder / "1" / "model.onnx"))

    return edit


def _remove(folder: Path) -> None:
    (folder / "1" / "model.onnx").unlink()


def _garbage(folder: Path) -> None:
    (folder / "1" / "model.onnx").write_bytes(b"\x00" * 100)


def _cut(folder: Path) -> None:
    path = folder / "1" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-40])


F, D = TensorProto.FLOAT, TensorProto.DOUBLE
IN: list[int | str] = ["N", 1, SIZE, SIZE, SIZE]
OUT: list[int | str] = ["N", 1, WINDOW, WINDOW, WINDOW]
BROKEN = {
    "no file": (_remove, "bright"),
    "garbage": (_garbage, "bright"),
    "half a file": (_cut, "bright"),
    "another input name": (_edit_toml('"input"', '"image"'), "image"),
    "another output name": (_edit_toml('"probability"', '"mask"'), "mask"),
    "another input size": (_edit_toml("[24, 24, 24]", "[24, 24, 32]"), "32"),
    "another output size": (_edit_toml("[16, 16, 16]", "[16, 14, 16]"), "14"),
    "more input channels": (_edit_toml('"input",', '"input", channels = 2,'), r"\[2, 24"),
    "doubles": (_replace_network(input=(D, IN), probability=(D, IN)), "double"),
    "two inputs": (_replace_network(input=(F, IN), mask=(F, IN), probability=(F, IN)), "2 of them"),
    "four axes": (_replace_network(input=(F, IN[1:]), probability=(F, IN[1:])), r"\[24, 24, 24\]"),
    "sizes left open": (_replace_network(input=(F, ["N", 1, "x", "y", "z"]), probability=(F, OUT)), "'x'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_network_that_is_not_the_one_described_breaks_the_contract(case: str, tmp_path: Path) -> None:
    edit, named = BROKEN[case]
    folder = write_model(tmp_path)
    edit(folder)
    with pytest.raises(ContractBroken, match=named) as caught:
        _backend(folder)
    assert all(caught.value.parts().values())
    assert "bright" in caught.value.doing
    assert caught.value.retry is False


def test_a_network_is_loaded_from_its_own_folder(tmp_path: Path) -> None:
    write_model(tmp_path, "organ")
    folder = write_model(tmp_path, "bright")
    _edit_toml('name = "ball"', 'name = "ball"\nnetwork = "organ"')(folder)
    _remove(folder)
    backend = _backend(folder)
    assert backend.infer("organ", np.ones((1, 1, SIZE, SIZE, SIZE), np.float32)).shape == (1, 1, *[WINDOW] * 3)


def test_a_batch_is_answered_patch_by_patch(tmp_path: Path) -> None:
    backend = _backend(write_model(tmp_path))
    batch = np.stack([np.full((1, SIZE, SIZE, SIZE), value, np.float32) for value in (0.0, 0.6, 1.0)])
    answer = backend.infer("bright", batch)
    assert answer.shape == (3, 1, WINDOW, WINDOW, WINDOW)
    assert answer.dtype == np.float32
    np.testing.assert_allclose(answer[:, 0, 0, 0, 0], [0.0, 0.5, 1.0], atol=1e-6)
    assert backend.name.startswith("onnxruntime ")


def test_many_threads_at_once_get_their_own_answers(tmp_path: Path) -> None:
    for name in ("bright", "other"):
        write_model(tmp_path, name)
    backend = OnnxBackend(threads=2)
    for name in ("bright", "other"):
        backend.load(_model(tmp_path / name))
    values = np.linspace(0.5, 0.7, 48)

    def ask(number: int) -> float:
        patch = np.full((1, 1, SIZE, SIZE, SIZE), values[number], np.float32)
        answer = backend.infer(("bright", "other")[number % 2], patch)
        assert answer.min() == answer.max()
        return float(answer.flat[0])

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(len(values))))
    np.testing.assert_allclose(answers, 1 / (1 + np.exp(-50 * (values - 0.6))), atol=1e-4)


def test_two_threads_may_load_at_once(tmp_path: Path) -> None:
    model = _model(write_model(tmp_path))
    backend = OnnxBackend(threads=1)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: backend.load(model), range(4)))
    assert len(backend._sessions) == 1


@pytest.mark.parametrize("shape", [(1, 1, 8, 8, 8), (1, 2, SIZE, SIZE, SIZE), (1, SIZE, SIZE, SIZE)])
def test_a_patch_of_another_shape_breaks_the_contract(shape: tuple[int, ...], tmp_path: Path) -> None:
    backend = _backend(write_model(tmp_path))
    with pytest.raises(ContractBroken, match="running the network bright") as caught:
        backend.infer("bright", np.zeros(shape, np.float32))
    assert all(caught.value.parts().values())


@pytest.mark.parametrize(
    "message",
    [
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 1024",
        "CUDA failure 2: out of memory ; GPU=0",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
        "std::bad_alloc",
        "bad allocation",
    ],
)
def test_too_little_memory_is_tried_again(message: str) -> None:
    error = translate(RuntimeError(message), "running the network bright")
    assert isinstance(error, OutOfMemory)
    assert error.retry
    assert all(error.parts().values())


@pytest.mark.parametrize("message", ["", "one line\nand another", "x" * 5000])
def test_whatever_else_goes_wrong_is_final_and_told_on_one_line(message: str) -> None:
    error = translate(ValueError(message), "running the network bright")
    assert isinstance(error, ContractBroken)
    assert not error.retry
    assert error.found.startswith("ValueError: ")
    assert "\n" not in error.found
    assert len(error.found) < 400


def test_threads_are_shared_out_among_the_slots(tmp_path: Path) -> None:
    assert OnnxBackend(threads=1).slots == 1
    assert OnnxBackend(threads=8).slots == 2
    folder = write_model(tmp_path)
    answer = _backend(folder, threads=1).infer("bright", np.ones((1, 1, SIZE, SIZE, SIZE), np.float32))
    assert answer.min() > 0.99


def test_a_network_that_broke_its_contract_is_never_run(tmp_path: Path) -> None:
    """The service starts without it; a study that asks for it must not be answered by a network nobody described."""
    folder = write_model(tmp_path)
    _edit_toml('"probability"', '"mask"')(folder)
    backend = OnnxBackend(threads=1)
    with pytest.raises(ContractBroken):
        backend.load(_model(folder))
    for network in ("bright", "unknown"):
        with pytest.raises(ContractBroken, match=f"running the network {network}"):
            backend.infer(network, np.ones((1, 1, SIZE, SIZE, SIZE), np.float32))
