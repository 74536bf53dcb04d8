"""When a study is whole. Pure: it is told what is known and for how long, and says what follows from that.

The end of an association means nothing, for some PACS open one per image. So a study's source is asked how much of it
there is. Where that can't be, nothing must have come for a while, and its stacks of images must show no hole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from service.intake.counted import Comparison, Count, Standing, compare, named, some
from service.settings.intake import Source
from service.types import Completeness

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 60.0
_INSTANT = 1e-6  # seconds: what differs by less is the same moment


class Next(StrEnum):
    """What is to be done with a study next."""

    WAIT = "wait"
    ASK = "ask"  # its source, how much of it there is
    LOOK = "look"  # into the headers of its stacks
    START = "start"  # its analysis


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """What the headers of a series say of itself."""

    series_instance_uid: str
    modality: str
    instances: int  # those that could be read
    missing: int = 0  # slices that are missing between others
    duplicates: int = 0  # images at a position that another one has: several phases, or repeats
    expected: int | None = None  # how many there should be, where that is beyond doubt and more than there are


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """What the files of a study say."""

    stacks: tuple[Stack, ...] = ()  # ordered by Series Instance UID
    unreadable: int = 0  # files that are no DICOM files, or name no series
    gone: int = 0  # files that are not there any more


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of a study that is coming in. "This set": since its last instance came."""

    quiet_for: float = 0.0  # seconds since its last instance came
    held: Mapping[str, int] = field(default_factory=dict)  # instances that are here, by Series Instance UID
    ours: frozenset[str] = frozenset()  # Series Instance UIDs of our own results, which its source counts too
    gone: int = 0  # instances whose files retention has removed since they came; they are not among the held
    count: Count | None = None  # what its source counted when it answered last; None: it never did
    is_fresh: bool = False  # whether that was asked for this set
    asks: int = 0  # how often its source was asked: the pauses grow with it
    since_asked: float = 0.0  # seconds since the last question ended
    was_asked: bool = False  # whether a question ended for this set, with an answer or without
    problem: str = ""  # why the last question got no answer, in words; empty: it got one
    is_asking: bool = False  # whether a question is on its way
    looked: Looked | None = None  # what the stacks of this set say; None: they were not looked at
    is_looking: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is to be done with a study, and why."""

    next: Next
    completeness: Completeness | None = None  # how it is judged; None unless it starts
    reason: str  # in words, for people
    missing: str = ""  # what of it is missing, in words
    seconds_left: float = 0.0  # after which it starts, if nothing more comes and nothing more becomes known
    again_in: float = 0.0  # seconds after which another verdict may follow from the same knowledge


def pause(asks: int) -> float:
    """Seconds between the end of a question to a source and the next one, after so many of them."""
    return min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0 ** min(max(asks - 1, 0), 10))


def can_be_asked(source: Source) -> bool:
    """Whether it is known where a source can be asked."""
    return bool(source.query or source.qido_url)


def is_settled(quiet_for: float, source: Source) -> bool:
    """Whether no instance has come for so long that a source is asked."""
    return not _left(source.settle_seconds, quiet_for)


def judge(known: Known, source: Source) -> Verdict:
    """Judge whether a study is whole.

    Parameters
    ----------
    source
        With its ``quiet_seconds`` and ``limit_seconds``, as `Config.source` gives it.

    Returns
    -------
    Verdict
        START, verified: only on a count that was asked for after the last instance came.
    """
    if not can_be_asked(source):
        return _by_the_clock(known, source, quiet=_quiet(source))
    if not is_settled(known.quiet_for, source):
        return Verdict(
            next=Next.WAIT,
            reason=f"instances are coming in; its source is asked when none has come for {source.settle_seconds:g} s",
            seconds_left=_left(max(_limit(source), _quiet(source)), known.quiet_for),
            again_in=_left(source.settle_seconds, known.quiet_for),
        )
    against = compare(known.held, known.ours, known.count, source.modalities) if known.count else None
    reached = against is not None and against.standing is Standing.EQUAL
    if against and reached and known.is_fresh:
        return Verdict(next=Next.START, completeness=Completeness.VERIFIED, reason=against.words)
    if against and against.standing is Standing.MORE:
        verdict = _while_missing(known, source, _and(against.words, _gone(known.gone)))
    else:
        # Its answer is waited for once, even if the quiet clock is set to less.
        quiet = (
            _quiet(source) if known.was_asked else max(_quiet(source), source.settle_seconds + source.timeout_seconds)
        )
        verdict = _by_the_clock(known, source, quiet=quiet, why=_why_the_clock(known, against))
    return _asking_meanwhile(verdict, known, reached=reached)


def _asking_meanwhile(verdict: Verdict, known: Known, *, reached: bool) -> Verdict:
    """The verdict, with the next question where it is due.

    Parameters
    ----------
    reached
        Whether as much is here as was counted last: then it is asked at once, for all waits for that answer.
    """
    if verdict.next is not Next.WAIT:
        return verdict
    if known.is_asking:
        return replace(verdict, reason=f"{verdict.reason}; its source is being asked")
    at_once = not known.asks or (reached and not known.was_asked)
    left = 0.0 if at_once else _left(pause(known.asks), known.since_asked)
    if not left:
        return replace(verdict, next=Next.ASK, reason=f"{verdict.reason}; its source is asked")
    return replace(
        verdict,
        reason=f"{verdict.reason}; its source is asked again in {_seconds(left)}",
        again_in=min(left, verdict.again_in),
    )


def _why_the_clock(known: Known, against: Comparison | None) -> str:
    """Why the clock decides, although there is a source to be asked."""
    if known.problem:
        return f"its source gives no answer ({known.problem})"
    if against is None or against.standing is Standing.EQUAL:  # equal, but asked for an earlier set
        return "its source has not answered yet"
    if against.standing is Standing.FEWER:
        return f"its source counts fewer than are here, so its count may still grow ({against.words})"
    return f"its source can't tell ({against.words})"


def _by_the_clock(known: Known, source: Source, *, quiet: float, why: str = "") -> Verdict:
    """Judge by how long nothing came, and then by what the stacks say."""
    left = _left(quiet, known.quiet_for)
    if left:
        reason = f"instances may still come; ready in {_seconds(left)}"
        return Verdict(next=Next.WAIT, reason=_and(why, reason), seconds_left=left, again_in=left)
    since = f"no instance came for {quiet:g} s"
    if known.looked is None:
        return Verdict(
            next=Next.WAIT if known.is_looking else Next.LOOK,
            reason=_and(why, since, "its stacks are looked at"),
            again_in=_LONGEST_PAUSE_SECONDS if known.is_looking else 0.0,
        )
    seen = some(_seen_missing(known.looked))
    if seen:
        return _while_missing(known, source, seen, why)
    return Verdict(
        next=Next.START,
        completeness=Completeness.QUIET,
        reason=_and(why, f"{since}, and no slice is seen to be missing", some(_remarks(known.looked))),
    )


def _while_missing(known: Known, source: Source, missing: str, why: str = "") -> Verdict:
    """Wait for what is missing, up to the limit."""
    left = _left(_limit(source), known.quiet_for)
    if left:
        reason = f"incomplete: {missing}; in {_seconds(left)} at the latest it is analysed as partial"
        return Verdict(next=Next.WAIT, reason=_and(why, reason), missing=missing, seconds_left=left, again_in=left)
    return Verdict(
        next=Next.START,
        completeness=Completeness.PARTIAL,
        reason=_and(why, f"no instance came for {_limit(source):g} s; incomplete: {missing}"),
        missing=missing,
    )


def _seen_missing(looked: Looked) -> list[str]:
    words = []
    for stack in looked.stacks:
        name = named(stack.modality, stack.series_instance_uid)
        if stack.expected is not None:  # which includes the slices between
            words.append(f"{name}: {stack.instances} of {stack.expected} instances")
        elif stack.missing:
            words.append(f"{name}: {stack.missing} slices missing between the {stack.instances} that are here")
    return [*words, *filter(None, [_gone(looked.gone)])]


def _remarks(looked: Looked) -> list[str]:
    words = [
        f"{named(stack.modality, stack.series_instance_uid)}: {stack.duplicates} of {stack.instances} images at a "
        "position that another one has"
        for stack in looked.stacks
        if stack.duplicates
    ]
    return [*words, f"{looked.unreadable} files can't be read"] if looked.unreadable else words


def _gone(number: int) -> str:
    return f"{number} instances that came earlier are no longer kept" if number else ""


def _and(*words: str) -> str:
    return "; ".join(filter(None, words))


def _seconds(left: float) -> str:
    return f"{left:.0f} s" if left >= 2 else f"{left:.1f} s"


def _left(seconds: float, since: float) -> float:
    left = seconds - since
    return left if left > _INSTANT else 0.0


def _quiet(source: Source) -> float:
    assert source.quiet_seconds is not None, "a source comes from Config.source"
    return source.quiet_seconds


def _limit(source: Source) -> float:
    assert source.limit_seconds is not None, "a source comes from Config.source"
    return source.limit_seconds
