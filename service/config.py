"""One typed TOML file. Every key has a safe default and a unit in its name; unknown keys are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from service.files import Frozen, read_toml
from service.forms import Profile, Wanted

AETitle = Annotated[str, Field(min_length=1, max_length=16, pattern=r"^[ -\[\]-~]*[!-\[\]-~][ -\[\]-~]*$")]
Port = Annotated[int, Field(ge=1, le=65535)]


class Intake(Frozen):
    """How studies come in."""

    ae_title: AETitle = Field(default="OVERREAD", description="Our application entity title (PS3.5 VR AE).")
    host: str = Field(default="127.0.0.1", description="Address to listen on; loopback until the site says otherwise.")
    port: Port = Field(default=11112, description="DICOM port to listen on.")
    processes: int = Field(default=2, ge=1, le=16, description="Receiving processes that share the port.")
    quiet_seconds: float = Field(
        default=30.0, gt=0, description="A study is ready when no instance of it has come for so long."
    )
    minimum_free_gib: float = Field(
        default=2.0, ge=0, description="Instances are refused with A700 when less than this is free on the disk."
    )


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


class Route(Frozen):
    """Which studies are urgent, by how they come. The first route that fits counts."""

    calling_ae_title: AETitle | None = Field(default=None, description="Who sends; none: anybody.")
    called_ae_title: AETitle | None = Field(default=None, description="Under which name we are called; none: any.")
    priority: Literal["stat", "high", "routine", "low"] = Field(
        description="How urgent. Without a route it is Requested Procedure Priority (0040,1003), where the images have "
        "it, else routine."
    )


class Destination(Frozen):
    """Where results go."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", description="Name in the API, the logs and the metrics.")
    ae_title: AETitle = Field(description="Its application entity title.")
    host: str = Field(description="Its address.")
    port: Port = Field(description="Its DICOM port.")
    confirm: Literal["query", "none"] = Field(
        default="query",
        description='"query": a result is done when the destination finds it (C-FIND); "none": when it said Success.',
    )
    timeout_seconds: float = Field(default=30.0, gt=0, description="Longest wait for an answer on an association.")
    retry_hours: float = Field(default=72.0, gt=0, description="How long transient failures are tried again.")
    profile: Profile = Field(
        default=Profile(), description="What it gets, and in which form; `overread probe NAME` proposes one."
    )


class StoreSection(Frozen):
    """Where things are remembered."""

    directory: Path = Field(default=Path("var"), description="Spool, evidence and, by default, the SQLite files.")
    database: str = Field(
        default="",
        pattern=r"^(postgresql\+psycopg://.+)?$",
        description="Empty: SQLite in the directory; else a PostgreSQL URL (postgresql+psycopg://...).",
    )


class Api(Frozen):
    """What is seen from outside."""

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: Port = Field(default=8080, description="HTTP port to listen on.")


class Config(Frozen):
    """A site's file."""

    intake: Intake = Intake()
    routes: tuple[Route, ...] = Field(default=(), description="What is urgent, by sender or by the name called.")
    analysis: Analysis = Analysis()
    triton: Triton = Triton()
    destinations: tuple[Destination, ...] = Field(default=(), description="Where results go; each gets all of them.")
    store: StoreSection = StoreSection()
    api: Api = Api()

    @field_validator("destinations")
    @classmethod
    def _names_differ(cls, destinations: tuple[Destination, ...]) -> tuple[Destination, ...]:
        names = [d.name for d in destinations]
        if len(set(names)) < len(names):
            raise ValueError(f"two destinations have the same name: {', '.join(names)}")
        return destinations

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.intake.port == self.api.port and self.intake.host == self.api.host:
            raise ValueError(f"[intake] and [api] have the same port {self.api.port}")
        return self

    @property
    def wanted(self) -> Wanted:
        """In which forms answers are written: all that some destination wants or may need."""
        return Wanted.by(destination.profile for destination in self.destinations)

    def destination(self, name: str) -> Destination | None:
        """The destination of that name, if the file still has it."""
        return next((d for d in self.destinations if d.name == name), None)


def read_config(path: Path) -> Config:
    """Read a site's file; relative folders and files in it are taken from the file's own folder.

    Raises
    ------
    ConfigError
        With the file, the keys and what is allowed there.
    """
    config = read_toml(path, Config)
    home = path.resolve().parent
    return config.model_copy(
        update={
            "analysis": config.analysis.model_copy(
                update={"models_directory": home / config.analysis.models_directory}
            ),
            "triton": config.triton.model_copy(
                update={
                    key: home / value
                    for key in ("ca_file", "certificate_file", "key_file")
                    if (value := getattr(config.triton, key))
                }
            ),
            "store": config.store.model_copy(update={"directory": home / config.store.directory}),
        }
    )
