"""Attempts to deliver an object to scripted peers, one after the other: from Success to the receipt, or a reason."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    Comprehensive3DSRStorage,
    SegmentationStorage,
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from service import receipt
from service.codes import STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
from service.delivery import Attempt, attempt, is_away
from service.forms import Kind
from service.results.negotiate import Acceptance, negotiate
from service.settings.destinations import Destination
from service.store import Store
from service.tables import database_url
from service.types import Delivery, DeliveryState, FrozenAnswer, FrozenObject, Outcome
from tests.phantoms import make
from tests.support import free_port
from tests.unit.test_commitment import information
from tests.unit.test_results_identity import objects_of

OURS = "OVERREAD"
FIND = StudyRootQueryRetrieveInformationModelFind


@dataclass(kw_only=True)
class Peer:
    """A PACS that does as it is told."""

    port: int
    accepts: list[str] = field(default_factory=list)  # calling AE titles; none: all
    offers: tuple[Any, ...] = (StorageCommitmentPushModel, FIND)
    status: int = 0x0000  # of each C-STORE
    keeps: bool = True  # what it says Success to
    requests: int = 0x0000  # status of each N-ACTION
    reports: list[int | None] = field(default_factory=lambda: [0])  # by request: 0 committed, a reason, None: no report
    stored: list[bytes] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)  # transactions
    held: set[str] = field(default_factory=set)

    def store(self, event: Any) -> int:
        self.stored.append(event.request.DataSet.getvalue())
        if self.keeps:
            self.held.add(event.request.AffectedSOPInstanceUID)
        return self.status

    def find(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
        if event.identifier.SOPInstanceUID in self.held:
            yield 0xFF00, event.identifier
        yield 0x0000, None

    def action(self, event: Any) -> tuple[int, None]:
        told = event.action_information
        self.asked.append(told.TransactionUID)
        reason = self.reports[min(len(self.asked), len(self.reports)) - 1]
        if self.requests == 0x0000 and reason is not None:
            uids = [item.ReferencedSOPInstanceUID for item in told.ReferencedSOPSequence]
            failed: dict[str, int | None] | None = dict.fromkeys(uids, reason) if reason else None
            report = information(None if reason else uids, failed, TransactionUID=told.TransactionUID)
            threading.Timer(0.05, self._report, (event.assoc, 2 if reason else 1, report)).start()
        return self.requests, None

    @staticmethod
    def _report(association: Any, event_type: int, report: Dataset) -> None:
        association.send_n_event_report(report, event_type, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE)


@contextmanager
def _peer(**knobs: Any) -> Iterator[Peer]:
    peer = Peer(port=free_port(), **knobs)
    ae = AE("PEER")
    ae.require_calling_aet = peer.accepts
    for service in (Verification, SegmentationStorage, Comprehensive3DSRStorage, *peer.offers):
        ae.add_supported_context(service, scu_role=True, scp_role=True)
    handlers = [(evt.EVT_C_STORE, peer.store), (evt.EVT_C_FIND, peer.find), (evt.EVT_N_ACTION, peer.action)]
    server = ae.start_server(("127.0.0.1", peer.port), block=False, evt_handlers=handlers)  # type: ignore[arg-type]
    assert server
    try:
        yield peer
    finally:
        server.shutdown()


@dataclass(kw_only=True)
class Site:
    """Our side: a store with one delivery."""

    store: Store
    number: int
    acceptance: Acceptance

    def attempt(self, peer: Peer, *, answer: FrozenAnswer | None = None, **settings: Any) -> Attempt:
        """One attempt, written down as the worker does it."""
        usual = {"name": "pacs", "ae_title": "PEER", "host": "127.0.0.1", "port": peer.port, "timeout_seconds": 3}
        destination = Destination.model_validate(usual | settings)
        made = attempt(
            self.store.delivery(self.number),
            destination,
            self.store,
            answer=answer,
            acceptance=self.acceptance,
            our_ae_title=OURS,
        )
        self.store.note_delivery(self.number, made.state, reason=made.reason, tried=made.counts, next_at=made.next_at)
        return made


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A report of ours on the disk."""
    folder = tmp_path_factory.mktemp("objects")
    _, report = objects_of(make(folder / "series"))
    path = folder / "report.dcm"
    path.write_bytes(report.content)
    return path, report


@pytest.fixture
def site(tmp_path: Path, frozen: tuple[Path, Any]) -> Iterator[Site]:
    path, report = frozen
    store = Store(database_url(tmp_path, ""))
    store.create_tables()
    uids: Any = {"study_uid": "1.2", "series_uid": "1.2.1", "sop_uid": "1.2.1.1", "class_uid": "1.2"}
    store.keep_instance(**uids, sha256="", path=Path("none"), now=time.time())
    (study,) = store.receiving()
    store.begin_analysis("1.2", 0, last_at=study.last_at)
    delivery = Delivery(
        delivery_id=0,
        study_instance_uid="1.2",
        destination="pacs",
        model="m",
        kind="SR",
        sop_class_uid=report.sop_class_uid,
        series_instance_uid=report.series_instance_uid,
        sop_instance_uid=report.sop_instance_uid,
        path=path,
        state=DeliveryState.QUEUED,
        attempts=0,
        reason="",
        queued_at=time.time(),
    )
    store.save_answers("1.2", 0, answers={}, deliveries=[delivery])
    (number,) = store.due_deliveries("pacs", now=time.time(), lease_seconds=60, limit=1)
    yield Site(store=store, number=number, acceptance=Acceptance(partial(negotiate, our_ae_title=OURS)))
    store.close()


def test_a_commitment_is_the_receipt(site: Site) -> None:
    with _peer() as peer:
        made = site.attempt(peer)
    assert (made.state, made.reason) == (DeliveryState.CONFIRMED, "the destination has committed to it")
    assert (len(peer.stored), len(peer.asked)) == (1, 1)
    assert (site.store.study("1.2") or {})["state"] == "done"


@pytest.mark.parametrize("reason", [0x0112, 0x0110, 0x0213])
def test_what_is_not_committed_to_is_sent_again_byte_for_byte(reason: int, site: Site) -> None:
    with _peer(reports=[reason, 0]) as peer:
        made = site.attempt(peer)
        assert made.state is DeliveryState.QUEUED
        assert f"{reason:04X}" in made.reason
        assert made.next_at > time.time(), "after a pause"
        assert site.attempt(peer).state is DeliveryState.CONFIRMED
    assert len(peer.stored) == 2
    assert len(set(peer.stored)) == 1
    assert len(set(peer.asked)) == 2, "a transaction is used once"


def test_what_it_will_never_commit_to_is_refused_with_a_way_out(site: Site) -> None:
    with _peer(reports=[0x0122]) as peer:
        made = site.attempt(peer)
    assert made.state is DeliveryState.REFUSED
    assert "0122" in made.reason
    assert "Way out: allow this SOP class" in made.reason


def test_a_report_that_comes_later_is_waited_for_and_is_the_receipt(site: Site) -> None:
    with _peer(reports=[None]) as peer:
        made = site.attempt(peer)
        assert made.state is DeliveryState.SENT
        assert "asked to commit" in made.reason
        assert site.store.delivery(site.number).attempts == 0, "waiting is no failure"
        uid = site.store.delivery(site.number).sop_instance_uid
        assert site.store.note_commitment(peer.asked[0], committed=(uid,), failed={}) == 1
        assert site.attempt(peer).state is DeliveryState.CONFIRMED
    assert (len(peer.stored), len(peer.asked)) == (1, 1)


@pytest.mark.parametrize(("confirm", "state", "asked"), [("auto", "confirmed", 1), ("commitment", "sent", 1)])
def test_a_report_that_never_comes(confirm: str, state: str, asked: int, site: Site) -> None:
    with _peer(reports=[None]) as peer:
        assert site.attempt(peer, confirm=confirm).state is DeliveryState.SENT
        assert site.attempt(peer, confirm=confirm).state is DeliveryState.SENT, "it listens"
        made = site.attempt(peer, confirm=confirm, commitment_seconds=0.001)
        assert made.state == state
        assert len(peer.asked) == asked
        if confirm == "commitment":
            assert site.attempt(peer, confirm=confirm).state is DeliveryState.SENT
            assert len(set(peer.asked)) == 2, "asked anew"
    assert len(peer.stored) == 1


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"requests": 0x0110}, "status 0110"),
        ({"requests": 0x0124}, "status 0124"),
        ({"offers": (FIND,)}, ""),
    ],
)
def test_without_commitment_a_query_is_the_receipt(knobs: dict[str, Any], words: str, site: Site) -> None:
    with _peer(**knobs) as peer:
        made = site.attempt(peer)
        assert made.state is DeliveryState.CONFIRMED
        assert made.reason.startswith("the destination finds it")
        assert words in made.reason
        destination = Destination(name="pacs", ae_title="PEER", host="127.0.0.1", port=peer.port)
        assert not site.acceptance.commits(destination), "the next object is not asked for in vain"


def test_what_is_lost_after_success_is_sent_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with _peer(offers=(FIND,), keeps=False) as peer:
        assert site.attempt(peer).state is DeliveryState.SENT, "it may not have indexed it yet"
        monkeypatch.setattr(receipt, "_INDEXING_SECONDS", 0.0)
        made = site.attempt(peer)
        assert (made.state, len(peer.stored)) == (DeliveryState.QUEUED, 1)
        assert "sent again" in made.reason
        peer.keeps = True
        assert site.attempt(peer).state is DeliveryState.CONFIRMED
    assert len(peer.stored) == 2
    assert len(set(peer.stored)) == 1


def test_a_site_may_be_content_with_success(site: Site) -> None:
    with _peer() as peer:
        made = site.attempt(peer, confirm="none")
    assert made.state is DeliveryState.UNCONFIRMED
    assert (len(peer.asked), (site.store.study("1.2") or {})["state"]) == (0, "done")


def test_who_can_give_no_receipt_leaves_it_unconfirmed_and_says_why(site: Site) -> None:
    with _peer(offers=()) as peer:
        made = site.attempt(peer)
    assert made.state is DeliveryState.UNCONFIRMED
    assert "Way out" in made.reason


@pytest.mark.parametrize("status", [0xB000, 0xB006, 0xB007])
def test_a_warning_is_a_success_with_a_remark_that_stays(status: int, site: Site) -> None:
    with _peer(status=status) as peer:
        assert site.attempt(peer).state is DeliveryState.CONFIRMED
    assert f"{status:04X}" in site.store.delivery(site.number).remark


@pytest.mark.parametrize(
    ("status", "state", "echo"),
    [
        (0xA700, DeliveryState.RETRYING, ""),
        (0x0110, DeliveryState.RETRYING, ""),
        (0xC000, DeliveryState.REFUSED, "C-ECHO is answered"),
        (0xA900, DeliveryState.REFUSED, "C-ECHO is answered"),
    ],
)
def test_a_refusal_by_its_status(status: int, state: DeliveryState, echo: str, site: Site) -> None:
    with _peer(status=status) as peer:
        made = site.attempt(peer)
    assert (made.state, made.counts, is_away(made.error)) == (state, True, False)
    assert echo in made.reason
    assert f"{status:04X}" in made.reason


def test_a_destination_that_is_away_is_not_the_objects_fault(site: Site) -> None:
    made = site.attempt(Peer(port=free_port()), retry_hours=1e-9)
    assert is_away(made.error)
    assert (made.state, made.counts, made.next_at, made.associated) == (DeliveryState.RETRYING, False, 0.0, False)
    with _peer() as peer:
        assert site.attempt(peer).state is DeliveryState.CONFIRMED, "however long it was away"


def test_a_destination_that_rejects_us_for_good_is_not_away(site: Site) -> None:
    """The line had paused before: whoever is rejected for good at the next try has found it well."""
    queued = site.store.delivery(site.number)
    itself = FrozenObject(
        kind=Kind.SR,
        form="",
        part=0,
        sop_class_uid=queued.sop_class_uid,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        series_instance_uid=queued.series_instance_uid,
        sop_instance_uid=queued.sop_instance_uid,
        base="",
        supersedes="",
        file=queued.path.name,
    )
    answer = FrozenAnswer(model="m", outcome=Outcome.FINDINGS, has_findings=True, objects=(itself,))
    with _peer(accepts=["SOMEBODY"]) as peer:
        made = site.attempt(peer, answer=answer)
    assert (made.state, is_away(made.error), made.associated) == (DeliveryState.REFUSED, False, True)
    assert made.counts
    assert "enter our AE title" in made.reason


def test_what_fails_by_itself_for_too_long_is_refused(site: Site) -> None:
    with _peer(status=0xA700) as peer:
        assert site.attempt(peer, retry_hours=1e-9).state is DeliveryState.RETRYING, "its hours begin"
        made = site.attempt(peer, retry_hours=1e-9)
    assert made.state is DeliveryState.REFUSED
    assert made.associated


def test_a_commitment_that_came_counts_though_none_can_be_asked_for_any_more(site: Site) -> None:
    with _peer(offers=(StorageCommitmentPushModel,), reports=[None]) as peer:
        assert site.attempt(peer).state is DeliveryState.SENT
        uid = site.store.delivery(site.number).sop_instance_uid
        site.store.note_commitment(peer.asked[0], committed=(uid,), failed={})
        site.acceptance.no_commitment(Destination(name="pacs", ae_title="PEER", host="127.0.0.1", port=peer.port))
        assert site.attempt(peer).state is DeliveryState.CONFIRMED


def test_a_request_that_may_be_repeated_is_where_nothing_else_can_be_asked(site: Site) -> None:
    with _peer(offers=(StorageCommitmentPushModel,), requests=0x0110) as peer:
        assert site.attempt(peer).state is DeliveryState.SENT
        peer.requests = 0x0000
        assert site.attempt(peer).state is DeliveryState.CONFIRMED
    assert len(peer.stored) == 1


def test_bytes_that_are_gone_are_not_the_lines_business(site: Site, frozen: tuple[Path, Any]) -> None:
    path, _ = frozen
    content = path.read_bytes()
    path.unlink()
    try:
        with _peer() as peer:
            made = site.attempt(peer)
    finally:
        path.write_bytes(content)
    assert (made.state, made.associated) == (DeliveryState.REFUSED, False)
    assert "find out who removed" in made.reason


def test_a_dicomweb_service_that_is_away_holds_up_no_other_object(site: Site) -> None:
    with _peer(offers=()) as peer:
        made = site.attempt(peer, qido_url=f"http://127.0.0.1:{free_port()}/dicom-web")
    assert made.state is DeliveryState.SENT
    assert not is_away(made.error)
    assert made.counts
    assert made.next_at > time.time()
