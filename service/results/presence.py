"""[edge: pynetdicom] The question whether a destination has an object: C-FIND, or QIDO-RS."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pydicom import Dataset
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]

from service import web
from service.codes import SUCCESS
from service.errors import DeliveryError, InstanceRefused, NoAnswer
from service.results.association import answered, association_with, context_of
from service.settings.destinations import Destination

_PENDING: Final = frozenset({0xFF00, 0xFF01})  # PS3.4 Table C.4-1
_MOST_BYTES: Final = 1 << 22  # of an answer; a series of results has a few objects
_SOP_INSTANCE_UID: Final = "00080018"  # PS3.18 section F.2.2
_WAYS_OUT: Final = {  # by HTTP status
    401: "let us in without credentials from our address: none can be given here; or take qido_url away",
    403: "allow our address to search at the destination's DICOMweb service, or take qido_url away",
    404: "correct qido_url in the configuration: it ends before /studies",
}


class Referenced(Protocol):
    """What is asked for; a `Delivery` is one."""

    @property
    def study_instance_uid(self) -> str: ...
    @property
    def series_instance_uid(self) -> str: ...
    @property
    def sop_instance_uid(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """An object by its UIDs."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str


def is_present(wanted: Referenced, destination: Destination, *, our_ae_title: str) -> bool:
    """Ask a destination whether it has an object: by QIDO-RS where it has a ``qido_url``, else by C-FIND.

    Raises
    ------
    DeliveryError
        If it can't be asked now, or at all.
    """
    if destination.qido_url:
        return _by_qido(wanted, destination)
    return _by_find(wanted, destination, our_ae_title=our_ae_title)


def _by_find(wanted: Referenced, destination: Destination, *, our_ae_title: str) -> bool:
    """C-FIND, Study Root, IMAGE level (PS3.4 C.6.2)."""
    question = Dataset()
    question.QueryRetrieveLevel = "IMAGE"
    question.StudyInstanceUID = wanted.study_instance_uid
    question.SeriesInstanceUID = wanted.series_instance_uid
    question.SOPInstanceUID = sop_uid = wanted.sop_instance_uid
    model = StudyRootQueryRetrieveInformationModelFind
    with association_with(destination, our_ae_title, [context_of(model)]) as association:
        found = False
        for answer, identifier in association.send_c_find(question, model):
            status = int(answered(answer, destination, "C-FIND").Status)
            if status in _PENDING:
                found |= identifier is not None and str(identifier.get("SOPInstanceUID", "")) == sop_uid
            elif status != SUCCESS:
                raise InstanceRefused(
                    doing=f"asking {destination.name} for {sop_uid}",
                    found=f"status {status:04X}",
                    rule="a query ends with Success (PS3.4 Table C.4-1)",
                    way_out='allow our AE title to query, or set confirm = "none" for this destination',
                    retry=True,
                )
        return found


def _by_qido(wanted: Referenced, destination: Destination) -> bool:
    """Search for an instance (PS3.18 section 10.6)."""
    base, sop_uid = destination.qido_url.rstrip("/"), wanted.sop_instance_uid
    doing = f"asking {destination.name} for {sop_uid} by QIDO-RS"
    where = f"{base}/studies/{wanted.study_instance_uid}/series/{wanted.series_instance_uid}/instances"
    try:
        matches = _search(f"{where}?SOPInstanceUID={sop_uid}", destination, doing)
    except _Missing as exc:
        # Some say so of a study or a series that they have not; so would a wrong address of everything.
        try:
            _search(f"{base}/studies?StudyInstanceUID={wanted.study_instance_uid}&limit=1", destination, doing)
        except _Missing:
            raise _refused(404, doing) from exc
        return False
    try:  # all that match: some do not filter by it
        return sop_uid in [match[_SOP_INSTANCE_UID]["Value"][0] for match in matches]
    except (TypeError, KeyError, IndexError) as exc:
        raise _not_understood(doing, "a match without its SOP Instance UID") from exc


class _Missing(Exception):
    """The service says 404."""


def _search(url: str, destination: Destination, doing: str) -> list[Any]:
    """What a search finds, in DICOM JSON (PS3.18 section F.2)."""
    content = _get(url, destination, doing)
    try:
        found = json.loads(content) if content else []  # 204: nothing
    except (ValueError, RecursionError) as exc:
        raise _not_understood(doing, "an answer that is no JSON") from exc
    if not isinstance(found, list):
        raise _not_understood(doing, "an answer that is no list of matches")
    return found


def _get(url: str, destination: Destination, doing: str) -> bytes:
    try:
        request = urllib.request.Request(url, headers={"Accept": "application/dicom+json"})
        with web.opener().open(request, timeout=destination.timeout_seconds) as reply:
            return _read(reply, destination, doing)
    except urllib.error.HTTPError as exc:
        exc.close()
        if exc.code == 404:
            raise _Missing from exc
        raise _refused(exc.code, doing) from exc
    except urllib.error.URLError as exc:
        raise NoAnswer(  # of this service: associations may come about all the same
            doing=doing,
            found=getattr(exc.reason, "strerror", None) or type(exc.reason).__name__,
            rule="the destination's DICOMweb service answers at its qido_url",
            way_out="start it, or correct qido_url; for TLS, its certificate must be one that this machine trusts",
        ) from exc
    except (http.client.InvalidURL, UnicodeError) as exc:
        raise InstanceRefused(
            doing=doing,
            found="an address that can't be asked",
            rule="qido_url is an http or https address",
            way_out="correct qido_url in the configuration",
            retry=False,
        ) from exc
    except (OSError, http.client.HTTPException) as exc:
        raise NoAnswer(
            doing=doing,
            found=f"the connection broke, or no answer came in time ({type(exc).__name__})",
            rule=f"an answer comes within {destination.timeout_seconds:g} s",
            way_out="look at the destination and the network; it is asked again",
        ) from exc


def _read(reply: http.client.HTTPResponse, destination: Destination, doing: str) -> bytes:
    """The whole answer: not more of it than fits, and not longer than patience lasts, however it trickles."""
    until, content = time.monotonic() + destination.timeout_seconds, b""
    while piece := reply.read1(1 << 16):
        content += piece
        if len(content) > _MOST_BYTES:
            raise _not_understood(doing, f"an answer of more than {_MOST_BYTES >> 20} MiB")
        if time.monotonic() > until:
            raise TimeoutError
    return content


def _refused(status: int, doing: str) -> InstanceRefused:
    passes = status >= 500 or status in (408, 425, 429)  # of the server, or of the moment (RFC 9110 section 15)
    return InstanceRefused(
        doing=doing,
        found=f"HTTP status {status}, {http.client.responses.get(status, 'unknown')}",
        rule="a search is answered with 200 or 204 (PS3.18 Table 10.6.3-1)",
        way_out=_WAYS_OUT.get(status, "look into the log of the destination's DICOMweb service"),
        retry=passes,
    )


def _not_understood(doing: str, found: str) -> DeliveryError:
    return InstanceRefused(
        doing=doing,
        found=found,
        rule="a search is answered in DICOM JSON, with the SOP Instance UID of each match (PS3.18 section 10.6.3)",
        way_out="correct qido_url in the configuration, if this is not its DICOMweb service; else ask its vendor",
        retry=True,
    )
