"""What is set, without its secrets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

MASK = "***"
_SECRET = re.compile(r"(^|_)(sha256|password|passwd|secret|token|key|credential)s?$")
_IN_URL = re.compile(r"(?<=[?&;])([^=&;]*(?:pass|secret|key|token)[^=&;]*)=[^&;]*", re.IGNORECASE)
_USER_IN_URL = re.compile(r"(?<=://)([^/@:?#]*):[^/@]*(?=@)")


def shown(config: BaseModel, as_read: BaseModel, prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Each section, with its keys: value, and whether it is from the file or the default.

    Parameters
    ----------
    as_read
        The same, as it was read.
    """
    keys: dict[str, Any] = {}
    inner: list[tuple[str, Any, Any]] = []
    for key in type(config).model_fields:
        value, read = getattr(config, key), getattr(as_read, key)
        name = f"{prefix}.{key}" if prefix else key
        if isinstance(value, BaseModel):
            inner.append((name, value, read))
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            inner += [(f"{name}[{number}]", *pair) for number, pair in enumerate(zip(value, read, strict=True))]
        else:
            source = "file" if key in as_read.model_fields_set else "default"
            keys[key] = {"value": _masked(key, _plain(value)), "from": source}
    if keys:
        yield prefix, keys
    for name, value, read in inner:
        yield from shown(value, read, name)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(it) for it in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _masked(key: str, value: Any) -> Any:
    """The value, unless its name says that it is a secret; an address without the secrets in it."""
    if isinstance(value, list):
        return [_masked(key, it) for it in value]
    if not isinstance(value, str) or not value:
        return value
    if _SECRET.search(key):
        return MASK
    return _USER_IN_URL.sub(rf"\1:{MASK}", _IN_URL.sub(rf"\1={MASK}", value)) if "://" in value else value
