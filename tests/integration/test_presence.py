"""Whether a destination has an object, asked by QIDO-RS of a real Orthanc, and of a server with odd answers.

Asked by C-FIND it is in ``test_deliver.py``.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from pydicom import Dataset, dcmread
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]

from service.errors import DeliveryError, InstanceRefused, NoAnswer
from service.results.presence import is_present
from service.settings.destinations import Destination
from service.types import Delivery, DeliveryState
from tests.browser.pacs import WebPacs
from tests.phantoms import make
from tests.support import free_port

OURS, STUDY, SERIES, UID = "OVERREAD", "1.2.1", "1.2.2", "1.2.3"
Reply = tuple[int, bytes]


def _delivery(study: str = STUDY, series: str = SERIES, uid: str = UID) -> Delivery:
    return Delivery(
        delivery_id=1,
        study_instance_uid=study,
        destination="pacs",
        model="toy",
        kind="SR",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34",
        series_instance_uid=series,
        sop_instance_uid=uid,
        path=Path("none"),
        state=DeliveryState.SENT,
        attempts=0,
        reason="",
        queued_at=0.0,
    )


def _destination(qido_url: str, *, timeout_seconds: float = 5.0, port: int = 1) -> Destination:
    return Destination(
        name="pacs",
        ae_title="PEER",
        host="127.0.0.1",
        port=port,
        qido_url=qido_url,
        timeout_seconds=timeout_seconds,
    )


def _ask(qido_url: str, delivery: Delivery | None = None, *, timeout_seconds: float = 5.0) -> bool:
    return is_present(
        delivery or _delivery(), _destination(qido_url, timeout_seconds=timeout_seconds), our_ae_title=OURS
    )


def _whole(error: DeliveryError) -> None:
    """Four parts, the destination by name, the object by its UID."""
    assert all(error.parts().values())
    assert "pacs" in error.doing
    assert UID in error.doing


# --- Orthanc --------------------------------------------------------------------------------------------------------


def test_orthanc_finds_what_it_has_and_nothing_else(tmp_path: Path) -> None:
    phantom = make(tmp_path / "series")
    path = phantom.making.study.series[0].instances[0].path
    pacs = WebPacs(tmp_path / "pacs")
    try:
        pacs.store(path.read_bytes())
        stored = dcmread(path, stop_before_pixels=True)
        uids = [str(stored[it].value) for it in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]
        url = f"http://127.0.0.1:{pacs.http_port}/dicom-web"
        assert _ask(url, _delivery(*uids))
        for part in range(3):
            others = [*uids[:part], "1.2.3.4.5", *uids[part + 1 :]]
            assert not _ask(url, _delivery(*others)), part
        with pytest.raises(InstanceRefused, match="404") as caught:
            _ask(f"http://127.0.0.1:{pacs.http_port}/elsewhere")
    finally:
        pacs.stop()
    assert "qido_url" in caught.value.way_out
    assert caught.value.retry is False
    _whole(caught.value)


# --- A server with odd answers --------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Web:
    """A DICOMweb service that answers what a test says."""

    url: str
    asked: list[tuple[str, dict[str, list[str]], str]] = field(default_factory=list)  # path, query, what it accepts


@contextmanager
def _web(answer: Callable[[str, Any], Reply | None]) -> Iterator[Web]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            made.asked.append((parts.path, parse_qs(parts.query), str(self.headers["Accept"])))
            reply = answer(parts.path, self)
            if reply:
                self.send_response(reply[0])
                self.send_header("Content-Length", str(len(reply[1])))
                self.end_headers()
                self.wfile.write(reply[1])

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made = Web(url=f"http://127.0.0.1:{server.server_port}/rs")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()


def _matches(*uids: str) -> bytes:
    return json.dumps([{"00080018": {"vr": "UI", "Value": [uid]}} for uid in uids]).encode()


@pytest.mark.parametrize("end", ["", "/"])
def test_it_is_asked_for_one_instance_in_dicom_json(end: str) -> None:
    with _web(lambda path, _: (200, _matches(UID))) as web:
        assert _ask(web.url + end)
    assert web.asked == [
        (f"/rs/studies/{STUDY}/series/{SERIES}/instances", {"SOPInstanceUID": [UID]}, "application/dicom+json")
    ]


@pytest.mark.parametrize(
    ("reply", "there"),
    [
        ((200, _matches(UID)), True),
        ((200, _matches("1.2.9", UID)), True),  # one that does not filter
        ((200, _matches("1.2.9")), False),
        ((200, b"[]"), False),
        ((200, b""), False),
        ((204, b""), False),
    ],
)
def test_what_matches_is_there(reply: Reply, there: bool) -> None:
    with _web(lambda path, _: reply) as web:
        assert _ask(web.url) is there


@pytest.mark.parametrize("reply", [(200, b"[]"), (204, b""), (200, b'[{"0020000D": {"vr": "UI", "Value": ["1"]}}]')])
def test_a_series_that_is_not_there_may_be_a_404(reply: Reply) -> None:
    with _web(lambda path, _: reply if path == "/rs/studies" else (404, b"no such series")) as web:
        assert not _ask(web.url)
    assert [path for path, _, _ in web.asked] == [f"/rs/studies/{STUDY}/series/{SERIES}/instances", "/rs/studies"]


@pytest.mark.parametrize("reply", [(200, b"<html>"), (200, b'{"error": "GEHEIM"}'), (500, b"")])
def test_a_404_beside_something_else_says_nothing(reply: Reply) -> None:
    with (
        _web(lambda path, _: reply if path == "/rs/studies" else (404, b"")) as web,
        pytest.raises(InstanceRefused) as caught,
    ):
        _ask(web.url)
    assert caught.value.retry is True
    _whole(caught.value)


@pytest.mark.parametrize(
    ("status", "retry", "way_out"),
    [
        (400, False, "log"),
        (401, False, "credentials"),
        (403, False, "allow our address"),
        (404, False, "qido_url"),
        (408, True, "log"),
        (429, True, "log"),
        (500, True, "log"),
        (502, True, "log"),
        (503, True, "log"),
        (599, True, "log"),
    ],
)
def test_a_status_may_pass_or_not(status: int, retry: bool, way_out: str) -> None:
    with (
        _web(lambda path, _: (status, b"GEHEIM")) as web,
        pytest.raises(InstanceRefused, match=f"HTTP status {status}") as caught,
    ):
        _ask(web.url)
    assert caught.value.retry is retry
    assert way_out in caught.value.way_out
    assert "GEHEIM" not in str(caught.value)
    _whole(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"<html>Please sign in, GEHEIM</html>",
        b'[{"00080018": {"vr": "UI", "Va',
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"error": "GEHEIM"}',
        b'["GEHEIM"]',
        b"17",
        b'[{"00100010": {"vr": "PN"}}]',
        b'[{"00080018": {"vr": "UI"}}]',
        b'[{"00080018": {"vr": "UI", "Value": []}}]',
        b" " * (1 << 22) + _matches(UID),
    ],
    ids=["html", "cut", "bytes", "deep", "an object", "words", "a number", "no UID", "no value", "empty", "too long"],
)
def test_an_answer_that_is_not_understood_is_no_answer(content: bytes) -> None:
    with _web(lambda path, _: (200, content)) as web, pytest.raises(InstanceRefused) as caught:
        _ask(web.url)
    assert caught.value.retry is True
    assert "GEHEIM" not in str(caught.value)
    _whole(caught.value)


def _hangs(_path: str, _request: Any) -> Reply:
    time.sleep(1.5)
    return 200, b"[]"


def _hangs_up(_path: str, request: Any) -> None:
    request.connection.shutdown(socket.SHUT_RDWR)
    request.close_connection = True


def _babbles(_path: str, request: Any) -> None:
    request.wfile.write(b"GEHEIM\r\n")
    request.close_connection = True


def _trickles(_path: str, request: Any) -> None:
    request.send_response(200)
    request.end_headers()
    for _ in range(40):
        time.sleep(0.1)
        try:
            request.wfile.write(b" ")
        except OSError:
            break
    request.close_connection = True


@pytest.mark.parametrize("odd", [_hangs, _hangs_up, _babbles, _trickles])
def test_a_connection_that_breaks_is_asked_again_and_in_time(odd: Callable[[str, Any], Reply | None]) -> None:
    began = time.monotonic()
    with _web(odd) as web:
        with pytest.raises(NoAnswer) as caught:
            _ask(web.url, timeout_seconds=0.6)
        assert time.monotonic() - began < 3.0
    assert caught.value.retry is True
    assert "GEHEIM" not in str(caught.value)
    _whole(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_service_that_is_not_there_is_asked_again(scheme: str, host: str) -> None:
    with pytest.raises(NoAnswer) as caught:
        _ask(f"{scheme}://{host}:{free_port()}/rs")
    assert caught.value.retry is True
    _whole(caught.value)


def test_a_service_without_tls_where_it_is_expected_is_named() -> None:
    with _web(lambda path, _: (200, b"[]")) as web, pytest.raises(NoAnswer, match="TLS"):
        _ask(web.url.replace("http:", "https:"))


@pytest.mark.parametrize("url", ["http://127.0.0.1:port/rs", "http://127.0.0.1/r s", f"http://{'x' * 99}/rs"])
def test_an_address_that_is_none_is_final(url: str) -> None:
    with pytest.raises(InstanceRefused) as caught:
        _ask(url)
    assert caught.value.retry is False
    assert "qido_url" in caught.value.way_out
    _whole(caught.value)


def test_a_proxy_of_the_environment_is_passed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    with _web(lambda path, _: (200, _matches(UID))) as web:
        assert _ask(web.url)


def test_with_a_qido_url_no_association_is_opened_and_without_one_no_http() -> None:
    asked: list[str] = []

    def find(event: Any) -> Iterator[tuple[int, Dataset | None]]:
        asked.append(event.identifier.SOPInstanceUID)
        yield 0x0000, None

    ae = AE(ae_title="PEER")
    ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, find)])
    assert server is not None
    assert server.socket is not None
    try:
        port = server.socket.getsockname()[1]
        with _web(lambda path, _: (200, _matches(UID))) as web:
            assert is_present(_delivery(), _destination(web.url, port=port), our_ae_title=OURS)
            assert (len(web.asked), asked) == (1, [])
            assert not is_present(_delivery(), _destination("", port=port), our_ae_title=OURS)
            assert (len(web.asked), asked) == (1, [UID])
    finally:
        server.shutdown()
