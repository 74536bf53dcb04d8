"""The doors: ports that can be opened, certificates and their chains, who may come in."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from service import tls
from service.api.doors import Doors
from service.checks.types import Checks, Doubtful
from service.config import Config
from service.errors import ConfigError
from service.ports import bound
from service.settings.doors import ClientTls, ServerTls

_DAY: Final = 86400.0
_SOON_DAYS: Final = 21.0


def checks(config: Config) -> Checks:
    """Those of the ports, and of every certificate that is named."""
    if "receive" in config.process.parts:
        yield "DICOM port", lambda: _port(config.intake.host, config.intake.port, "[intake]")
        yield "DICOM doors", lambda: _dicom(config)
    yield "HTTP port", lambda: _port(config.api.host, config.api.port, "[api]")
    yield "HTTP doors", lambda: _http(config)
    for name, settings in config.tls.items():
        yield f"TLS of {name}", lambda s=settings: _certificate(s)  # type: ignore[misc]


def _port(host: str, port: int, section: str) -> str:
    bound(host, port, section=section).close()
    return f"{host}:{port} can be opened"


def _dicom(config: Config) -> str:
    intake = config.intake
    if intake.host in ("127.0.0.1", "::1", "localhost"):
        return "only this machine reaches it"
    shut = [name for name in ("tls", "addresses", "calling_ae_titles") if getattr(intake, name)]
    if not shut:
        raise Doubtful(
            doing="looking at who may send studies",
            found="anybody on the network who knows the AE title",
            rule="an AE title is no secret: the port is open to those that [intake] addresses or tls let in",
            way_out="name the PACS's addresses in [intake] addresses, or use TLS with ca_file",
        )
    return f"limited by {', '.join(shut)}"


def _http(config: Config) -> str:
    api = config.api
    Doors(api, config.store.directory)  # reads tokens and secrets as a start would
    if api.is_open:
        return "whoever is on this machine may do everything: no token and no sign-in is set"
    if api.tls is None and api.host not in ("127.0.0.1", "::1", "localhost") and not api.trusted_proxies:
        raise Doubtful(
            doing="looking at how the page is reached",
            found="plain HTTP from other machines",
            rule="tokens and sign-ins cross the network only under TLS",
            way_out="set [api] tls; or put a proxy before it, and name its address in trusted_proxies",
        )
    who = [f"{len(api.tokens)} tokens" if api.tokens else "", "OpenID Connect" if api.oidc else ""]
    return f"limited by {' and '.join(filter(None, who))}"


def _certificate(settings: ServerTls | ClientTls) -> str:
    """Read all its files as a connection would, and see when the certificates end."""
    tls.check(settings)
    ends: dict[Path, float] = {}
    for path in (settings.certificate_file, settings.ca_file):
        if path is not None:
            ends[path] = (tls.expiry(path) - time.time()) / _DAY
    if not ends:
        return "the system's authorities are trusted"
    path, days = min(ends.items(), key=lambda it: it[1])
    if days < _SOON_DAYS:
        error = ConfigError if days < 0 else Doubtful
        raise error(
            doing=f"reading the certificate {path}",
            found=f"it ended {-days:.0f} days ago" if days < 0 else f"it ends in {days:.0f} days",
            rule="nobody believes a certificate after its end",
            way_out="have it renewed and put it in its place: it is read again without a stop",
        )
    return f"readable; the first certificate ends in {days:.0f} days"
