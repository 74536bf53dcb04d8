"""``overread`` with a study at which its process ends, whatever is tried: its UID is named in the environment."""

from __future__ import annotations

import os
import signal
import sys

from service import pipeline
from service.__main__ import main
from service.analysis.volume import read_volume
from service.types import Series, SourceVolume

STUDY = "OVERREAD_TEST_DEADLY"
_read = read_volume


def _read_or_end(series: Series) -> SourceVolume:
    if str(series.header.StudyInstanceUID) == os.environ[STUDY]:
        os.kill(os.getpid(), signal.SIGSEGV)
    return _read(series)


if __name__ == "__main__":  # not in a test that takes the name from here
    setattr(pipeline, "read_volume", _read_or_end)  # noqa: B010 - mypy knows that it is another one
    sys.exit(main())
