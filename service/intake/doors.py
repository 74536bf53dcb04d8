"""Who may associate with us: addresses, AE titles, and what a refusal says (PS3.8 Table 9-21)."""

from __future__ import annotations

import ipaddress
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from service.config import Config

ASSOCIATE_RQ: Final = 0x01  # the PDU that opens an association (PS3.8 section 9.3.2)
FIXED: Final = 74  # bytes of it before its variable items; its own six bytes of type and length are in it
_VALID: Final = re.compile(r"[ -\[\]-~]{1,16}")  # VR AE (PS3.5 Table 6.2-1)
ANY: Final = "*"

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Why an association is rejected, as A-ASSOCIATE-RJ says it (PS3.8 Table 9-21)."""

    result: int  # 1 for good, 2 for now
    source: int  # 1 service user, 2 service provider (ACSE), 3 service provider (presentation)
    reason: int  # of that source
    found: str  # in words, without the peer's own
    rule: str
    way_out: str

    @property
    def pdu(self) -> bytes:
        """The A-ASSOCIATE-RJ (PS3.8 section 9.3.4)."""
        return struct.pack(">BBLBBBB", 0x03, 0, 4, 0, self.result, self.source, self.reason)


_TITLES = "both AE titles are known here (PS3.8 Table 9-21)"
UNKNOWN_CALLED: Final = Rejection(
    result=1,
    source=1,
    reason=7,
    found="it calls us by another AE title",
    rule=_TITLES,
    way_out="correct the AE title there, or add it to [intake] called_ae_titles",
)
UNKNOWN_CALLING: Final = Rejection(
    result=1,
    source=1,
    reason=3,
    found="its AE title is not among those that may call",
    rule=_TITLES,
    way_out="add it to [intake] calling_ae_titles, if it is one of the house",
)
OTHER_PROTOCOL: Final = Rejection(
    result=1,
    source=2,
    reason=2,
    found="it speaks another version of the protocol",
    rule="bit 0 of Protocol-version is set (PS3.8 Table 9-11)",
    way_out="look at who connects",
)
FULL: Final = Rejection(
    result=2,
    source=3,
    reason=2,
    found="as many associations as may be are open",
    rule="one process has at most [intake] maximum_associations",
    way_out="nothing to do if it passes: senders try again; else raise maximum_associations or processes",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Doors:
    """Who may come in."""

    called: frozenset[str]  # names under which we may be called, without padding; empty: any
    calling: frozenset[str]  # who may call; empty: anybody
    networks: tuple[Network, ...]  # from where; empty: from anywhere

    @classmethod
    def of(cls, config: Config) -> Doors:
        """The doors of a site.

        Where callers are named, destinations may call all the same: they report what they have committed to.
        """
        intake = config.intake
        called = intake.called_ae_titles or (
            intake.ae_title,
            *(route.called_ae_title for route in config.routes if route.called_ae_title),
        )
        calling = _titles(intake.calling_ae_titles)
        return cls(
            called=frozenset() if ANY in called else _titles(called),
            calling=calling and calling | _titles(destination.ae_title for destination in config.destinations),
            networks=intake.addresses,
        )

    def admit(self, address: str) -> bool:
        """Whether somebody of that address may connect."""
        if not self.networks:
            return True
        try:
            known = ipaddress.ip_address(address.partition("%")[0])  # without the zone of a link-local one
        except ValueError:
            return False
        if isinstance(known, ipaddress.IPv6Address) and known.ipv4_mapped:
            known = known.ipv4_mapped  # a port that listens on :: sees IPv4 like that
        return any(known in network for network in self.networks)

    def rejection(self, request: bytes | bytearray) -> Rejection | None:
        """Why an A-ASSOCIATE-RQ is rejected; None if it is not.

        Parameters
        ----------
        request
            The PDU, from its type on; at least `FIXED` bytes.
        """
        if not request[7] & 1:
            return OTHER_PROTOCOL
        called, calling = called_title(request), calling_title(request)
        if not called or (self.called and called not in self.called):
            return UNKNOWN_CALLED
        if not calling or (self.calling and calling not in self.calling):
            return UNKNOWN_CALLING
        return None


def pad(request: bytearray) -> None:
    """Let an A-ASSOCIATE-RQ have its AE titles padded with spaces (PS3.8 Table 9-11); some take zeros."""
    request[10:42] = request[10:42].replace(b"\0", b" ")


def called_title(request: bytes | bytearray) -> str:
    """The name under which an A-ASSOCIATE-RQ calls us; empty if it is no AE title."""
    return _title(request[10:26])


def calling_title(request: bytes | bytearray) -> str:
    """The name of who sends an A-ASSOCIATE-RQ; empty if it is no AE title."""
    return _title(request[26:42])


def _title(padded: bytes | bytearray) -> str:
    text = padded.decode("ascii", "replace")
    return text.strip(" ") if _VALID.fullmatch(text) else ""


def _titles(named: Iterable[str]) -> frozenset[str]:
    return frozenset(title.strip(" ") for title in named)
