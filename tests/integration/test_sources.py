"""A source is asked how much of a study there is: a real Orthanc both ways, and peers that misbehave."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydicom import DataElement, Dataset
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from service.config import Config
from service.demo.phantom import tiny
from service.demo.phantom_dicom import write_localizer, write_series
from service.errors import SourceUnavailable
from service.intake import cfind, sources
from service.intake.arrivals import Arrivals
from service.intake.counted import Count, CountedSeries, Standing, compare
from service.settings.intake import Source
from service.types import Completeness
from tests.browser.pacs import WebPacs
from tests.support import free_port
from tests.unit.test_arrivals import Memory

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR")

OURS = "OVERREAD"
FIND = StudyRootQueryRetrieveInformationModelFind
STUDY, OTHER = "1.2.3", "1.2.4"
UNKNOWN = Count()


def by_find(port: int, **more: Any) -> Source:
    query = {"ae_title": "PEER", "host": "127.0.0.1", "port": port, **more.pop("query", {})}
    return Source.model_validate({"ae_title": "PACS", "query": query, "timeout_seconds": 5.0, **more})


def by_web(port: int, path: str = "/dicom-web", **more: Any) -> Source:
    url = f"http://127.0.0.1:{port}{path}"
    return Source.model_validate({"ae_title": "PACS", "qido_url": url, "timeout_seconds": 5.0, **more})


def ask(source: Source, study_uid: str = STUDY) -> Count:
    return sources.ask(study_uid, source, our_ae_title=OURS)


def refused(source: Source, words: str) -> SourceUnavailable:
    """The error of a source that gives no answer: four parts, the source by name, no patient."""
    began = time.monotonic()
    with pytest.raises(SourceUnavailable, match=words) as caught:
        ask(source)
    assert time.monotonic() - began < 4 * source.timeout_seconds
    assert caught.value.retry
    assert all(caught.value.parts().values())
    where = f"{source.query.host}:{source.query.port}" if source.query else source.qido_url
    assert f"the source PACS at {where} " in caught.value.doing
    assert "Somebody" not in str(caught.value)
    return caught.value


# --- A real PACS ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebPacs]:
    made = WebPacs(tmp_path_factory.mktemp("orthanc"))
    try:
        yield made
    finally:
        made.stop()


def ways(pacs: WebPacs) -> dict[str, Source]:
    return {
        "C-FIND": by_find(pacs.port, query={"ae_title": pacs.ae_title}),
        "QIDO-RS": by_web(pacs.http_port),
        "QIDO-RS, with a slash": by_web(pacs.http_port, "/dicom-web/"),
    }


@pytest.mark.parametrize("way", ["C-FIND", "QIDO-RS", "QIDO-RS, with a slash"])
def test_orthanc_counts_what_it_has(way: str, pacs: WebPacs, tmp_path: Path) -> None:
    source = ways(pacs)[way]
    study_uid = f"2.25.{len(way)}"
    assert ask(source, study_uid) == UNKNOWN
    phantom = tiny(shape=(12, 16, 16))
    slices = write_series(phantom, tmp_path, study_uid=study_uid)
    for path in slices[:7]:
        pacs.store(path.read_bytes())
    first = ask(source, study_uid)
    assert (first.study_series, first.study_instances) == (1, 7)
    ((uid, modality, number),) = [(it.series_instance_uid, it.modality, it.instances) for it in first.series]
    assert (modality, number) == ("CT", 7)
    for path in slices[7:]:
        pacs.store(path.read_bytes())
    found = compare({uid: 7}, frozenset(), ask(source, study_uid))
    assert (found.standing, found.words) == (Standing.MORE, f"CT series {uid}: 7 of 12 instances")
    assert compare({uid: 12}, frozenset(), ask(source, study_uid)).standing is Standing.EQUAL
    pacs.store(write_localizer(phantom, tmp_path, study_uid=study_uid, attributes={"Modality": "SR"}).read_bytes())
    both = ask(source, study_uid)
    assert (both.study_series, both.study_instances, len(both.series)) == (2, 13, 2)
    assert compare({uid: 12}, frozenset(), both).standing is Standing.MORE
    assert compare({uid: 12}, frozenset(), both, ("CT",)).standing is Standing.EQUAL
    (other,) = [it.series_instance_uid for it in both.series if it.series_instance_uid != uid]
    assert compare({uid: 12}, {other}, both).standing is Standing.EQUAL, "a result of ours"


@pytest.mark.parametrize("way", ["C-FIND", "QIDO-RS"])
def test_with_a_verified_count_it_starts_within_half_a_second_after_the_last_slice(
    way: str, pacs: WebPacs, tmp_path: Path
) -> None:
    config = Config.model_validate({"sources": [ways(pacs)[way].model_dump(exclude_none=True)]})
    took = []
    for turn in range(6):
        study_uid = f"2.25.77{len(way)}{turn}"
        for path in write_series(tiny(shape=(12, 16, 16)), tmp_path / str(turn), study_uid=study_uid):
            pacs.store(path.read_bytes())
        (series,) = ask(config.sources[0], study_uid).series
        store = Memory()
        store.come(study_uid, instances=11, series=series.series_instance_uid)
        come = partial(store.come, study_uid, series=series.series_instance_uid)
        took.append(_seconds_to_start(config, store, come))
        assert store.begun[0]["completeness"] is Completeness.VERIFIED
        assert store.begun[0]["judged"].endswith("12 instances in 1 series")
    print(way, [round(it, 3) for it in took])
    assert sorted(took)[len(took) // 2] <= 0.5, took


def test_no_message_waits_for_a_delayed_acknowledgement(pacs: WebPacs) -> None:
    """Each that does costs 40 ms; four of them would be on the way of each question to a PACS built on DCMTK."""
    source, took = ways(pacs)["C-FIND"], []
    for _ in range(8):
        began = time.monotonic()
        ask(source)
        took.append(time.monotonic() - began)
    assert min(took) < 0.04, took


def _seconds_to_start(config: Config, store: Memory, come: Callable[[], None]) -> float:
    """From the last slice, which comes between two ticks a second later, to the start, with real threads."""
    wake = threading.Event()
    last_at: list[float] = []

    def aside(_: str, work: Callable[[], None]) -> bool:
        def wake_then() -> None:
            work()
            wake.set()

        threading.Thread(target=wake_then).start()
        return True

    def come_last() -> None:
        come()
        last_at.append(time.monotonic())

    arrivals = Arrivals(config, store, aside=aside)
    timer = threading.Timer(1.0, come_last)
    timer.start()
    until = time.monotonic() + 20
    while not store.begun and time.monotonic() < until:
        arrivals.tick()
        wake.wait(0.1)
        wake.clear()
    took = time.monotonic() - last_at[0]
    timer.join()
    return took


# --- Peers that answer C-FIND otherwise -----------------------------------------------------------------------------

Answers = Mapping[str, Any]  # by level: the answers, or a status


@contextmanager
def peer(
    answers: Answers | Callable[[Any], Iterator[tuple[int, Dataset | None]]],
    *,
    prepare: Callable[[AE], None] = lambda ae: None,
    classes: Sequence[str] = (FIND,),
    on_abort: Callable[[Any], None] = lambda _: None,
    **more: Any,
) -> Iterator[Source]:
    """A real SCP of another library, called PEER, that answers as it is told."""

    def find(event: Any) -> Iterator[tuple[int, Dataset | None]]:
        assert event.assoc.requestor.ae_title == OURS
        given = answers[str(event.identifier.QueryRetrieveLevel)]  # type: ignore[index]
        assert event.identifier.StudyInstanceUID == STUDY
        if isinstance(given, int):
            yield given, None
            return
        for values in given:
            yield 0xFF00, identifier(values)

    ae = AE(ae_title="PEER")
    ae.require_called_aet = True
    for abstract_syntax in classes:
        ae.add_supported_context(abstract_syntax)
    prepare(ae)
    handler: Any = answers if callable(answers) else find
    handlers: list[Any] = [(evt.EVT_C_FIND, handler), (evt.EVT_ABORTED, on_abort)]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    assert server is not None
    assert server.socket is not None
    try:
        yield by_find(server.socket.getsockname()[1], **more)
    finally:
        server.shutdown()


def identifier(values: Mapping[str, Any]) -> Dataset:
    """An answer; a value that is a data element goes as it is, whatever its VR."""
    dataset = Dataset()
    dataset.PatientName = "Somebody^Else"
    for keyword, value in values.items():
        if isinstance(value, DataElement):
            dataset.add(value)
        else:
            setattr(dataset, keyword, value)
    return dataset


def study(series: Any = 1, instances: Any = 5, uid: str = STUDY) -> dict[str, Any]:
    return {
        "StudyInstanceUID": uid,
        "NumberOfStudyRelatedSeries": series,
        "NumberOfStudyRelatedInstances": instances,
    }


def series(uid: str = f"{STUDY}.1", instances: Any = 5, **more: Any) -> dict[str, Any]:
    return {"SeriesInstanceUID": uid, "Modality": "CT", "NumberOfSeriesRelatedInstances": instances, **more}


def counted(uid: str = f"{STUDY}.1", instances: int | None = 5, modality: str = "CT") -> CountedSeries:
    return CountedSeries(series_instance_uid=uid, modality=modality, instances=instances)


FIVE = Count(series=(counted(),), study_series=1, study_instances=5)
FAILED = 0xC001  # PS3.4 Table C.4-1: unable to process
TEXT = DataElement(0x00201209, "LO", "a lot")


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"STUDY": [study()], "SERIES": [series()]}, FIVE),
        ({"STUDY": [], "SERIES": []}, UNKNOWN),
        ({"STUDY": [study(None, None)], "SERIES": [series(instances=None)]}, Count(series=(counted(instances=None),))),
        ({"STUDY": [{"StudyInstanceUID": STUDY}], "SERIES": [series()]}, Count(series=(counted(),))),
        ({"STUDY": [study()], "SERIES": [{"SeriesInstanceUID": f"{STUDY}.1"}]}, None),
        # One of the levels is not for it.
        ({"STUDY": 0xA900, "SERIES": [series()]}, Count(series=(counted(),))),
        ({"STUDY": [study()], "SERIES": FAILED}, Count(study_series=1, study_instances=5)),
        # Numbers that are none.
        ({"STUDY": [study(1, 5)], "SERIES": [series(instances=TEXT)]}, None),
        ({"STUDY": [study(1, 5)], "SERIES": [series(instances=-3)]}, None),
        # Keys that it does not know: everything it has.
        ({"STUDY": [study(7, 70, uid=OTHER), study()], "SERIES": [series()]}, FIVE),
        ({"STUDY": [study()], "SERIES": [series(f"{OTHER}.1", 70, StudyInstanceUID=OTHER), series()]}, FIVE),
        ({"STUDY": [study()], "SERIES": [series(StudyInstanceUID=STUDY)]}, FIVE),
        # Everything twice, of two archives.
        ({"STUDY": [study(), study()], "SERIES": [series(instances=n) for n in (4, 5, 3, None)]}, FIVE),
    ],
)
def test_what_a_peer_says_is_taken_as_far_as_it_goes(answers: Answers, expected: Count | None) -> None:
    without_number = replace(FIVE, series=(counted(instances=None),))
    if expected is None and "Modality" not in answers["SERIES"][0]:
        without_number = replace(FIVE, series=(counted(instances=None, modality=""),))
    with peer(answers) as source:
        assert ask(source) == (expected or without_number)


def test_many_series_come_as_many_answers_and_without_delay() -> None:
    answers = {"STUDY": [study(40, 200)], "SERIES": [series(f"{STUDY}.{number}") for number in range(40)]}
    with peer(answers) as source:
        began = time.monotonic()
        found = ask(source)
        assert time.monotonic() - began < 1.0, "40 ms for each would be 1.6 s"
    assert len(found.series) == 40
    assert compare({f"{STUDY}.{number}": 5 for number in range(40)}, frozenset(), found).standing is Standing.EQUAL


class _SlowToStop(threading.Event):
    """A checkpoint after which a thread is held up, as it happens on a busy machine."""

    def wait(self, timeout: float | None = None) -> bool:
        passed = super().wait(timeout)
        time.sleep(0.003)
        return passed


def test_no_answer_is_lost_to_the_loop_of_pynetdicom(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Association.__init__

    def slow(self: Association, *arguments: Any, **more: Any) -> None:
        begin(self, *arguments, **more)
        if self.mode == "requestor":
            self._reactor_checkpoint = _SlowToStop()
            self._reactor_checkpoint.set()

    monkeypatch.setattr(Association, "__init__", slow)
    with peer({"STUDY": [study()], "SERIES": [series()]}, timeout_seconds=0.5) as source:
        assert [ask(source) for _ in range(20)] == [FIVE] * 20


def test_a_peer_that_refuses_both_levels_gives_no_answer() -> None:
    aborted = threading.Event()
    with peer({"STUDY": FAILED, "SERIES": 0xA900}, on_abort=lambda _: aborted.set()) as source:
        assert "allow our AE title to query" in refused(source, "status A900").way_out
        assert aborted.wait(5.0), "and is not kept waiting"


@pytest.mark.parametrize("uid", ["", "Somebody's series"])
def test_a_series_without_a_uid_spoils_the_answer(uid: str) -> None:
    no_uid = DataElement(0x0020000E, "LO", uid)
    with peer({"STUDY": [study()], "SERIES": [series() | {"SeriesInstanceUID": no_uid}]}) as source:
        refused(source, "a series without SeriesInstanceUID")


def test_answers_without_end_are_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cfind, "_MOST_ANSWERS", 3)
    with peer({"STUDY": [study()], "SERIES": [series()] * 3}) as source:
        assert ask(source) == FIVE
    with peer({"STUDY": [study()], "SERIES": [series()] * 4}) as source:
        refused(source, "more than 3 answers")


def test_a_peer_that_is_not_there() -> None:
    assert "start it" in refused(by_find(free_port()), "no connection, or no answer").way_out
    unknown = by_find(104, query={"host": "no-such-host.invalid"})
    assert "correct host" in refused(unknown, "asking the source").way_out


def test_a_peer_that_does_not_want_us() -> None:
    def prepare(ae: AE) -> None:
        ae.require_calling_aet = ["SOMEBODY"]

    with peer({}, prepare=prepare) as source:
        assert "enter our AE title there" in refused(source, "rejected: Calling AE title not recognised").way_out
    with peer({}, query={"ae_title": "WRONG"}) as source:
        refused(source, "rejected: Called AE title not recognised")
    with peer({}, classes=[Verification]) as source:
        refused(source, "it does not accept Study Root FIND")


def _hang(event: Any) -> Iterator[tuple[int, Dataset | None]]:
    time.sleep(2.0)
    yield 0xFF00, identifier(study())


def _drip(event: Any) -> Iterator[tuple[int, Dataset | None]]:
    for _ in range(30):
        time.sleep(0.1)
        yield 0xFF00, identifier(study())


def _abort(event: Any) -> Iterator[tuple[int, Dataset | None]]:
    event.assoc.abort()
    yield 0xFF00, identifier(study())


def _fail(event: Any) -> Iterator[tuple[int, Dataset | None]]:
    raise RuntimeError("a bug over there")


@pytest.mark.parametrize(
    ("find", "words"), [(_hang, "in time"), (_drip, "in time"), (_abort, "broke"), (_fail, "C311")]
)
def test_a_peer_that_hangs_or_breaks_off(find: Any, words: str) -> None:
    with peer(find, timeout_seconds=0.5) as source:
        refused(source, words)


def test_a_peer_that_takes_the_connection_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        refused(by_find(server.getsockname()[1], timeout_seconds=0.5), "no connection, or no answer")


# --- Services that answer QIDO-RS otherwise -------------------------------------------------------------------------

Reply = tuple[int, Mapping[str, str], bytes]


@contextmanager
def service(replies: Mapping[str, Reply | Callable[[Any], None]], **more: Any) -> Iterator[tuple[Source, list[str]]]:
    """An HTTP server that replies to each path as it is told, and what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            asked.append(self.path)
            assert self.headers["Accept"] == "application/dicom+json"
            reply = replies[path.removeprefix("/dicom-web")]
            if callable(reply):
                reply(self)
                return
            status, headers, content = reply
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # that we hung up is no news
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield by_web(server.server_port, **more), asked
    finally:
        server.shutdown()
        server.server_close()


def element(vr: str, *values: Any) -> dict[str, Any]:
    return {"vr": vr, "Value": list(values)}


def reply(*items: Any) -> Reply:
    return 200, {"Content-Type": "application/dicom+json"}, json.dumps(items).encode()


def web_study(series: Any = 1, instances: Any = 5, uid: str = STUDY) -> dict[str, Any]:
    return {"0020000D": element("UI", uid), "00201206": element("IS", series), "00201208": element("IS", instances)}


def web_series(uid: str = f"{STUDY}.1", instances: Any = 5, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {
        "0020000E": element("UI", uid),
        "00080060": element("CS", "CT"),
        "00201209": element("IS", instances),
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Somebody^Else"}]},
        **(more or {}),
    }


NOTHING: Reply = (204, {}, b"")
STUDIES, SERIES = "/studies", f"/studies/{STUDY}/series"


@pytest.mark.parametrize(
    ("studies", "series", "expected"),
    [
        (reply(web_study()), reply(web_series()), FIVE),
        (NOTHING, NOTHING, UNKNOWN),
        (reply(), reply(), UNKNOWN),
        (reply(web_study("1", "5")), reply(web_series(instances="5")), FIVE),
        (reply(web_study(1.0, 5.0)), reply(web_series(instances=5.0)), FIVE),
        (reply(web_study(uid=OTHER), web_study()), reply(web_series()), FIVE),
        ((500, {}, b""), reply(web_series()), Count(series=(counted(),))),
        (NOTHING, reply(web_series()), Count(series=(counted(),))),
        (reply(web_study()), reply(web_series(more={"00201209": {"vr": "IS"}})), None),
        (reply(web_study()), reply(web_series(instances={"odd": 1})), None),
        (reply(web_study()), reply(web_series(more={"00201209": {"vr": "IS", "Value": []}})), None),
        (reply(web_study()), reply(web_series(more={"0020000D": element("UI", OTHER)})), replace(FIVE, series=())),
    ],
)
def test_what_a_service_says_is_taken_as_far_as_it_goes(studies: Reply, series: Reply, expected: Count | None) -> None:
    with service({STUDIES: studies, SERIES: series}) as (source, asked):
        assert ask(source) == (expected or replace(FIVE, series=(counted(instances=None),)))
    assert asked == [
        f"/dicom-web{STUDIES}?StudyInstanceUID={STUDY}"
        "&includefield=NumberOfStudyRelatedSeries&includefield=NumberOfStudyRelatedInstances",
        f"/dicom-web{SERIES}?includefield=Modality&includefield=NumberOfSeriesRelatedInstances",
    ]


@pytest.mark.parametrize(
    ("series", "words"),
    [
        ((404, {}, b""), "HTTP status 404"),
        ((401, {"WWW-Authenticate": "Basic"}, b""), "HTTP status 401"),
        ((503, {}, b""), "HTTP status 503"),
        ((302, {"Location": "file:///etc/passwd"}, b""), "HTTP status 302"),
        ((302, {"Location": "/elsewhere"}, b""), "HTTP status 302"),
        ((200, {}, b"<html>Somebody</html>"), "JSONDecodeError"),
        ((200, {}, b"\xff\xfe"), "UnicodeDecodeError|JSONDecodeError"),
        ((200, {}, b'{"Somebody": 1}'), "AttributeError"),
        ((200, {}, b"5"), "TypeError"),
        ((200, {}, b"[[]]"), "AttributeError"),
        ((200, {}, b'[{"0020000E": 5}]'), "AttributeError"),
        ((200, {}, b'[{"0020000E": {"Value": {"Somebody": 1}}}]'), "KeyError"),
        ((200, {}, b"[" * 100_000), "RecursionError|JSONDecodeError"),
        (reply(web_series(uid="Somebody's")), "a series without SeriesInstanceUID"),
    ],
)
def test_a_service_that_gives_no_answer(series: Reply, words: str) -> None:
    replies = {STUDIES: NOTHING, SERIES: series, "/elsewhere": reply(web_series())}
    with service(replies) as (source, asked):
        refused(source, words)
        assert len(asked) == 2


def test_a_service_that_is_not_there() -> None:
    refused(by_web(free_port()), "ConnectionRefusedError")
    unknown = Source(ae_title="PACS", qido_url="http://no-such-host.invalid/dicom-web")
    refused(unknown, "no answer, or none that is DICOM JSON")


def _silent(handler: Any) -> None:
    time.sleep(1.5)


def _dripping(handler: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(30):
        handler.wfile.write(b"[" if not _ else b" ")
        time.sleep(0.1)


def _endless(handler: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" " * (1 << 20))


@pytest.mark.parametrize(
    ("misbehave", "words"), [(_silent, "TimeoutError"), (_dripping, "ValueError"), (_endless, "ValueError")]
)
@pytest.mark.parametrize("where", [STUDIES, SERIES])
def test_a_service_that_is_too_slow_or_says_too_much(misbehave: Any, words: str, where: str) -> None:
    replies = {STUDIES: NOTHING, SERIES: NOTHING, where: misbehave}
    with service(replies, timeout_seconds=0.8) as (source, _):
        refused(source, words)


def test_an_answer_that_is_too_long_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = reply(web_series())
    for most, is_enough in ((len(answer[2]), True), (len(answer[2]) - 1, False)):
        monkeypatch.setattr(sources, "_MOST_BYTES", most)
        with service({STUDIES: NOTHING, SERIES: answer}) as (source, _):
            if is_enough:
                assert ask(source).series == (counted(),)
            else:
                refused(source, "ValueError")


def test_no_proxy_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with service({STUDIES: reply(web_study()), SERIES: reply(web_series())}) as (source, _):
        assert ask(source) == FIVE
