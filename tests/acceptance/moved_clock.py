"""``overread`` with a wall clock that a test sets: a file named in the environment says by how many seconds it is off.

The receiving processes import this module again, so theirs is set too. The monotonic clock runs on, as a real one does.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

FILE = "OVERREAD_TEST_CLOCK"
_time = time.time


def _set_time() -> float:
    return _time() + float(Path(os.environ[FILE]).read_text())


if FILE in os.environ:
    setattr(time, "time", _set_time)  # noqa: B010 - mypy knows that it is another one

from service.__main__ import main  # noqa: E402 - nothing may have taken the real one before

if __name__ == "__main__":
    sys.exit(main())
