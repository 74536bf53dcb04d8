"""``overread`` with one step out of order: Success is answered first, the row is committed a little later.

The kill harness must see what that loses. The receiving processes import this module again, so they are changed too.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from service.__main__ import main
from service.store import Store
from service.types import Kept

_keep = Store.keep_instance


def _keep_later(self: Store, **what: Any) -> Kept:
    def later() -> None:
        time.sleep(0.5)
        _keep(self, **what)

    threading.Thread(target=later, daemon=True).start()
    return Kept.NEW


if __name__ in ("__main__", "__mp_main__"):
    setattr(Store, "keep_instance", _keep_later)  # noqa: B010 - mypy knows that it is another one

if __name__ == "__main__":
    sys.exit(main())
