"""``overread config show`` and ``overread token``: what is set, without its secrets; and a new secret for somebody."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from service.config import Config, read_config
from service.errors import ConfigError
from service.files import read_toml
from service.masked import shown
from service.settings.doors import Role, Token

_NUMBER = re.compile(r"\[\d+\]")


def show(file: Path, *, as_json: bool = False) -> int:
    """Print the configuration as the service takes it: every key, where its value is from, and no secret.

    Returns
    -------
    int
        0: a file that is wrong raises.

    Raises
    ------
    ConfigError
        As at the start of the service.
    """
    # The second reading is before paths are made whole: it still knows which keys the file has.
    sections = dict(shown(read_config(file), read_toml(file, Config)))
    if as_json:
        print(json.dumps(sections, indent=1, ensure_ascii=False))
    else:
        print("\n\n".join("\n".join(_lines(name, keys, file.name)) for name, keys in sections.items()))
    return 0


def make_token(name: str, role: Role) -> int:
    """Print a new token, which nobody will show again, and what the configuration needs to know it by.

    Raises
    ------
    ConfigError
        If nobody can have that name.
    """
    token = secrets.token_urlsafe(32)
    digest = hashlib.sha256(token.encode("ascii")).hexdigest()
    try:
        Token(name=name, role=role, sha256=digest)
    except ValueError as exc:
        raise ConfigError(
            doing="making a token",
            found="a name that can't be one",
            rule="1 to 64 letters, digits and . _ @ -, the first a letter or digit",
            way_out="choose another name",
        ) from exc
    print(f"The token of {name}; it is shown this once:\n\n    {token}\n\nFor the site's file:\n")
    print(f'    [[api.tokens]]\n    name = "{name}"\n    role = "{role}"\n    sha256 = "{digest}"')
    return 0


def _lines(name: str, keys: dict[str, Any], file: str) -> Iterator[str]:
    """A section as TOML has it, each key with where it is from."""
    path = _NUMBER.sub("", name)
    if path:
        yield f"[[{path}]]" if name.endswith("]") else f"[{path}]"
    for key, about in keys.items():
        value = json.dumps(about["value"], ensure_ascii=False)
        line = f"# {key} = none" if about["value"] is None else f"{key} = {value}"
        yield f"{line:<60} # {file if about['from'] == 'file' else 'default'}"
