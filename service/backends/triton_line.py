"""[edge] The line to a Triton server: one batch out, its answer back, within a time limit, through shared memory."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from service import log
from service.backends.triton_channel import connect, is_forgotten, translate
from service.backends.triton_contract import VERSION
from service.backends.triton_memory import KINDS, is_written
from service.backends.triton_pool import Lent, Pool
from service.errors import BackendUnavailable, ContractBroken, OutOfMemory
from service.settings.analysis import Triton
from service.types import Array, Network

# How often each byte of a message is copied in this process, by the sources of tritonclient, protobuf and grpcio:
# stacked, as bytes, into the message, serialised, into gRPC's slice; back out of slices (3), parsed, as bytes, ours.
COPIES_SENT, COPIES_RECEIVED = 5, 6


class Forgotten(BackendUnavailable):
    """The server does not know a region or a network any more: it started anew, or somebody unloaded the network."""


class Line:
    """A connection that outlives its server.

    Attributes
    ----------
    client
        Tritonclient's, for what is no inference.
    life
        Counts how often the server was away: what was known of it before then is to be asked again.
    """

    def __init__(self, url: str, settings: Triton, *, patch_seconds: float) -> None:
        self._url, self._patch_seconds = url, patch_seconds
        self.client = connect(url, settings)
        self.life = 0
        self._pool = Pool(self.client, seconds=settings.timeout_seconds)
        wish = settings.shared_memory
        self._wished = (*KINDS, "none") if wish == "auto" else (wish,)
        self._kinds = self._wished  # the first is used; one that fails is left out
        self._lock = threading.Lock()
        self._calls: set[Any] = set()
        self._patches = 0  # in flight
        self._messages = 0  # bytes copied
        self._closed = False

    @property
    def copied_bytes(self) -> int:
        """How many bytes of patches and answers this process has copied."""
        return self._messages + self._pool.copied_bytes

    @property
    def kind(self) -> str:
        """How patches travel: "cuda", "system" or "none"."""
        return self._kinds[0]

    def ask(self, network: Network, patches: Sequence[Array], *, patience: int = 1) -> tuple[Array, ...]:
        """Run a batch; its limit is `patience` times that of its patches.

        Raises
        ------
        Forgotten
            Nothing was run; the network is to be loaded and held against ``model.toml`` again.
        BackendError
            As `Backend.infer`.
        """
        shapes = [(len(patches), *tensor.dims) for tensor in network.outputs]
        sizes = [4 * int(np.prod(shape)) for shape in shapes]
        sent = 4 * len(patches) * int(np.prod(network.input.dims))
        doing = f"running the network {network.name}"
        given = triton.InferInput(network.input.name, [len(patches), *network.input.dims], "FP32")
        wanted = [triton.InferRequestedOutput(tensor.name) for tensor in network.outputs]
        lent = self._lend(sent, sum(sizes), doing)
        if lent is None:
            given.set_data_from_numpy(np.stack(patches).astype(np.float32, copy=False))
            result = self._call(network.name, given, wanted, len(patches) * patience, doing)
            with self._lock:
                self._messages += COPIES_SENT * sent + COPIES_RECEIVED * sum(sizes)
            return tuple(
                _received(result, tensor.name, shape, doing)
                for tensor, shape in zip(network.outputs, shapes, strict=True)
            )
        over = False  # whether the server is done with the memory
        try:
            patches_lie, (answers_lie, offset) = lent.region.write(patches, shapes)
            given.set_shared_memory(patches_lie, sent)
            for output, size in zip(wanted, sizes, strict=True):
                output.set_shared_memory(answers_lie, size, offset)
                offset += size
            result = self._call(network.name, given, wanted, len(patches) * patience, doing)
            over = True
            answers = lent.region.read(shapes)
            for tensor, answer in zip(network.outputs, answers, strict=True):
                _check(result, tensor.name, answer.shape, doing)
                if not is_written(answer):
                    raise _no_answer(doing, f"{tensor.name} was announced and not written")
            return tuple(answers)
        except (ContractBroken, Forgotten):  # refused before it ran
            over = True
            raise
        finally:
            if over:
                self._pool.give(lent)
            else:
                self._pool.retire(lent)

    @contextlib.contextmanager
    def answers(self, doing: str, *, brief: bool = False) -> Iterator[None]:
        """Whatever the server says instead of an answer becomes one of our errors."""
        life = self.life
        try:
            yield
        except InferenceServerException as exc:
            error = translate(exc, doing, brief=brief)
            if is_forgotten(exc):
                self.was_away(life)
                raise Forgotten(
                    doing=doing, found=error.found, rule="what is loaded on the server stays there", way_out="wait"
                ) from exc
            if isinstance(error, BackendUnavailable):
                self.was_away(life)
            raise error from exc
        except ValueError as exc:  # gRPC's, on a channel that is closed
            if not self._closed:
                raise
            raise self.away("the service is stopping") from exc

    def was_away(self, life: int) -> None:
        """The server was away in that life of it: from now on it is another."""
        with self._lock:
            if life != self.life:
                return
            self.life += 1
            self._kinds = self._wished
        self._pool.forget()

    def away(self, found: str) -> BackendUnavailable:
        """The error for a server that can't be asked now."""
        return BackendUnavailable(
            doing=f"asking the Triton server at {self._url}",
            found=found,
            rule="the Triton server of [analysis] backend answers",
            way_out="wait until it does",
        )

    def cancel(self) -> None:
        """End all calls, those to come included."""
        with self._lock:
            self._closed = True
            calls = list(self._calls)
        for call in calls:
            call.cancel()

    def close(self) -> None:
        """Let the shared memory and the connection go; no call may be in flight."""
        self._pool.close()
        self.client.close()

    def _lend(self, sent: int, received: int, doing: str) -> Lent | None:
        """Memory for a call, of the first kind that works; None: in messages."""
        if self._closed:
            raise self.away("the service is stopping")
        life = self.life
        for kind in self._kinds:
            if kind == "none":
                break
            try:
                return self._pool.take(kind, sent, received)
            except InferenceServerException as exc:
                error = translate(exc, doing, brief=True)
                if isinstance(error, BackendUnavailable):
                    self.was_away(life)
                    raise error from exc
                self._leave_out(kind, f"the server can't open it: {error.found}", exc)
            except OSError as exc:
                if self._wished == (kind,):
                    raise OutOfMemory(
                        doing=doing,
                        found=f"/dev/shm has no room for {sent + received} bytes",
                        rule="shared memory holds the batches in flight",
                        way_out='give the container more (--shm-size), or set [triton] shared_memory = "auto"',
                    ) from exc
                self._leave_out(kind, f"/dev/shm has no room for {sent + received} bytes", exc)
            except Exception as exc:  # cuda-python has classes of its own, and may be missing
                self._leave_out(kind, f"no CUDA memory ({type(exc).__name__})", exc)
        return None

    def _leave_out(self, kind: str, found: str, exc: Exception) -> None:
        if self._wished == (kind,):
            raise ContractBroken(
                doing="handing patches to the Triton server through shared memory",
                found=found,
                rule=f'[triton] shared_memory = "{kind}" needs memory that this service and the server both see',
                way_out="run both on one machine, containers with a common /dev/shm (--ipc); or set "
                'shared_memory = "auto"',
            ) from exc
        with self._lock:
            if kind in self._kinds and kind != "cuda":  # which is seldom there
                log.event("triton.shared_memory_left_out", kind=kind, found=found)
            self._kinds = tuple(other for other in self._kinds if other != kind)

    def _call(self, network: str, given: Any, wanted: list[Any], patches: int, doing: str) -> Any:
        """Send a batch and wait for the server's answer."""
        done: Future[Any] = Future()

        def end(result: Any, error: Exception | None) -> None:
            if error:
                done.set_exception(error)
            else:
                done.set_result(result)

        with self._lock:
            if self._closed:
                raise self.away("the service is stopping")
            self._patches += patches
            seconds = self._patch_seconds * self._patches  # it may stand behind all of ours
        call = None
        try:
            with self.answers(doing):
                call = self.client.async_infer(
                    network, [given], end, model_version=VERSION, outputs=wanted, client_timeout=seconds
                )
                with self._lock:
                    self._calls.add(call)
                    late = self._closed
                if late:
                    call.cancel()
                return done.result()  # the limit ends it, too
        finally:
            with self._lock:
                self._patches -= patches
                self._calls.discard(call)


def _check(result: Any, name: str, shape: tuple[int, ...], doing: str) -> None:
    output = result.get_output(name)
    if output is None or output.datatype != "FP32" or tuple(output.shape) != shape:
        found = f"{output.datatype} {list(output.shape)}" if output else "nothing"
        raise _no_answer(doing, f"{name} came as {found} instead of FP32 {list(shape)}")


def _received(result: Any, name: str, shape: tuple[int, ...], doing: str) -> Array:
    _check(result, name, shape, doing)
    try:
        answer: Array = result.as_numpy(name)
    except ValueError as exc:  # fewer bytes than the shape says
        raise _no_answer(doing, f"{name} was announced and not sent") from exc
    return answer.copy()


def _no_answer(doing: str, found: str) -> ContractBroken:
    return ContractBroken(
        doing=doing,
        found=found,
        rule="the server answers each output of model.toml, in its shape, whole",
        way_out="look at the server's log and at the versions of what it runs the network with",
    )
