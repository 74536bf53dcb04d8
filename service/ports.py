"""A port of ours, opened or tried."""

from __future__ import annotations

import socket

from service.errors import ConfigError


def bound(host: str, port: int, *, section: str) -> socket.socket:
    """A socket bound to it, IPv4 or IPv6, on which nobody listens yet.

    Parameters
    ----------
    section
        Of the configuration, that names it.

    Raises
    ------
    ConfigError
        If it can't be had; the cause is the system's OSError.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
        except OSError:
            made.close()
            raise
    except OSError as exc:
        raise ConfigError(
            doing=f"opening {host}:{port}",
            found=exc.strerror or type(exc).__name__,
            rule=f"{section} host is an address of this machine, and nobody else listens on port {port}",
            way_out="stop the other program (perhaps a running Overread), or choose another host or port",
        ) from exc
    return made
