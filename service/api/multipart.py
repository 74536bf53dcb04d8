"""[edge: python-multipart] The parts of a multipart/related body (RFC 2387), one after the other as it comes in."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.api.problems import Problem

_DOING = "reading a multipart/related body"
_BOUNDARY_LIMIT = 200  # characters; RFC 2046 section 5.1.1 says 70, Orthanc sends 73


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part."""

    media_type: str  # without parameters; empty where it names none
    content: bytes


def media_type_of(header: str) -> tuple[str, dict[str, str]]:
    """A Content-Type as its media type, and its parameters by name, both in lower case."""
    name, options = parse_options_header(header)
    parameters = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in options.items()}
    return name.decode("latin-1").lower(), parameters


async def parts_of(
    body: AsyncIterator[bytes], boundary: str, *, maximum_part_bytes: int, maximum_bytes: int
) -> AsyncIterator[Part]:
    """The parts of a body; of those that came in whole, one is in memory at a time.

    Raises
    ------
    Problem
        If it is malformed (400) or too large (413); the parts before that were given already.
    """
    if not 1 <= len(boundary) <= _BOUNDARY_LIMIT or not boundary.isascii() or not boundary.isprintable():
        raise _malformed("the Content-Type names no boundary, or one that may not be")
    collected = _Collected(maximum_part_bytes)
    parser = MultipartParser(
        boundary.encode("ascii"),
        {
            "on_part_begin": collected.begin,
            "on_header_field": collected.header_field,
            "on_header_value": collected.header_value,
            "on_header_end": collected.header_end,
            "on_part_data": collected.data,
            "on_part_end": collected.end,
            "on_end": collected.finish,
        },
    )
    size = 0
    async for chunk in body:
        size += len(chunk)
        if size > maximum_bytes:
            raise too_large(f"the body has more than {maximum_bytes} bytes", "[api] maximum_body_mib")
        if collected.is_finished:
            continue  # what follows the last boundary says nothing (RFC 2046 section 5.1.1)
        fault: Problem | None = None
        try:
            parser.write(chunk)
        except MultipartParseError:
            fault = _malformed("the bytes do not follow the boundary and the headers of a part as they should")
        except Problem as exc:
            fault = exc
        while collected.parts:  # those before the fault are whole
            yield collected.parts.popleft()
        if fault:
            raise fault
    if not collected.is_finished:
        raise _malformed("it ends before its last boundary")


class _Collected:
    """What the parser tells, as parts."""

    def __init__(self, maximum_bytes: int) -> None:
        self.parts = deque[Part]()
        self.is_finished = False
        self._maximum_bytes = maximum_bytes
        self._name, self._value, self._media_type, self._content = b"", b"", "", bytearray()

    def begin(self) -> None:
        self._name, self._value, self._media_type = b"", b"", ""

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        if self._name.strip().lower() == b"content-type":
            self._media_type, _ = media_type_of(self._value.decode("latin-1"))
        self._name, self._value = b"", b""

    def data(self, data: bytes, start: int, end: int) -> None:
        if len(self._content) + end - start > self._maximum_bytes:
            raise too_large(f"a part has more than {self._maximum_bytes} bytes", "[intake] maximum_instance_mib")
        self._content += memoryview(data)[start:end]

    def end(self) -> None:
        self.parts.append(Part(media_type=self._media_type, content=bytes(self._content)))
        self._content = bytearray()

    def finish(self) -> None:
        self.is_finished = True


def too_large(found: str, setting: str) -> Problem:
    """What is answered to a body, or a part of one, that is larger than a setting allows."""
    return Problem(
        413,
        doing=_DOING,
        found=found,
        rule=f"no more is taken than {setting} allows",
        way_out="send it in several requests, or raise the setting",
    )


def _malformed(found: str) -> Problem:
    return Problem(
        400,
        doing=_DOING,
        found=found,
        rule="parts stand between boundaries, each with its headers (RFC 2046 section 5.1, PS3.18 section 8.6.1.2)",
        way_out="correct the program that sends it; what was kept already may be sent again",
    )
