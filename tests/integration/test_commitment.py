"""Storage commitment against real peers: a real Orthanc, and scripted ones for each way in which a report may come."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, _config, acse, build_role, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from service.codes import N_STATUS_WORDS, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
from service.commitment import CommitmentReport
from service.config import Config
from service.demo.pacs import OrthancPacs
from service.errors import DeliveryError, InstanceRefused, NoAnswer, NotAccepted, PeerUnreachable
from service.intake import scp
from service.intake.commitments import CommitmentHandler
from service.results import commitment, deliver
from service.settings.destinations import Destination
from service.settings.intake import Intake
from service.types import Delivery, DeliveryState
from tests.integration.receiver import CT, EXPLICIT, associated, running
from tests.phantoms import make
from tests.support import counterpart, free_port
from tests.unit.test_commitment import information
from tests.unit.test_results_identity import objects_of

OURS, SR, UID = "OVERREAD", "1.2.840.10008.5.1.4.1.1.88.34", "1.2.3.4"
ROLES = {"provider": (False, True), "both": (True, True), "none": None}  # that the peer proposes for itself


@dataclass(kw_only=True)
class Remembered:
    """Who remembers what was committed to, in the store's place."""

    waiting: set[str] = field(default_factory=set)  # transactions
    told: list[tuple[str, tuple[str, ...], dict[str, int]]] = field(default_factory=list)
    fails: bool = False
    seconds: float = 0.0  # that it takes

    def note_commitment(self, transaction_uid: str, *, committed: tuple[str, ...], failed: dict[str, int]) -> int:
        time.sleep(self.seconds)
        if self.fails:
            raise OSError("GEHEIM")
        self.told.append((transaction_uid, committed, failed))
        known = transaction_uid in self.waiting
        self.waiting.discard(transaction_uid)
        return (len(committed) + len(failed)) if known else 0


@contextmanager
def _listening(store: Remembered) -> Iterator[int]:
    """Our own receiver in this process; its port."""
    before = _config.LOG_HANDLER_LEVEL, _config.VALIDATORS["UI"]
    port = free_port()
    server = scp.serve(Config(intake=Intake(port=port)), lambda _: 0x0000, CommitmentHandler(store))  # type: ignore[arg-type]
    try:
        yield port
    finally:
        server.finish()
        _config.LOG_HANDLER_LEVEL, _config.VALIDATORS["UI"] = before


def _delivery(**changes: Any) -> Delivery:
    usual: dict[str, Any] = {
        "delivery_id": 1,
        "study_instance_uid": "1.2",
        "destination": "pacs",
        "model": "toy",
        "kind": "SR",
        "sop_class_uid": SR,
        "series_instance_uid": "1.2.3",
        "sop_instance_uid": UID,
        "path": Path("none"),
        "state": DeliveryState.SENT,
        "attempts": 0,
        "reason": "",
        "queued_at": 0.0,
    }
    return Delivery(**(usual | changes))


def _destination(port: int, **more: Any) -> Destination:
    return Destination.model_validate(
        {"name": "pacs", "ae_title": "PEER", "host": "127.0.0.1", "port": port, "timeout_seconds": 5.0, **more}
    )


@dataclass(kw_only=True)
class Asked:
    """What one question came to."""

    transaction_uid: str
    reports: list[CommitmentReport] = field(default_factory=list)
    seconds: float = 0.0


def _ask(
    destination: Destination,
    *,
    delivery: Delivery | None = None,
    patience_seconds: float = 5.0,
    on_report: commitment.OnReport = lambda report: None,
    ours: str = OURS,
) -> Asked:
    made, began = Asked(transaction_uid=str(generate_uid())), time.monotonic()

    def hear(report: CommitmentReport) -> None:
        on_report(report)
        made.reports.append(report)

    commitment.ask(
        delivery or _delivery(),
        destination,
        made.transaction_uid,
        our_ae_title=ours,
        on_report=hear,
        patience_seconds=patience_seconds,
    )
    made.seconds = time.monotonic() - began
    return made


def _wait(until: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def _whole(error: DeliveryError) -> None:
    """Four parts, and the destination by name."""
    assert all(error.parts().values())
    assert "pacs" in error.doing


# --- Orthanc --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RealPacs:
    """Orthanc with a report of ours in it; it knows us, and reports to our receiver's port."""

    destination: Destination
    delivery: Delivery
    store: Remembered
    segmentation_class_uid: str


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealPacs]:
    folder, store = tmp_path_factory.mktemp("orthanc"), Remembered()
    phantom = make(folder / "series")
    segmentation, report = objects_of(phantom)
    (folder / "sr.dcm").write_bytes(report.content)
    with _listening(store) as port:
        known = {"DicomModalities": {"overread": [OURS, "127.0.0.1", port]}}
        pacs = OrthancPacs(counterpart("Orthanc"), folder / "pacs", more=known)
        try:
            destination = _destination(pacs.port, ae_title=pacs.ae_title)
            deliver.send(folder / "sr.dcm", report.sop_class_uid, destination, our_ae_title=OURS)
            delivery = _delivery(sop_instance_uid=report.sop_instance_uid, sop_class_uid=report.sop_class_uid)
            yield RealPacs(
                destination=destination,
                delivery=delivery,
                store=store,
                segmentation_class_uid=segmentation.sop_class_uid,
            )
        finally:
            pacs.stop()


def test_orthanc_commits_to_what_it_has(orthanc: RealPacs) -> None:
    asked = _ask(orthanc.destination, delivery=orthanc.delivery, patience_seconds=0)
    _wait(lambda: orthanc.store.told)
    assert orthanc.store.told.pop() == (asked.transaction_uid, (orthanc.delivery.sop_instance_uid,), {})
    assert asked.reports == []  # it reports on an association of its own


def test_orthanc_says_what_it_does_not_have(orthanc: RealPacs) -> None:
    asked = _ask(orthanc.destination, delivery=_delivery(), patience_seconds=0)
    _wait(lambda: orthanc.store.told)
    assert orthanc.store.told.pop() == (asked.transaction_uid, (), {UID: 0x0112})


def test_orthanc_says_what_it_has_as_another_class(orthanc: RealPacs) -> None:
    delivery = _delivery(
        sop_instance_uid=orthanc.delivery.sop_instance_uid, sop_class_uid=orthanc.segmentation_class_uid
    )
    asked = _ask(orthanc.destination, delivery=delivery, patience_seconds=0)
    _wait(lambda: orthanc.store.told)
    assert orthanc.store.told.pop() == (asked.transaction_uid, (), {delivery.sop_instance_uid: 0x0119})


def test_orthanc_does_not_commit_for_whom_it_does_not_know_and_the_way_out_says_so(orthanc: RealPacs) -> None:
    """It accepts the association, and aborts it over the request."""
    with pytest.raises(NoAnswer) as caught:
        _ask(orthanc.destination, delivery=orthanc.delivery, ours="NOBODY")
    assert "DicomModalities" in caught.value.way_out
    _whole(caught.value)


def test_orthanc_takes_an_association_to_listen_on(orthanc: RealPacs) -> None:
    heard = commitment.listen(
        orthanc.destination, our_ae_title=OURS, on_report=lambda report: None, patience_seconds=0.2
    )
    assert heard == 0


# --- A scripted peer ------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Peer:
    """A Storage Commitment SCP of another library, called PEER."""

    destination: Destination
    requests: list[Dataset] = field(default_factory=list)
    statuses: list[int | None] = field(default_factory=list)  # what its reports were answered with

    def report(self, association: Association, event_type: int, told: Dataset) -> None:
        """Report, and keep how that was answered."""
        try:
            answer, _ = association.send_n_event_report(
                told, event_type, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
            )
        except RuntimeError:  # the association is over
            answer = Dataset()
        self.statuses.append(answer.get("Status"))


Script = Callable[[Peer, Any], object]


@contextmanager
def _peer(
    on_request: Script = lambda peer, event: None,
    on_association: Script = lambda peer, event: None,
    *,
    classes: Sequence[str] = (STORAGE_COMMITMENT, Verification),
    roles: tuple[bool, bool] | None = None,
    **more: Any,
) -> Iterator[Peer]:
    peer: Peer

    def requested(event: Any) -> tuple[int, None]:
        peer.requests.append(event.action_information)
        status = on_request(peer, event)
        return status if isinstance(status, int) else 0x0000, None

    ae = AE(ae_title="PEER")
    for abstract_syntax in classes:
        ae.add_supported_context(abstract_syntax)
    if roles:
        (context,) = (it for it in ae.supported_contexts if it.abstract_syntax == STORAGE_COMMITMENT)
        context.scu_role, context.scp_role = roles
    handlers = [(evt.EVT_N_ACTION, requested), (evt.EVT_ESTABLISHED, lambda event: on_association(peer, event))]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)  # type: ignore[arg-type]
    assert server is not None
    assert server.socket is not None
    peer = Peer(destination=_destination(server.socket.getsockname()[1], **more))
    try:
        yield peer
    finally:
        server.shutdown()


def _soon(act: Callable[[], object], seconds: float = 0.1) -> None:
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()


def _same_association(peer: Peer, event: Any, *, seconds: float = 0.1, **more: Any) -> None:
    """Report on the association of the request."""
    told = information([UID], TransactionUID=event.action_information.TransactionUID, **more)
    _soon(lambda: peer.report(event.assoc, 1, told), seconds)


# --- On the association of the request ------------------------------------------------------------------------------


def test_a_report_on_the_same_association_ends_the_wait() -> None:
    with _peer(_same_association) as peer:
        asked = _ask(peer.destination)
        (report,) = asked.reports
        assert (report.transaction_uid, report.committed, report.failed) == (asked.transaction_uid, (UID,), {})
        assert asked.seconds < 2.0
        assert peer.statuses == [0x0000]
    (request,) = peer.requests
    (item,) = request.ReferencedSOPSequence
    assert request.TransactionUID == asked.transaction_uid
    assert (item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) == (SR, UID)


def test_success_is_answered_only_after_the_report_was_taken() -> None:
    with _peer(_same_association) as peer:
        before: list[list[int | None]] = []

        def slowly(_report: CommitmentReport) -> None:
            time.sleep(0.5)
            before.append(list(peer.statuses))

        _ask(peer.destination, on_report=slowly)
        assert before == [[]]
        assert peer.statuses == [0x0000]


def test_a_report_that_is_not_taken_is_told_so() -> None:
    def fail(_report: CommitmentReport) -> None:
        raise OSError("database is locked")

    with _peer(_same_association) as peer:
        asked = _ask(peer.destination, on_report=fail)
        assert peer.statuses == [0x0110]
    assert asked.seconds < 2.0
    assert asked.reports == []


def test_a_report_that_comes_as_the_patience_ends_is_still_answered() -> None:
    with _peer(_same_association) as peer:
        asked = _ask(peer.destination, patience_seconds=0.3, on_report=lambda _: time.sleep(0.8))
        assert peer.statuses == [0x0000]
    assert len(asked.reports) == 1


def test_a_report_that_is_taken_while_we_release_does_not_hold_us_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """pynetdicom's issue 820: its own way to serve a report would leave `release` waiting for ever."""
    real, is_releasing = Association.release, threading.Event()

    def late(self: Association) -> None:
        self._reactor_checkpoint.clear()
        _wait(lambda: self._is_paused)
        is_releasing.set()
        time.sleep(0.3)
        real(self)

    def hear(_report: CommitmentReport) -> None:
        is_releasing.wait(9)

    with _peer(_same_association, timeout_seconds=0.5) as peer:
        monkeypatch.setattr(Association, "release", late)
        asking = threading.Thread(
            target=lambda: _ask(peer.destination, patience_seconds=0.3, on_report=hear), daemon=True
        )
        asking.start()
        asking.join(8)
        assert not asking.is_alive()


def test_a_report_that_comes_while_we_release_is_left_for_another_association(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer could not go out any more."""
    real = Association.release

    def late(self: Association) -> None:
        time.sleep(0.8)
        real(self)

    def later(peer: Peer, event: Any) -> None:
        _same_association(peer, event, seconds=0.4)

    with _peer(later) as peer:
        monkeypatch.setattr(Association, "release", late)
        assert _ask(peer.destination, patience_seconds=0.1).reports == []


def test_a_report_of_another_transaction_does_not_end_the_wait() -> None:
    def two(peer: Peer, event: Any) -> None:
        _soon(lambda: peer.report(event.assoc, 1, information(["1.2.9"])), 0.05)
        _same_association(peer, event, seconds=0.4)

    with _peer(two) as peer:
        asked = _ask(peer.destination)
        assert [report.committed for report in asked.reports] == [("1.2.9",), (UID,)]
        assert peer.statuses == [0x0000, 0x0000]


def test_a_silent_association_is_kept_for_as_long_as_the_patience_lasts() -> None:
    def late(peer: Peer, event: Any) -> None:
        _same_association(peer, event, seconds=1.5)

    with _peer(late, timeout_seconds=0.5) as peer:
        assert len(_ask(peer.destination).reports) == 1


def test_without_a_report_the_patience_ends_the_wait() -> None:
    with _peer() as peer:
        asked = _ask(peer.destination, patience_seconds=0.4)
    assert asked.reports == []
    assert 0.4 <= asked.seconds < 2.0


@pytest.mark.parametrize("end", ["release", "abort", "hang up"])
def test_a_peer_that_ends_the_association_after_its_answer_ends_the_wait(end: str) -> None:
    def over(_peer: Peer, event: Any) -> None:
        ends = {"release": event.assoc.release, "abort": event.assoc.abort, "hang up": event.assoc.dul.socket.close}
        _soon(ends[end], 0.3)

    with _peer(over) as peer:
        asked = _ask(peer.destination, patience_seconds=8.0)
    assert asked.reports == []
    assert asked.seconds < 4.0


@pytest.mark.parametrize("end", ["abort", "hang up", "sleep"])
def test_a_request_without_an_answer_is_asked_again(end: str) -> None:
    def over(_peer: Peer, event: Any) -> None:
        ends = {"abort": event.assoc.abort, "hang up": event.assoc.dul.socket.close, "sleep": lambda: time.sleep(1.5)}
        ends[end]()

    with _peer(over, timeout_seconds=0.8) as peer, pytest.raises(NoAnswer) as caught:
        _ask(peer.destination)
    assert caught.value.retry is True
    _whole(caught.value)


@pytest.mark.parametrize(
    ("status", "retry", "way_out"),
    [
        (0x0110, True, "DicomModalities"),
        (0x0131, True, "query"),
        (0x0213, True, "make room"),
        (0x0210, True, "query"),
        (0x0124, False, "allow our AE title"),
        (0x0122, False, "query"),
        (0x0119, False, "query"),
        (0x0211, False, "query"),
        (0xC123, False, "query"),
    ],
)
def test_a_refused_request_may_pass_or_not_by_its_status(status: int, retry: bool, way_out: str) -> None:
    with (
        _peer(lambda _peer, _event: status) as peer,
        pytest.raises(InstanceRefused, match=f"status {status:04X}") as caught,
    ):
        _ask(peer.destination)
    assert caught.value.retry is retry
    assert way_out in caught.value.way_out
    assert UID in caught.value.doing
    assert N_STATUS_WORDS.get(status, "Unknown status") in caught.value.found
    _whole(caught.value)


def test_a_peer_that_does_not_offer_it_is_not_asked() -> None:
    with _peer(classes=(Verification,)) as peer:
        with pytest.raises(NotAccepted, match="Storage Commitment") as caught:
            _ask(peer.destination)
        assert caught.value.retry is False
        _whole(caught.value)
        with pytest.raises(NotAccepted, match="Storage Commitment"):
            _listen(peer)


def test_a_peer_that_is_not_there_is_asked_again() -> None:
    with pytest.raises(PeerUnreachable):
        _ask(_destination(free_port()))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        destination = _destination(listener.getsockname()[1], timeout_seconds=0.6)
        with pytest.raises(PeerUnreachable):
            _ask(destination)


# --- On a later association of ours ---------------------------------------------------------------------------------


def _listen(peer: Peer, *, patience_seconds: float = 1.0) -> list[CommitmentReport]:
    heard: list[CommitmentReport] = []
    count = commitment.listen(
        peer.destination, our_ae_title=OURS, on_report=heard.append, patience_seconds=patience_seconds
    )
    assert count == len(heard)
    return heard


def _pending(*told: tuple[int, Dataset]) -> Script:
    """Reports that wait for an association of ours."""

    def send(peer: Peer, event: Any) -> None:
        for event_type, it in told if event.assoc.accepted_contexts else ():
            peer.report(event.assoc, event_type, it)

    return lambda peer, event: _soon(lambda: send(peer, event), 0.0)


@pytest.mark.parametrize("roles", [None, (True, True), (True, False), (False, True), (False, False)])
def test_reports_come_on_a_later_association_whatever_roles_the_peer_takes(roles: tuple[bool, bool] | None) -> None:
    told = [(1, information(["1"])), (2, information(["2"], {"3": 0x0213}, TransactionUID="1.9"))]

    with _peer(on_association=_pending(*told), roles=roles) as peer:
        heard = _listen(peer)
        assert peer.statuses == [0x0000, 0x0000]
    assert [report.transaction_uid for report in heard] == ["2.25.17", "1.9"]
    assert heard[1].failed == {"3": 0x0213}


def test_a_report_may_come_before_the_association_is_known_to_be_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the acceptance on the wire and pynetdicom's contexts is a moment; here it is a long one."""
    real: Any = acse.negotiate_as_requestor  # type: ignore[attr-defined]

    def late(*args: Any) -> Any:
        time.sleep(0.5)
        return real(*args)

    monkeypatch.setattr(acse, "negotiate_as_requestor", late)
    with _peer(on_association=_pending((1, information(["1"])))) as peer:
        assert len(_listen(peer)) == 1
        assert peer.statuses == [0x0000]


def test_both_roles_are_proposed_to_listen_and_none_to_ask() -> None:
    proposed: list[dict[str, tuple[bool | None, bool | None]]] = []

    def note(_peer: Peer, event: Any) -> None:
        proposed.append({it: (on.scu_role, on.scp_role) for it, on in event.assoc.requestor.role_selection.items()})

    with _peer(on_association=note) as peer:
        _ask(peer.destination, patience_seconds=0)
        _listen(peer, patience_seconds=0)
    assert proposed == [{}, {STORAGE_COMMITMENT: (True, True)}]


def test_nothing_comes_and_the_patience_ends() -> None:
    with _peer() as peer:
        assert _listen(peer, patience_seconds=0.3) == []


# --- On an association that the peer opens --------------------------------------------------------------------------


@contextmanager
def _from_peer(
    port: int, roles: tuple[bool, bool] | None, *, contexts: Sequence[str] = (STORAGE_COMMITMENT,)
) -> Iterator[Association]:
    ae = AE("PEER")
    for context in contexts:
        ae.add_requested_context(context)
    chosen: list[Any] = [build_role(STORAGE_COMMITMENT, scu_role=roles[0], scp_role=roles[1])] if roles else []
    association = ae.associate("127.0.0.1", port, ae_title=OURS, ext_neg=chosen)
    assert association.is_established
    try:
        yield association
        assert association.is_established
    finally:
        association.release()


def _reported(association: Association, event_type: int, told: Dataset) -> int | None:
    answer, _ = association.send_n_event_report(told, event_type, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE)
    status: int | None = answer.get("Status")
    return status


@pytest.mark.parametrize("roles", ROLES.values(), ids=ROLES)
def test_a_report_on_the_peers_own_association_is_remembered(
    roles: tuple[bool, bool] | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "overread")
    store = Remembered(waiting={"2.25.17"})
    with _listening(store) as port, _from_peer(port, roles) as association:
        assert _reported(association, 2, information(["1", "2"], {"3": 0x0112})) == 0x0000
    assert store.told == [("2.25.17", ("1", "2"), {"3": 0x0112})]
    (line,) = [it for it in caplog.records if it.message.startswith("commitment.")]
    assert (line.message, line.fields["deliveries"]) == ("commitment.reported", 3)  # type: ignore[attr-defined]


def test_success_is_answered_only_after_the_store_was_told() -> None:
    store = Remembered(seconds=0.5)
    with _listening(store) as port, _from_peer(port, (False, True)) as association:
        assert _reported(association, 1, information(["1"])) == 0x0000
        assert len(store.told) == 1


def test_a_report_that_comes_twice_is_answered_twice_and_one_of_nobody_is_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "overread")
    with _listening(Remembered(waiting={"2.25.17"})) as port:
        for told in (information(["1"]), information(["1"]), information(["1"], TransactionUID="1.2.99")):
            with _from_peer(port, (False, True)) as association:
                assert _reported(association, 1, told) == 0x0000
    assert [it.message for it in caplog.records if it.name == "overread"] == [
        "commitment.reported",
        "commitment.unknown",
        "commitment.unknown",
    ]


def test_a_report_that_can_not_be_remembered_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    store = Remembered(fails=True)
    with _listening(store) as port, _from_peer(port, (False, True)) as association:
        assert _reported(association, 1, information(["1"])) == 0x0110
        store.fails = False
        assert _reported(association, 1, information(["1"])) == 0x0000  # the association lives
    assert "commitment.failed" in [it.message for it in caplog.records]


@pytest.mark.filterwarnings("ignore:.*UI.*:UserWarning")
def test_what_is_no_report_is_told_so_and_shows_nothing(caplog: pytest.LogCaptureFixture) -> None:
    store = Remembered()
    with _listening(store) as port, _from_peer(port, (False, True)) as association:
        assert _reported(association, 1, information(["1"], TransactionUID="GEHEIM^NAME")) == 0x0110
        assert _reported(association, 3, information(["1"])) == 0x0110
        for data in (b"", b"GEHEIM" * 9, bytes(99)):
            assert _raw(association, data) == 0x0110
        assert _raw(association, b"", instance=None) == 0x0110  # pynetdicom would not answer at all
    assert store.told == []
    lines = [it for it in caplog.records if it.name == "overread"]
    assert len(lines) == 6
    assert all(it.message in ("commitment.refused", "commitment.failed") for it in lines)
    assert "GEHEIM" not in json.dumps([it.fields for it in lines])  # type: ignore[attr-defined]


def _raw(association: Association, data: bytes, *, instance: str | None = STORAGE_COMMITMENT_INSTANCE) -> int | None:
    request = N_EVENT_REPORT()
    request.MessageID, request.EventTypeID = 7, 1
    request.AffectedSOPClassUID = STORAGE_COMMITMENT
    request.AffectedSOPInstanceUID = instance
    request.EventInformation = BytesIO(data) if data else None
    (context,) = association.accepted_contexts
    association._reactor_checkpoint.clear()
    while not association._is_paused:
        time.sleep(0.0005)
    association.dimse.send_msg(request, context.context_id or 0)
    _, response = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    assert isinstance(response, N_EVENT_REPORT), "no answer"
    return response.Status


# --- Asked to commit ourselves --------------------------------------------------------------------------------------


def test_who_asks_us_to_commit_is_refused_with_a_status() -> None:
    with _listening(Remembered()) as port, _from_peer(port, None, contexts=(STORAGE_COMMITMENT, CT)) as association:
        answer, _ = association.send_n_action(information(["1"]), 1, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE)
        assert answer.Status == 0x0211


def test_who_says_that_we_are_to_commit_is_refused_in_the_association_and_the_rest_goes_on() -> None:
    with (
        _listening(Remembered()) as port,
        _from_peer(port, (True, False), contexts=(STORAGE_COMMITMENT, CT)) as association,
    ):
        (refused,) = association.rejected_contexts
        assert (refused.abstract_syntax, refused.result) == (STORAGE_COMMITMENT, 1)  # user rejection
        assert [it.abstract_syntax for it in association.accepted_contexts] == [CT]


# --- The receiving processes ----------------------------------------------------------------------------------------


def test_the_receiving_processes_hear_reports_beside_storage(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with running(tmp_path) as site:
        with _from_peer(site.port, (False, True)) as association:
            assert _reported(association, 1, information(["1"])) == 0x0000
        with associated(site.port, (CT, EXPLICIT)) as storage:
            assert storage.rejected_contexts == []
    (line,) = [json.loads(it) for it in capfd.readouterr().err.splitlines() if "commitment." in it]
    assert (line["event"], line["transaction_uid"], line["calling_ae_title"]) == (
        "commitment.unknown",
        "2.25.17",
        "PEER",
    )
