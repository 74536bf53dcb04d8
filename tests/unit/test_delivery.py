"""One attempt to deliver: what the audit trail is told of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service import audit, delivery
from service.errors import PeerUnreachable
from service.results import deliver
from service.settings.destinations import Destination
from tests.unit.test_store import _delivery

DESTINATION = Destination(name="pacs", ae_title="PACS", host="10.0.0.5", port=104)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    heard: list[tuple[str, dict[str, Any]]] = []
    for name in ("begin_transferring", "transferred"):
        monkeypatch.setattr(audit, name, lambda name=name, **fields: heard.append((name, fields)))
    return heard


def test_a_result_that_is_sent_is_in_the_audit_trail_before_and_after(
    told: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def send(*_: object, **__: object) -> str:
        told.append(("sent", {}))
        return "a remark"

    monkeypatch.setattr(deliver, "send", send)
    assert delivery._send(_delivery("9.1"), DESTINATION, our_ae_title="OVERREAD") == "a remark"
    assert [name for name, _ in told] == ["begin_transferring", "sent", "transferred"]
    (_, begun), _, (_, ended) = told
    assert (begun["destination"], begun["address"], begun["study_uid"]) == ("PACS", "10.0.0.5", "1.2.3")
    assert begun["instances"] == ended["instances"] == {"1.2.840.10008.5.1.4.1.1.88.34": 1}
    assert (ended["incoming"], ended["peer"], ended["succeeded"]) == (False, "PACS", True)


def test_one_that_can_not_be_sent_is_told_as_that(
    told: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def away(*_: object, **__: object) -> str:
        raise PeerUnreachable(doing="sending", found="no connection", rule="it listens", way_out="start it")

    monkeypatch.setattr(deliver, "send", away)
    with pytest.raises(PeerUnreachable):
        delivery._send(_delivery("9.1"), DESTINATION, our_ae_title="OVERREAD")
    assert told[-1][1]["succeeded"] is False
