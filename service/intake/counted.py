"""What a source counts of a study, compared with what is here. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

_NAMED = 10  # series named in a sentence


class Standing(StrEnum):
    """How what is here compares with what the source counts."""

    EQUAL = "equal"
    MORE = "more"  # the source has more
    FEWER = "fewer"  # the source has fewer of a series, or lacks one
    UNKNOWN = "unknown"  # what the source says does not answer the question


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedSeries:
    """A series as its source counts it."""

    series_instance_uid: str
    modality: str = ""  # empty: not said
    instances: int | None = None  # NumberOfSeriesRelatedInstances (0020,1209); None: not said


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """What a source says that there is of a study; nothing at all where it does not know the study."""

    series: tuple[CountedSeries, ...] = ()
    study_series: int | None = None  # NumberOfStudyRelatedSeries (0020,1206); None: not said
    study_instances: int | None = None  # NumberOfStudyRelatedInstances (0020,1208); None: not said


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How what is here compares with a count, in words too."""

    standing: Standing
    words: str  # how much is here; what is missing; or what speaks against the count


def compare(
    held: Mapping[str, int], ours: Collection[str], count: Count, modalities: Collection[str] = ()
) -> Comparison:
    """Compare what is here with what the source counts, series by series.

    Our own results are left out, and so are series of modalities that the source does not send. Numbers are optional
    keys for a C-FIND SCP (PS3.4 Tables C.6-3 and C.6-5): where it gives none for some series, these are compared
    together, with what remains of the study's number.

    A source that counts fewer than are here is not taken at its word. It may still be receiving what a scanner sends to
    both, or its index may be behind: in both cases its number grows. That it removed images looks the same.

    Parameters
    ----------
    held
        Instances that are here, by Series Instance UID.
    ours
        Series Instance UIDs of our own results.
    modalities
        Those that the source sends; empty: all.
    """
    here = {uid: number for uid, number in held.items() if uid not in ours and number > 0}
    if not count.series:
        return _compare_totals(here, count, is_exact=not ours and not modalities)
    listed = {series.series_instance_uid for series in count.series}
    if here and listed.isdisjoint(here):  # a router in between gave them other UIDs, or it is another archive
        return Comparison(standing=Standing.UNKNOWN, words="it lists none of the series that are here")
    wanted = [
        series
        for series in count.series
        if series.series_instance_uid not in ours and (not modalities or series.modality in ("", *modalities))
    ]
    if not wanted:
        return Comparison(standing=Standing.UNKNOWN, words="it lists no series of the modalities that it sends")
    doubts = []
    if modalities and any(not series.modality and series.series_instance_uid not in here for series in wanted):
        wanted = [series for series in wanted if series.modality or series.series_instance_uid in here]
        doubts.append("it does not say of which modality each series is")
    pairs = [(series, here.get(series.series_instance_uid, 0)) for series in wanted]
    missing = [
        f"{named(series.modality, series.series_instance_uid)}: {number} of "
        f"{'its' if series.instances is None else series.instances} instances"
        for series, number in pairs
        if number < (1 if series.instances is None else series.instances)
    ]
    fewer = [
        f"series {series.series_instance_uid}: {number} here, {series.instances} there"
        for series, number in pairs
        if series.instances is not None and number > series.instances
    ]
    fewer += [f"series {uid}: {number} here, none there" for uid, number in sorted(here.items()) if uid not in listed]
    numbered = sum(series.instances or 0 for series in count.series)
    without = sum(series.instances is None for series in count.series)
    if (count.study_series or 0) > len(count.series) or (not without and (count.study_instances or 0) > numbered):
        doubts.append("it counts more in the study than in the series that it lists")
    found = {Standing.MORE: missing, Standing.UNKNOWN: doubts, Standing.FEWER: fewer}
    rest = [series.series_instance_uid for series in wanted if series.instances is None]
    if rest:
        left_over = _compare_rest(
            {uid: here.get(uid, 0) for uid in rest}, count, numbered, is_theirs=without == len(rest)
        )
        found.setdefault(left_over.standing, []).append(left_over.words)
    for standing in (Standing.MORE, Standing.UNKNOWN, Standing.FEWER):
        if found[standing]:
            return Comparison(standing=standing, words=some(found[standing]))
    total = sum(number for _, number in pairs)
    if not total:
        return Comparison(standing=Standing.UNKNOWN, words="nothing is here, and it counts nothing")
    return Comparison(standing=Standing.EQUAL, words=_as_many(total, len(pairs)))


def _compare_rest(here: Mapping[str, int], count: Count, numbered: int, *, is_theirs: bool) -> Comparison:
    """Compare the series that have no number with what remains of the study's.

    Without that remainder there is no answer: a series that is here at all may lack any number of its instances.

    Parameters
    ----------
    numbered
        The sum of the numbers that there are.
    is_theirs
        Whether the remainder is of these series alone: each one that is left out has its number.
    """
    there = (count.study_instances or 0) - numbered
    if not is_theirs or count.study_instances is None or there < 0:
        return Comparison(standing=Standing.UNKNOWN, words="it does not say how many instances each series has")
    number = sum(here.values())
    words = f"{some(f'series {uid}' for uid in here)}: {number} of {there} instances"
    return Comparison(standing=_standing(number, there), words=words)


def _compare_totals(here: Mapping[str, int], count: Count, *, is_exact: bool) -> Comparison:
    """Compare with the study's numbers alone, where the source lists no series.

    Parameters
    ----------
    is_exact
        Whether its numbers are of what it sends, and of nothing else.
    """
    total, there = sum(here.values()), count.study_instances
    words = f"{total} of {there} instances of the study"
    if not there:
        standing, words = Standing.UNKNOWN, "it gives no numbers" if count.study_series else "it knows no such study"
    elif not is_exact:
        standing, words = Standing.UNKNOWN, "it lists no series, and its number may include what it does not send"
    elif total == there and count.study_series not in (None, len(here)):
        standing, words = Standing.UNKNOWN, f"it counts {count.study_series} series, {len(here)} are here"
    else:
        standing = _standing(total, there)
        words = _as_many(total, len(here)) if standing is Standing.EQUAL else words
    return Comparison(standing=standing, words=words)


def _standing(number: int, there: int) -> Standing:
    if number == there:
        return Standing.EQUAL
    return Standing.MORE if number < there else Standing.FEWER


def _as_many(instances: int, series: int) -> str:
    return f"its source counts as many as are here: {instances} instances in {series} series"


def named(modality: str, series_uid: str) -> str:
    """A series as it is named in a sentence; what is no Code String (PS3.5 section 6.2) is left out of it."""
    return f"{modality} series {series_uid}" if re.fullmatch(r"[A-Z0-9_ ]{1,16}", modality) else f"series {series_uid}"


def some(words: Iterable[str]) -> str:
    """A sentence of the first ones, and of how many more there are."""
    listed = list(words)
    more = len(listed) - _NAMED
    return "; ".join([*listed[:_NAMED], *([f"and {more} more"] if more > 0 else [])])
