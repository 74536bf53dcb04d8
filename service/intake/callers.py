"""A connection whose association is not open yet, and what is said of one that is refused."""

from __future__ import annotations

import queue
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from service import audit, log
from service.errors import CallerRefused
from service.intake.doors import FIXED, Rejection, called_title, calling_title


@dataclass(kw_only=True, slots=True, eq=False)
class Caller:
    """A connection whose association is not open yet."""

    line: socket.socket
    peer: tuple[Any, ...]  # its socket address
    until: float  # when its time is over; monotonic
    next: Callable[[Caller], bool]  # what to do when there are data; False if that was the end
    request: bytearray = field(default_factory=bytearray)  # as much of its A-ASSOCIATE-RQ as has come
    has_spoken: bool = False
    is_told: bool = False  # whether its refusal is logged and audited
    rejection: Rejection | None = None

    @property
    def host(self) -> str:
        """Its address."""
        return str(self.peer[0]).removeprefix("::ffff:")

    @property
    def titles(self) -> dict[str, str]:
        """Both AE titles of its request, where that has come so far; empty where they are none."""
        asked = len(self.request) >= FIXED
        return {
            "calling_ae_title": calling_title(self.request) if asked else "",
            "called_ae_title": called_title(self.request) if asked else "",
        }

    def refuse(self, kind: audit.Alert, *, found: str, rule: str, way_out: str) -> None:
        """Log and audit that it is not let in."""
        self.is_told = True
        error = CallerRefused(doing="letting a caller in", found=found, rule=rule, way_out=way_out)
        refuse("association.refused", error, kind, address=self.host, **self.titles)


refused: queue.SimpleQueue[audit.Alert] = queue.SimpleQueue()  # by this process, for whoever counts them


def refuse(
    event: str, error: CallerRefused, kind: audit.Alert, *, address: str, calling_ae_title: str, called_ae_title: str
) -> None:
    """Log and audit a refusal.

    Parameters
    ----------
    address
        From where.
    calling_ae_title, called_ae_title
        Where they are known, and AE titles at all: what strangers send else is not repeated.
    """
    titles = {"calling_ae_title": calling_ae_title, "called_ae_title": called_ae_title}
    log.warning(event, error, address=address, **{key: value for key, value in titles.items() if value})
    refused.put(kind)
    audit.alert(kind, words=f"{error.doing}: {error.found}", user=calling_ae_title, address=address)
