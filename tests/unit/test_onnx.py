"""Networks on ONNX Runtime: the right tensors or a broken contract in exact words, and what a network takes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from service.backends import onnx as ours
from service.backends.onnx import Runtime, translate
from service.backends.providers import choose_providers, memory_limit
from service.errors import BackendUnavailable, ContractBroken, OutOfMemory
from service.stage import Tensor
from service.types import Network
from tests.graphs import FREE, OUTPUT, Values, doubling, network_of, write_network

F, D = TensorProto.FLOAT, TensorProto.DOUBLE
Tensors = dict[str, tuple[int, list[int | str]]]


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime(threads=1, memory_gib=0.0)


def _other(inputs: Tensors | None = None, outputs: Tensors | None = None) -> Callable[[Path], Network]:
    """A network with these tensors, described as if it had the usual ones."""

    def make(models: Path) -> Network:
        first = next(iter(inputs or ["image"]))
        nodes = [helper.make_node("Identity", [first], [name]) for name in outputs or ["map"]]
        return network_of(write_network(models, "other", nodes, inputs=inputs, outputs=outputs))

    return make


def _said(**changes: Tensor | tuple[Tensor, ...]) -> Callable[[Path], Network]:
    """The doubling network, described wrongly."""
    return lambda models: replace(doubling(models), **changes)  # type: ignore[arg-type]


def _spoilt(spoil: Callable[[bytes], bytes], *, known: bool) -> Callable[[Path], Network]:
    """The doubling network with other bytes, of which the installation knows or does not."""

    def make(models: Path) -> Network:
        network = doubling(models)
        network.file.write_bytes(spoil(network.file.read_bytes()))
        return network_of(network.file) if known else network

    return make


def _removed(models: Path) -> Network:
    network = doubling(models)
    network.file.unlink()
    return network


def _too_new(*, opset: int = 17, ir_version: int = 9) -> Callable[[Path], Network]:
    nodes = [helper.make_node("Identity", ["image"], ["map"])]
    return lambda models: network_of(write_network(models, "new", nodes, opset=opset, ir_version=ir_version))


def _open_output(models: Path) -> Network:
    """As many columns as the image's greatest value says: ONNX Runtime can't know them beforehand."""
    nodes = [
        helper.make_node("ReduceMax", ["image"], ["greatest"], keepdims=0),
        helper.make_node("Cast", ["greatest"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["whole", "axes"], ["end"]),
        helper.make_node("Slice", ["image", "start", "end", "axis"], ["map"]),
    ]
    constants: Values = {name: np.array([value]) for name, value in (("axes", 1), ("start", 0), ("axis", 3))}
    columns: Tensors = {"map": (F, ["N", 1, 4, "columns"])}
    return network_of(write_network(models, "open", nodes, constants, outputs=columns))


def _unknown_operator(models: Path) -> Network:
    return network_of(write_network(models, "odd", [helper.make_node("Divine", ["image"], ["map"])]))


BROKEN: dict[str, tuple[Callable[[Path], Network], str]] = {
    "no file": (_removed, "model.onnx can't be read: No such file or directory"),
    "garbage": (_spoilt(lambda _: b"\x00" * 100, known=True), "InvalidProtobuf: "),
    "half a file": (_spoilt(lambda given: given[:-40], known=True), "InvalidProtobuf: "),
    "other weights": (_spoilt(lambda given: given + b"\x00", known=False), "model.onnx has the sha256 "),
    "a newer opset": (_too_new(opset=99), "opset 99 of ai.onnx. ONNX Runtime 1.31.1 knows opsets up to 26"),
    "a newer file format": (_too_new(ir_version=99), "version 99 of ONNX's file format. ONNX Runtime 1.31.1 knows"),
    "an operator that nobody knows": (_unknown_operator, "Divine"),
    "another input name": (_said(input=Tensor(name="x", shape=(4, 4))), "no input 'x', but 'image'"),
    "another output name": (_said(outputs=(Tensor(name="y", shape=(4, 4)),)), "no output 'y', but 'map'"),
    "an output missing": (_said(outputs=(OUTPUT, Tensor(name="scores", shape=()))), "no output 'scores', but 'map'"),
    "another input size": (_said(input=Tensor(name="image", shape=(4, 5))), "axis 3 of input 'image' is 4, not 5"),
    "another output size": (_said(outputs=(Tensor(name="map", shape=(3, 4)),)), "axis 2 of output 'map' is 4, not 3"),
    "more channels": (_said(input=Tensor(name="image", channels=2, shape=(4, 4))), "axis 1 of input 'image' is 1, not"),
    "fewer axes": (
        _said(input=Tensor(name="image", shape=(4,))),
        "input 'image' has 4 axes ['N', 1, 4, 4], not the batch axis and [1, 4]",
    ),
    "doubles": (
        _other({"image": (D, FREE)}, {"map": (D, FREE)}),
        "input 'image' is tensor(double), not tensor(float)",
    ),
    "an output of integers": (
        lambda models: network_of(
            write_network(
                models,
                "whole",
                [helper.make_node("Shape", ["image"], ["map"])],
                outputs={"map": (TensorProto.INT64, [4])},
            )
        ),
        "output 'map' is tensor(int64), not tensor(float)",
    ),
    "a further input": (
        lambda models: network_of(
            write_network(
                models,
                "two",
                [helper.make_node("Add", ["image", "mask"], ["map"])],
                inputs={"image": (F, FREE), "mask": (F, FREE)},
            )
        ),
        "2 inputs: image, mask. model.toml names 1 input,",
    ),
    "a further output": (_other(None, {"map": (F, FREE), "more": (F, FREE)}), "2 outputs: map, more"),
    "a fixed batch": (
        _other({"image": (F, [2, 1, 4, 4])}, {"map": (F, [2, 1, 4, 4])}),
        "axis 0 of input 'image', the batch axis, is fixed at 2",
    ),
    "a size left open": (
        _other({"image": (F, ["N", 1, "rows", 4])}, {"map": (F, ["N", 1, "rows", 4])}),
        "axis 2 of input 'image' is open ('rows'), where the size 4 is needed",
    ),
    "a size of the output left open": (
        _open_output,
        "axis 3 of output 'map' is open ('columns'), where the size 4 is needed",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_network_that_is_not_the_one_described_breaks_the_contract(
    case: str, runtime: Runtime, tmp_path: Path
) -> None:
    make, words = BROKEN[case]
    network = make(tmp_path)
    with pytest.raises(ContractBroken, match=re.escape(words)) as caught:
        runtime.load(network, 0)
    assert all(caught.value.parts().values())
    assert network.name in caught.value.doing
    assert caught.value.retry is False


def test_an_answer_of_another_shape_than_the_graph_declares_breaks_the_contract(
    runtime: Runtime, tmp_path: Path
) -> None:
    """A graph may declare what it likes; here the map is transposed. It shows when the network is warmed up."""
    nodes = [helper.make_node("Transpose", ["image"], ["map"], perm=[0, 1, 3, 2])]
    reads: Tensors = {"image": (F, ["N", 1, 4, 6])}
    answers: Tensors = {"map": (F, ["N", 1, 4, 6])}
    file = write_network(tmp_path, "turned", nodes, inputs=reads, outputs=answers)
    network = network_of(file, input=Tensor(name="image", shape=(4, 6)), outputs=(Tensor(name="map", shape=(4, 6)),))
    with pytest.raises(ContractBroken):
        runtime.load(network, 0)


# --- Errors ---------------------------------------------------------------------------------------------------------


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


def test_pythons_own_lack_of_memory_is_the_same() -> None:
    assert isinstance(translate(MemoryError(), "running the network bright"), OutOfMemory)


@pytest.mark.parametrize("message", ["CUDA failure 700: an illegal memory access was encountered", "CUDNN failure 8"])
def test_a_gpu_that_fails_may_answer_again_later(message: str) -> None:
    error = translate(RuntimeError(message), "running the network bright")
    assert isinstance(error, BackendUnavailable)
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


# --- What a network takes -------------------------------------------------------------------------------------------

MIB = 2**20


def _hungry(models: Path, name: str, *, weights_mib: int, batch_mib: int) -> Network:
    """Holds weights of that size, and for each patch that much for a moment."""
    rng = np.random.default_rng(0)
    constants: Values = {
        "weights": rng.random(weights_mib * MIB // 4, dtype=np.float32),
        "wide": np.array([1, batch_mib * MIB // 4 // 16, 4, 4], np.int64),
        "start": np.array([0], np.int64),
        "end": np.array([1], np.int64),
        "axes": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Expand", ["image", "wide"], ["much"]),
        helper.make_node("Slice", ["much", "start", "end", "axes"], ["one"]),
        helper.make_node("ReduceMax", ["weights"], ["few"], keepdims=0),
        helper.make_node("ReduceMax", ["image"], ["any"], keepdims=0),
        helper.make_node("Mul", ["weights", "any"], ["used"]),  # so that the weights are not folded away
        helper.make_node("ReduceMin", ["used"], ["least"], keepdims=0),
        helper.make_node("Add", ["one", "least"], ["map"]),
    ]
    return network_of(write_network(models, name, nodes, constants))


def test_the_memory_of_a_batch_and_of_a_loaded_network_is_seen(runtime: Runtime, tmp_path: Path) -> None:
    runtime.load(doubling(tmp_path), 0)  # what the libraries take once is not the network's
    heavy = _hungry(tmp_path, "heavy", weights_mib=48, batch_mib=1)
    assert 48 * MIB <= runtime.load(heavy, 0).resident_bytes < 56 * MIB
    runtime.unload("heavy")
    hungry = _hungry(tmp_path, "hungry", weights_mib=1, batch_mib=64)
    assert MIB <= runtime.load(hungry, 0).resident_bytes < 8 * MIB
    measured = runtime.measure(hungry, 2**40, 1e9)
    assert set(measured.batch_bytes) == set(measured.batch_seconds) >= {1, 2}
    for size in (1, 2):
        assert 64 * size * MIB <= measured.batch_bytes[size] < (64 * size + 8) * MIB
    runtime.unload("hungry")


def test_where_memory_cant_be_seen_it_is_said_to_be_what_is_known(
    runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    network = doubling(tmp_path)
    runtime.load(network, 0)
    monkeypatch.setattr(runtime._device, "begin", lambda: False)
    measured = runtime.measure(network, 2**40, 1e9)
    assert measured.batch_bytes[2] == 2 * 2 * 64 + network.file.stat().st_size
    assert "network.memory_not_measured" in caplog.messages


def test_threads_are_shared_out_among_the_slots() -> None:
    for threads, slots, share in ((1, 1, 1), (2, 2, 1), (8, 2, 4)):
        made = Runtime(threads=threads, memory_gib=1.5)
        assert made.abilities.slots == slots
        assert made.abilities.device == f"onnxruntime {ort.__version__} CPU {slots}x{share} threads"
        assert made.abilities.memory_bytes == int(1.5 * 2**30)
        options = made._session_options()
        assert (options.intra_op_num_threads, options.inter_op_num_threads) == (share, 1)
        assert not options.enable_cpu_mem_arena


# --- A GPU, as far as it can be told without one ---------------------------------------------------------------------


def _names(network: Network, *, gpu: bool, tensorrt: bool) -> list[str]:
    return [name for name, _ in choose_providers(network, gpu=gpu, tensorrt=tensorrt)]


def test_the_best_provider_that_works_goes_first(tmp_path: Path) -> None:
    network = doubling(tmp_path)
    cpu, cuda, tensorrt = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))
    assert _names(network, gpu=False, tensorrt=False) == [cpu]
    assert _names(network, gpu=False, tensorrt=True) == [cpu]
    assert _names(network, gpu=True, tensorrt=False) == [cuda, cpu]
    assert _names(network, gpu=True, tensorrt=True) == [tensorrt, cuda, cpu]
    assert {cuda, tensorrt, cpu} <= set(ort.get_all_providers())  # spelled as ONNX Runtime spells them


def test_a_gpu_is_not_told_to_round_where_the_card_does_not_allow_it(tmp_path: Path) -> None:
    exact = doubling(tmp_path)
    for network, half in ((exact, "False"), (replace(exact, half_precision=True), "True")):
        tensorrt, cuda, _ = choose_providers(network, gpu=True, tensorrt=True, limit_bytes=10**9, cache_key="H200 1.2")
        assert cuda[1]["use_tf32"] == "0"
        assert tensorrt[1]["trt_fp16_enable"] == half


def test_a_gpus_memory_is_limited_and_tensorrts_engines_are_kept_by_gpu_and_versions(tmp_path: Path) -> None:
    network = doubling(tmp_path)
    key = "NVIDIA H200 driver 570.1 libnvinfer.so.10 onnxruntime 1.31.1"
    tensorrt, cuda, _ = choose_providers(network, gpu=True, tensorrt=True, limit_bytes=10**9, cache_key=key)
    assert cuda[1]["gpu_mem_limit"] == "1000000000"
    assert cuda[1]["arena_extend_strategy"] == "kSameAsRequested"
    folder = network.file.parent / "tensorrt-NVIDIA-H200-driver-570.1-libnvinfer.so.10-onnxruntime-1.31.1"
    assert tensorrt[1]["trt_engine_cache_path"] == tensorrt[1]["trt_timing_cache_path"] == str(folder)
    assert tensorrt[1]["trt_profile_min_shapes"] == "image:1x1x4x4"
    assert tensorrt[1]["trt_profile_max_shapes"] == "image:4x1x4x4"
    assert int(tensorrt[1]["trt_max_workspace_size"]) == 5 * 10**8


def test_tensorrts_options_are_ones_that_this_onnx_runtime_knows(tmp_path: Path) -> None:
    """It refuses unknown ones only where a GPU is; here they are looked for in its library."""
    library = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_tensorrt.so"
    known = library.read_bytes()
    (_, options), *_ = choose_providers(doubling(tmp_path), gpu=True, tensorrt=True)
    assert [key for key in options if key.encode() + b"\x00" not in known] == []
    known = library.with_name("libonnxruntime_providers_cuda.so").read_bytes()
    (_, options), *_ = choose_providers(doubling(tmp_path), gpu=True, tensorrt=False)
    assert [key for key in options if key.encode() not in known] == []


def test_a_networks_limit_holds_what_it_keeps_and_a_batch_in_each_slot() -> None:
    gib = 2**30
    assert 5 * gib < memory_limit(gib, 2 * gib, 2) < 6 * gib


class _FakeGpu:
    """Tells what a GPU would; the network runs on the CPU."""

    total_bytes = 8 * 2**30

    def __init__(self, free_bytes: int) -> None:
        self._free = free_bytes
        self.held = [self.total_bytes - free_bytes]

    def held_bytes(self) -> int:
        return self.held[-1]

    def begin(self) -> bool:
        return True

    def peak_bytes(self) -> int:
        return self.held_bytes()

    def free_bytes(self) -> int:
        return self._free

    def pin(self, address: int, size: int) -> bool:
        return True

    def unpin(self, address: int) -> None: ...


@pytest.mark.parametrize(("free", "wanted"), [(7 * 2**30, False), (1 * 2**30, True)])
def test_a_gpu_short_of_memory_gets_back_what_each_batch_took(
    free: int, wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = _FakeGpu(free)
    monkeypatch.setattr(ours, "_find_device", lambda: ("CUDA", gpu, "Fake GPU driver 1"))
    made = Runtime(threads=4, memory_gib=0.0)
    assert made.abilities.name == "onnxruntime CUDA"
    assert made.abilities.device == f"onnxruntime {ort.__version__} CUDA Fake GPU driver 1"
    assert made.abilities.slots == 2
    assert made.abilities.memory_bytes == int(0.9 * free)
    key = "memory.enable_memory_arena_shrinkage"
    options = made._options(give_back=False)
    if wanted:
        assert options.get_run_config_entry(key) == "gpu:0"
    else:
        with pytest.raises(Exception, match=key):
            options.get_run_config_entry(key)
    assert made._options(give_back=True).get_run_config_entry(key) == "gpu:0"


def test_a_gpu_that_onnx_runtime_cant_use_leaves_the_cpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Here for real: the device file is said to be there, and there is no CUDA behind it."""
    monkeypatch.setattr(ours, "gpu_present", lambda: True)
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    made = Runtime(threads=2, memory_gib=0.0)
    assert made.abilities.name == "onnxruntime CPU"
    assert "engine.gpu_unusable" in caplog.messages


def test_the_probe_names_the_provider_that_works() -> None:
    assert ours._probe([]) == "CPU"
