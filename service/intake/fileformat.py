"""What stands before the data set in a DICOM file (PS3.10 section 7.1): preamble, prefix, file meta group. Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from service.errors import NotUnderstood
from service.intake.encoding import is_uid

_START = 132  # preamble (128) and prefix (4)
_LONG_VRS = frozenset({b"OB", b"OW", b"UN", b"UT", b"SQ"})  # 32-bit length (PS3.5 7.1.2), of those that occur here
_WANTED = {0x0002: "sop_class_uid", 0x0003: "sop_instance_uid", 0x0010: "transfer_syntax_uid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FileMeta:
    """The file meta group."""

    transfer_syntax_uid: str
    sop_class_uid: str = ""  # as the group says, if it does
    sop_instance_uid: str = ""
    size: int  # bytes before the data set


def read_file_meta(content: bytes) -> FileMeta:
    """Read the file meta group of a DICOM file.

    The group is followed element by element: its length (0002,0000) is missing or wrong in some files.

    Raises
    ------
    NotUnderstood
        If there is none, or it names no transfer syntax.
    """
    if content[128:_START] != b"DICM":
        raise _not_understood("the prefix DICM is not where it should be, at byte 128")
    values: dict[str, str] = {}
    at = _START
    while content[at : at + 2] == b"\x02\x00":
        header = content[at : at + 8]
        if len(header) < 8:
            raise _not_understood("it ends within the file meta group")
        if header[4:6] in _LONG_VRS:
            length_at, kind, start = at + 8, "<L", at + 12
        else:
            length_at, kind, start = at + 6, "<H", at + 8
        if start > len(content):
            raise _not_understood("it ends within the file meta group")
        (length,) = struct.unpack_from(kind, content, length_at)
        if start + length > len(content):
            raise _not_understood("it ends within the file meta group")
        name = _WANTED.get(struct.unpack_from("<H", content, at + 2)[0])
        if name:
            text = content[start : start + length].rstrip(b"\0 ").decode("ascii", "replace")
            if text and not is_uid(text):
                raise _not_understood("a UID of the file meta group is none")
            values[name] = text
        at = start + length
    if not values.get("transfer_syntax_uid"):
        raise _not_understood("the file meta group names no transfer syntax")
    return FileMeta(**values, size=at)


def _not_understood(found: str) -> NotUnderstood:
    return NotUnderstood(
        doing="reading a DICOM file",
        found=found,
        rule="a DICOM file begins with a preamble, DICM and a file meta group (PS3.10 section 7.1)",
        way_out="send the file as it was stored; a data set alone can be sent by C-STORE",
    )
