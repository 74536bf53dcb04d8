"""What is wrong now, and what to do about it, in one sentence: the worst first. Pure.

Where an alert says the same, it is the same sentence (``deploy/prometheus/rules.yml``); a test holds them together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from service.snapshot import LOADING

SILENT_SECONDS: Final = 60.0, 86400.0  # between these a process counts as gone; after that, as taken away for good


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of the service's state."""

    parts: Mapping[str, str] = field(default_factory=dict)  # as `/health/ready` names them: empty if well
    queues: Sequence[Mapping[str, Any]] = ()  # as `/api/v1/destinations` tells them
    in_vain: int = 0  # studies whose analysis came to nothing so far
    silent: Sequence[str] = ()  # processes that did not say anything for a while


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One thing that is wrong: sentences in English, with what is put into them."""

    is_grave: bool  # results do not get where they belong, or images are refused; else it mends itself, or costs little
    found: str
    way_out: str
    values: Mapping[str, object] = field(default_factory=dict)
    link: str = ""  # where more is said


WELL: Final = "All is well."

# Part of `/health/ready`: how grave, what is found, what to do. The order is that of how bad it is.
_PARTS: Final = {
    "database": (
        True,
        "The database does not answer ({reason}): nothing is received, analysed or sent.",
        "Start it again, and see that its disk is not full; the service goes on by itself.",
    ),
    "disk": (
        True,
        "The disk is nearly full ({reason}).",
        "Make room on the store's disk, or keep images for fewer days ([retention] sources_days).",
    ),
    "receivers": (
        True,
        "Not all receiving processes run ({reason}).",
        "Wait a minute: they are started again; if it stays so, the log says why (receiver.died).",
    ),
    "worker": (
        True,
        "Nobody looks for studies ({reason}): none is analysed.",
        "Start the service again, and report it with its log.",
    ),
    "backend": (
        True,
        "Networks can't run now ({reason}): studies wait.",
        "See the log (engine.died), or start the Triton server; studies are tried again by themselves.",
    ),
    "audit": (
        True,
        "The audit trail can't be written ({reason}): what happens is not recorded.",
        "Make room on its disk, or let the service's user write there.",
    ),
    "models": (False, "A model does not run ({reason}).", "Run `overread check`: it says what to change."),
}
_LOADING = (
    "The models are being loaded: studies come in and wait.",
    "Wait: on a GPU the first start takes minutes.",
)


def notices(facts: Facts) -> list[Notice]:
    """All that is wrong, the worst first; empty if nothing is."""
    return sorted(_all(facts), key=lambda notice: not notice.is_grave)


def _all(facts: Facts) -> Iterator[Notice]:
    is_loading = LOADING in facts.parts.get("models", "")
    for part in (*_PARTS, *sorted(set(facts.parts) - set(_PARTS))):
        reason = facts.parts.get(part)
        if not reason or (part == "worker" and is_loading):  # until they are, nobody is to look
            continue
        if part == "models" and is_loading:
            yield Notice(is_grave=False, found=_LOADING[0], way_out=_LOADING[1], link="/models")
        elif part in _PARTS:
            is_grave, found, way_out = _PARTS[part]
            link = {"models": "/models", "backend": "/models"}.get(part, "")
            yield Notice(is_grave=is_grave, found=found, way_out=way_out, values={"reason": reason}, link=link)
        else:
            yield Notice(
                is_grave=True,
                found="{part} is not well ({reason}).",
                way_out="Look at /health/ready, and at the log.",
                values={"part": part, "reason": reason},
            )
    yield from _about_destinations(facts)
    if facts.in_vain:
        yield Notice(
            is_grave=True,
            found="The analysis of studies came to nothing so far ({count}): it is tried again.",
            way_out="Open one of them: its time line says why.",
            values={"count": facts.in_vain},
            link="/?state=analysing",
        )
    for name in facts.silent:
        yield Notice(
            is_grave=True,
            found="The process {name} has not been heard of for a minute.",
            way_out="Start it again; what it had begun is taken over by the others.",
            values={"name": name},
            link="/models#processes",
        )


def _about_destinations(facts: Facts) -> Iterator[Notice]:
    for queue in facts.queues:
        refused = queue["states"].get("refused", 0)
        if refused:
            yield Notice(
                is_grave=True,
                found="{value} results were refused for good by the destination {destination}",
                way_out="Each says what to change there or in the configuration; then try again, or drop them.",
                values={"value": refused, "destination": queue["name"]},
                link="/destinations#refused",
            )
        if queue.get("line", "well") != "well":
            yield Notice(
                is_grave=False,
                found="No association with the destination {destination} comes about",
                way_out="Start it, or correct its address; results wait and are sent when it is back.",
                values={"destination": queue["name"]},
                link="/destinations",
            )
