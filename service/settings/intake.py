"""How studies come in, and what is known of their senders."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, IPvAnyNetwork, model_validator

from service.files import Frozen
from service.settings.doors import AETitle, ClientTls, Port, ServerTls


class Intake(Frozen):
    """How studies come in."""

    ae_title: AETitle = Field(default="OVERREAD", description="Our application entity title (PS3.5 VR AE).")
    host: str = Field(default="127.0.0.1", description="Address to listen on; loopback until the site says otherwise.")
    port: Port = Field(default=11112, description="DICOM port to listen on.")
    processes: int = Field(default=2, ge=1, le=16, description="Receiving processes that share the port.")
    called_ae_titles: tuple[AETitle, ...] = Field(
        default=(),
        description='Names under which we may be called; empty: `ae_title` and those of `[[routes]]`; ["*"]: any.',
    )
    calling_ae_titles: tuple[AETitle, ...] = Field(
        default=(), description="Who may associate; empty: anybody who may connect."
    )
    addresses: tuple[IPvAnyNetwork, ...] = Field(
        default=(), description='Who may connect, e.g. ["10.1.0.0/16"]; empty: anybody.'
    )
    tls: ServerTls | None = Field(
        default=None, description="DICOM TLS (PS3.15 Annex B, BCP 195); the port then speaks nothing else."
    )
    maximum_associations: int = Field(
        default=64, ge=1, le=1000, description="Of each process at the same time; more are rejected for now."
    )
    maximum_pdu_bytes: int = Field(
        default=1 << 20, ge=4096, le=1 << 24, description="Largest PDU that we offer to take."
    )
    maximum_instance_mib: int = Field(
        default=2048, ge=1, description="Largest instance; the association of a larger one is aborted, unkept."
    )
    associate_seconds: float = Field(
        default=10.0, gt=0, description="Longest time from the connection to the association request."
    )
    idle_seconds: float = Field(
        default=180.0,
        gt=0,
        description="Longest silence on an association; longer than a database may be locked (60 s).",
    )
    quiet_seconds: float = Field(
        default=30.0,
        gt=0,
        description="A study is ready when no instance of it has come for so long, unless its source can be asked "
        "(`[[sources]]`).",
    )
    limit_seconds: float = Field(
        default=300.0,
        gt=0,
        description="A study of which instances are missing is analysed all the same, and marked partial, when none "
        "has come for so long.",
    )
    minimum_free_gib: float = Field(
        default=2.0, ge=0, description="Instances are refused with A700 when less than this is free on the disk."
    )


class Query(Frozen):
    """Where a source answers C-FIND, Study Root."""

    ae_title: AETitle = Field(description="The application entity title under which it is asked.")
    host: str = Field(description="Its address.")
    port: Port = Field(description="Its DICOM port.")
    tls: ClientTls | None = Field(default=None, description="DICOM TLS; none: plain.")


class Source(Frozen):
    """A sender of studies, and how it is known that a study of it is whole."""

    ae_title: AETitle = Field(description="Its calling AE title, by which it is recognised.")
    query: Query | None = Field(
        default=None,
        description="Where it is asked how much of a study there is (C-FIND, Study Root); none, and no `qido_url`: "
        "only the clock counts.",
    )
    qido_url: str = Field(
        default="",
        pattern=r"^(https?://[^@]+)?$",
        description="In place of `query`: its DICOMweb service, e.g. https://pacs/dicom-web (QIDO-RS).",
    )
    modalities: tuple[str, ...] = Field(
        default=(), description='Of which modalities it sends us the series, e.g. ["CT", "MR"]; empty: of all.'
    )
    settle_seconds: float = Field(
        default=0.2,
        gt=0,
        description="How long no instance has come before it is asked; more for a PACS that sends on while it still "
        "receives: its own count is then not final.",
    )
    quiet_seconds: float | None = Field(
        default=None, gt=0, description="In place of `[intake] quiet_seconds`, where it can't be asked or can't tell."
    )
    limit_seconds: float | None = Field(default=None, gt=0, description="In place of `[intake] limit_seconds`.")
    timeout_seconds: float = Field(default=10.0, gt=0, description="Longest wait for its answer.")

    @model_validator(mode="after")
    def _one_way_to_ask(self) -> Self:
        if self.query and self.qido_url:
            raise ValueError("query and qido_url are both given: one of them")
        return self


class Route(Frozen):
    """Which studies are urgent, by how they come. The first route that fits counts."""

    calling_ae_title: AETitle | None = Field(default=None, description="Who sends; none: anybody.")
    called_ae_title: AETitle | None = Field(default=None, description="Under which name we are called; none: any.")
    priority: Literal["stat", "high", "routine", "low"] = Field(
        description="How urgent. Without a route it is Requested Procedure Priority (0040,1003), where the images have "
        "it, else routine."
    )
