"""What the spool promises: whole data sets only, on the disk before it says so, and no file ever replaced."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pydicom
import pydicom.data
import pytest
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence

from service.errors import NotUnderstood, OutOfSpace
from service.intake import spool as module
from service.intake.spool import Identity, Spool, identify, is_uid
from tests.support import REPOSITORY, missing

IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED, JPEG = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.70"
IDENTITY = Identity(
    sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
    sop_instance_uid="1.2.3.4",
    study_instance_uid="1.2.3",
    series_instance_uid="1.2.3.5",
)


def data_set() -> Dataset:
    """A small CT image with sequences in it, nested, of both kinds of length."""
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = IDENTITY.sop_class_uid, IDENTITY.sop_instance_uid
    made.StudyInstanceUID, made.SeriesInstanceUID = IDENTITY.study_instance_uid, IDENTITY.series_instance_uid
    inner, outer = Dataset(), Dataset()
    inner.CodeValue, outer.SOPInstanceUID = "T-1", "9.9.9"  # a nested UID must not be taken for the instance's own
    outer.PurposeOfReferenceCodeSequence = Sequence([inner])
    made.SourceImageSequence = Sequence([outer, outer])
    made.ReferencedStudySequence = Sequence([outer])
    for sequence in (made["SourceImageSequence"], outer["PurposeOfReferenceCodeSequence"]):
        sequence.is_undefined_length = True
    outer.is_undefined_length_sequence_item = True
    made.Rows, made.Columns, made.BitsAllocated = 8, 8, 16
    made.add_new("PixelData", "OW", bytes(range(128)))
    return made


def encode(made: Dataset, syntax: str) -> bytes:
    """The data set's bytes in a transfer syntax."""
    if syntax == JPEG:
        fragments = b"".join(struct.pack("<HHL", 0xFFFE, 0xE000, n) + bytes(n) for n in (0, 40, 88))
        made.PixelData = fragments  # pydicom adds the delimiter
        made["PixelData"].VR, made["PixelData"].is_undefined_length = "OB", True
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = syntax == IMPLICIT, syntax != BIG
    write_dataset(buffer, made)
    plain = buffer.getvalue()
    if syntax == DEFLATED:
        engine = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        plain = engine.compress(plain) + engine.flush()
    return plain


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
    return module._file_meta(IDENTITY, syntax, "SENDER") + data


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
    monkeypatch.setattr(module, "_INFLATED_LIMIT", 1000)
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


@pytest.mark.parametrize(
    "text", ["", ".", "..", "1..2", ".1", "1.", "../1", "1/2", "1.2\n", "1.2\0", "1.2 ", "1.²", "1.a", "1" * 65]
)
def test_no_uids(text: str, tmp_path: Path) -> None:
    assert not is_uid(text)
    spool = Spool(tmp_path, 0)
    for field in ("study_instance_uid", "sop_instance_uid"):
        uids = {name: getattr(IDENTITY, name) for name in Identity.__dataclass_fields__} | {field: text}
        with pytest.raises(ValueError, match="no UID"):
            spool.keep(b"x", identity=Identity(**uids), transfer_syntax_uid=EXPLICIT, calling_ae_title="SENDER")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# --- The disk -------------------------------------------------------------------------------------------------------


def keep(spool: Spool, data: bytes) -> module.KeptFile:
    return spool.keep(data, identity=IDENTITY, transfer_syntax_uid=EXPLICIT, calling_ae_title="SENDER")


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory / "spool")) for path in directory.rglob("*") if path.is_file())


def test_the_file_is_a_dicom_file_around_the_bytes(tmp_path: Path) -> None:
    data = encode(data_set(), EXPLICIT)
    kept = keep(Spool(tmp_path, 0), data)
    raw = kept.path.read_bytes()
    assert raw.endswith(data)
    assert raw[:132] == bytes(128) + b"DICM"
    assert 144 + struct.unpack_from("<L", raw, 140)[0] == len(raw) - len(data)  # the group length, PS3.10 7.1
    read = pydicom.dcmread(kept.path)
    meta = read.file_meta
    assert (meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID) == (read.SOPClassUID, read.SOPInstanceUID)
    assert (meta.TransferSyntaxUID, meta.SourceApplicationEntityTitle) == (EXPLICIT, "SENDER")
    assert meta.ImplementationClassUID == module.IMPLEMENTATION_CLASS_UID
    assert len(str(meta.ImplementationVersionName)) <= 16
    assert meta.FileMetaInformationVersion == b"\0\1"


def test_same_bytes_are_left_and_other_bytes_are_kept_beside(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 0)
    first, again = keep(spool, b"one"), keep(spool, b"one")
    inode = first.path.stat().st_ino
    other, other_again = keep(spool, b"two"), keep(spool, b"two")
    assert first == again
    assert other == other_again
    assert first.path.stat().st_ino == inode
    assert first.path.read_bytes().endswith(b"one")
    assert files(tmp_path) == sorted([f"1.2.3/1.2.3.4.{other.sha256[:12]}.dcm", "1.2.3/1.2.3.4.dcm"])


def test_writers_at_once_never_replace_each_other(tmp_path: Path) -> None:
    data = [bytes([n]) * 1000 for n in range(8)]
    threads = [threading.Thread(target=keep, args=(Spool(tmp_path, 0), one)) for one in data for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {(tmp_path / "spool" / name).read_bytes()[-1000:] for name in files(tmp_path)} == set(data)
    assert len(files(tmp_path)) == len(data)


def test_file_and_folders_are_fsynced_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool, happened = Spool(tmp_path, 0), list[str]()
    real_fsync, real_link = os.fsync, os.link

    def fsync(descriptor: int) -> None:
        real_fsync(descriptor)
        happened.append("fsync " + os.readlink(f"/proc/self/fd/{descriptor}").removeprefix(str(tmp_path)))

    def link(temp: Path, path: Path) -> None:
        real_link(temp, path)
        happened.append("link")

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", link)
    keep(spool, b"one")
    temp = happened[1]
    assert temp.startswith("fsync /spool/incoming/")
    assert happened == ["fsync /spool", temp, "link", "fsync /spool/1.2.3"]
    happened.clear()
    keep(spool, b"one")  # it was there: its folder is fsynced all the same
    assert happened[-1] == "fsync /spool/1.2.3"


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(OutOfSpace) as caught:
        Spool(tmp_path, 1 << 60).check_space()
    assert all(caught.value.parts().values())
    Spool(tmp_path, 0).check_space(1000)
    with pytest.raises(OutOfSpace):
        Spool(tmp_path, 0).check_space(1 << 60)


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        missing("the right to mount a tmpfs (root)")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True)
    if done.returncode:
        missing("the right to mount a tmpfs (CAP_SYS_ADMIN)")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_full_disk_is_out_of_space_and_leaves_nothing(tiny: Path) -> None:
    spool = Spool(tiny, 0)
    with pytest.raises(OutOfSpace, match="No space left on device"):
        keep(spool, bytes(2 << 20))
    assert files(tiny) == []
    keep(spool, b"one")


def test_a_file_too_large_is_out_of_space(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from tests.unit.test_spool import *\n"
        "spool = Spool(Path(sys.argv[1]), 0); resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: keep(spool, bytes(200_000))\n"
        "except OutOfSpace as exc: print(exc.found)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.strip() == "File too large", done.stderr
    assert files(tmp_path) == []


def test_sweeping_removes_what_has_no_writer_any_more(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 0)
    kept = keep(spool, b"one")
    for name, age in (("old", 3600.0), ("young", 1.0)):
        temp = tmp_path / "spool" / "incoming" / name
        temp.write_bytes(b"half")
        os.utime(temp, (time.time() - age,) * 2)
    assert spool.sweep() == 1
    assert files(tmp_path) == [str(kept.path.relative_to(tmp_path / "spool")), "incoming/young"]
