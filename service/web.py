"""How another's HTTP service is reached, a PACS's or a sign-in provider's: straight, and nowhere else."""

from __future__ import annotations

import ssl
import urllib.request
from typing import Any


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows none: the configuration names the service itself, and nobody else sends us elsewhere."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def opener(context: ssl.SSLContext | None = None) -> urllib.request.OpenerDirector:
    """Opens addresses without redirects, and past any proxy of the machine's environment, as associations go.

    Parameters
    ----------
    context
        Whom to believe by TLS; none: the authorities of the system.
    """
    more = [urllib.request.HTTPSHandler(context=context)] if context else []
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect, *more)
