"""One typed TOML file. Every key has a safe default and a unit in its name; unknown keys are refused.

Its sections are in ``settings/``, one module for each side of the product.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self, TypeVar

from pydantic import BaseModel, Field, field_validator, model_validator

from service.files import Frozen, read_toml
from service.forms import Wanted
from service.settings.analysis import Analysis, Triton
from service.settings.destinations import Destination
from service.settings.doors import Api, Audit, ClientTls, ServerTls
from service.settings.intake import Intake, Route, Source
from service.settings.store import Process, Retention, StoreSection


class Config(Frozen):
    """A site's file."""

    process: Process = Process()
    intake: Intake = Intake()
    sources: tuple[Source, ...] = Field(default=(), description="Who sends studies, and who can be asked about them.")
    routes: tuple[Route, ...] = Field(default=(), description="What is urgent, by sender or by the name called.")
    analysis: Analysis = Analysis()
    triton: Triton = Triton()
    destinations: tuple[Destination, ...] = Field(default=(), description="Where results go; each gets all of them.")
    store: StoreSection = StoreSection()
    retention: Retention = Retention()
    api: Api = Api()
    audit: Audit = Audit()

    @field_validator("destinations")
    @classmethod
    def _names_differ(cls, destinations: tuple[Destination, ...]) -> tuple[Destination, ...]:
        names = [d.name for d in destinations]
        if len(set(names)) < len(names):
            raise ValueError(f"two destinations have the same name: {', '.join(names)}")
        return destinations

    @field_validator("sources")
    @classmethod
    def _titles_differ(cls, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        titles = [source.ae_title for source in sources]
        if len(set(titles)) < len(titles):
            raise ValueError(f"two sources have the same ae_title: {', '.join(titles)}")
        return sources

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.intake.port == self.api.port and self.intake.host == self.api.host:
            raise ValueError(f"[intake] and [api] have the same port {self.api.port}")
        return self

    @model_validator(mode="after")
    def _one_file_one_process(self) -> Self:
        if not self.store.database and not {"receive", "work"}.issubset(self.process.parts):
            raise ValueError("[process] parts on several machines need one PostgreSQL: name it in [store] database")
        return self

    @property
    def wanted(self) -> Wanted:
        """In which forms answers are written: all that some destination wants or may need."""
        return Wanted.by(destination.profile for destination in self.destinations)

    @property
    def audit_file(self) -> Path:
        """Where this process's audit trail is. Each of several machines that share the store's folder has its own:
        appending to one is not atomic across machines.
        """
        name = f"audit-{self.process.called}.log" if self.store.database else "audit.log"
        return self.audit.file or self.store.directory / name

    @property
    def tls(self) -> dict[str, ServerTls | ClientTls]:
        """Where TLS is set, by what it is for."""
        found: dict[str, ServerTls | ClientTls | None] = {"intake": self.intake.tls, "api": self.api.tls}
        found |= {f"destination {it.name}": it.tls for it in self.destinations}
        found |= {f"source {it.ae_title}": it.query.tls for it in self.sources if it.query}
        if self.audit.syslog and self.audit.protocol == "tls":
            found["audit"] = self.audit.tls
        return {use: settings for use, settings in found.items() if settings is not None}

    def source(self, ae_title: str) -> Source:
        """The source of that calling AE title; one that is not in the file can't be asked."""
        found = next((s for s in self.sources if s.ae_title == ae_title), None) or Source(ae_title=ae_title or "?")
        return found.model_copy(
            update={
                "quiet_seconds": found.quiet_seconds or self.intake.quiet_seconds,
                "limit_seconds": found.limit_seconds or self.intake.limit_seconds,
            }
        )

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
    return _from(path.resolve().parent, read_toml(path, Config))


Section = TypeVar("Section", bound=BaseModel)


def _from(home: Path, section: Section) -> Section:
    """The section with its relative paths taken from a folder."""
    changed: dict[str, object] = {}
    for key in type(section).model_fields:
        value = getattr(section, key)
        if isinstance(value, Path):
            changed[key] = home / value
        elif isinstance(value, BaseModel):
            changed[key] = _from(home, value)
        elif isinstance(value, tuple):
            changed[key] = tuple(_from(home, it) if isinstance(it, BaseModel) else it for it in value)
    return section.model_copy(update=changed)
