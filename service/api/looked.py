"""Who has just looked at which study: a page that asks every second is one access in the audit trail, not sixty."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

from service import audit
from service.api.doors import Caller
from service.deliveries import Deliveries

_AGAIN_SECONDS: Final = 60.0
_MOST: Final = 10_000  # remembered; of the rest an access more is written down


class Looked:
    """Writes down that somebody saw a study: once for each caller, study and minute. Thread-safe.

    Parameters
    ----------
    clock
        Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._last: OrderedDict[tuple[str, str, str], float] = OrderedDict()

    def at(self, study_uid: str, caller: Caller) -> None:
        """Somebody is about to see it."""
        key, now = (caller.name, caller.address, study_uid), self._clock()
        with self._lock:
            if now - self._last.get(key, -_AGAIN_SECONDS) < _AGAIN_SECONDS:
                return
            self._last[key] = now
            self._last.move_to_end(key)
            while len(self._last) > _MOST:
                self._last.popitem(last=False)
        audit.accessed(study_uid=study_uid, user=caller.name, address=caller.address)


def decided(study_uid: str, caller: Caller) -> None:
    """Write down that somebody has decided something about a study."""
    audit.accessed(study_uid=study_uid, user=caller.name, address=caller.address, action="U")


def decided_about(numbers: Iterable[int], store: Deliveries, caller: Caller) -> None:
    """The same of deliveries: of each of their studies, once."""
    for study_uid in sorted({store.delivery(number).study_instance_uid for number in numbers}):
        decided(study_uid, caller)
