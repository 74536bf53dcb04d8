"""A look at an encoded data set: what it says it is, and whether all of it is there (pure).

It does not promise that the bytes mean anything: `identify` reads the four UIDs and how urgent the study is, follows
every length to the end of the data set, and looks at no other value.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass

from service.errors import NotUnderstood

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_IMPLICIT, _BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
_DEFLATED = frozenset(  # Deflated Explicit VR Little Endian, and the two JPIP Referenced Deflate (PS3.5 A.5, A.7, A.9)
    {"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"}
)
_INFLATED_LIMIT = 1 << 30  # bytes; a kilobyte can be made to inflate to a megabyte
_DEPTH_LIMIT = 100  # nested sequences; no IOD has more than a dozen
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())  # 32-bit length (PS3.5 7.1.2)
_ITEM, _ITEM_END, _SEQUENCE_END, _UNDEFINED = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD, 0xFFFFFFFF
_WANTED = {
    0x00080016: "sop_class_uid",
    0x00080018: "sop_instance_uid",
    0x0020000D: "study_instance_uid",
    0x0020000E: "series_instance_uid",
}
_PRIORITY = 0x00401003


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a data set says it is."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    requested_priority: str = ""  # Requested Procedure Priority (0040,1003), where there is one


def is_uid(text: str) -> bool:
    """Whether the text is a UID (PS3.5 section 9.1); components with leading zeros occur in the field and pass."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def identify(data: bytes, transfer_syntax_uid: str) -> Identity:
    """Read the four UIDs of an encoded data set, and see that it is whole (PS3.5 sections 7.1 and 7.5).

    Parameters
    ----------
    data
        The data set as it was received, without file meta group.
    transfer_syntax_uid
        The transfer syntax that was negotiated for it.

    Raises
    ------
    NotUnderstood
        If a length points beyond the end, a delimiter is missing, or one of the UIDs is missing or no UID.
    """
    if transfer_syntax_uid in _DEFLATED:
        data = _inflate(data)
    explicit, order = transfer_syntax_uid != _IMPLICIT, ">" if transfer_syntax_uid == _BIG_ENDIAN else "<"
    values = _walk(data, explicit=explicit, order=order)
    uids = {}
    for tag, field in _WANTED.items():
        uid = values.get(tag, b"").rstrip(b"\0 ").decode("ascii", "replace")
        if not is_uid(uid):
            found = "holds no UID" if uid else "is missing or empty"
            raise _not_understood(f"the attribute ({tag >> 16:04X},{tag & 0xFFFF:04X}) {found}")
        uids[field] = uid
    return Identity(**uids, requested_priority=values.get(_PRIORITY, b"").rstrip(b"\0 ").decode("ascii", "replace"))


def _inflate(data: bytes) -> bytes:
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = engine.decompress(data, _INFLATED_LIMIT)
    except zlib.error as exc:
        raise _not_understood("the deflated bytes can't be inflated") from exc
    if not engine.eof:
        more = f"it inflates to more than {_INFLATED_LIMIT} bytes"
        raise _not_understood(more if engine.unconsumed_tail else "the deflated bytes end early")
    return inflated


def _walk(data: bytes, *, explicit: bool, order: str) -> dict[int, bytes]:
    """Follow the elements of a data set to its very end, and return the values of the wanted ones.

    Elements of defined length are stepped over; what has an undefined length (sequences, items, encapsulated pixel
    data) is entered, with a stack of its own, so that no nesting can exhaust Python's.
    """
    end, at = len(data), 0
    values: dict[int, bytes] = {}
    if not explicit:
        explicit = _is_vr(data[4:6])  # mislabelled, but whole: pydicom reads it as what it is
    # What is open: is it an item (or the data set; else a sequence), and how are the elements in it encoded?
    stack = [(True, explicit, order)]
    while at < end:
        in_item, explicit, order = stack[-1]
        if end - at < 8:
            if len(stack) == 1 and order == "<" and not any(data[at:]):
                break  # zeros after the last element: padding (in big endian they might begin a tag)
            raise _not_understood(f"it ends within the header of an element, at byte {at}")
        group, element, length = struct.unpack_from(order + "HHL", data, at)
        tag, start = group << 16 | element, at
        at += 8
        if group == 0xFFFE:
            if tag == _ITEM and (in_item or len(stack) > _DEPTH_LIMIT):
                raise _not_understood(f"an item stands where none may, or too deep, at byte {start}")
            if tag == _ITEM and length == _UNDEFINED:
                stack.append((True, explicit, order))
            elif tag == _ITEM:
                at += length
            elif tag == _ITEM_END and in_item and len(stack) > 1:
                stack.pop()
            elif tag == _SEQUENCE_END and len(stack) > 1:
                del stack[-2 if in_item else -1 :]  # an item's own delimiter may have been forgotten
            continue
        if not in_item:
            raise _not_understood(f"a sequence holds something else than items, at byte {start}")
        vr = data[start + 4 : start + 6]
        if explicit and vr in _LONG_VRS:
            if end - at < 4:
                raise _not_understood(f"it ends within the header of an element, at byte {start}")
            (length,) = struct.unpack_from(order + "L", data, at)
            at += 4
        elif explicit and _is_vr(vr):
            (length,) = struct.unpack_from(order + "H", data, start + 6)
        # else implicit VR, which some writers use in the items of an explicit data set
        if length == _UNDEFINED and explicit and vr == b"UN":
            # It holds implicit VR little endian (PS3.5 6.2.2), unless its writer knew no better.
            stack.append((False, _is_vr(data[at + 12 : at + 14]), "<" if data[at : at + 2] == b"\xfe\xff" else order))
        elif length == _UNDEFINED:
            stack.append((False, explicit, order))
        elif length > end - at:
            raise _not_understood(
                f"the element ({group:04X},{element:04X}) at byte {start} says {length} bytes, and {end - at} are there"
            )
        else:
            if (tag in _WANTED or tag == _PRIORITY) and len(stack) == 1:
                values[tag] = data[at : at + length]
            at += length
    if at > end:
        raise _not_understood(f"an item says {at - end} bytes more than are there")
    if len(stack) > 1:
        raise _not_understood("it ends before the delimiter of a sequence or of its pixel data")
    return values


def _is_vr(two: bytes) -> bool:
    # As part of an implicit length, two capitals would mean a value of more than 16 kB.
    return len(two) == 2 and two.isalpha() and two.isupper()


def _not_understood(found: str) -> NotUnderstood:
    return NotUnderstood(
        doing="reading a received data set",
        found=found,
        rule="lengths and delimiters agree with the bytes (PS3.5 7.1, 7.5), and UIDs are UIDs (PS3.5 9.1)",
        way_out="send the instance again; if this repeats, its source or the sender's transcoding is at fault",
    )
