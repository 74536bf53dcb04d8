"""What the page says, in English and Chinese. Pure but for one file, `zh.toml`, which is read once.

English is what the code says, and the key. What comes from the service in English, reasons above all, is recognised by
patterns and said in the other language; what is not recognised stays as it is, for a reason must never be lost.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

LANGUAGES: Final = {"en": "English", "zh": "中文"}
_PLACE = re.compile(r"\{(\w+)\}")
_LONGEST = 2000  # characters of a sentence that is looked at
_DEEPEST = 4  # sentences within sentences
_KINDS: Final = {"n": r"\d+", "s": r"[\d.]+", "uid": r"[\d.]+"}  # by the letters with which a placeholder begins


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """A language's sentences, by the English ones; ``{name}`` stands for what is put in."""

    page: Mapping[str, str]  # said by templates and the page's code
    said: Mapping[str, str]  # said by the service
    signin: Mapping[str, str]  # said where somebody signs in; "en" becomes the language itself


@cache
def catalogue() -> Catalogue:
    """The Chinese one."""
    with (Path(__file__).parent / "zh.toml").open("rb") as file:
        return Catalogue(**tomllib.load(file))


class Words:
    """One language.

    Parameters
    ----------
    language
        One of `LANGUAGES`.
    """

    def __init__(self, language: str) -> None:
        self.language = language

    def t(self, english: str, /, **values: object) -> str:
        """A sentence of the page.

        Raises
        ------
        KeyError
            If the catalogue lacks it: a test sees to it that this never happens.
        """
        sentence = english if self.language == "en" else catalogue().page[english]
        return _PLACE.sub(lambda place: str(values[place[1]]), sentence)

    def said(self, sentence: str) -> str:
        """A sentence of the service."""
        return sentence if self.language == "en" or len(sentence) > _LONGEST else _said(sentence, _DEEPEST)

    def age(self, seconds: float) -> str:
        """How long ago, or how long, in one number."""
        seconds = max(0.0, seconds)
        for limit, size, key in ((120, 1, "{n} s"), (7200, 60, "{n} min"), (172800, 3600, "{n} h")):
            if seconds < limit:
                return self.t(key, n=int(seconds // size))
        return self.t("{n} d", n=int(seconds // 86400))


def language_of(wanted: str, kept: str, accepted: str) -> str:
    """The language: asked for, else as it was chosen before, else the first that the browser names.

    Parameters
    ----------
    wanted, kept
        By the address and by the cookie; anything may stand there.
    accepted
        Accept-Language (RFC 9110 section 12.5.4).
    """
    for chosen in (wanted, kept):
        if chosen in LANGUAGES:
            return chosen
    ranked = []
    for part in accepted[:200].split(","):
        name, _, quality = part.strip().partition(";q=")
        try:
            ranked.append((-float(quality or 1), name.split("-")[0].lower()))
        except ValueError:
            continue
    return next((name for _, name in sorted(ranked, key=lambda it: it[0]) if name in LANGUAGES), "en")


@cache
def _patterns() -> tuple[tuple[re.Pattern[str], str, str], ...]:
    """Pattern, key and translation of each sentence of the service; the one that says most first."""
    ordered = sorted(catalogue().said.items(), key=lambda entry: -len(_PLACE.sub("", entry[0])))
    return tuple((re.compile(_pattern(key), re.DOTALL), key, words) for key, words in ordered)


def _pattern(key: str) -> str:
    parts = _PLACE.split(key)  # text, name, text, name, ..., text
    return "".join(re.escape(part) if even else f"(?P<{part}>{_kind(part)})" for part, even in _alternating(parts))


def _alternating(parts: list[str]) -> Iterator[tuple[str, bool]]:
    for index, part in enumerate(parts):
        yield part, index % 2 == 0


def _kind(name: str) -> str:
    return _KINDS.get(name.rstrip("0123456789"), ".+?")


def matching(sentence: str) -> tuple[str, str, Mapping[str, str]] | None:
    """The key, the translation and the values of a sentence of the service that is known as a whole."""
    if sentence in catalogue().said:
        return sentence, catalogue().said[sentence], {}
    for pattern, key, words in _patterns():
        found = pattern.fullmatch(sentence)
        if found:
            return key, words, found.groupdict()
    return None


def _said(sentence: str, depth: int) -> str:
    if not sentence or not depth:
        return sentence
    parts, found = split(sentence), matching(sentence)
    if found and (len(parts) == 1 or "; " in found[0]):
        _, words, values = found
        return _PLACE.sub(lambda place: _said(values[place[1]], depth - 1), words)
    return "\N{FULLWIDTH SEMICOLON}".join(_said(part, depth) for part in parts) if len(parts) > 1 else sentence


def split(sentence: str) -> list[str]:
    """The parts between semicolons that stand in no brackets."""
    parts, depth, start = [], 0, 0
    for index, letter in enumerate(sentence):
        depth += (letter == "(") - (letter == ")")
        if depth == 0 and sentence.startswith("; ", index):
            parts.append(sentence[start:index])
            start = index + 2
    return [*parts, sentence[start:]]
