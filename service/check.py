"""``overread check``: try everything that a configuration names; a line each, with the way out where it is wrong.

What it opens it closes, and no study is touched; it leaves the store's folder and its tables, as a start would.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Final

from service.checks import doors, machine, models, peers, state
from service.checks.types import Attempt, Checked, Checks, Doubtful
from service.config import Config, read_config
from service.errors import ConfigError, ServiceError
from service.show import console

_SIDES: Final[tuple[Callable[[Config], Checks], ...]] = (
    machine.checks,
    state.checks,
    doors.checks,
    models.checks,
    peers.checks,
)
_SHOWN: Final = {"ok": ("green", "ok"), "doubtful": ("yellow", "look"), "wrong": ("bold red", "WRONG")}


def check(path: Path, *, as_json: bool = False) -> int:
    """Check a configuration and all it names.

    Parameters
    ----------
    as_json
        Print one JSON object at the end, and nothing before: ``ok``, and the ``checks`` as `Checked` has them.

    Returns
    -------
    int
        0 only if everything holds; what is doubtful does.
    """
    done = []
    for checked in _run(path):
        done.append(checked)
        if not as_json:
            _say(checked)
    wrong = sum(checked.verdict == "wrong" for checked in done)
    if as_json:
        said = json.dumps({"ok": not wrong, "checks": [asdict(checked) for checked in done]}, indent=1)
        console.print(said, markup=False, highlight=False, soft_wrap=True)
    else:
        console.print(f"{wrong} of the above must be mended." if wrong else "All holds.")
    return int(wrong > 0)


def _run(path: Path) -> Iterator[Checked]:
    """Try one after the other."""
    try:
        config = read_config(path)
    except ConfigError as exc:
        yield Checked(name="configuration", verdict="wrong", words=exc.found, parts=exc.parts(), seconds=0.0)
        return
    yield Checked(name="configuration", verdict="ok", words=str(path), parts={}, seconds=0.0)
    for side in _SIDES:
        for name, attempt in side(config):
            yield _try(name, attempt)


def _try(name: str, attempt: Attempt) -> Checked:
    began = time.perf_counter()
    verdict, parts = "ok", dict[str, str]()
    try:
        words = attempt()
    except ServiceError as exc:
        verdict, words, parts = "doubtful" if isinstance(exc, Doubtful) else "wrong", exc.found, exc.parts()
    except Exception as exc:  # a check that fails in an unforeseen way is still a line, not the end
        verdict, words = "wrong", f"an internal error ({type(exc).__name__})"
    return Checked(name=name, verdict=verdict, words=words, parts=parts, seconds=round(time.perf_counter() - began, 3))


def _say(checked: Checked) -> None:
    style, word = _SHOWN[checked.verdict]
    console.print(f"[{style}]{word:6}[/] {checked.name}: ", end="", highlight=False, soft_wrap=True)
    console.print(checked.words, markup=False, highlight=False, soft_wrap=True)
    if checked.parts:
        for name in ("rule", "way_out"):
            words = f"       {name.replace('_', ' ')}: {checked.parts[name]}"
            console.print(words, markup=False, highlight=False, soft_wrap=True)
