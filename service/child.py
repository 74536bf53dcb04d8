"""What a process of ours does first that serves another one through a pipe."""

from __future__ import annotations

import resource
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

_VICTIM: Final = "500"  # oom_score_adj: where memory runs out it goes, and nobody who holds a study


def serve() -> None:
    """Leave it to the parent to end this process, leave no core file, and go first where memory runs out."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent ends it when nobody needs it any more
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold patients' images
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_VICTIM)
