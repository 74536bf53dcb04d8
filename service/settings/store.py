"""What is remembered, where, how long, and by which of several processes."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from service.files import Frozen

Part = Literal["receive", "work", "page"]


class Process(Frozen):
    """Which of several processes on one database this one is, and what it does."""

    name: str = Field(
        default="",
        pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}$|^$",
        description="Its name, the same after each start: what it left unfinished is then its own at once. Empty: the "
        "machine's name, or the environment's OVERREAD_NAME.",
    )
    parts: tuple[Part, ...] = Field(
        default=("receive", "work", "page"),
        min_length=1,
        description="receive: takes studies in; work: judges, analyses, delivers; page: the HTTP side. Health and "
        "metrics are shown in any case.",
    )

    @property
    def called(self) -> str:
        """Its name, wherever it comes from."""
        given = self.name or os.environ.get("OVERREAD_NAME", "") or socket.gethostname()
        return re.sub(r"[^a-zA-Z0-9._-]|^[^a-zA-Z0-9]", "-", given)[:64]  # it names files too


class StoreSection(Frozen):
    """Where things are remembered."""

    directory: Path = Field(default=Path("var"), description="Spool, evidence and, by default, the SQLite files.")
    database: str = Field(
        default="",
        pattern=r"^(postgresql\+psycopg://.+)?$",
        description="Empty: SQLite in the directory; else a PostgreSQL URL (postgresql+psycopg://user@host/name), "
        "without a password.",
    )
    password_file: Path | None = Field(
        default=None, description="File with the database's password; none: the environment's PGPASSWORD, or none."
    )

    @field_validator("database")
    @classmethod
    def _no_secret(cls, database: str) -> str:
        if ":" in database.partition("://")[2].partition("@")[0] and "@" in database:
            raise ValueError("the URL holds a password; give it in password_file, or as PGPASSWORD")
        return database


class Retention(Frozen):
    """How long things are kept, counted from when a study is done: all its results are confirmed where they belong."""

    sources_days: float = Field(default=7.0, ge=0, description="Received images.")
    evidence_days: float = Field(
        default=90.0, ge=0, description="Results and pictures; kept at least as long as the images."
    )
    records_days: float = Field(
        default=365.0,
        ge=0,
        description="Which instances a study had; what was delivered where stays known, so that nothing is sent twice.",
    )
