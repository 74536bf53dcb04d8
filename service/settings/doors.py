"""Who may come in: TLS on every side, tokens and roles of the HTTP side, the audit trail, and secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, IPvAnyNetwork, model_validator

from service.files import Frozen

Port = Annotated[int, Field(ge=1, le=65535)]
AETitle = Annotated[str, Field(min_length=1, max_length=16, pattern=r"^[ -\[\]-~]*[!-\[\]-~][ -\[\]-~]*$")]
Role = Literal["viewer", "operator", "admin"]
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class ServerTls(Frozen):
    """TLS of a port that we open (BCP 195: 1.2 or newer)."""

    certificate_file: Path = Field(description="PEM file of our certificate, with its chain.")
    key_file: Path = Field(description="PEM file of its key.")
    ca_file: Path | None = Field(
        default=None, description="PEM file of the authorities of those who come: they then must show a certificate."
    )


class ClientTls(Frozen):
    """TLS of an association that we open (BCP 195: 1.2 or newer)."""

    ca_file: Path | None = Field(
        default=None, description="PEM file of the authorities trusted; none: those of the system."
    )
    certificate_file: Path | None = Field(default=None, description="PEM file of our certificate, if it asks for one.")
    key_file: Path | None = Field(default=None, description="PEM file of its key.")
    server_name: str = Field(default="", description="The name in its certificate, where that is not its host.")

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file go together")
        return self


class Token(Frozen):
    """Somebody who may ask the HTTP side. The token itself stands in no configuration."""

    name: str = Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._@-]{0,63}$", description="Who it is, for the audit trail.")
    role: Role = Field(
        description="viewer: sees; operator: also sends studies, tries again, drops, cancels, changes urgency; "
        "admin: also sees how the service is set."
    )
    sha256: str = Field(
        default="", pattern=r"^([0-9a-f]{64})?$", description="The token's SHA-256; `overread token` makes both."
    )
    file: Path | None = Field(default=None, description="In its place: a file with the token.")
    environment: str = Field(
        default="", pattern=r"^[A-Z0-9_]*$", description="In its place: a variable of the environment with the token."
    )

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if sum(map(bool, (self.sha256, self.file, self.environment))) != 1:
            raise ValueError("exactly one of sha256, file and environment says what the token is")
        return self


class Oidc(Frozen):
    """Sign-in by the hospital's own OpenID Connect provider."""

    issuer: str = Field(
        pattern=r"^https?://[^@?#]+$", description="Its issuer identifier; its keys and addresses are found there."
    )
    client_id: str = Field(min_length=1, description="What it knows us by.")
    client_secret_file: Path | None = Field(
        default=None, description="File with our secret; none: we have none (PKCE alone)."
    )
    scopes: tuple[str, ...] = Field(
        default=("openid", "profile"), description='What a sign-in asks it for; some need "groups" to name roles.'
    )
    audience: str = Field(default="", description="What access tokens are made for; empty: `client_id`.")
    role_claim: str = Field(
        default="roles",
        min_length=1,
        description="The claim with somebody's groups or roles; dots lead into it, e.g. realm_access.roles.",
    )
    viewers: tuple[str, ...] = Field(default=(), description="Values of it that make a viewer.")
    operators: tuple[str, ...] = Field(default=(), description="Values of it that make an operator.")
    admins: tuple[str, ...] = Field(default=(), description="Values of it that make an admin.")
    ca_file: Path | None = Field(
        default=None, description="PEM file of the authorities trusted for it; none: those of the system."
    )

    @model_validator(mode="after")
    def _is_guarded(self) -> Self:
        if urlsplit(self.issuer).scheme != "https" and urlsplit(self.issuer).hostname not in LOOPBACK:
            raise ValueError("issuer is plain http, where anybody on the way could hand out keys: https")
        if "openid" not in self.scopes:
            raise ValueError("scopes lacks openid, without which nobody is named")
        return self


class Api(Frozen):
    """The HTTP side: page, API, health, metrics, STOW-RS."""

    host: str = Field(
        default="127.0.0.1",
        description="Address to listen on; another than loopback only with `tokens` or `oidc`.",
    )
    port: Port = Field(default=8080, description="HTTP port to listen on.")
    public_url: str = Field(
        default="",
        pattern=r"^(https?://[^/@?#]+)?$",
        description="Where browsers come, e.g. https://overread.hospital, where a proxy stands before it.",
    )
    tls: ServerTls | None = Field(default=None, description="TLS; none: plain HTTP, for loopback or behind a proxy.")
    trusted_proxies: tuple[IPvAnyNetwork, ...] = Field(
        default=(), description="Addresses of proxies whose X-Forwarded-For is believed."
    )
    addresses: tuple[IPvAnyNetwork, ...] = Field(
        default=(), description='Who may connect, e.g. ["10.1.0.0/16"]; empty: anybody.'
    )
    tokens: tuple[Token, ...] = Field(
        default=(), description="Who may ask, and what; none, and no `oidc`: whoever is on this machine may do all."
    )
    oidc: Oidc | None = Field(default=None, description="Sign-in by the hospital's OpenID Connect provider.")
    session_hours: float = Field(default=8.0, gt=0, le=24, description="How long a sign-in of a browser lasts.")
    open_metrics: bool = Field(default=True, description="Whether /metrics, which names no patient, asks for no token.")
    requests_per_minute: int = Field(
        default=600, ge=1, description="Of one address, beside those that carry studies; more are answered 429."
    )
    maximum_body_mib: int = Field(default=2048, ge=1, description="Largest body of a STOW-RS request.")

    @model_validator(mode="after")
    def _is_closed(self) -> Self:
        if self.host not in LOOPBACK and not (self.tokens or self.oidc):
            raise ValueError("host is not loopback, so [[api.tokens]] or [api.oidc] must say who may ask")
        behind = [name for name in ("public_url", "trusted_proxies") if getattr(self, name)]
        if behind and not (self.tokens or self.oidc):
            raise ValueError(
                f"{behind[0]} says that others come by a proxy, so [[api.tokens]] or [api.oidc] must say who may ask"
            )
        names = [token.name for token in self.tokens]
        if len(set(names)) < len(names):
            raise ValueError("two tokens have the same name")
        return self

    @property
    def is_open(self) -> bool:
        """Whether whoever reaches it may do everything."""
        return not (self.tokens or self.oidc)


class Audit(Frozen):
    """The audit trail (PS3.15 section A.5), which names patients' studies, users and machines."""

    file: Path | None = Field(
        default=None,
        description="File that it is appended to; none: audit.log in the store's folder, and with PostgreSQL "
        "audit-NAME.log.",
    )
    syslog: str = Field(
        default="",
        pattern=r"^([^:/@\s]+:\d+)?$",
        description="host:port of the audit record repository (RFC 5424); empty: none.",
    )
    protocol: Literal["tls", "tcp", "udp"] = Field(
        default="tls", description="How it is reached: RFC 5425, RFC 6587, or RFC 5426."
    )
    tls: ClientTls = Field(default=ClientTls(), description="How it and we prove who we are.")
    maximum_waiting: int = Field(
        default=100_000, ge=1, description="Messages kept on the disk while the repository is away."
    )
