"""Who may associate with us: settings in, a rejection of PS3.8 Table 9-21 or none out."""

from __future__ import annotations

from typing import Any

import pytest

from service.config import Config
from service.intake.doors import FULL, OTHER_PROTOCOL, UNKNOWN_CALLED, UNKNOWN_CALLING, Doors, pad
from service.intake.doors import called_title as called_of
from service.intake.doors import calling_title as calling_of
from service.settings.intake import Intake


def request(called: bytes | str = "OVERREAD", calling: bytes | str = "CT1", *, version: int = 1) -> bytes:
    """The fixed part of an A-ASSOCIATE-RQ (PS3.8 Table 9-11)."""
    titles = [it if isinstance(it, bytes) else it.encode().ljust(16) for it in (called, calling)]
    return b"\x01\x00\x00\x00\x00\x44" + version.to_bytes(2, "big") + bytes(2) + b"".join(titles) + bytes(32)


def doors(*, routes: Any = (), destinations: Any = (), **intake: Any) -> Doors:
    return Doors.of(Config.model_validate({"intake": intake, "routes": routes, "destinations": destinations}))


ROUTES = [{"called_ae_title": "NIGHT", "priority": "low"}, {"calling_ae_title": "ER", "priority": "stat"}]
PACS = [{"name": "pacs", "ae_title": "PACS", "host": "pacs", "port": 104}]


@pytest.mark.parametrize(
    ("settings", "called", "comes_in"),
    [
        ({}, "OVERREAD", True),
        ({}, "  OVERREAD", True),
        ({}, "ANY-SCP", False),
        ({}, "overread", False),
        ({}, "", False),
        ({}, b"\xff" * 16, False),
        ({"ae_title": "AI"}, "AI", True),
        ({"ae_title": "AI"}, "OVERREAD", False),
        ({"routes": ROUTES}, "NIGHT", True),
        ({"routes": ROUTES}, "OVERREAD", True),
        ({"routes": ROUTES}, "ER", False),
        ({"called_ae_titles": ["AI", " AI2 "]}, "AI2", True),
        ({"called_ae_titles": ["AI"]}, "OVERREAD", False),
        ({"called_ae_titles": ["AI"], "routes": ROUTES}, "NIGHT", False),
        ({"called_ae_titles": ["*"]}, "ANYTHING", True),
        ({"called_ae_titles": ["*"]}, b"\xff" * 16, False),
        ({"called_ae_titles": ["*"]}, "", False),
    ],
)
def test_the_name_that_is_called(settings: dict[str, Any], called: bytes | str, comes_in: bool) -> None:
    assert doors(**settings).rejection(request(called)) is (None if comes_in else UNKNOWN_CALLED)


@pytest.mark.parametrize(
    ("settings", "calling", "comes_in"),
    [
        ({}, "ANYBODY", True),
        ({"calling_ae_titles": ["CT1", "MR1"]}, "MR1", True),
        ({"calling_ae_titles": ["CT1", "MR1"]}, "MR2", False),
        ({"calling_ae_titles": ["CT1"]}, "", False),
        ({}, "", False),
        ({}, b"GEHEIM\n\x1b[31mNAME", False),
        ({"calling_ae_titles": ["CT1"], "destinations": PACS}, "PACS", True),  # it reports its commitment
        ({"destinations": PACS}, "ANYBODY", True),
    ],
)
def test_the_name_that_calls(settings: dict[str, Any], calling: bytes | str, comes_in: bool) -> None:
    assert doors(**settings).rejection(request(calling=calling)) is (None if comes_in else UNKNOWN_CALLING)


def test_titles_that_are_padded_with_zeros_are_titles() -> None:
    asked = bytearray(request(b"OVERREAD".ljust(16, b"\0"), b"CT1".ljust(16, b"\0")))
    pad(asked)
    assert (called_of(asked), calling_of(asked), len(asked)) == ("OVERREAD", "CT1", 74)
    assert doors().rejection(asked) is None


def test_the_protocol_is_looked_at_first() -> None:
    assert doors().rejection(request("WRONG", version=2)) is OTHER_PROTOCOL
    assert doors().rejection(request(version=3)) is None  # a later version that knows ours


@pytest.mark.parametrize(
    ("rejection", "pdu"),
    [
        (UNKNOWN_CALLED, "03000000000400010107"),
        (UNKNOWN_CALLING, "03000000000400010103"),
        (OTHER_PROTOCOL, "03000000000400010202"),
        (FULL, "03000000000400020302"),
    ],
)
def test_a_rejection_is_one_of_table_9_21(rejection: Any, pdu: str) -> None:
    assert rejection.pdu.hex() == pdu
    assert rejection.found
    assert rejection.rule
    assert rejection.way_out


@pytest.mark.parametrize("title", [b"GEHEIM\nNAME".ljust(16), "GEHEIM^É".encode().ljust(16)[:16], b"A\\B".ljust(16)])
def test_what_is_no_ae_title_is_not_repeated(title: bytes) -> None:
    assert called_of(request(title)) == ""
    assert calling_of(request(calling=title)) == ""


@pytest.mark.parametrize(
    ("addresses", "address", "comes_in"),
    [
        ([], "203.0.113.9", True),
        (["10.1.0.0/16", "192.0.2.7"], "10.1.255.3", True),
        (["10.1.0.0/16", "192.0.2.7"], "192.0.2.7", True),
        (["10.1.0.0/16", "192.0.2.7"], "10.2.0.1", False),
        (["10.1.0.0/16"], "::ffff:10.1.2.3", True),
        (["10.1.0.0/16"], "::ffff:10.2.2.3", False),
        (["10.1.0.0/16"], "::1", False),
        (["2001:db8::/32"], "2001:db8::7", True),
        (["fe80::/10"], "fe80::7%eth0", True),
        (["10.1.0.0/16"], "no address", False),
    ],
)
def test_from_where(addresses: list[str], address: str, comes_in: bool) -> None:
    made = Doors.of(Config(intake=Intake.model_validate({"addresses": addresses})))
    assert made.admit(address) is comes_in
