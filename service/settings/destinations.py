"""Where results go."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from service.files import Frozen
from service.forms import Profile
from service.settings.doors import AETitle, ClientTls, Port


class Destination(Frozen):
    """Where results go."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", description="Name in the API, the logs and the metrics.")
    ae_title: AETitle = Field(description="Its application entity title.")
    host: str = Field(description="Its address.")
    port: Port = Field(description="Its DICOM port.")
    tls: ClientTls | None = Field(default=None, description="DICOM TLS (PS3.15 Annex B, BCP 195); none: plain.")
    confirm: Literal["auto", "commitment", "query", "none"] = Field(
        default="auto",
        description='When a result is done: "commitment": the destination has committed to it (PS3.4 Annex J); '
        '"query": it finds it (C-FIND, or QIDO-RS); "auto": the first of these that it can do; "none": it said '
        "Success.",
    )
    qido_url: str = Field(
        default="",
        pattern=r"^(https?://[^@]+)?$",
        description="Its DICOMweb service, where it is to be asked by QIDO-RS and not by C-FIND.",
    )
    commitment_seconds: float = Field(
        default=900.0,
        gt=0,
        description="Longest wait for its commitment; then it is asked whether it has the result "
        '("commitment": to commit again).',
    )
    at_once: int = Field(default=4, ge=1, le=64, description="Associations with it at the same time.")
    first_pause_seconds: float = Field(
        default=2.0, gt=0, description="Pause after a first failed attempt; each further one is three times as long."
    )
    longest_pause_seconds: float = Field(default=3600.0, gt=0, description="Longest pause between attempts.")
    timeout_seconds: float = Field(default=30.0, gt=0, description="Longest wait for an answer on an association.")
    retry_hours: float = Field(
        default=72.0,
        gt=0,
        description="How long a result is tried again that fails by itself. A destination that is away is waited for "
        "as long as it takes.",
    )
    profile: Profile = Field(
        default=Profile(), description="What it gets, and in which form; `overread probe NAME` proposes one."
    )

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if self.first_pause_seconds > self.longest_pause_seconds:
            raise ValueError("first_pause_seconds is more than longest_pause_seconds")
        if self.qido_url and self.confirm in ("commitment", "none"):
            raise ValueError(f'qido_url is not used with confirm = "{self.confirm}": leave one of them out')
        return self
