"""[edge] Networks on ONNX Runtime: TensorRT or CUDA where an NVIDIA GPU is, else the CPU.

Only the engine's process comes here (backends/engine.py): what goes wrong in native code goes wrong there.
"""

from __future__ import annotations

import os
import re
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnxruntime as ort

from service import log
from service.backends.device import Cuda, Device, Machine, driver_version, gpu_present, tensorrt_version
from service.backends.envelope import LARGEST_BATCH, measure_batches
from service.backends.messages import Abilities, Loaded, Measured
from service.backends.onnx_contract import check_file, check_tensors
from service.backends.providers import TENSORRT_BATCH, Provider, choose_providers
from service.errors import BackendError, BackendUnavailable, ContractBroken, OutOfMemory
from service.types import Array, Network

_SEVERE: Final = 3  # ONNX Runtime's severity "error": its warnings are about itself
_FREE_PART: Final = 0.9  # of the memory that is free at the start: what is left is for everybody else
_SHORT_OF_MEMORY: Final = 4  # on a GPU with less than one part in so many free, each batch gives back what it took
_REPEATS: Final = 3  # of a batch that is measured, where it is fast
_FAST_SECONDS: Final = 1.0
_OPSET: Final = re.compile(r"Opset (\d+) is under development.*domain (\S+) is till opset (\d+)", re.DOTALL)
_IR: Final = re.compile(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)")


@dataclass(frozen=True, slots=True)
class _Ready:
    network: Network
    session: ort.InferenceSession


class Runtime:
    """Loads networks and runs batches of them; several batches at once, one load at a time.

    Parameters
    ----------
    threads
        CPU threads for all networks together; 0: as many as this process may use.
    memory_gib
        For all networks together; 0: nine tenths of what is free.
    """

    def __init__(self, *, threads: int, memory_gib: float) -> None:
        threads = threads or len(os.sched_getaffinity(0))
        kind, self._device, self._hardware = _find_device()
        self._gpu, self._tensorrt = kind != "CPU", kind == "TensorRT"
        # Two batches at once keep the cores busy while one is copied or runs a narrow layer.
        slots = 2 if self._gpu else min(2, threads)
        self._threads = max(1, threads // slots)
        where = self._hardware if self._gpu else f"{slots}x{self._threads} threads"
        self.abilities = Abilities(
            name=f"onnxruntime {kind}",
            device=f"onnxruntime {ort.__version__} {kind} {where}",
            slots=slots,
            memory_bytes=int(memory_gib * 2**30) or int(_FREE_PART * self._device.free_bytes()),
        )
        self._ready: dict[str, _Ready] = {}
        self._loading = threading.Lock()

    def load(self, network: Network, limit_bytes: int) -> Loaded:
        """Load a network, hold it against ``model.toml``, warm it up; see `Backend.load`.

        Parameters
        ----------
        limit_bytes
            Memory of a GPU that it may take; 0: not known yet.
        """
        doing = f"loading the network {network.name}"
        with self._loading:
            begun, before = time.monotonic(), self._device.held_bytes()
            check_file(network, doing)
            session = self._open(network, limit_bytes or self.abilities.memory_bytes, doing)
            check_tensors(network, session.get_inputs(), session.get_outputs())
            self._ready[network.name] = _Ready(network, session)
            try:
                self._try(network, 1, give_back=True)
            except BackendError:
                del self._ready[network.name]
                raise
            held = self._device.held_bytes() - before
            # The allocator may have filled holes that another network left: never less than the weights.
            resident = max(held, network.file.stat().st_size)
            return Loaded(resident_bytes=resident, seconds=time.monotonic() - begun)

    def unload(self, name: str) -> None:
        """Let a network go, and give its memory back."""
        if self._ready.pop(name, None):
            self._device.held_bytes()  # trims the heap

    def measure(self, network: Network, limit_bytes: int, longest_seconds: float) -> Measured:
        """Measure batches of a loaded network, up to these limits. Nothing else may run meanwhile."""
        own = sum(4 * int(np.prod(tensor.dims)) for tensor in (network.input, *network.outputs))

        def run(size: int) -> tuple[float, int] | None:
            before, seen = self._device.held_bytes(), self._device.begin()
            try:
                seconds = [self._try(network, size)]
                if seconds[0] < _FAST_SECONDS:  # the first run of a size pays for choices: it does not count
                    seconds = [self._try(network, size) for _ in range(_REPEATS)]
            except OutOfMemory:
                if size == 1:
                    raise
                return None
            peak = self._device.peak_bytes()
            if not seen:
                log.warning("network.memory_not_measured", network=network.name, batch=size, lower_bound=True)
                return statistics.median(seconds), size * own + network.file.stat().st_size
            if self._gpu:
                self._try(network, 1, give_back=True)
            return statistics.median(seconds), max(peak - before, size * own)

        seconds, taken = measure_batches(
            run,
            memory_bytes=min(limit_bytes, self._device.free_bytes()),
            longest_seconds=longest_seconds,
            largest=TENSORRT_BATCH if self._tensorrt else LARGEST_BATCH,
        )
        return Measured(batch_seconds=seconds, batch_bytes=taken)

    def infer(self, name: str, patches: Array, answers: Sequence[Array], *, give_back: bool = False) -> None:
        """Run one batch from where it lies to where the answers shall lie.

        Parameters
        ----------
        patches
            [N, channels, *shape], contiguous.
        answers
            One for each output, of the very shape that it has.
        give_back
            Whether the memory that the batch took is given back to the GPU at once.
        """
        ready = self._ready[name]
        binding = ready.session.io_binding()
        binding.bind_cpu_input(ready.network.input.name, patches)
        for tensor, answer in zip(ready.network.outputs, answers, strict=True):
            place = answer.ctypes.data
            binding.bind_output(tensor.name, "cpu", 0, np.float32, list(answer.shape), place)
        with _translated(f"running the network {name}"):
            ready.session.run_with_iobinding(binding, self._options(give_back))

    def pin(self, address: int, size: int) -> bool:
        """Lock a block's pages for a GPU; False where that is not done."""
        return self._device.pin(address, size)

    def unpin(self, address: int) -> None:
        """Let them go again."""
        self._device.unpin(address)

    def _try(self, network: Network, size: int, *, give_back: bool = False) -> float:
        """Seconds of a batch of nothing in particular."""
        # Filled, because pages of zeros that nobody wrote take no memory.
        patches = np.full((size, *network.input.dims), 0.5, np.float32)
        answers = [np.empty((size, *tensor.dims), np.float32) for tensor in network.outputs]
        begun = time.perf_counter()
        self.infer(network.name, patches, answers, give_back=give_back)
        return time.perf_counter() - begun

    def _options(self, give_back: bool) -> ort.RunOptions:
        options = ort.RunOptions()
        options.log_severity_level = _SEVERE
        if self._gpu and (give_back or self._is_short()):
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "gpu:0")
        return options

    def _is_short(self) -> bool:
        return self._device.free_bytes() < self._device.total_bytes // _SHORT_OF_MEMORY

    def _open(self, network: Network, limit_bytes: int, doing: str) -> ort.InferenceSession:
        chosen = choose_providers(
            network,
            gpu=self._gpu,
            tensorrt=self._tensorrt,
            limit_bytes=limit_bytes,
            cache_key=f"{self._hardware} onnxruntime {ort.__version__}",
        )
        with _translated(doing):
            return ort.InferenceSession(network.file, self._session_options(), providers=chosen)

    def _session_options(self) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _SEVERE
        # Waiting threads would burn what the other slot needs; measured on the liver's networks, it gains nothing.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not self._gpu:
            # Both keep more memory than they save time: measured 3.2 instead of 6.8 GB for one patch of the liver.
            options.enable_cpu_mem_arena = False
            options.enable_mem_pattern = False
        return options


def translate(exc: Exception, doing: str) -> BackendError:
    """ONNX Runtime's exception as one of ours."""
    text = str(exc)
    words = text.lower()
    if isinstance(exc, MemoryError) or "alloc" in words or "out of memory" in words:
        return OutOfMemory(
            doing=doing,
            found="too little memory on the device",
            rule="a batch, its activations and the weights fit into the device's memory",
            way_out="give the service more memory, or run fewer studies at once",
        )
    if "cuda failure" in words or "cudnn" in words:
        return BackendUnavailable(
            doing=doing,
            found="the GPU does not answer",
            rule="the device that was found at the start stays usable",
            way_out="look at the driver's messages; the engine is started again",
        )
    rule, way_out = "a network is a readable ONNX file whose tensors are those of model.toml", "install the model again"
    if too_new := _OPSET.search(text):
        opset, domain, known = too_new.groups()
        found = f"opset {opset} of {domain}"
        rule, way_out = f"ONNX Runtime {ort.__version__} knows opsets up to {known}", "export the network with that one"
    elif too_new := _IR.search(text):
        found = f"version {too_new[1]} of ONNX's file format"
        rule, way_out = (
            f"ONNX Runtime {ort.__version__} knows it up to {too_new[2]}",
            "export the network with that one",
        )
    else:
        found = f"{type(exc).__name__}: {text.splitlines()[0][:300] if text else 'no message'}"
    return ContractBroken(doing=doing, found=found, rule=rule, way_out=f"{way_out} (overread models install NAME)")


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except Exception as exc:  # ONNX Runtime has a class per status code, and plain RuntimeError besides
        raise translate(exc, doing) from exc


def _find_device() -> tuple[str, Device, str]:
    """CPU, CUDA or TensorRT; its memory; and its name with the versions that matter."""
    if not gpu_present():
        return "CPU", Machine(), ""
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # TensorRT has no option for it: see `choose_providers`
    ort.preload_dlls()  # finds CUDA and cuDNN in wheels, where they are not installed system-wide
    tensorrt = tensorrt_version()
    try:
        cuda = Cuda()
        used = _probe([("CUDAExecutionProvider", {})])
        if used == "CUDA" and tensorrt:
            used = _probe([("TensorrtExecutionProvider", {}), ("CUDAExecutionProvider", {})])
    except Exception as exc:  # whatever the libraries lack: the service says so, and works on the CPU
        log.failure("engine.gpu_unusable", exc)
        return "CPU", Machine(), ""
    if used not in ("CUDA", "Tensorrt"):
        log.warning("engine.gpu_unusable", provider=used)
        return "CPU", Machine(), ""
    if used == "CUDA":
        return "CUDA", cuda, f"{cuda.name} driver {driver_version()}"
    return "TensorRT", cuda, f"{cuda.name} driver {driver_version()} {tensorrt}"


def _probe(chosen: list[Provider]) -> str:
    """The provider that really works, tried with a network of one node."""
    import onnx

    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N"]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["y"])], "probe", value[:1], value[1:])
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    session = ort.InferenceSession(made.SerializeToString(), providers=[*chosen, "CPUExecutionProvider"])
    session.run(None, {"x": np.ones(1, np.float32)})
    provider: str = session.get_providers()[0]
    return provider.removesuffix("ExecutionProvider")
