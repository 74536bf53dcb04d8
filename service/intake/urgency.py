"""How urgent an instance makes its study: by the way that it came, else by what it says of itself. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from service.settings.intake import Route
from service.types import Priority

# Requested Procedure Priority (0040,1003), defined terms of PS3.3 C.4.11; MEDIUM is the model's middle one.
_TERMS = {
    "STAT": Priority.STAT,
    "HIGH": Priority.HIGH,
    "ROUTINE": Priority.ROUTINE,
    "MEDIUM": Priority.ROUTINE,
    "LOW": Priority.LOW,
}


def urgency(routes: Sequence[Route], *, calling_ae_title: str, called_ae_title: str, requested: str) -> Priority:
    """How urgent an instance is.

    Parameters
    ----------
    routes
        The site's; the first one that fits counts.
    requested
        Its Requested Procedure Priority (0040,1003); may be empty, or none of the defined terms: then it is routine.
    """
    for route in routes:
        if route.calling_ae_title in (None, calling_ae_title) and route.called_ae_title in (None, called_ae_title):
            return Priority[route.priority.upper()]
    return _TERMS.get(requested.strip().upper(), Priority.ROUTINE)
