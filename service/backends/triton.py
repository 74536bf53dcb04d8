"""[edge] Networks on a Triton server: a `Backend` over gRPC that waits for its server and finds it again."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tritonclient.utils import InferenceServerException

from service.backends.shared import sweep
from service.backends.triton_channel import translate
from service.backends.triton_contract import VERSION, check, not_ready
from service.backends.triton_line import Forgotten, Line
from service.errors import BackendCrashed, BackendTimeout, BackendUnavailable, ContractBroken, OutOfMemory
from service.settings.analysis import Triton
from service.types import Array, Envelope, Network

_LOAD_PATIENCE = 10  # times `patch_seconds`: TensorRT builds its engine when a network is loaded
_READY_SECONDS = 2.0
_SLOW_PATCH_SECONDS = 1.5  # no greater batches are measured then
_QUICK_BATCH_SECONDS = 0.5  # measured twice: the first of a size may pay for what the server prepares
_WORTH = 0.95  # a greater batch is worth it if a patch then takes no more of the time


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """A network that was held against the server's."""

    network: Network
    maximum: int  # patches in a batch
    envelope: Envelope
    life: int  # of the server, in which that was


class TritonBackend:
    """A `Backend` on a Triton server.

    Parameters
    ----------
    url
        Its gRPC address, "host:port".
    patch_seconds
        Time limit for a patch of a batch, counted for all patches of ours that the server has.

    Raises
    ------
    ConfigError
        If a file of the TLS settings can't be read. Whether the server is there shows later.
    """

    slots = 4  # the server joins what comes together into batches, and copies beside computing
    memory_bytes = 0

    def __init__(self, url: str, settings: Triton, *, patch_seconds: float) -> None:
        self.name = f"triton at {url}"
        self._url, self._patch_seconds = url, patch_seconds
        self._manage, self._seconds = settings.manage_models, settings.timeout_seconds
        self._line = Line(url, settings, patch_seconds=patch_seconds)
        self._client = self._line.client
        self._known: dict[str, _Known] = {}
        self._crashed: set[str] = set()  # since they were loaded
        self._loading = threading.Lock()
        self._turns = threading.BoundedSemaphore(self.slots)
        self._closed = False
        sweep()

    @property
    def copied_bytes(self) -> int:
        """How many bytes of patches and answers this process has copied to speak to the server."""
        return self._line.copied_bytes

    @property
    def shared_memory(self) -> str:
        """How patches travel, as far as that is known: "cuda", "system" or "none"."""
        return self._line.kind

    def load(self, network: Network) -> Envelope:
        """Hold a network against the server's, have it loaded there if that is ours to do; see `Backend.load`."""
        with self._loading:
            known = self._known.get(network.name)
            if known and known.network == network and self._is_fresh(known):
                return known.envelope
            begun, life = time.monotonic(), self._line.life
            try:
                maximum = self._open(network)
                if known and known.network == network:
                    envelope = known.envelope
                else:
                    envelope = self._measure(network, maximum, begun)
            except ContractBroken:
                self._let_go(network.name)
                raise
            self._crashed.discard(network.name)
            self._known[network.name] = _Known(network=network, maximum=maximum, envelope=envelope, life=life)
            return envelope

    def unload(self, network: str) -> None:
        """See `Backend.unload`. Where networks are not ours to manage, the server keeps it."""
        if self._known.pop(network, None):
            self._let_go(network)

    def infer(self, network: str, patches: Sequence[Array]) -> tuple[Array, ...]:
        """Run one batch; see `Backend.infer`."""
        known = self._known.get(network)
        if known is None:
            raise ContractBroken(
                doing=f"running the network {network}",
                found="it was never loaded, or unloaded since",
                rule="a network is loaded, and held against model.toml, before it runs",
                way_out="look for the error that its loading ended with",
            )
        _check_patches(known, patches)
        with self._turns:
            try:
                try:
                    return self._renewed(known, patches)
                except Forgotten:  # nothing was run; no broken connection had shown that the server is another one
                    return self._renewed(known, patches)
            except BackendCrashed:
                self._crashed.add(network)
                raise
            except BackendTimeout as exc:
                if self.ready():
                    raise
                # The server as a whole is stuck: that is not the network's fault, and may pass.
                raise self._line.away("it accepts calls, and answers none of them") from exc

    def ready(self) -> bool:
        """See `Backend.ready`. Live is enough: Triton calls itself ready only if every one of its networks is."""
        try:
            return bool(self._client.is_server_live(client_timeout=min(_READY_SECONDS, self._seconds)))
        except (InferenceServerException, ValueError):  # ValueError: the channel is closed
            return False

    def close(self) -> None:
        """See `Backend.close`: calls in flight end, what we loaded is unloaded, shared memory goes."""
        if self._closed:
            return
        self._closed = True
        self._line.cancel()
        for _ in range(self.slots):
            self._turns.acquire(timeout=self._seconds)
        if self.ready():  # else nobody answers, and nothing is loaded there
            for network in list(self._known):
                self.unload(network)
        self._known.clear()
        self._line.close()
        self._turns.release(self.slots)  # whoever still waits finds the line closed

    def _renewed(self, known: _Known, patches: Sequence[Array]) -> tuple[Array, ...]:
        """Run a batch, of a network that is first held anew against a server that was away."""
        if not self._is_fresh(known):
            self.load(known.network)
        return self._line.ask(known.network, patches)

    def _is_fresh(self, known: _Known) -> bool:
        return known.life == self._line.life and known.network.name not in self._crashed

    def _open(self, network: Network) -> int:
        """Have the network ready on the server, as ``model.toml`` says; its greatest batch size."""
        name, seconds = network.name, self._seconds
        doing = f"holding the network {name} of the Triton server against model.toml"
        with self._line.answers(doing, brief=True):
            # One that stops says so here, where it already denies that it has the network.
            self.name = f"triton {self._client.get_server_metadata(client_timeout=seconds).version} at {self._url}"
        if self._manage:
            self._load(name)
        with self._line.answers(doing, brief=True):
            if not self._client.is_model_ready(name, VERSION, client_timeout=seconds):
                index = self._client.get_model_repository_index(client_timeout=seconds)
                if not self.ready():  # it began to stop in between
                    raise self._line.away("the server is stopping")
                raise not_ready(name, index, manage=self._manage)
            metadata = self._client.get_model_metadata(name, VERSION, client_timeout=seconds)
            config = self._client.get_model_config(name, VERSION, client_timeout=seconds).config
        return check(network, metadata, config)

    def _load(self, network: str) -> None:
        """Have the server load a network."""
        doing = f"loading the network {network} on the Triton server"
        life = self._line.life
        try:
            if network in self._crashed:  # its process is gone, and the server keeps it as it is until it is unloaded
                self._client.unload_model(network, client_timeout=self._seconds)
            self._client.load_model(network, client_timeout=_LOAD_PATIENCE * self._patch_seconds)
        except InferenceServerException as exc:
            error = translate(exc, doing)
            if isinstance(error, BackendCrashed):  # whatever the server says of a folder that it can't load
                raise ContractBroken(
                    doing=doing,
                    found=error.found,
                    rule="the server's repository has the network's folder, with all that it needs to load it",
                    way_out="give it the models directory of this service as its repository, and look at its log",
                ) from exc
            if isinstance(error, BackendUnavailable):
                self._line.was_away(life)
            raise error from exc

    def _let_go(self, network: str) -> None:
        if self._manage:
            with contextlib.suppress(InferenceServerException):  # away: then it holds nothing
                self._client.unload_model(network, client_timeout=self._seconds)

    def _measure(self, network: Network, maximum: int, begun: float) -> Envelope:
        """Warm the network up and time batches, as long as greater ones pay."""
        patch = np.zeros(network.input.dims, np.float32)
        self._line.ask(network, [patch], patience=_LOAD_PATIENCE)
        load_seconds = time.monotonic() - begun
        seconds: dict[int, float] = {}
        size = 1
        while size <= maximum:
            try:
                seconds[size] = self._timed(network, [patch] * size)
            except OutOfMemory:
                if size == 1:
                    raise
                break
            each = seconds[size] / size
            if each > _SLOW_PATCH_SECONDS or (size > 1 and each > _WORTH * seconds[size // 2] / (size // 2)):
                break
            size *= 2
        return Envelope(
            device=self.name,
            resident_bytes=0,  # the server sees to its memory
            batch_bytes=dict.fromkeys(seconds, 0),
            batch_seconds=seconds,
            load_seconds=load_seconds,
        )

    def _timed(self, network: Network, patches: list[Array]) -> float:
        times: list[float] = []
        while not times or (len(times) < 2 and times[0] < _QUICK_BATCH_SECONDS):
            begun = time.monotonic()
            self._line.ask(network, patches, patience=_LOAD_PATIENCE)
            times.append(time.monotonic() - begun)
        return min(times)


def _check_patches(known: _Known, patches: Sequence[Array]) -> None:
    """Hold a batch against the network's input, before anything is copied."""
    shapes = {patch.shape for patch in patches}
    if len(patches) > known.maximum and shapes == {known.network.input.dims}:
        raise OutOfMemory(
            doing=f"running the network {known.network.name}",
            found=f"{len(patches)} patches",
            rule=f"the server now takes up to {known.maximum} in one batch (max_batch_size)",
            way_out="nothing: the batch is made smaller",
        )
    if shapes == {known.network.input.dims} and len(patches) <= known.maximum:
        return
    raise ContractBroken(
        doing=f"running the network {known.network.name}",
        found=f"{len(patches)} patches of the shapes {', '.join(map(str, sorted(shapes))) or 'none'}",
        rule=f"1 to {known.maximum} patches (max_batch_size) of the shape {known.network.input.dims}",
        way_out="correct the stage's input in model.toml, or max_batch_size in config.pbtxt",
    )
