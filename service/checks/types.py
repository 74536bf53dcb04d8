"""A check, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from service.errors import ServiceError


class Doubtful(ServiceError):
    """Nothing is wrong, but somebody should know: it may become so."""


Attempt = Callable[[], str]  # what holds, in words; raises a ServiceError where it does not
Checks = Iterator[tuple[str, Attempt]]  # by the name of what is checked


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What came of one check."""

    name: str
    verdict: str  # "ok", "doubtful" or "wrong"
    words: str
    parts: dict[str, str]  # doing, found, rule and way out, where it is not "ok"
    seconds: float
