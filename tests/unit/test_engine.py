"""The inference engine: right answers to many at once, and what happens when it crashes, hangs, or is left alone."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from service import decoding
from service.backends import engine, process
from service.backends.engine import OnnxBackend
from service.backends.messages import Command
from service.errors import (
    BackendCrashed,
    BackendTimeout,
    BackendUnavailable,
    ContractBroken,
    OutOfMemory,
    Stopping,
)
from service.stage import Tensor
from service.types import Array, Backend, Network
from tests.graphs import FREE, OUTPUT, counting, crashing, doubling, greedy, images, network_of, write_network

FOR_EVER = 1e18
PATIENCE = 60.0  # of the tests; only a broken one needs it


@pytest.fixture(autouse=True)
def _alone() -> None:
    """Processes that decoded for other tests are no children that are counted here."""
    decoding.end()


@pytest.fixture
def backend() -> Iterator[OnnxBackend]:
    made = OnnxBackend(threads=2, patch_seconds=30.0)
    yield made
    made.close()


def _pid(backend: OnnxBackend) -> int:
    assert backend.pid
    return backend.pid


def _until(true: Callable[[], object]) -> None:
    last = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < last, "it never came true"
        time.sleep(0.01)


def _used(pid: int) -> int:
    """Processor time that a process has used, in hundredths of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _until_busy(pid: int) -> None:
    """Until it has computed for a while: what it was asked has begun, and has not ended."""
    before = _used(pid)
    _until(lambda: _used(pid) > before + 20)


def _start(pool: ThreadPoolExecutor, backend: OnnxBackend, network: Network) -> Future[tuple[Array, ...]]:
    """A batch that never ends, seen to run."""
    pid = _pid(backend)
    future = pool.submit(backend.infer, network.name, images(FOR_EVER))
    _until_busy(pid)
    return future


def _has_grown(kinds: list[str], enough: int) -> bool:
    return kinds.count("answer") > enough


def _is_another(backend: OnnxBackend, pid: int) -> bool:
    return backend.pid not in (None, pid)


def _is_gone(pid: int) -> bool:
    """Dead, if perhaps not yet reaped (in a test's container nobody may reap orphans)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


# --- Answers --------------------------------------------------------------------------------------------------------


def test_a_batch_is_answered_patch_by_patch(backend: OnnxBackend, tmp_path: Path) -> None:
    backend.load(doubling(tmp_path))
    (answer,) = backend.infer("doubling", images(0.0, 0.5, 3.0))
    assert answer.shape == (3, 1, 4, 4)
    assert answer.dtype == np.float32
    np.testing.assert_array_equal(answer[:, 0, 2, 1], [0.0, 1.0, 6.0])
    assert backend.name == "onnxruntime CPU"
    assert backend.memory_bytes > 0


def test_it_is_a_backend() -> None:
    made: Backend = OnnxBackend(threads=1, memory_gib=2.0)
    assert made.slots == 1
    assert made.memory_bytes == 2 * 2**30
    assert made.ready()
    made.close()
    assert not made.ready()


def test_answers_are_the_callers_own(backend: OnnxBackend, tmp_path: Path) -> None:
    """The block that they lay in is used for the next batch."""
    backend.load(doubling(tmp_path))
    (first,) = backend.infer("doubling", images(1.0))
    for _ in range(backend.slots + 1):
        backend.infer("doubling", images(5.0))
    assert first.min() == first.max() == 2.0
    first[:] = 0


def test_outputs_come_in_the_order_of_model_toml(backend: OnnxBackend, tmp_path: Path) -> None:
    kinds: dict[str, tuple[int, list[int | str]]] = {
        "minus": (TensorProto.FLOAT, FREE),
        "sums": (TensorProto.FLOAT, ["N", 1]),
    }
    nodes = [
        helper.make_node("Neg", ["image"], ["minus"]),
        helper.make_node("ReduceSum", ["image", "axes"], ["sums"], keepdims=0),
    ]
    file = write_network(tmp_path, "both", nodes, {"axes": np.array([2, 3], np.int64)}, outputs=kinds)
    wanted = (Tensor(name="sums", shape=()), replace_name(OUTPUT, "minus"))
    backend.load(network_of(file, outputs=wanted))
    sums, minus = backend.infer("both", images(1.0, 2.0))
    np.testing.assert_array_equal(sums, [[16.0], [32.0]])
    np.testing.assert_array_equal(minus[:, 0, 0, 0], [-1.0, -2.0])


def replace_name(tensor: Tensor, name: str) -> Tensor:
    return tensor.model_copy(update={"name": name})


def test_a_patch_may_lie_in_memory_as_it_likes(backend: OnnxBackend, tmp_path: Path) -> None:
    backend.load(doubling(tmp_path))
    slanted = np.arange(32, dtype=np.float32).reshape(4, 8)[:, ::2].T[np.newaxis]
    assert not slanted.flags.c_contiguous
    (answer,) = backend.infer("doubling", [slanted])
    np.testing.assert_array_equal(answer[0], 2 * slanted)


def test_many_threads_at_once_get_their_own_answers(
    backend: OnnxBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of batches of all sizes, so that blocks grow while others are in use."""
    monkeypatch.setattr(engine, "_GRAIN_BYTES", 64)
    for name in ("one", "two"):
        backend.load(doubling(tmp_path, name))

    def ask(number: int) -> None:
        values = [float(number + patch) for patch in range(1 + 97 * number % 2000)]
        (answer,) = backend.infer(("one", "two")[number % 2], images(*values))
        np.testing.assert_array_equal(answer[:, 0, 3, 3], 2 * np.array(values))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(200)))
    files = Path(f"/proc/{backend.pid}/fd").iterdir()
    blocks = {file.stat().st_ino for file in files if "memfd:overread" in os.readlink(file)}
    assert 1 <= len(blocks) <= backend.slots  # those that were outgrown are gone


def test_one_batch_is_answered_while_another_runs(backend: OnnxBackend, tmp_path: Path) -> None:
    backend.load(doubling(tmp_path))
    backend.load(third := doubling(tmp_path, "third"))  # it is measured now; that would wait for the other one's end
    backend.unload("third")
    backend.load(endless := counting(tmp_path))
    with ThreadPoolExecutor(1) as pool:
        running = _start(pool, backend, endless)
        assert backend.infer("doubling", images(1.0))[0].max() == 2.0
        backend.load(third)
        assert backend.infer("third", images(2.0))[0].max() == 4.0
        assert not running.done()
        backend.close()
        with pytest.raises(Stopping):
            running.result(PATIENCE)


def test_a_block_is_sent_once_and_used_again(
    backend: OnnxBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.load(doubling(tmp_path))
    sent: list[int] = []
    call = backend._engine.call

    def listen(generation: int, command: Command, **others: Any) -> Any:
        sent.append(command.block_bytes)
        return call(generation, command, **others)

    monkeypatch.setattr(backend._engine, "call", listen)
    for batch in (1, 3, 2, 9000, 1, 9000):  # of 128 bytes each: in and out
        assert backend.infer("doubling", images(*[1.0] * batch))[0].shape[0] == batch
    assert sent == [2**20, 0, 0, 2 * 2**20, 0, 0]


@pytest.mark.parametrize("patches", [[], [np.zeros((1, 4, 5), np.float32)], [np.zeros((4, 4), np.float32)]])
def test_a_patch_of_another_shape_breaks_the_contract(
    patches: list[Array], backend: OnnxBackend, tmp_path: Path
) -> None:
    backend.load(doubling(tmp_path))
    with pytest.raises(ContractBroken, match="running the network doubling") as caught:
        backend.infer("doubling", patches)
    assert all(caught.value.parts().values())


def test_a_network_that_broke_its_contract_is_never_run(backend: OnnxBackend, tmp_path: Path) -> None:
    """The service starts without it; a study that asks for it must not be answered by a network nobody described."""
    wrong = replace(doubling(tmp_path), outputs=(replace_name(OUTPUT, "mask"),))
    pid = backend.pid
    with pytest.raises(ContractBroken, match="mask") as caught:
        backend.load(wrong)
    assert all(caught.value.parts().values())
    for name in ("doubling", "unknown"):
        with pytest.raises(ContractBroken, match=f"running the network {name}"):
            backend.infer(name, images(1.0))
    assert backend.pid == pid  # a broken network costs the others nothing


# --- Loading --------------------------------------------------------------------------------------------------------


def test_loading_a_loaded_network_does_nothing(backend: OnnxBackend, tmp_path: Path) -> None:
    network = doubling(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        envelopes = list(pool.map(backend.load, [network] * 4))
    network.file.unlink()
    assert backend.load(network) == envelopes[0] == envelopes[3]


def test_new_weights_replace_the_old_ones(backend: OnnxBackend, tmp_path: Path) -> None:
    backend.load(doubling(tmp_path))
    file = write_network(tmp_path, "doubling", [helper.make_node("Neg", ["image"], ["map"])])
    backend.load(network_of(file))
    assert backend.infer("doubling", images(3.0))[0].max() == -3.0


def test_an_unloaded_network_is_gone(backend: OnnxBackend, tmp_path: Path) -> None:
    network = doubling(tmp_path)
    backend.load(network)
    backend.unload("doubling")
    backend.unload("doubling")
    with pytest.raises(ContractBroken, match="not loaded"):
        backend.infer("doubling", images(1.0))
    backend.load(network)
    assert backend.infer("doubling", images(1.0))[0].max() == 2.0


def test_what_was_measured_once_is_read_the_next_time(backend: OnnxBackend, tmp_path: Path) -> None:
    network = doubling(tmp_path)
    measured = backend.load(network)
    kept = network.file.with_name("envelope.json")
    kept.write_text(kept.read_text().replace(f'"resident_bytes": {measured.resident_bytes}', '"resident_bytes": 77'))
    backend.unload("doubling")
    again = backend.load(network)
    assert again == replace(measured, resident_bytes=77)
    assert again.device == measured.device
    assert again.device.startswith("onnxruntime 1.")


def test_a_folder_that_cant_be_written_is_no_error(backend: OnnxBackend, tmp_path: Path) -> None:
    network = doubling(tmp_path)
    network.file.with_name("envelope.json").mkdir()
    assert backend.load(network).batch_bytes[1] >= 128
    assert backend.infer("doubling", images(1.0))[0].max() == 2.0
    assert {path.name for path in network.file.parent.iterdir()} == {"model.onnx", "envelope.json"}


# --- Memory ---------------------------------------------------------------------------------------------------------


def test_a_batch_that_asks_for_too_much_memory_costs_nobody_anything(backend: OnnxBackend, tmp_path: Path) -> None:
    envelope = backend.load(greedy(tmp_path))
    pid = backend.pid
    with pytest.raises(OutOfMemory) as caught:
        backend.infer("greedy", images(1.0, 2.0))
    assert caught.value.retry
    assert backend.infer("greedy", images(3.0))[0].max() == 3.0
    assert backend.pid == pid
    assert list(envelope.batch_seconds) == [1]  # the greater ones were tried, and can't be run


# --- Crashes and hangs ----------------------------------------------------------------------------------------------


def test_a_crash_is_told_to_every_batch_that_ran_and_the_next_one_is_answered(
    backend: OnnxBackend, tmp_path: Path
) -> None:
    backend.load(doubling(tmp_path))
    backend.load(endless := counting(tmp_path))
    with ThreadPoolExecutor(2) as pool:
        running = [_start(pool, backend, endless), _start(pool, backend, endless)]
        old = _pid(backend)
        os.kill(old, signal.SIGSEGV)
        for future in running:
            with pytest.raises(BackendCrashed, match="SIGSEGV") as caught:
                future.result(PATIENCE)
            assert "counting" in caught.value.doing
            assert caught.value.retry
    assert backend.infer("doubling", images(4.0))[0].max() == 8.0  # loaded again, unasked
    assert backend.infer("counting", images(4.0))[0].max() == 4.0
    assert backend.pid != old
    assert _is_gone(old)


def test_a_real_crash_in_native_code_is_one_too(backend: OnnxBackend, tmp_path: Path) -> None:
    """Not a signal from outside: ONNX Runtime itself overflows its stack; a smaller network of the kind runs."""
    backend.load(doubling(tmp_path))
    backend.load(crashing(tmp_path, "harmless", depth=10))
    assert backend.infer("harmless", images(1.0))[0].shape == (1, 1)
    old = _pid(backend)
    with pytest.raises(BackendCrashed, match="SIGSEGV"):
        backend.load(crashing(tmp_path))
    assert backend.infer("doubling", images(4.0))[0].max() == 8.0
    assert backend.pid != old


def test_a_batch_that_never_ends_is_ended_and_the_next_one_is_answered(tmp_path: Path) -> None:
    backend = OnnxBackend(threads=2, patch_seconds=2.0)
    backend.load(doubling(tmp_path))
    backend.load(endless := counting(tmp_path))
    old = _pid(backend)
    with ThreadPoolExecutor(1) as pool:
        running = _start(pool, backend, endless)
        # Of two patches: it has twice the time, and is not the one to blame when the other's is over.
        with pytest.raises(BackendCrashed, match="running the network counting took too long"):
            backend.infer("counting", images(FOR_EVER, FOR_EVER))
        with pytest.raises(BackendTimeout, match="no answer after 2 s") as caught:
            running.result(PATIENCE)
    assert caught.value.retry
    with pytest.raises(BackendTimeout, match="no answer after 4 s"):
        backend.infer("counting", images(FOR_EVER, FOR_EVER))
    assert backend.infer("doubling", images(4.0))[0].max() == 8.0
    assert backend.pid != old
    assert _is_gone(old)
    backend.close()


def test_loading_that_crashes_or_never_ends_is_told_and_leaves_the_others_running(tmp_path: Path) -> None:
    backend = OnnxBackend(threads=2, patch_seconds=0.3)
    backend.load(doubling(tmp_path))
    endless = counting(tmp_path, turns=2**62)
    with pytest.raises(BackendTimeout, match="loading the network counting: no answer after 3 s"):
        backend.load(endless)
    with ThreadPoolExecutor(1) as pool:
        _until(lambda: backend.pid)
        loading = pool.submit(backend.load, endless)
        _until_busy(_pid(backend))
        os.kill(_pid(backend), signal.SIGABRT)
        with pytest.raises(BackendCrashed, match="SIGABRT"):
            loading.result(PATIENCE)
    with pytest.raises(ContractBroken, match="not loaded"):
        backend.infer("counting", images(1.0))
    assert backend.infer("doubling", images(4.0))[0].max() == 8.0
    backend.close()


def test_a_batch_whose_engine_is_replaced_before_it_is_sent_goes_to_the_new_one(
    backend: OnnxBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which has loaded nothing yet; and nobody is told of a crash that did not touch his batch."""
    backend.load(doubling(tmp_path))
    old = _pid(backend)
    run, runs = backend._run, iter(("first", "second"))

    def replace_engine(*arguments: Any) -> tuple[Array, ...]:
        if next(runs) == "first":
            os.kill(old, signal.SIGKILL)
            _until(lambda: _is_another(backend, old))
        return run(*arguments)

    monkeypatch.setattr(backend, "_run", replace_engine)
    assert backend.infer("doubling", images(2.0))[0].max() == 4.0
    assert list(runs) == []


def test_a_batch_that_meets_a_dead_engine_waits_for_the_next_one(
    backend: OnnxBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dead, and nobody has noticed: the pipe is broken when the command is written to it."""
    backend.load(doubling(tmp_path))
    old = _pid(backend)
    broken = threading.Event()

    class Broken:
        """The pipe to a process that died a moment ago, for its first command."""

        def send(self, command: Command) -> None:
            broken.set()
            raise BrokenPipeError

    monkeypatch.setattr(backend._engine, "_channel", Broken())
    assert backend.infer("doubling", images(2.0))[0].max() == 4.0
    assert broken.is_set()
    assert backend.pid != old


def test_weights_that_changed_on_the_disk_are_not_loaded_after_a_crash(backend: OnnxBackend, tmp_path: Path) -> None:
    network = doubling(tmp_path)
    backend.load(network)
    network.file.write_bytes(network.file.read_bytes() + b"\x00")
    assert backend.infer("doubling", images(1.0))[0].max() == 2.0  # what is loaded goes on
    old = _pid(backend)
    os.kill(old, signal.SIGKILL)
    _until(lambda: _is_another(backend, old))
    with pytest.raises(ContractBroken, match="sha256"):
        backend.infer("doubling", images(1.0))


def test_an_engine_that_is_killed_again_and_again_owes_nobody_an_answer(backend: OnnxBackend, tmp_path: Path) -> None:
    """Each call ends with its own answer or with the crash; one engine is left, and it works."""
    for name in ("one", "two"):
        backend.load(doubling(tmp_path, name))
    over = threading.Event()
    kinds: list[str] = []

    def ask(number: int) -> None:
        while not over.is_set():
            try:
                (answer,) = backend.infer(("one", "two")[number % 2], images(float(number)))
            except BackendCrashed:
                kinds.append("crash")
            else:
                np.testing.assert_array_equal(answer, 2.0 * number)
                kinds.append("answer")

    with ThreadPoolExecutor(6) as pool:
        asking = [pool.submit(ask, number) for number in range(6)]
        try:
            for _ in range(5):
                _until(lambda: backend.pid)
                old, enough = _pid(backend), kinds.count("answer") + 20
                _until(partial(_has_grown, kinds, enough))
                os.kill(old, signal.SIGKILL)
                _until(partial(_is_another, backend, old))
        finally:
            over.set()
        for future in asking:
            future.result(PATIENCE)
    assert "crash" in kinds
    assert backend.infer("one", images(1.0))[0].max() == 2.0
    assert len(_children()) == 1


# --- Begin and end --------------------------------------------------------------------------------------------------


def _children() -> list[int]:
    """Children of this process that are engines."""
    children = [int(pid) for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()]
    return [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_signals_that_end_the_service_do_not_end_the_engine_before_it(backend: OnnxBackend, tmp_path: Path) -> None:
    backend.load(doubling(tmp_path))
    pid = _pid(backend)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    assert backend.infer("doubling", images(1.0))[0].max() == 2.0
    assert backend.pid == pid


def test_the_engine_leaves_no_images_in_a_core_file_and_is_the_first_to_go_where_memory_ends(
    backend: OnnxBackend,
) -> None:
    limits = Path(f"/proc/{backend.pid}/limits").read_text().splitlines()
    assert next(line.split()[4:6] for line in limits if line.startswith("Max core file size")) == ["0", "0"]
    assert Path(f"/proc/{backend.pid}/oom_score_adj").read_text().strip() == "500"


def test_onnx_runtime_reports_nothing_to_its_maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Since 1.29 it gathers events in a database under the home folder and uploads them, unless it is told not to."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")  # not even when the site's environment asks for it
    (tmp_path / "home").mkdir()
    backend = OnnxBackend(threads=1)
    backend.load(doubling(tmp_path))
    backend.infer("doubling", images(1.0))
    opened = [os.readlink(file) for file in Path(f"/proc/{backend.pid}/fd").iterdir()]
    backend.close()
    assert not any("onnxruntime.db" in name for name in opened)
    assert sum(name.startswith("socket:") for name in opened) == 1  # the channel to its parent
    assert list((tmp_path / "home").iterdir()) == []


def test_closing_leaves_nothing_behind(tmp_path: Path) -> None:
    OnnxBackend(threads=1).close()  # what multiprocessing starts once stays
    gc.collect()
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    backend = OnnxBackend(threads=2)
    backend.load(doubling(tmp_path))
    backend.infer("doubling", images(1.0))
    pid = _pid(backend)
    backend.close()
    backend.close()
    with pytest.raises(Stopping):
        backend.infer("doubling", images(1.0))
    with pytest.raises(Stopping):
        backend.load(doubling(tmp_path, "other"))
    del backend
    gc.collect()
    assert not Path(f"/proc/{pid}").exists()  # not even a zombie
    assert _children() == []
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == files


SCRIPT = """\
import sys
from pathlib import Path
from service.backends.engine import OnnxBackend
from tests.graphs import counting, images

if __name__ == "__main__":
    backend = OnnxBackend(threads=2)
    backend.load(counting(Path(sys.argv[1])))
    assert backend.infer("counting", images(3.0))[0].max() == 3.0
    assert "onnxruntime" not in sys.modules, "the parent has loaded ONNX Runtime"
    print(backend.pid, flush=True)
    {then}
"""


def _run_script(folder: Path, then: str) -> subprocess.Popen[str]:
    script = folder / "parent.py"
    script.write_text(SCRIPT.format(then=then))
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )


def test_a_program_that_forgets_to_close_ends_all_the_same_and_never_loads_onnx_runtime(tmp_path: Path) -> None:
    parent = _run_script(tmp_path, "pass")
    out, _ = parent.communicate(timeout=PATIENCE)
    assert parent.returncode == 0
    assert _is_gone(int(out))


def test_the_engine_ends_with_its_parent_even_from_the_middle_of_a_batch(tmp_path: Path) -> None:
    parent = _run_script(tmp_path, "backend.infer('counting', images(1e18))")
    assert parent.stdout
    pid = int(parent.stdout.readline())
    _until_busy(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _until(lambda: _is_gone(pid))


PINS = "OVERREAD_TEST_PINS"  # names the file to which an engine on a pretended GPU writes what it pins
UNLUCKY = 13.0  # the value of an image at which that GPU fails


def _run_on_pretended_gpu(channel: Connection, threads: int, memory_gib: float) -> None:
    """The engine, with a device that notes what is pinned, and fails at a certain image as a GPU does."""
    from service.backends import onnx, runner

    infer = onnx.Runtime.infer

    def note(*words: object) -> None:
        with Path(os.environ[PINS]).open("a") as pins:
            print(*words, file=pins)

    def pin(self: object, address: int, size: int) -> bool:
        note("pin", address, size)
        return True

    def unpin(self: object, address: int) -> None:
        note("unpin", address)

    def fail(self: onnx.Runtime, name: str, patches: Array, answers: Sequence[Array], **others: bool) -> None:
        if patches.max() == UNLUCKY:
            raise onnx.translate(RuntimeError("CUDA failure 700: an illegal memory access"), f"running {name}")
        infer(self, name, patches, answers, **others)

    for name, pretended in (("pin", pin), ("unpin", unpin), ("infer", fail)):
        setattr(onnx.Runtime, name, pretended)
    runner.run_engine(channel, threads, memory_gib)


@pytest.fixture
def pretended_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OnnxBackend]:
    monkeypatch.setenv(PINS, str(tmp_path / "pins"))
    monkeypatch.setattr(process, "run_engine", _run_on_pretended_gpu)
    made = OnnxBackend(threads=1)
    yield made
    made.close()


def test_a_gpu_that_fails_gets_a_new_process(pretended_gpu: OnnxBackend, tmp_path: Path) -> None:
    """What CUDA calls a sticky error: the process has lost the device for good, another one has not."""
    pretended_gpu.load(doubling(tmp_path))
    old = _pid(pretended_gpu)
    with pytest.raises(BackendUnavailable, match="the GPU does not answer"):
        pretended_gpu.infer("doubling", images(UNLUCKY))
    assert pretended_gpu.infer("doubling", images(2.0))[0].max() == 4.0
    assert pretended_gpu.pid != old


def test_a_block_is_pinned_once_and_let_go_when_it_is_outgrown(pretended_gpu: OnnxBackend, tmp_path: Path) -> None:
    pretended_gpu.load(doubling(tmp_path))
    for batch in (1, 2, 9000, 2):
        pretended_gpu.infer("doubling", images(*[1.0] * batch))
    words = [line.split() for line in (tmp_path / "pins").read_text().splitlines()]
    assert [word for word, *_ in words] == ["pin", "unpin", "pin"]
    assert words[0][1] == words[1][1]
    assert [int(words[index][2]) for index in (0, 2)] == [2**20, 2 * 2**20]


def _ends_at_once(*_: object) -> None:
    os._exit(3)


def test_an_engine_that_does_not_start_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "run_engine", _ends_at_once)
    with pytest.raises(BackendUnavailable, match="starting the inference engine") as caught:
        OnnxBackend(threads=1)
    assert caught.value.retry
    assert _children() == []
