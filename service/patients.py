"""[edge: pydicom] The number of a study's patient, for the audit trail: read from its files when it is asked for.

Nothing but this process's memory keeps it, so that DICOM files stay the one place of it beside the trail.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from pydicom import dcmread
from pydicom.errors import InvalidDicomError

_FRESH_SECONDS: Final = 600.0  # a study may be sent again with a number that was corrected
_MOST: Final = 1000  # studies remembered: each is sent, and looked at, object by object
_TRIED: Final = 3  # files read before it stays unknown: all of a study say the same


class Patients:
    """Looks numbers up. Thread-safe.

    Parameters
    ----------
    files_of
        A study's files, its sources first; whether they are still there or not.
    """

    def __init__(self, files_of: Callable[[str], Iterable[Path]]) -> None:
        self._files_of = files_of
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[str, float]] = OrderedDict()  # with when it was read, monotonic

    def of(self, study_uid: str) -> str:
        """Patient ID (0010,0020) of a study; empty if no file of it is there, or says so.

        Raises
        ------
        sqlalchemy.exc.SQLAlchemyError
            If the database does not answer.
        """
        with self._lock:
            known, read_at = self._known.get(study_uid, ("", 0.0))
        if known and time.monotonic() - read_at < _FRESH_SECONDS:
            return known
        there = [path for path in self._files_of(study_uid) if path.exists()]
        found = next(filter(None, map(_patient_id, there[:_TRIED])), "")
        if found:
            with self._lock:
                self._known[study_uid] = found, time.monotonic()
                self._known.move_to_end(study_uid)
                while len(self._known) > _MOST:
                    self._known.popitem(last=False)
        return found


def _patient_id(path: Path) -> str:
    try:
        header = dcmread(path, stop_before_pixels=True, specific_tags=["PatientID"])
        number = header.get("PatientID") or ""
        return number if isinstance(number, str) else "\\".join(number)  # a backslash in it makes it several
    except (OSError, InvalidDicomError, ValueError):  # it tells nothing; what the file is worth is others' business
        return ""
