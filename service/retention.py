"""[edge: disk] The last step of a study's way: what is old enough is removed, never before its delivery is confirmed.

First the received images, then the results, then which instances there were. What was delivered where is remembered
for ever, so nothing is sent twice, and a result of ours that comes back is recognised. A folder is taken away by giving
it another name, which is done at once and while the store holds the study; its files are removed after that. So nobody
ever sees half of it, and what a crash leaves has a name by which the next look finds it.
"""

from __future__ import annotations

import os
import stat
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service import faults, log
from service.config import Config
from service.intake.encoding import is_uid
from service.records import SETTLED, Folder, Limits, What
from service.store import Store
from service.types import ENDED, DeliveryState

_DAY = 86400.0  # seconds
_WAY_OUT = (
    'Way out: try them again, or drop them; where a destination can confirm nothing, its setting confirm = "none" says '
    "that its Success is enough"
)
_ASIDE = ".forgotten-"  # begins the name of a folder whose files are being removed; no UID begins so
_FOLDERS = {Folder.SOURCES: What.SOURCES, Folder.EVIDENCE: What.EVIDENCE, Folder.WORK: What.SOURCES}  # by whose days


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """Of how many studies something was removed."""

    sources: int = 0  # the received images
    evidence: int = 0  # results and pictures
    records: int = 0  # which instances there were
    astray: int = 0  # folders that nobody knew, or that should have been gone


def forget(config: Config, store: Store, *, now: float, limit: int = 50) -> Forgotten:
    """Remove what is old enough.

    May run in several processes at once, and be ended anywhere: the next call goes on.

    Parameters
    ----------
    now
        Seconds since 1970.
    limit
        Of so many studies at most, for each kind of thing.
    """
    directory, limits = config.store.directory, limits_of(config, now)
    for folder in Folder:
        _finish(directory / folder)
    counts = dict.fromkeys(What, 0)
    for what in What:
        for study_uid in store.forgettable(what, limits, limit=limit):
            faults.point("forget.begun")
            with _carefully(study_uid, what):
                counts[what] += _forget(store, directory, what, study_uid, limits)
    astray = 0
    for folder, what in _FOLDERS.items():
        for study_uid in _astray(store, directory / folder, folder, limits.before[what]):
            if astray >= limit:
                break
            with _carefully(study_uid, folder):
                astray += _forget_astray(store, directory, folder, study_uid)
    return Forgotten(
        sources=counts[What.SOURCES], evidence=counts[What.EVIDENCE], records=counts[What.RECORDS], astray=astray
    )


def limits_of(config: Config, now: float) -> Limits:
    """What is old enough by the settings."""
    kept, intake = config.retention, config.intake
    # Not before all of it would count as here: an image that comes again may be one of many, new ones among them.
    quiet = [intake.quiet_seconds, *(source.quiet_seconds or 0.0 for source in config.sources)]
    sources = max(kept.sources_days * _DAY, *quiet)
    days = {What.EVIDENCE: kept.evidence_days * _DAY, What.RECORDS: kept.records_days * _DAY}
    return Limits(
        now=now,
        before={What.SOURCES: now - sources} | {what: now - seconds for what, seconds in days.items()},
        trusted=tuple(it.name for it in config.destinations if it.confirm == "none"),
    )


def why_kept(study: Mapping[str, Any], config: Config, *, now: float) -> str:
    """What is still kept of a study, and why, in words; empty if nothing is.

    Parameters
    ----------
    study
        As `Store.study` tells it, with its deliveries.
    """
    limits, left = limits_of(config, now), _left(study)
    waits_for = Counter(
        (it["destination"], it["state"]) for it in study["deliveries"] if not _is_settled(it, limits.trusted)
    )
    if left and waits_for:
        words = ", ".join(f"{count} {state} at {where}" for (where, state), count in sorted(waits_for.items()))
        return f"{', '.join(left)}: not every delivery is confirmed ({words}). {_WAY_OUT}"
    if study["state"] not in ENDED:
        return f"{', '.join(left)}: the study is not done yet ({study['state']})"
    parts, longest = [], 0.0
    for what in left:
        since = max(study["done_at"], (study["sources_at"] or 0.0) if what is What.SOURCES else 0.0)
        longest = max(longest, since - limits.before[what])  # nothing goes before what stands in front of it
        parts.append(f"{what}: " + (f"for {longest / _DAY:.1f} days" if longest > 0 else "until the next look"))
    return "; ".join(parts)


def _left(study: Mapping[str, Any]) -> list[What]:
    gone = {
        What.SOURCES: study["sources_at"] is None,
        What.EVIDENCE: study["evidence_gone_at"] is not None,
        What.RECORDS: study["records_gone_at"] is not None,
    }
    return [what for what in What if not gone[what]]


def _is_settled(delivery: Mapping[str, Any], trusted: tuple[str, ...]) -> bool:
    is_trusted = delivery["state"] == DeliveryState.UNCONFIRMED and delivery["destination"] in trusted
    return delivery["state"] in SETTLED or is_trusted


@contextmanager
def _carefully(study_uid: str, what: str) -> Iterator[None]:
    """One folder that can't be removed keeps nobody else's."""
    try:
        yield
    except (OSError, ValueError) as exc:
        log.failure("study.not_forgotten", exc, study_uid=study_uid, what=what)


def _forget(store: Store, directory: Path, what: What, study_uid: str, limits: Limits) -> bool:
    if what is What.RECORDS:
        instances = store.forget_records(study_uid, limits)
        if instances is None:
            return False
        faults.point("forget.forgotten")
        log.event("study.records_removed", study_uid=study_uid, instances=instances)
        return True
    aside = _Aside(directory / (Folder.SOURCES if what is What.SOURCES else Folder.EVIDENCE), study_uid)
    if not store.forget_files(what, study_uid, limits, take_away=aside.take):
        return False
    files = aside.remove()
    faults.point("forget.removed")
    log.event(f"study.{what}_removed", study_uid=study_uid, files=files)
    return True


def _forget_astray(store: Store, directory: Path, folder: Folder, study_uid: str) -> bool:
    aside = _Aside(directory / folder, study_uid)
    if not store.forget_astray(folder, study_uid, take_away=aside.take):
        return False
    log.event("study.astray_removed", study_uid=study_uid, folder=folder, files=aside.remove())
    return True


def _astray(store: Store, root: Path, folder: Folder, before: float) -> Iterator[str]:
    """Studies that should have no folder there, and in whose folder nothing has changed since."""
    with suppress(FileNotFoundError), os.scandir(root) as entries:
        names = sorted(it.name for it in entries if is_uid(it.name) and it.is_dir(follow_symlinks=False))
        yield from (name for name in store.astray(folder, names) if _newest(root / name) < before)


# --- Folders --------------------------------------------------------------------------------------------------------


class _Aside:
    """A study's folder that is to be removed."""

    def __init__(self, root: Path, study_uid: str) -> None:
        if not is_uid(study_uid):  # the intake saw to it; a path is worth a second look
            raise ValueError("no UID")
        self._folder, self._aside = root / study_uid, root / f"{_ASIDE}{uuid.uuid4().hex}"

    def take(self) -> None:
        """Give it another name, if it is there and a folder: a link leads out of the store, and is left alone."""
        with suppress(FileNotFoundError):
            if stat.S_ISDIR(self._folder.lstat().st_mode):
                self._folder.rename(self._aside)

    def remove(self) -> int:
        """Remove it; the number of its files."""
        return _remove(self._aside)


def _finish(root: Path) -> None:
    """Remove what a crash has left of folders that were being removed."""
    with suppress(FileNotFoundError), os.scandir(root) as entries:
        for entry in entries:
            if entry.name.startswith(_ASIDE) and entry.is_dir(follow_symlinks=False):
                with _carefully("", entry.name):
                    _remove(root / entry.name)


def _remove(folder: Path) -> int:
    """Remove a folder and all below it, the links too, not what they lead to; the number of files."""
    removed = 0
    with suppress(FileNotFoundError):  # it was no folder of ours, or another process removes it too
        for _, folders, files, handle in os.fwalk(folder, topdown=False, follow_symlinks=False):
            for name in files:
                removed += _gone(os.unlink, name, handle)
                if removed == 1:
                    faults.point("forget.removing")
            for name in folders:
                try:
                    _gone(os.rmdir, name, handle)
                except NotADirectoryError:  # a link to a folder
                    removed += _gone(os.unlink, name, handle)
        folder.rmdir()
    return removed


def _gone(remove: Callable[..., None], name: str, folder: int) -> bool:
    try:
        remove(name, dir_fd=folder)
    except FileNotFoundError:  # another process removes the same
        return False
    return True


def _newest(folder: Path) -> float:
    """When anything in it changed last; seconds since 1970."""
    newest = 0.0
    for parent, folders, files in os.walk(folder):
        for path in (parent, *(os.path.join(parent, name) for name in (*folders, *files))):
            with suppress(FileNotFoundError):
                newest = max(newest, os.lstat(path).st_mtime)
    return newest
