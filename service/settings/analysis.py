"""What is run, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from service.files import Frozen


class Analysis(Frozen):
    """What is run on them."""

    backend: str = Field(
        default="onnxruntime",
        pattern=r"^(onnxruntime|triton://[^/:]+:\d+)$",
        description='Where networks run: "onnxruntime" (in a process of ours; a GPU is used where there is one) or '
        '"triton://host:port".',
    )
    models_directory: Path = Field(default=Path("models"), description="Folder of the model folders.")
    models: tuple[str, ...] = Field(
        default=(), description="Names of the models to run; empty: all installed ones that are no demonstrations."
    )
    studies_at_once: int = Field(default=2, ge=1, le=64, description="Studies analysed at the same time.")
    threads: int = Field(default=0, ge=0, description="CPU threads for inference; 0: as many as there are cores.")
    gpu_memory_gib: float = Field(
        default=0.0,
        ge=0,
        description="Memory that loaded networks and running patches may take together: of the GPU, or of the machine "
        "where none is; networks take turns in it. 0: nine tenths of what is free at the start.",
    )
    patch_seconds: float = Field(
        default=120.0, gt=0, description="Time limit for a patch; a network that exceeds it is ended and named."
    )


class Triton(Frozen):
    """How a Triton server is spoken to, where `backend` names one."""

    timeout_seconds: float = Field(
        default=10.0, gt=0, description="Longest wait for any answer that is not inference (that has `patch_seconds`)."
    )
    shared_memory: Literal["auto", "cuda", "system", "none"] = Field(
        default="auto",
        description="How patches reach it: through GPU memory, through /dev/shm (both on the same machine only), or in "
        "messages. auto: the first of these that works.",
    )
    manage_models: bool = Field(
        default=False,
        description="Whether networks are loaded and unloaded there as they are needed (a server in explicit model "
        "control mode); else they must be loaded.",
    )
    tls: bool = Field(default=False, description="Whether the connection is TLS.")
    ca_file: Path | None = Field(default=None, description="PEM file of the authorities trusted; none: the system's.")
    certificate_file: Path | None = Field(default=None, description="PEM file of our own certificate, if it asks.")
    key_file: Path | None = Field(default=None, description="PEM file of its key.")
