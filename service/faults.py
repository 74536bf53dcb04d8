"""Places at which a test may end the service, by name: between two steps that a crash must not come between.

``OVERREAD_FAULTS`` in the environment names a file. While that holds ``<place>`` or ``<place>:<n>``, the n-th passage
of the place, counted in each process by itself, ends the process group with SIGKILL: the service with all that it runs.
Without the variable, as in every hospital, a place costs a comparison. ``tests/acceptance/test_kill.py`` goes through
all of them.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Final

POINTS: Final = {  # in the order of a study's way
    "receive.begun": "an instance has been received, nothing is on the disk",
    "spool.written": "its temp file is written, not fsynced",
    "spool.fsynced": "its temp file is fsynced, without its final name",
    "spool.linked": "it has its final name, which is not fsynced",
    "spool.kept": "its folder is fsynced; there is no row",
    "instance.committing": "its row is about to be committed",
    "instance.committed": "its row is committed; Success is not sent",
    "receive.replied": "Success is on its way",
    "study.judged": "a study is judged ready; its analysis is not claimed",
    "study.begun": "its analysis is claimed",
    "analysis.read": "its files are read",
    "analysis.answered": "the models have answered; nothing is written",
    "freeze.drafted": "the draft of the evidence has its folder, no file",
    "freeze.written": "a file of the draft is fsynced",
    "freeze.synced": "the draft is fsynced, without its final name",
    "freeze.renamed": "the evidence has its final name, which is not fsynced",
    "freeze.frozen": "the evidence is durable; nothing is remembered of it",
    "answers.committing": "answers and deliveries are about to be committed",
    "answers.committed": "answers and deliveries are committed",
    "delivery.claimed": "a delivery is claimed; nothing is sent",
    "delivery.sent": "the destination said Success; nobody remembers",
    "delivery.noted": "that it was sent is remembered",
    "delivery.asking": "the transaction of its commitment is remembered, and not asked for",
    "delivery.asked": "its commitment is asked for",
    "delivery.reported": "a commitment came; nobody remembers",
    "delivery.seen": "it is known to be there; nobody remembers",
    "delivery.confirmed": "its confirmation is remembered",
    "forget.begun": "what is old enough is chosen; nothing is removed",
    "forget.removing": "some files of it are removed",
    "forget.removed": "its files are removed, its rows are not",
    "forget.forgotten": "its rows are removed",
}

_FILE: Final = os.environ.get("OVERREAD_FAULTS", "")
_lock = threading.Lock()
_passages: dict[str, int] = {}  # by what the file held


def point(name: str) -> None:
    """Pass a place; the process group ends here if the file says so."""
    if _FILE:
        _pass(name)


def _pass(name: str) -> None:
    try:
        armed = Path(_FILE).read_text()
    except OSError:
        return
    place, _, passage = armed.partition(":")
    if place != name:
        return
    with _lock:
        _passages[armed] = _passages.get(armed, 0) + 1
        if _passages[armed] == int(passage or 1):
            os.killpg(os.getpgrp(), signal.SIGKILL)
