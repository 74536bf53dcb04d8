"""Networks on a real Triton server: the answers are those of a bare session, however patches travel and it fails."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tritonclient.grpc as triton
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from service.backends import triton_memory
from service.backends.shared import Block
from service.backends.triton import TritonBackend
from service.errors import (
    BackendCrashed,
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    ConfigError,
    ContractBroken,
    OutOfMemory,
)
from service.settings.analysis import Triton
from service.spec import read_spec
from service.stage import Tensor
from service.types import Array, Network
from tests.support import REPOSITORY, counterpart, missing
from tests.toys import REACH, WINDOW, write_model
from tests.triton_server import TritonServer, certificates, write_config

SIZE = WINDOW + 2 * REACH
KINDS = ("system", "none")  # CUDA memory needs a GPU, and the package cuda-python
PATIENT = 60.0
F, D = TensorProto.FLOAT, TensorProto.DOUBLE


def _network(folder: Path, **changes: Any) -> Network:
    """The toy network of a folder, as ``model.toml`` says."""
    network = Network(
        name=folder.name,
        file=folder / "1" / "model.onnx",
        sha256="",
        input=Tensor(name="input", shape=(SIZE,) * 3),
        outputs=(Tensor(name="probability", shape=(WINDOW,) * 3),),
        half_precision=False,
    )
    return replace(network, **changes)


def _toy(models: Path, name: str, **config: int) -> Path:
    folder = write_model(models, name)
    write_config(folder, **config)
    return folder


def _edit(folder: Path, old: str, new: str) -> Path:
    path = folder / "config.pbtxt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return folder


def _graph(folder: Path, nodes: list[Any], outputs: dict[str, list[Any]], given: list[Any], **constants: Any) -> Path:
    """A folder with a network of these nodes, whose input is `input` of shape [N, *given]."""
    (folder / "1").mkdir(parents=True)
    made = helper.make_graph(
        nodes,
        folder.name,
        [helper.make_tensor_value_info("input", F, ["N", *given])],
        [helper.make_tensor_value_info(name, F, ["N", *shape]) for name, shape in outputs.items()],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(folder / "1" / "model.onnx"))
    sides = [("input", "input", given), *(("output", name, shape) for name, shape in outputs.items())]
    tensors = "\n".join(
        f'{side} [ {{ name: "{name}" data_type: TYPE_FP32 dims: {dims} }} ]' for side, name, dims in sides
    )
    (folder / "config.pbtxt").write_text(
        f'name: "{folder.name}"\nbackend: "onnxruntime"\nmax_batch_size: 4\n{tensors}\n'
        "dynamic_batching { }\ninstance_group [ { count: 1 } ]\n"
    )
    return folder


def _gated(models: Path, gate: Path) -> Path:
    """The toy network, whose bright patches (above 0.65) wait on the server until a file is there."""
    folder = _toy(models, "gated")
    (folder / "model.py.patch").write_text(
        f"        import os, time\n"
        f"        while batch['input'].max() > 0.65 and not os.path.exists({str(gate)!r}):\n"
        f"            time.sleep(0.01)\n"
    )
    return folder


_OPENED: list[TritonBackend] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """A test that fails leaves nothing to the next."""
    yield
    while _OPENED:
        _OPENED.pop().close()


def _backend(server: TritonServer, *, patch_seconds: float = PATIENT, **settings: Any) -> TritonBackend:
    _OPENED.append(TritonBackend(server.url, Triton(**settings), patch_seconds=patch_seconds))
    return _OPENED[-1]


def _patches(*values: float) -> list[Array]:
    return [np.full((1, SIZE, SIZE, SIZE), value, np.float32) for value in values]


def _expected(value: float) -> float:
    return float(1 / (1 + np.exp(-50 * (np.float64(value) - 0.6))))


def _bare(file: Path, batch: Array) -> list[Array]:
    """What a session of ONNX Runtime in this process answers, with the server's options."""
    options = onnxruntime.SessionOptions()
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    answers: list[Array] = session.run(None, {"input": batch})
    return answers


def _wait_until(condition: Callable[[], bool]) -> None:
    last = time.monotonic() + PATIENT
    while not condition():
        assert time.monotonic() < last
        time.sleep(0.02)


def _in_flight(backend: TritonBackend, count: int) -> None:
    """Wait until so many patches are on the server: there, and not only sent."""
    _wait_until(lambda: backend._line._patches == count)
    time.sleep(0.3)


def _again(backend: TritonBackend, network: Network, value: float) -> float:
    """Run a patch as soon as the server is there again; until then nothing but its silence is answered."""
    last = time.monotonic() + PATIENT
    while True:
        try:
            return float(backend.infer(network.name, _patches(value))[0].mean())
        except (BackendUnavailable, BackendTimeout):
            if time.monotonic() > last:
                raise
            time.sleep(0.05)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server with sound networks, and with broken ones that it serves or fails to."""
    networks = [_toy(models, name) for name in ("bright", "other")]
    networks.append(
        _graph(
            models / "pair",
            [
                helper.make_node("ReduceMax", ["input"], ["scores"], axes=[2, 3], keepdims=0),
                helper.make_node("Mul", ["input", "two"], ["twice"]),
            ],
            {"scores": [1], "twice": [1, 4, 6]},
            [1, 4, 6],
            two=np.float32(2),
        )
    )
    # From the second patch on it asks for a terabyte for each.
    networks.append(
        _graph(
            models / "greedy",
            [
                helper.make_node("Shape", ["input"], ["shape"]),
                helper.make_node("Gather", ["shape", "first"], ["count"]),
                helper.make_node("Sub", ["count", "one"], ["more"]),
                helper.make_node("Mul", ["more", "many"], ["length"]),
                helper.make_node("ConstantOfShape", ["length"], ["much"]),
                helper.make_node("ReduceSum", ["much"], ["nothing"], keepdims=0),
                helper.make_node("Add", ["input", "nothing"], ["same"]),
            ],
            {"same": [1, 4]},
            [1, 4],
            first=np.array([0]),
            one=np.array([1]),
            many=np.array([2**38]),
        )
    )
    networks.append(_edit(_toy(models, "doubles"), "TYPE_FP32", "TYPE_FP64"))
    networks.append(_edit(_toy(models, "open"), "[ 1, 24, 24, 24 ]", "[ 1, 24, -1, 24 ]"))
    networks.append(_edit(_toy(models, "single"), "max_batch_size: 4", "max_batch_size: 0"))
    _edit(models / "single", "dynamic_batching { max_queue_delay_microseconds: 0 }", "")
    networks.append(_toy(models, "garbage"))
    (models / "garbage" / "1" / "model.onnx").write_bytes(b"\x00" * 100)
    mute = _toy(models, "mute")
    made = TritonServer(tmp_path_factory.mktemp("server"), [*networks, mute])
    # What NumPy 2 and a Python backend built for NumPy 1 do without a word: outputs of no bytes, with a good status.
    script = made.repository / "mute" / "1" / "model.py"
    text = script.read_text()
    assert "Tensor.from_dlpack(name," in text
    script.write_text(text.replace("Tensor.from_dlpack(name,", "Tensor(name,"))
    later = made.repository / "later"
    _edit(_toy(models, "later"), "max_batch_size: 4", "max_batch_size: 4\nversion_policy: { all { } }")
    made.add(models / "later")
    (later / "1").rename(later / "2")
    made.start()
    yield made
    made.kill()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Callable[..., TritonServer]]:
    """Servers that a test may harm."""
    made: list[TritonServer] = []

    def start(networks: list[Path], **options: Any) -> TritonServer:
        made.append(TritonServer(tmp_path / f"server-{len(made)}", networks, **options))
        made[-1].start()
        return made[-1]

    yield start
    for server in made:
        server.kill()


# --- Answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_a_bare_session(kind: str, server: TritonServer, models: Path) -> None:
    network = _network(models / "bright")
    backend = _backend(server, shared_memory=kind)
    envelope = backend.load(network)
    assert envelope.device == backend.name
    assert backend.name.startswith("triton 2.")
    assert backend.name.endswith(f" at {server.url}")
    assert envelope.resident_bytes == 0
    assert 1 <= envelope.best_batch <= 4
    assert set(envelope.batch_bytes) == set(envelope.batch_seconds)
    assert backend.shared_memory == kind
    batch = np.random.default_rng(0).random((3, 1, SIZE, SIZE, SIZE), np.float32)
    (answer,) = backend.infer("bright", list(batch))
    (bare,) = _bare(network.file, batch)
    assert answer.dtype == np.float32
    np.testing.assert_allclose(answer, bare, atol=1e-6, rtol=0)
    answer[...] = 0  # the caller's own
    backend.close()


@pytest.mark.parametrize("kind", KINDS)
def test_several_outputs_come_in_the_order_of_the_specification(kind: str, server: TritonServer, models: Path) -> None:
    scores, twice = Tensor(name="scores", shape=()), Tensor(name="twice", shape=(4, 6))
    for outputs in ((scores, twice), (twice, scores)):
        backend = _backend(server, shared_memory=kind)
        network = _network(models / "pair", input=Tensor(name="input", shape=(4, 6)), outputs=outputs)
        backend.load(network)
        batch = np.random.default_rng(1).random((2, 1, 4, 6), np.float32)
        answers = dict(zip((tensor.name for tensor in outputs), backend.infer("pair", list(batch)), strict=True))
        np.testing.assert_array_equal(answers["twice"], batch * 2)
        np.testing.assert_array_equal(answers["scores"], batch.max(axis=(2, 3)))
        backend.close()


@pytest.mark.parametrize("kind", KINDS)
def test_the_liver_lesion_network_answers_as_in_process(kind: str, own: Callable[..., TritonServer]) -> None:
    folder = REPOSITORY / "models" / "ct-liver-lesion"
    if not (folder / "1" / "model.onnx").exists():
        missing("the network ct-liver-lesion (overread models install)")
    stage = read_spec(folder).stages[-1]
    assert stage.input
    network = _network(folder, input=stage.input, outputs=stage.outputs)
    backend = _backend(own([folder]), shared_memory=kind)
    backend.load(network)
    patch = np.random.default_rng(2).normal(0.1, 0.2, network.input.dims).astype(np.float32)
    (answer,) = backend.infer("ct-liver-lesion", [patch])
    (bare,) = _bare(network.file, patch[None])
    difference = float(np.abs(answer - bare).max())
    print(f"ct-liver-lesion, {kind}: greatest difference {difference:g}, probabilities up to {bare.max():.3f}")
    assert bare.std() > 0
    assert difference < 1e-5
    backend.close()


@pytest.mark.parametrize("kind", KINDS)
def test_many_threads_at_once_get_their_own_answers(kind: str, server: TritonServer, models: Path) -> None:
    backend = _backend(server, shared_memory=kind)
    for name in ("bright", "other"):
        backend.load(_network(models / name))
    values = np.linspace(0.5, 0.7, 64)

    def ask(number: int) -> float:
        (answer,) = backend.infer(("bright", "other")[number % 2], _patches(values[number], 0.6)[: 1 + number % 3 % 2])
        assert answer[0].min() == answer[0].max()
        return float(answer[0].flat[0])

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(len(values))))
    np.testing.assert_allclose(answers, [_expected(value) for value in values], atol=1e-4)
    assert len(list(Path("/dev/shm").glob(f"overread-{os.getpid()}-*"))) <= backend.slots
    backend.close()


def _counts(client: Any) -> tuple[int, int]:
    """Inferences and executions so far; the server counts them only after it has answered."""
    before, now = (-1, -1), (0, 0)
    while before != now:
        time.sleep(0.5)
        found = client.get_inference_statistics("bright").model_stats[0]
        before, now = now, (found.inference_count, found.execution_count)
    return now


def test_calls_of_several_slots_are_joined_into_one_batch(own: Callable[..., TritonServer], tmp_path: Path) -> None:
    server = own([_toy(tmp_path, "bright")])
    backend = _backend(server)
    backend.load(_network(tmp_path / "bright"))
    client = triton.InferenceServerClient(server.url)
    inferences, executions = _counts(client)
    server.signal_networks(signal.SIGSTOP)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(backend.infer, "bright", _patches(value)) for value in (0.58, 0.6, 0.62, 0.64)]
        _in_flight(backend, 4)
        server.signal_networks(signal.SIGCONT)
        means = [float(call.result()[0].mean()) for call in calls]
    np.testing.assert_allclose(means, [_expected(value) for value in (0.58, 0.6, 0.62, 0.64)], atol=1e-4)
    inferences_after, executions_after = _counts(client)
    assert inferences_after - inferences == 4
    assert executions_after - executions < 4
    backend.close()


def test_through_shared_memory_a_byte_is_copied_once_each_way(server: TritonServer, models: Path) -> None:
    copied = {}
    for kind in KINDS:
        backend = _backend(server, shared_memory=kind)
        backend.load(_network(models / "bright"))
        before = backend.copied_bytes
        backend.infer("bright", _patches(0.6, 0.7))
        copied[kind] = backend.copied_bytes - before
        backend.close()
    sent, received = 2 * 4 * SIZE**3, 2 * 4 * WINDOW**3
    assert copied == {"system": sent + received, "none": 5 * sent + 6 * received}


# --- Shared memory --------------------------------------------------------------------------------------------------


def test_nothing_is_left_behind_on_either_side(server: TritonServer, models: Path) -> None:
    backend = _backend(server)
    backend.load(_network(models / "bright"))
    backend.infer("bright", _patches(0.6))
    mine = f"overread-{os.getpid()}-"
    client = triton.InferenceServerClient(server.url)
    assert [name for name in client.get_system_shared_memory_status().regions if name.startswith(mine)]
    assert list(Path("/dev/shm").glob(f"{mine}*"))
    backend.close()
    backend.close()
    assert not client.get_system_shared_memory_status().regions
    assert not list(Path("/dev/shm").glob(f"{mine}*"))
    assert backend.ready() is False
    with pytest.raises(ContractBroken, match="never loaded"):
        backend.infer("bright", _patches(0.6))


def test_a_server_that_does_not_see_our_memory_gets_messages(own: Callable[..., TritonServer], tmp_path: Path) -> None:
    """As in a container beside ours: the same machine, the same address, and a /dev/shm of its own."""
    counterpart("unshare")
    server = own([_toy(tmp_path, "bright")], own_shared_memory=True)
    backend = _backend(server)
    backend.load(_network(tmp_path / "bright"))
    assert backend.shared_memory == "none"
    assert backend.infer("bright", _patches(0.62))[0].mean() == pytest.approx(_expected(0.62), abs=1e-4)
    backend.close()
    backend = _backend(server, shared_memory="system")
    with pytest.raises(ContractBroken, match="common /dev/shm") as caught:
        backend.load(_network(tmp_path / "bright"))
    assert "Unable to open shared memory region" in caught.value.found
    backend.close()
    assert not list(Path("/dev/shm").glob(f"overread-{os.getpid()}-*"))


def test_cuda_memory_that_can_t_be_had_is_named(server: TritonServer, models: Path) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is a GPU")
    backend = _backend(server, shared_memory="cuda")
    with pytest.raises(ContractBroken, match="no CUDA memory"):
        backend.load(_network(models / "bright"))
    backend.close()


def test_a_full_dev_shm_asks_for_a_smaller_batch_or_sends_messages(
    server: TritonServer, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(label: str, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Block, "named", full)
    strict, free = _backend(server, shared_memory="system"), _backend(server)
    with pytest.raises(OutOfMemory, match="/dev/shm has no room"):
        strict.load(_network(models / "bright"))
    free.load(_network(models / "bright"))
    assert free.shared_memory == "none"
    strict.close()
    free.close()


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_that_was_never_written_is_no_answer(kind: str, server: TritonServer, models: Path) -> None:
    """The server says that all is well; the memory holds what was there before, perhaps another patient's."""
    backend = _backend(server, shared_memory=kind)
    with pytest.raises(ContractBroken, match="probability was announced and not") as caught:
        backend.load(_network(models / "mute"))
    assert all(caught.value.parts().values())
    backend.close()


# --- The contract ---------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "another input name": ("bright", {"input": Tensor(name="image", shape=(SIZE,) * 3)}, "inputs are image"),
    "another output name": ("bright", {"outputs": (Tensor(name="mask", shape=(WINDOW,) * 3),)}, "outputs are mask"),
    "an output more": (
        "bright",
        {"outputs": (Tensor(name="probability", shape=(WINDOW,) * 3), Tensor(name="scores", shape=()))},
        "outputs are probability, scores",
    ),
    "another input size": (
        "bright",
        {"input": Tensor(name="input", shape=(SIZE, SIZE, 32))},
        r"\[1, 24, 24, 24\] behind .* \[1, 24, 24, 32\]",
    ),
    "another output size": (
        "bright",
        {"outputs": (Tensor(name="probability", shape=(WINDOW, 14, WINDOW)),)},
        r"\[1, 16, 16, 16\] behind .* \[1, 16, 14, 16\]",
    ),
    "more input channels": ("bright", {"input": Tensor(name="input", channels=2, shape=(SIZE,) * 3)}, r"\[2, 24"),
    "doubles": ("doubles", {}, "datatype FP64"),
    "an axis left open": ("open", {}, "axis 2 left open"),
    "no batches": ("single", {}, "max_batch_size: 0"),
    "another version": ("later", {}, "version 1 "),
    "not in the repository": ("nowhere", {}, "not in the server's repository"),
    "not to be loaded": ("garbage", {}, "could not load it"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_network_that_is_not_the_one_described_breaks_the_contract(
    case: str, server: TritonServer, models: Path
) -> None:
    name, changes, words = WRONG[case]
    backend = _backend(server)
    with pytest.raises(ContractBroken, match=words) as caught:
        backend.load(_network(models / name, **changes))
    assert name in caught.value.doing
    assert all(caught.value.parts().values())
    with pytest.raises(ContractBroken, match="never loaded"):
        backend.infer(name, _patches(0.6))
    backend.close()


@pytest.mark.parametrize(
    "patches",
    [
        [np.zeros((1, 8, 8, 8), np.float32)],
        [np.zeros((2, SIZE, SIZE, SIZE), np.float32)],
        [np.zeros((1, SIZE, SIZE, SIZE), np.float32), np.zeros((1, SIZE, SIZE, 1), np.float32)],
        [],
    ],
    ids=["smaller", "more channels", "one of two", "none"],
)
def test_a_batch_that_does_not_fit_the_network_breaks_the_contract(
    patches: list[Array], server: TritonServer, models: Path
) -> None:
    backend = _backend(server)
    backend.load(_network(models / "bright"))
    with pytest.raises(ContractBroken, match="running the network bright") as caught:
        backend.infer("bright", patches)
    assert all(caught.value.parts().values())
    backend.close()


def test_a_batch_that_the_server_no_longer_takes_is_made_smaller(server: TritonServer, models: Path) -> None:
    backend = _backend(server)
    backend.load(_network(models / "bright"))
    with pytest.raises(OutOfMemory, match="takes up to 4"):
        backend.infer("bright", _patches(0, 0, 0, 0, 0))
    backend.close()


def test_too_little_memory_is_measured_around_and_said(server: TritonServer, models: Path) -> None:
    backend = _backend(server)
    tensors = {"input": Tensor(name="input", shape=(4,)), "outputs": (Tensor(name="same", shape=(4,)),)}
    envelope = backend.load(_network(models / "greedy", **tensors))
    assert list(envelope.batch_seconds) == [1]
    one = np.ones((1, 4), np.float32)
    with pytest.raises(OutOfMemory) as caught:
        backend.infer("greedy", [one, one])
    assert caught.value.retry
    np.testing.assert_array_equal(backend.infer("greedy", [one])[0], one[None])
    backend.close()


def test_a_broken_neighbour_does_not_make_the_backend_unready(server: TritonServer, models: Path) -> None:
    client = triton.InferenceServerClient(server.url)
    assert client.is_server_ready() is False, "Triton waits for every network"
    backend = _backend(server)
    assert backend.ready() is True
    backend.close()


def test_the_models_folder_is_a_repository_as_it_stands(own: Callable[..., TritonServer]) -> None:
    """This server lacks the ONNX Runtime backend only: it has read everything else before it looks for that."""
    server = own([], explicit=True, repository=REPOSITORY / "models")
    client = triton.InferenceServerClient(server.url)
    networks = {path.parent.name for path in (REPOSITORY / "models").glob("*/config.pbtxt")}
    assert networks <= set(_states(server))
    for network in networks:
        if not (REPOSITORY / "models" / network / "1").exists():
            continue  # not installed
        with pytest.raises(InferenceServerException) as caught:
            client.load_model(network)
        assert "unable to find backend library for backend 'onnxruntime'" in str(caught.value)


# --- Loading and unloading ------------------------------------------------------------------------------------------


def _states(server: TritonServer) -> dict[str, str]:
    index = triton.InferenceServerClient(server.url).get_model_repository_index()
    return {entry.name: entry.state for entry in index.models}


def test_networks_are_loaded_and_unloaded_where_that_is_ours(own: Callable[..., TritonServer], tmp_path: Path) -> None:
    networks = [_toy(tmp_path, name) for name in ("bright", "other", "garbage")]
    (tmp_path / "garbage" / "1" / "model.onnx").write_bytes(b"\x00" * 100)
    server = own(networks, explicit=True)
    bright, other = (_network(tmp_path / name) for name in ("bright", "other"))

    strict = _backend(server)
    with pytest.raises(ContractBroken, match="not loaded there") as caught:
        strict.load(bright)
    assert "manage_models" in caught.value.way_out
    strict.close()

    backend = _backend(server, manage_models=True)
    first = backend.load(bright)
    assert _states(server)["bright"] == "READY"
    server.freeze()
    assert backend.load(bright) is first, "loading a loaded network again asks nobody"
    server.thaw()
    _wait_until(backend.ready)
    backend.load(other)
    backend.unload("bright")
    backend.unload("bright")
    _wait_until(lambda: _states(server)["bright"] == "UNAVAILABLE")
    with pytest.raises(ContractBroken, match="unloaded since"):
        backend.infer("bright", _patches(0.6))
    backend.load(bright)
    assert backend.infer("bright", _patches(0.62))[0].mean() == pytest.approx(_expected(0.62), abs=1e-4)
    for name, words in (("garbage", "load failed"), ("nowhere", "failed to load")):
        with pytest.raises(ContractBroken, match=words) as caught:
            backend.load(_network(tmp_path / name))
        assert all(caught.value.parts().values())
    with pytest.raises(ContractBroken, match="outputs are mask"):
        backend.load(replace(other, outputs=(Tensor(name="mask", shape=(WINDOW,) * 3),)))
    _wait_until(lambda: _states(server)["other"] == "UNAVAILABLE")
    backend.close()
    _wait_until(lambda: _states(server)["bright"] == "UNAVAILABLE")


def test_a_server_that_manages_its_networks_itself_says_so(server: TritonServer, models: Path) -> None:
    backend = _backend(server, manage_models=True)
    with pytest.raises(ContractBroken, match="--model-control-mode=explicit"):
        backend.load(_network(models / "bright"))
    backend.close()


def test_a_network_that_somebody_unloads_is_loaded_again(own: Callable[..., TritonServer], tmp_path: Path) -> None:
    server = own([_toy(tmp_path, "bright")], explicit=True)
    backend = _backend(server, manage_models=True)
    network = _network(tmp_path / "bright")
    backend.load(network)
    triton.InferenceServerClient(server.url).unload_model("bright")
    _wait_until(lambda: _states(server)["bright"] == "UNAVAILABLE")
    assert backend.infer("bright", _patches(0.62))[0].mean() == pytest.approx(_expected(0.62), abs=1e-4)
    backend.close()


# --- A server that fails --------------------------------------------------------------------------------------------


def test_without_a_server_the_backend_is_unavailable(own: Callable[..., TritonServer], tmp_path: Path) -> None:
    server = own([_toy(tmp_path, "bright")])
    server.kill()
    backend = _backend(server)
    assert backend.ready() is False
    with pytest.raises(BackendUnavailable, match="UNAVAILABLE") as caught:
        backend.load(_network(tmp_path / "bright"))
    assert all(caught.value.parts().values())
    server.start()
    _wait_until(backend.ready)
    backend.load(_network(tmp_path / "bright"))
    backend.close()


@pytest.mark.parametrize("explicit", [False, True], ids=["loads all", "explicit"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_server_killed_in_the_middle_is_found_again(
    kind: str, explicit: bool, own: Callable[..., TritonServer], tmp_path: Path
) -> None:
    server = own([_toy(tmp_path, "bright")], explicit=explicit)
    network = _network(tmp_path / "bright")
    backend = _backend(server, shared_memory=kind, manage_models=explicit)
    backend.load(network)
    server.signal_networks(signal.SIGSTOP)
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(backend.infer, "bright", _patches(0.6)) for _ in range(3)]
        _in_flight(backend, 3)
        server.kill()
        for call in calls:
            with pytest.raises(BackendUnavailable) as caught:
                call.result()
            assert all(caught.value.parts().values())
    assert backend.ready() is False
    with pytest.raises(BackendUnavailable):
        backend.infer("bright", _patches(0.6))
    server.start()
    assert _again(backend, network, 0.62) == pytest.approx(_expected(0.62), abs=1e-4)
    assert backend.ready()
    assert backend.shared_memory == kind
    backend.close()
    assert not list(Path("/dev/shm").glob(f"overread-{os.getpid()}-*"))


def test_a_server_that_starts_anew_between_two_batches_is_nothing_to_wait_for_long(
    own: Callable[..., TritonServer], tmp_path: Path
) -> None:
    server = own([_toy(tmp_path, "bright")])
    network = _network(tmp_path / "bright")
    backend = _backend(server)
    backend.load(network)
    for value in (0.58, 0.62):
        server.signal_networks(signal.SIGSTOP)  # so that several regions are known to the server, and idle then
        with ThreadPoolExecutor(3) as pool:
            calls = [pool.submit(backend.infer, "bright", _patches(value)) for _ in range(3)]
            _in_flight(backend, 3)
            server.signal_networks(signal.SIGCONT)
            assert [call.result()[0].mean() for call in calls] == pytest.approx([_expected(value)] * 3, abs=1e-4)
        server.kill()
        server.start()
        _wait_until(backend.ready)
        assert _again(backend, network, value) == pytest.approx(_expected(value), abs=1e-4)
    backend.close()
    assert not list(Path("/dev/shm").glob(f"overread-{os.getpid()}-*"))


def test_another_network_under_the_same_name_is_found_out_after_a_restart(
    own: Callable[..., TritonServer], tmp_path: Path
) -> None:
    server = own([_toy(tmp_path, "bright")])
    network = _network(tmp_path / "bright")
    backend = _backend(server)
    backend.load(network)
    server.kill()
    server.add(_edit(tmp_path / "bright", "[ 1, 16, 16, 16 ]", "[ 1, 16, 16, 8 ]"))
    server.start()
    with pytest.raises(ContractBroken, match=r"\[1, 16, 16, 8\] behind"):
        _again(backend, network, 0.6)
    backend.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_server_is_one_that_is_away(kind: str, own: Callable[..., TritonServer], tmp_path: Path) -> None:
    server = own([_toy(tmp_path, "bright")])
    backend = _backend(server, patch_seconds=1.0, timeout_seconds=1.0, shared_memory=kind)
    network = _network(tmp_path / "bright")
    backend.load(network)
    server.freeze()
    with pytest.raises(BackendUnavailable, match="answers none of them") as caught:
        backend.infer("bright", _patches(0.6))
    assert isinstance(caught.value.__cause__, BackendTimeout), "of the whole server, not of the network alone"
    assert "patch_seconds" in caught.value.__cause__.way_out
    assert backend.ready() is False
    with pytest.raises(BackendUnavailable):
        _backend(server, timeout_seconds=1.0).load(network)
    server.thaw()
    _wait_until(backend.ready)
    backend._line._patch_seconds = PATIENT
    assert _again(backend, network, 0.62) == pytest.approx(_expected(0.62), abs=1e-4)
    backend.close()


def test_a_late_answer_is_not_taken_for_another_batchs(own: Callable[..., TritonServer], tmp_path: Path) -> None:
    """A batch takes longer than the limit, and its answer is written when nobody waits for it any more."""
    gate = tmp_path / "gate"
    server = own([_gated(tmp_path, gate)])
    backend = _backend(server, shared_memory="system")
    backend.load(_network(tmp_path / "gated"))
    backend._line._patch_seconds = 0.5
    with pytest.raises(BackendTimeout):
        backend.infer("gated", _patches(0.7))
    backend._line._patch_seconds = PATIENT
    ((_, late),) = backend._line._pool._retired
    assert isinstance(late, triton_memory.SystemRegion)
    unwritten = late.read([(1, 1, WINDOW, WINDOW, WINDOW)])[0]
    assert not triton_memory.is_written(unwritten)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(backend.infer, "gated", _patches(0.58))
        _in_flight(backend, 1)
        gate.touch()
        assert call.result()[0].mean() == pytest.approx(_expected(0.58), abs=1e-4)
    assert triton_memory.is_written(late.read([(1, 1, WINDOW, WINDOW, WINDOW)])[0])
    for value in (0.6, 0.62):
        assert backend.infer("gated", _patches(value))[0].mean() == pytest.approx(_expected(value), abs=1e-4)
    assert [region for _, region in backend._line._pool._retired] == [late], "the server still knows it"
    backend.close()
    assert not list(Path("/dev/shm").glob(f"overread-{os.getpid()}-*"))


@pytest.mark.parametrize("manage", [False, True], ids=["the operator's", "ours"])
def test_a_networks_process_that_dies_is_a_crash(
    manage: bool, own: Callable[..., TritonServer], tmp_path: Path
) -> None:
    server = own([_toy(tmp_path, "bright")], explicit=manage)
    network = _network(tmp_path / "bright")
    backend = _backend(server, manage_models=manage)
    backend.load(network)
    server.signal_networks(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(backend.infer, "bright", _patches(0.6))
        _in_flight(backend, 1)
        server.signal_networks(signal.SIGKILL)
        with pytest.raises(BackendCrashed, match="not healthy") as caught:
            call.result()
    assert all(caught.value.parts().values())
    assert backend.ready()
    if manage:
        assert _again(backend, network, 0.62) == pytest.approx(_expected(0.62), abs=1e-4)
    else:
        with pytest.raises(BackendError):  # until somebody loads it again
            backend.infer("bright", _patches(0.6))
    backend.close()


def test_a_server_that_stops_is_unavailable_and_breaks_no_contract(
    own: Callable[..., TritonServer], tmp_path: Path
) -> None:
    server = own([_toy(tmp_path, "bright")])
    network = _network(tmp_path / "bright")
    backend = _backend(server)
    backend.load(network)
    server.signal_networks(signal.SIGSTOP)  # the batch in flight holds it up
    with ThreadPoolExecutor(1) as pool:
        call: Future[Any] = pool.submit(backend.infer, "bright", _patches(0.6))
        _in_flight(backend, 1)
        server.terminate()
        time.sleep(0.3)
        for _ in range(5):
            with pytest.raises(BackendUnavailable):
                backend.infer("bright", _patches(0.6))
        server.kill()
        with pytest.raises(BackendUnavailable):
            call.result()
    backend.close()


def test_closing_ends_what_is_in_flight(own: Callable[..., TritonServer], tmp_path: Path) -> None:
    server = own([_toy(tmp_path, "bright")])
    backend = _backend(server)
    backend.load(_network(tmp_path / "bright"))
    server.signal_networks(signal.SIGSTOP)
    with ThreadPoolExecutor(6) as pool:
        calls = [pool.submit(backend.infer, "bright", _patches(0.6)) for _ in range(6)]  # two wait for a slot
        _in_flight(backend, 4)
        closing = threading.Thread(target=backend.close)
        closing.start()
        for call in calls:
            with pytest.raises(BackendUnavailable, match=r"CANCELLED|stopping"):
                call.result()
    closing.join()
    server.signal_networks(signal.SIGCONT)
    assert not list(Path("/dev/shm").glob(f"overread-{os.getpid()}-*"))


# --- TLS ------------------------------------------------------------------------------------------------------------


def test_a_server_is_known_by_its_certificate(own: Callable[..., TritonServer], tmp_path: Path) -> None:
    right, wrong = (certificates(tmp_path / name) for name in ("right", "wrong"))
    server = own([_toy(tmp_path, "bright")], tls=right)
    network = _network(tmp_path / "bright")
    backend = _backend(server, tls=True, ca_file=right / "ca.pem")
    backend.load(network)
    assert backend.infer("bright", _patches(0.62))[0].mean() == pytest.approx(_expected(0.62), abs=1e-4)
    backend.close()
    for settings in ({"tls": True, "ca_file": wrong / "ca.pem"}, {"tls": True}, {}):
        stranger = _backend(server, **settings)
        assert stranger.ready() is False
        with pytest.raises(BackendUnavailable) as caught:
            stranger.load(network)
        assert "ca_file" in caught.value.way_out
        if settings:
            assert "CERTIFICATE_VERIFY_FAILED" in caught.value.found
        stranger.close()


def test_a_file_of_the_tls_settings_that_can_t_be_read_refuses_the_start(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    (tmp_path / "a.pem").write_text("a")
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"ca_file": tmp_path / "none.pem"}, "ca_file"),
        ({"certificate_file": tmp_path / "empty.pem"}, "empty"),
        ({"key_file": tmp_path / "a.pem"}, "belong together"),
    )
    for settings, words in cases:
        with pytest.raises(ConfigError, match=words):
            TritonBackend("127.0.0.1:1", Triton(tls=True, **settings), patch_seconds=1.0)
