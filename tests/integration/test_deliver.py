"""One object to one destination, against real peers: what each answer, refusal and silence becomes."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    RLELossless,
    SegmentationStorage,
)
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    CTImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from service.errors import AssociationRejected, DeliveryError, InstanceRefused, NoAnswer, NotAccepted, PeerUnreachable
from service.results import deliver, presence
from service.results.negotiate import Acceptance, can_be_queried, negotiate
from service.settings.destinations import Destination
from service.types import Delivery, DeliveryState, ResultObject
from tests.phantoms import make
from tests.support import counterpart, free_port
from tests.unit.test_results_identity import objects_of

OURS = "OVERREAD"
FIND = StudyRootQueryRetrieveInformationModelFind
RESULTS = (SegmentationStorage, Comprehensive3DSRStorage)
Handler = Callable[[Any], Any]
Answer = TypeVar("Answer")


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Delivery]:
    """A SEG and an SR of ours, frozen, by kind."""
    folder = tmp_path_factory.mktemp("objects")
    phantom = make(folder / "series")
    segmentation, report = objects_of(phantom)
    return {
        made.kind: _frozen(made, folder, phantom.making.study.study_instance_uid) for made in (segmentation, report)
    }


def _frozen(made: ResultObject, folder: Path, study_uid: str) -> Delivery:
    path = folder / f"{made.kind}.dcm"
    path.write_bytes(made.content)
    return Delivery(
        delivery_id=1,
        study_instance_uid=study_uid,
        destination="pacs",
        model="toy",
        kind=made.kind,
        sop_class_uid=made.sop_class_uid,
        series_instance_uid=made.series_instance_uid,
        sop_instance_uid=made.sop_instance_uid,
        path=path,
        state=DeliveryState.QUEUED,
        attempts=0,
        reason="",
        queued_at=0.0,
    )


def _destination(port: int, **more: Any) -> Destination:
    return Destination.model_validate(
        {"name": "pacs", "ae_title": "PEER", "host": "127.0.0.1", "port": port, "timeout_seconds": 5.0, **more}
    )


@contextmanager
def _peer(
    handlers: Sequence[tuple[Any, Handler]] = (),
    *,
    classes: Sequence[str] = (*RESULTS, FIND, Verification),
    syntaxes: Sequence[str] = (ExplicitVRLittleEndian,),
    prepare: Callable[[AE], None] = lambda ae: None,
    **more: Any,
) -> Iterator[Destination]:
    """A real SCP of another library, called PEER."""
    ae = AE(ae_title="PEER")
    ae.require_called_aet = True
    for abstract_syntax in classes:
        ae.add_supported_context(abstract_syntax, list(syntaxes))
    prepare(ae)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=list(handlers))
    assert server is not None
    assert server.socket is not None
    try:
        yield _destination(server.socket.getsockname()[1], **more)
    finally:
        server.shutdown()


def _send(delivery: Delivery, destination: Destination) -> str:
    return deliver.send(delivery.path, delivery.sop_class_uid, destination, our_ae_title=OURS)


def _whole(error: DeliveryError) -> None:
    """Four parts, the destination by name, no patient."""
    assert all(error.parts().values())
    assert "pacs" in error.doing
    assert "Phantom" not in str(error)
    assert deliver.explain(error) == f"{error.found}. Way out: {error.way_out}"


# --- Stored ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["SEG", "SR"])
def test_the_peer_gets_the_frozen_bytes_each_time(kind: str, objects: dict[str, Delivery]) -> None:
    got: list[tuple[bytes, str, str]] = []

    def store(event: Any) -> int:
        got.append(
            (event.request.DataSet.getvalue(), event.request.AffectedSOPInstanceUID, event.assoc.requestor.ae_title)
        )
        return 0x0000

    delivery = objects[kind]
    with _peer([(evt.EVT_C_STORE, store)]) as destination:
        assert [_send(delivery, destination) for _ in range(2)] == ["", ""]
    frozen = delivery.path.read_bytes()
    first, second = got
    assert first == second
    content, uid, title = first
    assert (uid, title.strip()) == (delivery.sop_instance_uid, OURS)
    assert frozen.endswith(content)
    meta_length = 132 + 12 + int(dcmread(delivery.path).file_meta.FileMetaInformationGroupLength)
    assert len(frozen) == meta_length + len(content)


@pytest.mark.parametrize(
    ("status", "words"), [(0xB000, "coercion"), (0xB006, "elements discarded"), (0xB007, "does not match")]
)
def test_a_warning_is_a_remark_on_what_is_stored(status: int, words: str, objects: dict[str, Delivery]) -> None:
    with _peer([(evt.EVT_C_STORE, lambda _: status)]) as destination:
        remark = _send(objects["SR"], destination)
    assert f"{status:04X}" in remark
    assert words in remark


@pytest.mark.parametrize(
    ("status", "retry"),
    [
        (0xA700, True),
        (0xA701, True),
        (0xA900, False),
        (0xC000, False),
        (0xC123, False),
        (0x0122, False),
        (0x0124, False),
    ],
)
def test_a_refusal_may_pass_or_not_by_its_status(status: int, retry: bool, objects: dict[str, Delivery]) -> None:
    with (
        _peer([(evt.EVT_C_STORE, lambda _: status)]) as destination,
        pytest.raises(InstanceRefused, match=f"status {status:04X}") as caught,
    ):
        _send(objects["SR"], destination)
    assert caught.value.retry is retry
    assert all(caught.value.parts().values())
    assert objects["SR"].sop_instance_uid in caught.value.doing


# --- Not even associated --------------------------------------------------------------------------------------------


def test_a_wrong_called_ae_title_is_final_and_says_what_to_correct(objects: dict[str, Delivery]) -> None:
    with (
        _peer(ae_title="OTHER") as destination,
        pytest.raises(AssociationRejected, match=r"[Cc]alled AE title not recogni") as caught,
    ):
        _send(objects["SR"], destination)
    assert caught.value.retry is False
    assert "ae_title in the configuration" in caught.value.way_out
    _whole(caught.value)


def test_an_ae_title_of_ours_that_is_not_known_there_is_final_and_says_where_to_enter_it(
    objects: dict[str, Delivery],
) -> None:
    def prepare(ae: AE) -> None:
        ae.require_calling_aet = ["SOMEBODY"]

    with _peer(prepare=prepare) as destination, pytest.raises(AssociationRejected) as caught:
        _send(objects["SR"], destination)
    assert caught.value.retry is False
    assert "enter our AE title" in caught.value.way_out
    _whole(caught.value)


def test_a_peer_with_too_many_associations_is_asked_again(objects: dict[str, Delivery]) -> None:
    def prepare(ae: AE) -> None:
        ae.maximum_associations = 1

    with _peer(prepare=prepare) as destination:
        other = AE("OTHER")
        other.add_requested_context(Verification)
        busy = other.associate(destination.host, destination.port, ae_title="PEER")
        assert busy.is_established
        with pytest.raises(AssociationRejected) as caught:
            _send(objects["SR"], destination)
        busy.release()
    assert caught.value.retry is True
    _whole(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_a_peer_that_is_not_there_is_tried_again(host: str, objects: dict[str, Delivery]) -> None:
    destination = _destination(free_port(), host=host)
    for ask in (
        lambda: _send(objects["SR"], destination),
        lambda: presence.is_present(objects["SR"], destination, our_ae_title=OURS),
        lambda: deliver.echo(destination, our_ae_title=OURS),
        lambda: negotiate(destination, our_ae_title=OURS),
    ):
        with pytest.raises(PeerUnreachable) as caught:
            ask()
        assert caught.value.retry is True
        _whole(caught.value)


def test_a_listener_that_says_nothing_is_given_up_in_time(objects: dict[str, Delivery]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        destination = _destination(listener.getsockname()[1], timeout_seconds=0.6)
        began = time.monotonic()
        with pytest.raises(PeerUnreachable):
            _send(objects["SR"], destination)
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("others", [(CTImageStorage,), (SegmentationStorage,)])
def test_a_class_that_is_not_accepted_is_final(others: tuple[str, ...], objects: dict[str, Delivery]) -> None:
    with _peer(classes=others) as destination, pytest.raises(InstanceRefused, match="Comprehensive 3D SR") as caught:
        _send(objects["SR"], destination)
    assert caught.value.retry is False
    assert "allow this SOP class" in caught.value.way_out
    _whole(caught.value)


# --- Cut off --------------------------------------------------------------------------------------------------------


def _abort(event: Any) -> int:
    event.assoc.abort()
    return 0x0000


def _hang_up(event: Any) -> int:
    event.assoc.dul.socket.close()
    return 0x0000


def _sleep(_event: Any) -> int:
    time.sleep(1.5)
    return 0x0000


@pytest.mark.parametrize("breaks", [_abort, _hang_up, _sleep], ids=["aborted", "hung up", "no answer in time"])
def test_a_connection_that_breaks_in_the_middle_is_tried_again(breaks: Handler, objects: dict[str, Delivery]) -> None:
    with (
        _peer([(evt.EVT_C_STORE, breaks)], timeout_seconds=0.8) as destination,
        pytest.raises(NoAnswer, match="the connection broke, or no answer came in time") as caught,
    ):
        _send(objects["SEG"], destination)
    assert caught.value.retry is True
    _whole(caught.value)


@pytest.mark.parametrize("call", ["send_c_store", "send_c_find", "send_c_echo"])
def test_a_peer_that_aborts_just_before_the_request_is_tried_again(
    call: str, objects: dict[str, Delivery], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the association's acceptance and our request is a moment; here it is a long one."""
    real = getattr(Association, call)

    def late(self: Association, *args: Any, **kwargs: Any) -> Any:
        for _ in range(500):
            if not self.is_established:
                break
            time.sleep(0.01)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Association, call, late)

    def abort_soon(event: Any) -> None:
        time.sleep(0.1)
        event.assoc.abort()

    with _peer([(evt.EVT_ESTABLISHED, abort_soon)]) as destination:
        asks: dict[str, Callable[[], object]] = {
            "send_c_store": lambda: _send(objects["SR"], destination),
            "send_c_find": lambda: presence.is_present(objects["SR"], destination, our_ae_title=OURS),
            "send_c_echo": lambda: deliver.echo(destination, our_ae_title=OURS),
        }
        with pytest.raises(NoAnswer):
            asks[call]()


# --- Present --------------------------------------------------------------------------------------------------------


def _matches(*uids: str) -> Handler:
    def find(event: Any) -> Iterator[tuple[int, Dataset | None]]:
        question = event.identifier
        assert question.QueryRetrieveLevel == "IMAGE"
        assert all(question.get(k) for k in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"))
        for uid in uids:
            match = Dataset()
            match.QueryRetrieveLevel, match.SOPInstanceUID = "IMAGE", uid
            yield 0xFF00, match

    return find


@pytest.mark.parametrize("others", [(), ("1.2.3",), ("1.2.3", "1.2.4")])
@pytest.mark.parametrize("there", [True, False])
def test_an_object_is_present_when_the_peer_finds_it(
    others: tuple[str, ...], there: bool, objects: dict[str, Delivery]
) -> None:
    delivery = objects["SR"]
    uids = (*others[:1], *([delivery.sop_instance_uid] if there else []), *others[1:])
    with _peer([(evt.EVT_C_FIND, _matches(*uids))]) as destination:
        assert presence.is_present(delivery, destination, our_ae_title=OURS) is there


def _failing(status: int) -> Handler:
    def find(_event: Any) -> Iterator[tuple[int, None]]:
        yield status, None

    return find


@pytest.mark.parametrize("status", [0xA700, 0xA900, 0xC001, 0x0124])
def test_a_query_that_fails_is_asked_again(status: int, objects: dict[str, Delivery]) -> None:
    with (
        _peer([(evt.EVT_C_FIND, _failing(status))]) as destination,
        pytest.raises(InstanceRefused, match=f"status {status:04X}") as caught,
    ):
        presence.is_present(objects["SR"], destination, our_ae_title=OURS)
    assert caught.value.retry is True
    _whole(caught.value)


def test_a_peer_that_answers_no_queries_cannot_be_asked(objects: dict[str, Delivery]) -> None:
    with _peer(classes=RESULTS) as destination, pytest.raises(InstanceRefused, match="FIND") as caught:
        presence.is_present(objects["SR"], destination, our_ae_title=OURS)
    assert caught.value.retry is False
    _whole(caught.value)


def test_a_query_that_breaks_off_is_asked_again(objects: dict[str, Delivery]) -> None:
    def find(event: Any) -> Iterator[tuple[int, Dataset]]:
        match = Dataset()
        match.QueryRetrieveLevel, match.SOPInstanceUID = "IMAGE", "1.2.3"
        yield 0xFF00, match
        event.assoc.abort()

    with _peer([(evt.EVT_C_FIND, find)]) as destination, pytest.raises(NoAnswer):
        presence.is_present(objects["SR"], destination, our_ae_title=OURS)


# --- Asked beforehand -----------------------------------------------------------------------------------------------


def test_a_peer_is_asked_what_it_accepts() -> None:
    every = {(str(sop_class), str(ExplicitVRLittleEndian)) for sop_class in (*RESULTS, FIND, Verification)}
    with _peer() as destination:
        deliver.echo(destination, our_ae_title=OURS)
        accepted = negotiate(destination, our_ae_title=OURS)
        assert {pair for pair in accepted if pair[0] not in (FIND, Verification)} <= every
        assert {sop_class for sop_class, _ in accepted} == {sop_class for sop_class, _ in every}
        assert can_be_queried(accepted)
    with _peer(classes=(SegmentationStorage, Verification)) as destination:
        accepted = negotiate(destination, our_ae_title=OURS)
        assert {sop_class for sop_class, _ in accepted} == {SegmentationStorage, Verification}
        assert not can_be_queried(accepted)
    with _peer(classes=RESULTS) as destination, pytest.raises(NotAccepted, match="Verification"):
        deliver.echo(destination, our_ae_title=OURS)
    with _peer(classes=("1.2.840.10008.5.1.4.1.1.2",)) as destination:
        assert negotiate(destination, our_ae_title=OURS) == frozenset()


def test_each_transfer_syntax_is_asked_for_by_itself(objects: dict[str, Delivery]) -> None:
    with _peer(syntaxes=(RLELossless,), classes=(SegmentationStorage, Comprehensive3DSRStorage)) as destination:
        assert negotiate(destination, our_ae_title=OURS) == {(SegmentationStorage, RLELossless)}
        with pytest.raises(NotAccepted):
            _send(objects["SR"], destination)


def test_a_class_that_is_accepted_and_then_refused_may_be_replaced(objects: dict[str, Delivery]) -> None:
    """Status 0122 says of the class what the association should have said."""
    with (
        _peer([(evt.EVT_C_STORE, lambda _: 0x0122)]) as destination,
        pytest.raises(NotAccepted, match="0122") as caught,
    ):
        _send(objects["SEG"], destination)
    assert caught.value.retry is False
    _whole(caught.value)


def test_what_a_peer_accepts_is_asked_once_until_it_refuses_it() -> None:
    asked = []

    def ask(destination: Destination) -> frozenset[tuple[str, str]]:
        asked.append(destination.name)
        return frozenset({("1.2", "1.3")})

    acceptance, destination = Acceptance(ask), _destination(1)
    assert acceptance.of(destination)("1.2", "1.3")
    assert not acceptance.of(destination)("1.2", "1.4")
    assert asked == ["pacs"]
    acceptance.refuse(destination, "1.2", "1.3")
    assert not acceptance.of(destination)("1.2", "1.3")
    assert asked == ["pacs"]


def test_a_peer_that_accepts_nothing_now_is_asked_again() -> None:
    answers = [frozenset[tuple[str, str]](), frozenset({("1.2", "1.3")})]
    acceptance, destination = Acceptance(lambda _: answers.pop(0)), _destination(1)
    with pytest.raises(InstanceRefused) as caught:
        acceptance.of(destination)
    assert caught.value.retry is True
    _whole(caught.value)
    assert acceptance.of(destination)("1.2", "1.3")


# --- DCMTK ----------------------------------------------------------------------------------------------------------


@contextmanager
def _program(*command: str, port: int) -> Iterator[Destination]:
    """A program that is about to listen."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield _destination(port)
    finally:
        process.terminate()
        process.wait(10)


def _once_up(ask: Callable[[], Answer]) -> Answer:
    """What the first answer says; until the program listens there is none."""
    last = time.monotonic() + 10
    while True:
        try:
            return ask()
        except PeerUnreachable:
            if time.monotonic() > last:
                raise
            time.sleep(0.05)


@pytest.mark.parametrize("kind", ["SEG", "SR"])
def test_dcmtks_storescp_keeps_what_was_frozen(kind: str, objects: dict[str, Delivery], tmp_path: Path) -> None:
    port = free_port()
    command = (counterpart("storescp"), "--bit-preserving", "--output-directory", str(tmp_path), str(port))
    with _program(*command, port=port) as destination:
        assert _once_up(lambda: _send(objects[kind], destination)) == ""
    (stored,) = tmp_path.iterdir()
    frozen = dcmread(objects[kind].path)
    assert dcmread(stored) == frozen
    assert dcmread(stored).file_meta.TransferSyntaxUID == frozen.file_meta.TransferSyntaxUID


def test_dcmtks_storescp_that_refuses_is_told(objects: dict[str, Delivery]) -> None:
    port = free_port()
    with (
        _program(counterpart("storescp"), "--refuse", str(port), port=port) as destination,
        pytest.raises(AssociationRejected) as caught,
    ):
        _once_up(lambda: _send(objects["SR"], destination))
    assert caught.value.retry is False
    _whole(caught.value)


def test_dcmtks_storescp_that_aborts_in_the_middle_is_tried_again(objects: dict[str, Delivery]) -> None:
    port = free_port()
    with _program(counterpart("storescp"), "--abort-during", str(port), port=port) as destination:
        _once_up(lambda: deliver.echo(destination, our_ae_title=OURS))
        with pytest.raises(NoAnswer, match="the connection broke"):
            _send(objects["SEG"], destination)


def test_dcmtks_archive_finds_what_it_was_sent_and_nothing_else(objects: dict[str, Delivery], tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive.cfg").write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 16384\nMaxAssociations = 16\n"
        "HostTable BEGIN\nHostTable END\nVendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\nPEER {tmp_path / 'archive'} RW (10, 64mb) ANY\nAETable END\n"
    )
    command = (counterpart("dcmqrscp"), "--config", str(tmp_path / "archive.cfg"))
    with _program(*command, port=port) as destination:
        assert _once_up(lambda: _send(objects["SR"], destination)) == ""
        assert presence.is_present(objects["SR"], destination, our_ae_title=OURS)
        assert not presence.is_present(objects["SEG"], destination, our_ae_title=OURS)
        accepted = negotiate(destination, our_ae_title=OURS)
        assert can_be_queried(accepted)
        assert {
            (SegmentationStorage, ExplicitVRLittleEndian),
            (Comprehensive3DSRStorage, ExplicitVRLittleEndian),
        } <= accepted
