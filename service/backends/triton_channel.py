"""[edge] The gRPC channel to a Triton server, and what its errors mean for us."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import grpc
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

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

_CHANNEL = [
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
    # A server that comes back is found at once, and a machine that is off within seconds.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    # A machine that falls silent is noticed. Servers refuse pings more often than every five minutes while they
    # compute; data that is not acknowledged breaks the connection after the time-out already (TCP_USER_TIMEOUT).
    ("grpc.keepalive_time_ms", 310_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
]
_NO_MEMORY = re.compile(
    r"out of memory|bad.?alloc|failed to allocate|alloc_failed|cannot allocate|smaller than requested bytes",
    re.IGNORECASE,
)
_NOT_READY = "not at ready state"  # the other word for a network that was unloaded
_NOT_ALLOWED = "explicit model load / unload is not allowed"  # it says UNAVAILABLE to that, which may pass: this won't

# An answer that may be the device's or the runtime's fault is tried again: a network that is at fault itself is found
# out when it fails alone.
MEANING: dict[grpc.StatusCode, type[BackendError]] = {
    grpc.StatusCode.CANCELLED: BackendUnavailable,  # by us, when the service stops, or by the server, when it does
    grpc.StatusCode.UNKNOWN: BackendCrashed,
    grpc.StatusCode.INVALID_ARGUMENT: ContractBroken,
    grpc.StatusCode.DEADLINE_EXCEEDED: BackendTimeout,
    grpc.StatusCode.NOT_FOUND: ContractBroken,
    grpc.StatusCode.ALREADY_EXISTS: ContractBroken,
    grpc.StatusCode.PERMISSION_DENIED: BackendUnavailable,  # work waits until somebody has opened the door
    grpc.StatusCode.UNAUTHENTICATED: BackendUnavailable,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OutOfMemory,  # a message too long for the server, too: a smaller batch will do
    grpc.StatusCode.FAILED_PRECONDITION: ContractBroken,
    grpc.StatusCode.ABORTED: BackendCrashed,
    grpc.StatusCode.OUT_OF_RANGE: ContractBroken,
    grpc.StatusCode.UNIMPLEMENTED: ContractBroken,
    grpc.StatusCode.INTERNAL: BackendCrashed,  # whatever a backend throws, the death of its process included
    grpc.StatusCode.UNAVAILABLE: BackendUnavailable,
    grpc.StatusCode.DATA_LOSS: BackendCrashed,
}
# By error: the rule, and the way out.
_ADVICE: dict[type[BackendError], tuple[str, str]] = {
    BackendUnavailable: (
        "the Triton server of [analysis] backend answers",
        "start it, or look at its log, at the network between and at [triton] tls and ca_file; work waits for it",
    ),
    BackendTimeout: (
        "a network answers within [analysis] patch_seconds for each patch",
        "look at the server's load and its log; raise patch_seconds if the network needs longer",
    ),
    BackendCrashed: (
        "the server's runtime survives every batch",
        "look at the server's log; load the network again, or start the server again, if this repeats",
    ),
    OutOfMemory: (
        "a batch, its activations and the weights fit into the device's memory",
        "let the server load fewer networks, or lower max_batch_size in config.pbtxt",
    ),
    ContractBroken: (
        "the server has the network that model.toml describes",
        "give the server the models directory of this service as its repository",
    ),
}


def status(exc: InferenceServerException) -> grpc.StatusCode:
    """The status that the server, or the channel to it, gave."""
    return getattr(grpc.StatusCode, str(exc.status()).removeprefix("StatusCode."), grpc.StatusCode.UNKNOWN)


def is_forgotten(exc: InferenceServerException) -> bool:
    """Whether the server does not know, or know any more, the network or the memory that it was asked for."""
    return status(exc) is grpc.StatusCode.NOT_FOUND or _NOT_READY in str(exc.message())


def says(exc: InferenceServerException) -> str:
    """The server's message on one line. It knows tensors and devices, no patients."""
    return f"{status(exc).name}: {' '.join(str(exc.message()).split())[:300]}"


def translate(exc: InferenceServerException, doing: str, *, brief: bool = False) -> BackendError:
    """Tritonclient's exception as one of ours; `brief`: the server was to answer at once, not to run anything."""
    text = str(exc.message())
    kind = OutOfMemory if _NO_MEMORY.search(text) else MEANING.get(status(exc), BackendCrashed)
    if brief and kind is BackendTimeout:
        kind = BackendUnavailable
    rule, way_out = _ADVICE[kind]
    if _NOT_ALLOWED in text:
        kind, rule = ContractBroken, "[triton] manage_models needs a server that lets its networks be managed"
        way_out = "start it with --model-control-mode=explicit, or set manage_models = false and let it load all"
    return kind(doing=doing, found=says(exc), rule=rule, way_out=way_out)


def connect(url: str, settings: Triton) -> Any:
    """A channel; it connects when it is first used."""
    for key in ("ca_file", "certificate_file", "key_file"):
        path: Path | None = getattr(settings, key)
        try:
            if path and not path.read_bytes():
                raise OSError("the file is empty")
        except OSError as exc:
            raise ConfigError(
                doing=f"reading {path}",
                found=exc.strerror or str(exc),
                rule=f"[triton] {key} is a PEM file",
                way_out="correct the path, or let the service read the file",
            ) from exc
    if bool(settings.certificate_file) != bool(settings.key_file):
        raise ConfigError(
            doing="reading [triton] of the configuration",
            found="a certificate without its key, or the other way round",
            rule="certificate_file and key_file belong together",
            way_out="name both, or neither",
        )
    paths = (settings.ca_file, settings.key_file, settings.certificate_file)
    authorities, private_key, chain = (str(path) if path else None for path in paths)
    return triton.InferenceServerClient(
        url,
        ssl=settings.tls,
        root_certificates=authorities,
        private_key=private_key,
        certificate_chain=chain,
        channel_args=_CHANNEL,
    )
