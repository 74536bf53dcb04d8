"""pynetdicom's two races on the asking side, each forced, once as pynetdicom has it and once mended."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt, transport
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]

from service.errors import AssociationRejected, SourceUnavailable
from service.intake import cfind
from service.requestor import steady
from service.results.association import association_with, context_of
from service.settings.destinations import Destination
from service.settings.intake import Query, Source

_wait = threading.Event.wait


@pytest.fixture
def port() -> Iterator[int]:
    """Of a peer that answers at once, and knows itself as PEER alone."""
    ae = AE("PEER")
    ae.require_called_aet = True
    for sop_class in (CTImageStorage, StudyRootQueryRetrieveInformationModelFind):
        ae.add_supported_context(sop_class, ExplicitVRLittleEndian)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda event: 0)])
    assert server
    assert server.socket
    yield server.socket.getsockname()[1]
    server.shutdown()


def _instance() -> Dataset:
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = CTImageStorage, generate_uid()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return made


def _opened(port: int) -> Association:
    ae = AE("OURS")
    ae.dimse_timeout = 1
    ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", port, ae_title="PEER")
    assert association.is_established
    return association


# --- An answer that another thread takes ------------------------------------------------------------------------------


@pytest.fixture
def is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if others had their turn when the serving thread leaves its checkpoint, and when a request is sent."""
    send = DIMSEServiceProvider.send_msg

    def leaves_late(self: threading.Event, timeout: float | None = None) -> bool:
        is_set = _wait(self, timeout)
        if isinstance(threading.current_thread(), Association):
            time.sleep(0.1)
        return is_set

    def asks_slowly(self: DIMSEServiceProvider, primitive: Any, context_id: int) -> None:
        send(self, primitive, context_id)
        if isinstance(primitive, C_STORE) and primitive.is_valid_request:
            time.sleep(0.3)

    monkeypatch.setattr(threading.Event, "wait", leaves_late)
    monkeypatch.setattr(DIMSEServiceProvider, "send_msg", asks_slowly)


@pytest.mark.usefixtures("is_slow")
@pytest.mark.parametrize("mended", [True, False])
def test_an_answer_reaches_who_waits_for_it(mended: bool, port: int) -> None:
    association = _opened(port)
    if mended:
        steady(association)
    statuses = list[int | None]()
    while association.is_established and len(statuses) < 4:
        statuses.append(association.send_c_store(_instance()).get("Status"))
    if association.is_established:
        association.release()
    if mended:
        assert statuses == [0x0000] * 4
    else:
        assert None in statuses, "pynetdicom has mended it: take service/requestor.py's half of it away"


def test_one_that_has_ended_is_not_waited_for(port: int) -> None:
    association = _opened(port)
    association.abort()
    association.join(5)
    steady(association)


# --- A peer that rejects and hangs up fast ----------------------------------------------------------------------------


class _Late(threading.Event):
    """As if another thread had its turn just when the connection was made."""

    def wait(self, timeout: float | None = None) -> bool:
        is_set = _wait(self, timeout)
        time.sleep(0.5)
        return is_set


@pytest.fixture
def is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    make = transport.AssociationSocket.__init__

    def made(self: transport.AssociationSocket, *arguments: object, **more: object) -> None:
        make(self, *arguments, **more)  # type: ignore[arg-type]
        if not self._is_connected:
            self._ready = _Late()

    monkeypatch.setattr(transport.AssociationSocket, "__init__", made)


@pytest.mark.usefixtures("is_late")
def test_a_destination_that_rejects_fast_has_rejected(port: int) -> None:
    destination = Destination(name="pacs", ae_title="OTHER", host="127.0.0.1", port=port)
    with (
        pytest.raises(AssociationRejected, match="Called AE title not recognised") as caught,
        association_with(destination, "OURS", [context_of(CTImageStorage)]),
    ):
        pass
    assert caught.value.retry is False


@pytest.mark.usefixtures("is_late")
def test_a_source_that_rejects_fast_has_rejected(port: int) -> None:
    query = Query(ae_title="OTHER", host="127.0.0.1", port=port)
    source = Source(ae_title="SENDER", query=query)
    with pytest.raises(SourceUnavailable, match="rejected: Called AE title not recognised"):
        cfind.find("1.2", source, query, "OURS")


@pytest.mark.usefixtures("is_late")
def test_pynetdicom_itself_takes_it_for_one_that_is_away(port: int) -> None:
    ae = AE("OURS")
    ae.add_requested_context(CTImageStorage)
    association = ae.associate("127.0.0.1", port, ae_title="OTHER")
    assert not association.is_rejected, "pynetdicom has mended it: take service/requestor.py's half of it away"
