"""What a repository does with an audit line: take it apart by RFC 5424, check it by the schema of PS3.15 A.5.1."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lxml import etree

_SCHEMA = etree.RelaxNG(etree.parse(str(Path(__file__).parent / "audit_message.rng")))
_HEAD = re.compile(
    rb"<(?P<priority>\d{1,3})>1 (?P<time>\S+) (?P<host>[!-~]{1,255}) (?P<app>[!-~]{1,48}) (?P<process>[!-~]{1,128}) "
    rb"(?P<kind>[!-~]{1,32}) - \xef\xbb\xbf(?P<text>.*)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A SYSLOG-MSG, taken apart."""

    priority: int
    time: str
    host: str
    app: str
    process: str
    kind: str
    text: str
    message: Any  # the XML's root element

    def event(self) -> str:
        """EventID's code."""
        return self.codes("EventIdentification/EventID")[0]

    def codes(self, path: str) -> list[str]:
        """Codes at a path."""
        return [element.get("csd-code") for element in self.message.findall(path)]


def taken_apart(line: bytes) -> Line:
    """The line; an assertion fails if it is not valid."""
    head = _HEAD.fullmatch(line)
    assert head, line
    fields = {key: value.decode() for key, value in head.groupdict().items()}
    message = etree.fromstring(fields["text"].encode())
    assert _SCHEMA.validate(message), f"{_SCHEMA.error_log}\n{fields['text']}"
    return Line(**{**fields, "priority": int(fields["priority"]), "message": message})
