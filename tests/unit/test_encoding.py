"""What the look at an encoded data set promises: whole data sets only, whatever the bytes."""

from __future__ import annotations

import random
import struct
from io import BytesIO
from pathlib import Path

import pydicom
import pydicom.data
import pytest

from service.errors import NotUnderstood
from service.intake import encoding
from service.intake.encoding import identify, is_uid
from service.intake.spool import _file_meta
from tests.unit.encoded import BIG, DEFLATED, EXPLICIT, IDENTITY, IMPLICIT, JPEG, data_set, encode

ALL = (IMPLICIT, EXPLICIT, BIG, DEFLATED, JPEG)


@pytest.mark.parametrize("syntax", ALL)
def test_a_whole_data_set_is_identified(syntax: str) -> None:
    assert identify(encode(data_set(), syntax), syntax) == IDENTITY


@pytest.mark.parametrize("syntax", ALL)
def test_a_data_set_cut_anywhere_within_an_element_is_refused(syntax: str) -> None:
    whole = encode(data_set(), syntax)
    between = set()  # a cut between two elements leaves a whole data set: nothing in the encoding can tell
    if syntax != DEFLATED:
        read = pydicom.dcmread(BytesIO(_file(whole, syntax)), force=True)
        first = len(_file(b"", syntax))
        for element in read:
            header = 12 if element.VR in ("OB", "OW", "SQ") and syntax != IMPLICIT else 8
            between.add(int(element.file_tell or 0) - header - first)
    accepted = set()
    for cut in range(len(whole)):
        try:
            identify(whole[:cut], syntax)
        except NotUnderstood:
            continue
        accepted.add(cut)
    assert accepted <= between
    assert accepted or syntax == DEFLATED  # the cut just before the pixel data, at least


def _file(data: bytes, syntax: str) -> bytes:
    return _file_meta(IDENTITY, syntax, "SENDER") + data


def test_every_whole_file_of_pydicom_is_accepted() -> None:
    seen, refused = 0, {}
    for file in (Path(pydicom.data.__file__).parent / "test_files").glob("*.dcm"):  # without its downloads
        raw = file.read_bytes()
        if raw[128:136] != b"DICM\x02\x00\x00\x00":
            continue
        start = 144 + struct.unpack_from("<L", raw, 140)[0]
        syntax = str(pydicom.filereader.read_file_meta_info(file).get("TransferSyntaxUID", EXPLICIT))
        seen += 1
        try:
            identify(raw[start:], syntax)
        except NotUnderstood as exc:
            if not exc.found.startswith("the attribute"):  # whole, but without UIDs
                refused[file.name] = exc.found
    assert seen > 60
    assert set(refused) == {"MR_truncated.dcm", "rtplan_truncated.dcm"}


def test_broken_bytes_never_raise_anything_else() -> None:
    dice = random.Random(1)
    for syntax in ALL:
        whole = encode(data_set(), syntax)
        for _ in range(1500):
            broken = bytearray(whole)
            for _ in range(dice.randint(1, 6)):
                broken[dice.randrange(len(broken))] = dice.choice((0, 255, dice.randrange(256)))
            try:
                identify(bytes(broken), syntax)
            except NotUnderstood:
                continue


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
def test_absurd_nesting_is_refused(syntax: str) -> None:
    sequence = struct.pack("<HH", 0x0008, 0x1115)
    sequence += b"SQ\0\0\xff\xff\xff\xff" if syntax == EXPLICIT else b"\xff\xff\xff\xff"
    with pytest.raises(NotUnderstood, match="too deep"):
        identify((sequence + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)) * 50_000, syntax)


def test_what_inflates_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_INFLATED_LIMIT", 1000)
    made = data_set()
    made.PixelData = bytes(100_000)
    with pytest.raises(NotUnderstood, match="inflates to more than"):
        identify(encode(made, DEFLATED), DEFLATED)


def test_odd_but_whole_data_sets_are_accepted() -> None:
    plain = encode(data_set(), EXPLICIT)
    assert identify(plain + bytes(7), EXPLICIT) == IDENTITY  # padded with zeros
    assert identify(plain, IMPLICIT) == IDENTITY  # mislabelled
    assert identify(encode(data_set(), IMPLICIT), EXPLICIT) == IDENTITY
    # UN of undefined length holds implicit VR (PS3.5 6.2.2), whatever is around it
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) + struct.pack("<HHL", 0x0008, 0x0100, 4) + b"T-1 "
    ends = struct.pack("<HHL", 0xFFFE, 0xE00D, 0) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    unknown = struct.pack("<HH2sHL", 0x0009, 0x1010, b"UN", 0, 0xFFFFFFFF) + item + ends
    assert identify(unknown + plain, EXPLICIT) == IDENTITY
    leading_zero = plain.replace(b"1.2.3\0", b"1.02.3")
    assert identify(leading_zero, EXPLICIT).study_instance_uid == "1.02.3"


@pytest.mark.parametrize("text", ["1.2.840.10008.1.2", "1", "1.02.3", "1." * 31 + "11"])
def test_uids(text: str) -> None:
    assert is_uid(text)
