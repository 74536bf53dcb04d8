"""[edge] Asks the source of a study how much of it there is: C-FIND (Study Root), or QIDO-RS.

Both levels are asked in one go. The series are what is compared: only they tell our own results, and what the source
does not send us, from the rest. The study's totals show whether the list of series is whole, for some PACS cut it, and
stand in where series have no numbers. A source that refuses one of the levels is still of use.
"""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from typing import Any

from pydicom.datadict import tag_for_keyword

from service import web
from service.intake.cfind import SERIES, STUDY, Row, find, unavailable
from service.intake.counted import Count, CountedSeries
from service.intake.encoding import is_uid
from service.settings.intake import Source

_MOST_BYTES = 16 << 20  # of an answer to QIDO-RS


def ask(study_uid: str, source: Source, *, our_ae_title: str) -> Count:
    """Ask a source how much of a study there is.

    Returns
    -------
    Count
        Empty if the source answers, and does not know the study.

    Raises
    ------
    SourceUnavailable
        If it gives no answer that can be used.
    """
    if source.query:
        studies, series = find(study_uid, source, source.query, our_ae_title)
    else:
        studies, series = _search(study_uid, source)
    return _count(study_uid, studies, series, source)


def _count(study_uid: str, studies: Iterable[Row], series: Iterable[Row], source: Source) -> Count:
    """The answers as a count; what a source says of other studies, because it knows no such key, is left out."""
    totals = [row for row in studies if row["StudyInstanceUID"] == study_uid]
    found: dict[str, CountedSeries] = {}
    for row in series:
        if row["StudyInstanceUID"] not in ("", study_uid):
            continue
        uid, number = row["SeriesInstanceUID"], _number(row["NumberOfSeriesRelatedInstances"])
        if not is_uid(uid):
            raise unavailable(
                source,
                "a series without SeriesInstanceUID, or with one that is no UID",
                "the unique key is in each answer (PS3.4 section C.2.2.1.1)",
                "ask its vendor; until then only the clock counts",
            )
        earlier = found.get(uid)  # some that ask several archives say everything twice
        if earlier is None or (earlier.instances or 0) < (number or 0):
            found[uid] = CountedSeries(series_instance_uid=uid, modality=row["Modality"], instances=number)
    return Count(
        series=tuple(found.values()),
        study_series=_number(totals[0][STUDY[0]]) if totals else None,
        study_instances=_number(totals[0][STUDY[1]]) if totals else None,
    )


def _number(text: str) -> int | None:
    whole = re.fullmatch(r"\+?(\d{1,9})(\.0*)?", text)
    return int(whole[1]) if whole else None


# --- QIDO-RS (PS3.18 section 10.6) ------------------------------------------------------------------------------------


def _search(study_uid: str, source: Source) -> tuple[list[Row], list[Row]]:
    """The answers at both levels."""
    until = time.monotonic() + source.timeout_seconds
    base = f"{source.qido_url.rstrip('/')}/studies"
    try:
        totals = "&".join(f"includefield={keyword}" for keyword in STUDY)
        studies = _get(f"{base}?StudyInstanceUID={study_uid}&{totals}", source, until, STUDY)
    except urllib.error.HTTPError as exc:
        exc.close()
        studies = []
    fields = "&".join(f"includefield={keyword}" for keyword in SERIES[1:])
    try:
        return studies, _get(f"{base}/{study_uid}/series?{fields}", source, until, SERIES)
    except urllib.error.HTTPError as exc:
        exc.close()
        raise unavailable(
            source,
            f"HTTP status {exc.code}",
            "a search is answered with 200 or 204 (PS3.18 Table 10.6.3-1)",
            "correct its qido_url in the configuration, and let it answer us without a redirection or a password",
        ) from exc


def _get(url: str, source: Source, until: float, keys: Iterable[str]) -> list[Row]:
    """The answers to a search; none where there is no content (204)."""
    # No proxy either: a PACS is asked in the house.
    request = urllib.request.Request(url, headers={"Accept": "application/dicom+json"})
    try:
        with web.opener().open(request, timeout=max(0.1, until - time.monotonic())) as reply:
            content = bytearray()
            while part := reply.read1(1 << 16):
                content += part
                if time.monotonic() > until or len(content) > _MOST_BYTES:
                    raise ValueError("too much, or too slow")
        items = json.loads(bytes(content) or b"[]")
        return [{keyword: _value(item, keyword) for keyword in ("StudyInstanceUID", *keys)} for item in items]
    except urllib.error.HTTPError:
        raise
    except (
        OSError,
        http.client.HTTPException,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as exc:
        reason = getattr(exc, "reason", exc)
        raise unavailable(
            source,
            f"no answer, or none that is DICOM JSON: {type(reason).__name__}",
            "a search is answered in the DICOM JSON Model (PS3.18 Annex F)",
            "start it, or correct its qido_url in the configuration",
        ) from exc


def _value(item: Any, keyword: str) -> str:
    """The first value of an attribute in the DICOM JSON Model (PS3.18 section F.2.2)."""
    values = item.get(f"{tag_for_keyword(keyword):08X}", {}).get("Value") or [""]
    return str(values[0]).strip(" \0")
