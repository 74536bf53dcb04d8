"""[edge] Networks in process, on ONNX Runtime: a GPU where there is one, else the CPU, without a word about it."""

from __future__ import annotations

import ctypes.util
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.errors import BackendError, BackendUnavailable, ContractBroken, OutOfMemory
from service.spec import Stage
from service.types import Model

_SEVERE = 3  # ONNX Runtime's severity "error": its warnings are about itself


class OnnxBackend:
    """A `Backend` in this process.

    Parameters
    ----------
    threads
        CPU threads for all networks together; 0: as many as this process may use.
    """

    def __init__(self, *, threads: int = 0) -> None:
        threads = threads or len(os.sched_getaffinity(0))
        gpu = gpu_present()
        # Two batches at once keep the cores busy while one is copied or runs a narrow layer.
        self.slots = 2 if gpu else min(2, threads)
        self._threads = max(1, threads // self.slots)
        self._providers: list[Any] = ["CPUExecutionProvider"]
        if gpu:
            ort.preload_dlls()  # finds CUDA and cuDNN in wheels, where they are not installed system-wide
            # TF32 keeps ten bits of a product: it moves the liver lesions' probabilities by up to 0.035.
            self._providers.insert(0, ("CUDAExecutionProvider", {"use_tf32": 0}))
            if ctypes.util.find_library("nvinfer"):
                self._providers.insert(0, "TensorrtExecutionProvider")
        self.name = "onnxruntime CPU"
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._lock = threading.Lock()

    def load(self, model: Model) -> None:
        """Load the model's networks and hold them against ``model.toml``; see `Backend.load`."""
        for stage in model.spec.stages:
            if stage.rule != "network":
                continue
            network = model.spec.network_of(stage)
            with self._lock:
                session = self._sessions.get(network) or self._open(model.folder.parent / network / "1" / "model.onnx")
                _check_tensors(session, network, stage)
                self._sessions[network] = session
            self.name = f"onnxruntime {session.get_providers()[0].removesuffix('ExecutionProvider')}"

    def infer(self, network: str, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run one batch; see `Backend.infer`."""
        session = self._sessions.get(network)
        if session is None:
            raise ContractBroken(
                doing=f"running the network {network}",
                found="it could not be loaded when the service started",
                rule="a network is loaded, and held against model.toml, before it runs",
                way_out="see model.broken in the log, or run overread check; then start the service again",
            )
        try:
            (answer,) = session.run(None, {session.get_inputs()[0].name: batch})
        except Exception as exc:  # ONNX Runtime has a class per status code, and plain RuntimeError besides
            raise translate(exc, f"running the network {network}") from exc
        return np.asarray(answer, np.float32)

    def _open(self, path: Path) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _SEVERE
        # Both keep more memory than they save time: measured 3.2 instead of 6.8 GB for one patch of the liver network.
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        try:
            return ort.InferenceSession(path, options, providers=self._providers)
        except Exception as exc:
            raise translate(exc, f"loading the network {path.parent.parent.name}") from exc


def gpu_present() -> bool:
    """Whether an NVIDIA GPU is there; asked first, because ONNX Runtime shouts where it finds none."""
    return Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()


def translate(exc: Exception, doing: str) -> BackendError:
    """ONNX Runtime's exception as one of ours."""
    text = str(exc)
    if "alloc" in text.lower() or "out of memory" in text.lower():
        return OutOfMemory(
            doing=doing,
            found="too little memory on the device",
            rule="a batch, its activations and the weights fit into the device's memory",
            way_out="give the service more memory, or run fewer studies at once",
        )
    if "cuda failure" in text.lower() or "cudnn" in text.lower():
        return BackendUnavailable(
            doing=doing,
            found="the GPU does not answer",
            rule="the device that was found at the start stays usable",
            way_out="look at the driver's messages; start the service again if this repeats",
        )
    return ContractBroken(
        doing=doing,
        found=f"{type(exc).__name__}: {text.splitlines()[0][:300] if text else 'no message'}",
        rule="a network is a readable ONNX file whose tensors are those of model.toml",
        way_out="install the model again (overread models install NAME)",
    )


def _check_tensors(session: ort.InferenceSession, network: str, stage: Stage) -> None:
    """Hold the session's one input and one output against the stage."""
    for side, said, found in (
        ("input", stage.input, session.get_inputs()),
        ("output", stage.output, session.get_outputs()),
    ):
        assert said is not None  # a network stage has both: spec.py
        wanted = (said.name, "tensor(float)", [said.channels, *said.shape])
        given = (found[0].name, found[0].type, list(found[0].shape[1:]))
        if len(found) != 1 or given != wanted:
            raise ContractBroken(
                doing=f"holding the network {network} against stage {stage.name} of model.toml",
                found=f"{side} {given} and {len(found)} of them",
                rule=f"one {side} {wanted} behind the batch axis",
                way_out="correct model.toml, or install the network that belongs to it",
            )
