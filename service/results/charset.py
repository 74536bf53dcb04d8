"""Texts in the character sets of their sources: copied byte by byte, understood strictly, never guessed.

Readers differ in what they make of a text; of the same bytes in the same set each makes the same. So a copied text
keeps its bytes as long as the object keeps the sources' Specific Character Set (0008,0005), and is decoded only where
words of ours need UTF-8. The decoder is our own: pydicom's puts U+FFFD for what it can't read and leaves the escape
sequences of ISO 2022 IR 58 in the text, and its encoder writes "?" for half of what ISO_IR 13 holds.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Final, NamedTuple

from pydicom import Dataset, config
from pydicom.charset import convert_encodings, encode_string
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import CUSTOMIZABLE_CHARSET_VR, PersonName

UTF_8: Final = "ISO_IR 192"
_SET: Final = Tag("SpecificCharacterSet")
_STAND_ALONE: Final = {UTF_8: "utf-8", "GB18030": "gb18030", "GBK": "gbk"}  # PS3.3 Table C.12-5
_WORDS: Final = {  # by what an object of ours is known to be the patient's and the order's; other texts are left out
    "PatientName": "the patient's name",
    "PatientID": "the patient's ID",
    "AccessionNumber": "the accession number",
}


class _Part(NamedTuple):
    """A code element of ISO 2022 (PS3.5 section 6.1.2.5)."""

    right: bool  # G1, bytes from A0; else G0
    codec: str  # Python's, of a character's bytes with their high bits set behind `prefix`
    width: int = 1  # bytes of a character
    prefix: bytes = b""


_ASCII: Final = _Part(False, "ascii")
_PARTS: Final = {  # ISO-IR number: escape sequence, code element (PS3.3 Tables C.12-3 and C.12-4)
    "6": (b"\x1b(B", _ASCII),
    "100": (b"\x1b-A", _Part(True, "iso8859_1")),
    "101": (b"\x1b-B", _Part(True, "iso8859_2")),
    "109": (b"\x1b-C", _Part(True, "iso8859_3")),
    "110": (b"\x1b-D", _Part(True, "iso8859_4")),
    "126": (b"\x1b-F", _Part(True, "iso8859_7")),
    "127": (b"\x1b-G", _Part(True, "iso8859_6")),
    "138": (b"\x1b-H", _Part(True, "iso8859_8")),
    "144": (b"\x1b-L", _Part(True, "iso8859_5")),
    "148": (b"\x1b-M", _Part(True, "iso8859_9")),
    "166": (b"\x1b-T", _Part(True, "tis_620")),
    "203": (b"\x1b-b", _Part(True, "iso8859_15")),
    "13": (b"\x1b)I", _Part(True, "euc_jp", 1, b"\x8e")),
    "87": (b"\x1b$B", _Part(False, "euc_jp", 2)),
    "159": (b"\x1b$(D", _Part(False, "euc_jp", 2, b"\x8f")),
    "149": (b"\x1b$)C", _Part(True, "euc_kr", 2)),
    "58": (b"\x1b$)A", _Part(True, "gb2312", 2)),
}
_TERMS: Final = {  # a term without what stands between its parts: the term
    **{f"ISOIR{number}": f"ISO_IR {number}" for number, (_, part) in _PARTS.items() if part.width == 1},
    **{f"ISO2022IR{number}": f"ISO 2022 IR {number}" for number in _PARTS},
    **{term: term for term in ("", "GB18030", "GBK")},
    **{"ISOIR6": "", "ISOIR192": UTF_8, "UTF8": UTF_8},
}


class Unreadable(ValueError):
    """A text that can't be read in its character set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """The character sets that a header declares."""

    terms: tuple[str, ...] = ()  # defined terms (PS3.3 C.12.1.1.2), rightly spelled; none: the default repertoire
    spelled: str = ""  # as the header has them
    known: bool = True  # whether each is a defined term, and they go together


class Kept(DataElement):
    """A text that remembers its bytes."""

    raw: bytes | None  # None: somebody decoded it before, and only the text is left
    text: str | None  # None: it is none in its set, and the value only something to go on with


def declared(header: Dataset, inherited: Declared | None = None) -> Declared:
    """Which character sets a header declares, or else inherits from the data set around it (PS3.5 section 7.5.3)."""
    found = header[_SET].value if _SET in header else None
    spelled = [str(term).strip("\0 ") for term in ([found] if isinstance(found, str) else found or ())]
    if not any(spelled):
        return inherited or Declared()
    terms = [_TERMS.get(re.sub("[ _-]", "", term.upper()), "?") for term in spelled]
    if terms[0] in _STAND_ALONE:  # without code extensions: what follows says nothing
        terms = terms[:1]
    known = "?" not in terms and not _STAND_ALONE.keys() & terms[1:]
    terms = [terms[0], *filter(None, terms[1:])]
    single = () if terms in ([""], ["ISO 2022 IR 6"]) else tuple(terms)
    return Declared(terms=single, spelled="\\".join(spelled), known=known)


def decode(raw: bytes, sets: Declared, vr: str) -> str | None:
    """Understand a value, strictly (PS3.5 sections 6.1.2.3 to 6.1.2.5); None, if any byte has no meaning.

    Without meaning are also the bytes 80 to 9F, which are letters to Windows only, and escapes from a single set.
    """
    if raw.isascii() and b"\x1b" not in raw:
        return raw.decode("ascii")
    first = sets.terms[0] if sets.terms else ""
    if not sets.known or (first in _STAND_ALONE and b"\x1b" in raw):
        return None
    try:
        if first in _STAND_ALONE:
            return raw.decode(_STAND_ALONE[first])
        return "".join(_characters(raw, [term.rpartition(" ")[2] or "6" for term in sets.terms or [""]], vr))
    except (UnicodeDecodeError, Unreadable):
        return None


def _characters(raw: bytes, numbers: list[str], vr: str) -> Iterator[str]:
    """The characters of a value; the first ISO-IR number is in force at its start and after each delimiter."""
    delimiters = b"\t\n\f\r" + {"PN": b"\\^=", "LO": b"\\", "SH": b"\\", "UC": b"\\"}.get(vr, b"")
    first = _PARTS[numbers[0]][1]
    extended = len(numbers) > 1 or first.width > 1
    # Japanese writers end kanji with romaji as well as with ASCII.
    escapes = [*(_PARTS[number] for number in (*numbers, "6")), (b"\x1b(J", _ASCII)] if extended else []
    start = _ASCII, first if first.right else None
    left, right = start
    at = 0
    while at < len(raw):
        byte = raw[at]
        if byte == 0x1B:
            sequence, part = next((one for one in escapes if raw.startswith(one[0], at)), (b"", None))
            if part is None:
                raise Unreadable("an escape sequence to no declared character set")
            left, right = (left, part) if part.right else (part, right)
            at += len(sequence)
            continue
        used = right if byte >= 0x80 else left if byte > 0x20 else _ASCII
        piece = raw[at : at + used.width] if used else b""
        if used is None or len(piece) < used.width or any((one >= 0xA0) != used.right for one in piece):
            raise Unreadable("a byte of no declared character set")
        yield chr(byte) if used is _ASCII else (used.prefix + bytes(one | 0x80 for one in piece)).decode(used.codec)
        if used is _ASCII and byte in delimiters:
            left, right = start
        at += used.width


def _read(found: DataElement | RawDataElement, vr: str, sets: Declared) -> tuple[bytes | None, str | None]:
    """The bytes of a text, and what they mean in its sets; None for what can't be known."""
    if isinstance(found, RawDataElement):
        raw = (found.value or b"").rstrip(b"\0 ")
        return raw, decode(raw, sets, vr)
    # Decoded by pydicom before, or never encoded.
    values = [value or "" for value in (found.value if found.VM > 1 else [found.value])]
    text = "\\".join(map(str, values))
    if text.isascii() and "\x1b" not in text:
        return text.encode(), text
    if "\ufffd" in text or "\x1b" in text or not sets.known:
        return None, None
    encodings = convert_encodings(list(sets.terms))
    encoded = [PersonName(v).encode(encodings) if vr == "PN" else encode_string(v, encodings) for v in values]
    raw = b"\\".join(encoded)
    if not sets.terms:  # pydicom takes bytes without a set for Latin-1, and gives them back
        return raw, None
    return (raw, text) if decode(raw, sets, vr) == text else (None, text)


def said(header: Dataset, keyword: str) -> str | bytes:
    """What a header, or an object of ours, says of something, to be compared; the header stays as it was read.

    It is the text; its bytes, where they are no text in the declared set; nothing, where that is unknown.
    """
    if keyword not in header:
        return ""
    sets = declared(header)
    raw, text = _read(header.get_item(keyword), dictionary_VR(keyword), sets)
    return text if text is not None else raw if raw and sets.known else ""


def unreadable(header: Dataset) -> str:
    """Why it can't be told whose a study is, in words without patient data; nothing, where it can.

    Only for an unknown set. Bytes that mean nothing in a known one, or are not ASCII without any, are no reason: they
    are copied as they are.
    """
    sets = declared(header)
    for keyword, words in _WORDS.items() if not sets.known else ():
        if keyword in header and _read(header.get_item(keyword), dictionary_VR(keyword), sets)[1] is None:
            spelled = re.sub("[^ -~]", "?", sets.spelled)[:64]
            known = "is none that PS3.3 C.12.1.1.2 knows"
            return f"the Specific Character Set '{spelled}' {known}, and {words} is written in it"
    return ""


def element(header: Dataset, tag: BaseTag, inherited: Declared | None = None) -> DataElement:
    """A copy of an element, in which each text remembers its bytes; the header stays as it was read.

    Raises
    ------
    Unreadable
        If it is the name of an unknown character set, or a text in one.
    """
    sets = declared(header, inherited)
    found = header.get_item(tag)
    vr = dictionary_VR(tag) if found.VR in (None, "UN") and dictionary_has_tag(tag) else str(found.VR)
    if tag == _SET:
        if not sets.known:
            raise Unreadable("an unknown character set")
        return DataElement(tag, "CS", list(sets.terms) or "ISO_IR 6")
    if vr == "SQ":
        items = [Dataset({t: element(item, t, sets) for t in item.keys()}) for item in header[tag].value]  # noqa: SIM118
        return DataElement(tag, "SQ", items)
    if vr not in CUSTOMIZABLE_CHARSET_VR:
        return deepcopy(header[tag])
    raw, text = _read(found, vr, sets)
    value = text if text is not None else raw.decode("latin-1") if raw and sets.known else None
    if value is None:
        raise Unreadable("a text in no known character set")
    kept = Kept(tag, vr, value, validation_mode=config.IGNORE)
    kept.raw, kept.text = raw, text
    return kept


def writing_set(sets: Declared, copied: Iterable[Kept], *, words_are_ascii: bool) -> tuple[tuple[str, ...], bool]:
    """In which set an object is written, and whether those of our own words that are not ASCII must give way.

    It is the sources' own, as long as it holds our words and the copied texts; else UTF-8 (PS3.3 C.12.1.1.2), as long
    as all that is copied can be read. Where neither can be, it is the words that are ours to change.

    Raises
    ------
    Unreadable
        If there is no set for the copied texts.
    """
    copied = list(copied)
    as_they_are = all(kept.raw is not None for kept in copied)
    if as_they_are and (words_are_ascii or sets.terms == (UTF_8,)):
        return sets.terms, False
    if all(kept.text is not None for kept in copied):
        return (UTF_8,), False
    if not as_they_are:
        raise Unreadable("texts of which the bytes are lost")
    return sets.terms, True


def settle(made: Dataset, header: Dataset) -> None:
    """Give an object that is ready to be written its Specific Character Set, and its texts their bytes in it.

    Its patient and study were taken from the header, which is a copy of a source's, made by `element`.
    """
    sets = declared(header)
    sources = [it for it in header if it.tag in made and (isinstance(it, Kept) or it.VR == "SQ")]
    copied = {it.tag: it for it in sources if made[it.tag].value == it.value}
    ours = [text for text in _texts(made, copied) if not str(text.value).isascii()]
    texts = [text for text in _texts(Dataset({**copied})) if isinstance(text, Kept)]
    terms, give_way = writing_set(sets, texts, words_are_ascii=not ours)
    if terms:
        made[_SET] = DataElement(_SET, "CS", list(terms))
    as_it_is = terms == sets.terms and all(text.raw is not None for text in texts)
    for tag, source in copied.items():
        made[tag] = _written(source, as_it_is=as_it_is)
    for text in ours if give_way else ():
        text.value = [_in_ascii(one) for one in text.value] if text.VM > 1 else _in_ascii(text.value)


def _texts(dataset: Dataset, without: Container[BaseTag] = ()) -> Iterator[DataElement]:
    """All texts of a data set and of its items."""
    for found in dataset:
        if found.VR in CUSTOMIZABLE_CHARSET_VR and found.tag not in without:
            yield found
        for item in found.value if found.VR == "SQ" and found.tag not in without else ():
            yield from _texts(item)


def _written(source: DataElement, *, as_it_is: bool) -> DataElement:
    """A copied element as it is written: texts by their bytes; in UTF-8, items declare no set of their own."""
    if source.VR == "SQ":
        kept = [[it for it in item if as_it_is or it.tag != _SET] for item in source.value]
        items = [Dataset({it.tag: _written(it, as_it_is=as_it_is) for it in item}) for item in kept]
        return DataElement(source.tag, "SQ", items)
    if not isinstance(source, Kept):
        return source
    raw = source.raw if as_it_is or source.text is None else source.text.encode()  # UTF-8
    return DataElement(source.tag, source.VR, raw, validation_mode=config.IGNORE)


def _in_ascii(text: object) -> str:
    """Words of ours in as many ASCII characters: letters without their marks, else question marks."""
    plain = (unicodedata.normalize("NFD", character)[0] for character in str(text))
    return "".join(plain).encode("ascii", "replace").decode("ascii")
