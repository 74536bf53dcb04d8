"""What the caller of an import says, because the model's files can't."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.codes import Code
from service.imports.refusal import CannotImport
from service.spec import FindingClass
from service.vocabulary import judge

_FORM = "CHANNEL=VALUE,SCHEME,MEANING@VALUE,SCHEME,MEANING"
_EXAMPLE = '--class "1=52988006,SCT,Lesion@10200004,SCT,Liver"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """The options of the command, as they were given; empty is: not given."""

    name: str = ""  # the model folder's
    version: str = ""
    title: str = ""
    manufacturer: str = ""
    licence: str = ""  # SPDX identifier, of the weights
    modality: str = ""  # Modality (0008,0060)
    body_parts: tuple[str, ...] = ()  # BodyPartExamined (0018,0015)
    words: tuple[str, ...] = ()  # regular expressions that stand for the body part
    orientation: str = ""  # where the axes of the training images grow, in the files' own order: "LPS"
    classes: tuple[FindingClass, ...] = ()
    ignored: frozenset[int] = frozenset()  # channels that are never reported
    networks: tuple[Path, ...] = ()  # ONNX files, instead of those that lie in the model; several are an ensemble
    configuration: str = ""  # of an nnU-Net
    replace: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What the channels of a model's output mean, in its own words."""

    named: Mapping[int, str] = field(default_factory=dict)  # "spleen" by channel
    background: int | None = None  # the channel that means nothing


def parse_class(text: str) -> FindingClass:
    """A class from the command line: its channel, its code and its site's; a third code is its category.

    Raises
    ------
    CannotImport
        If it has another form, or a code is none.
    """
    channel, _, concepts = text.partition("=")
    parts = [part.split(",", 2) for part in concepts.split("@")]
    if not channel.strip().isdigit() or len(parts) not in (2, 3) or any(len(part) != 3 for part in parts):
        raise CannotImport(
            doing=f"reading --class {text!r}",
            found="another form",
            rule=f"a class is {_FORM}, then @ and the code of its category where it is no abnormality",
            way_out=f"write {_EXAMPLE}",
        )
    codes = [Code(*(word.strip() for word in part)) for part in parts]
    for code, role in zip(codes, ("finding", "site", "category"), strict=False):
        verdict = judge(code, role)  # type: ignore[arg-type]
        if verdict.level == "WRONG":
            raise CannotImport(
                doing=f"reading --class {text!r}",
                found=verdict.words,
                rule="findings, sites and categories are codes of the scheme that they name (PS3.16)",
                way_out=verdict.way_out,
            )
    made = FindingClass(channel=int(channel), finding=codes[0], site=codes[1])
    return made.model_copy(update={"category": codes[2]}) if len(codes) == 3 else made


def choose_classes(wishes: Wishes, labels: Labels, channels: int, *, doing: str) -> tuple[FindingClass, ...]:
    """The classes to report: each channel of the output is one of them, or background, or ignored by name.

    Raises
    ------
    CannotImport
        For the channels of which nothing was said, with the option to give for each.
    """
    known = {one.channel for one in wishes.classes}
    said = known | wishes.ignored
    if len(known) < len(wishes.classes) or known & wishes.ignored:
        raise _refused(doing, "a channel with two meanings", "each channel is one class, or ignored", "name it once")
    beyond = sorted(channel for channel in said if channel >= channels)
    if beyond:
        raise _refused(
            doing,
            f"no channel {_listed(beyond)} in the output",
            f"the output has {channels} channels, counted from 0",
            "correct --class and --ignore",
        )
    silent = [channel for channel in range(channels) if channel not in said and channel != labels.background]
    if silent:
        named = "; ".join(f"channel {c}, {labels.named.get(c, 'which has no name')!r}" for c in silent)
        raise _refused(
            doing,
            f"no code for {named}",
            "what is reported has codes for what it is and where (PS3.16 CID 7159 and 4031), and no file of the "
            "model says them",
            f'for each of them give --class "{silent[0]}=VALUE,SCHEME,MEANING@VALUE,SCHEME,MEANING" '
            f"(as in {_EXAMPLE}), or --ignore {silent[0]} if it is not to be reported",
        )
    if not known:
        raise _refused(doing, "every channel is ignored", "a model reports something", f"give a class: {_EXAMPLE}")
    return tuple(sorted(wishes.classes, key=lambda one: one.channel))


def needed(doing: str, given: str, *, what: str, option: str, why: str) -> str:
    """An option's value, or the refusal that names the option."""
    if given.strip():
        return given.strip()
    raise _refused(doing, f"no {what}", why, f"give {option}")


def folder_name(doing: str, given: str, found: str) -> str:
    """The model folder's name: as asked for, or the model's own where that can be one."""
    name = given or re.sub(r"[\s_.]+", "-", found.strip().lower())
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise _refused(
            doing,
            f"the name {name!r}",
            "a model's folder has a-z, 0-9 and - in its name, a letter first",
            "give --name",
        )
    return name


def select_rules(doing: str, wishes: Wishes, modality: str) -> dict[str, Any]:
    """The fields of ``[select]`` that an import can fill."""
    found = needed(
        doing,
        wishes.modality or modality,
        what="modality that DICOM knows",
        option="--modality (CT, MR, ...)",
        why="a model takes series of one modality (0008,0060)",
    )
    if not wishes.body_parts:
        raise _refused(
            doing,
            "no body part",
            "a model takes the series that show its part of the body (0018,0015), and no file of the model says it",
            "give --body-part (CHEST, ABDOMEN, ...), as often as there are names for it at your site",
        )
    for value in (found, *wishes.body_parts):
        if not re.fullmatch(r"[A-Za-z0-9 _]{1,16}", value):
            raise _refused(
                doing, f"{value!r}", "a code string (VR CS) has 16 letters, digits, spaces and _", "correct it"
            )
    rules: dict[str, Any] = {"modality": found.upper(), "body_parts": wishes.body_parts}
    return {**rules, "words": wishes.words} if wishes.words else rules


def check_words(doing: str, given: Iterable[tuple[str, str]]) -> None:
    """Hold texts that become attributes of VR LO against their form (PS3.5 section 6.2), each with its option."""
    for option, text in given:
        if len(text) > 64 or "\\" in text or not text.isprintable():
            raise _refused(
                doing,
                f"{text!r} for {option}",
                "it stands in every result, where a text has 64 printable characters at most and no backslash (VR LO)",
                f"give {option} with a shorter one",
            )


def _refused(doing: str, found: str, rule: str, way_out: str) -> CannotImport:
    return CannotImport(doing=doing, found=found, rule=rule, way_out=way_out)


def _listed(channels: Iterable[int]) -> str:
    return ", ".join(map(str, channels))
