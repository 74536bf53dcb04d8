"""[edge: disk] What came in, kept on disk: first a look at its encoding, then temp file, fsync, link, fsync.

It promises that a file which `Spool.keep` has returned is on the disk under its final name with the bytes that were
received, and that no file is ever replaced. It does not promise that the bytes mean anything: `identify` reads the
four UIDs and follows every length to the end of the data set, and looks at no other value.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import struct
import threading
import time
import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path

from service import __version__
from service.codes import derive_uid
from service.errors import NotUnderstood, OutOfSpace

IMPLEMENTATION_CLASS_UID = derive_uid("overread", "implementation class")  # PS3.7 D.3.3.2
IMPLEMENTATION_VERSION_NAME = f"OVERREAD_{__version__}"[:16]

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_LEFT_OVER_SECONDS = 600.0  # a data set is written from memory in seconds; a temp file older than this has no writer

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a data set says it is."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFile:
    """A file in the spool."""

    path: Path
    sha256: str  # of the data set's bytes, without the file meta group


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
    return Identity(**uids)


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
            if tag in _WANTED and len(stack) == 1:
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


class Spool:
    """The folder of received files: ``spool/<study>/<instance>.dcm``; several processes may share it.

    Parameters
    ----------
    directory
        Where the ``spool`` folder is, or is made. Its file system must know hard links, as those of POSIX do.
    minimum_free_bytes
        Below this much free space nothing is taken.
    """

    def __init__(self, directory: Path, minimum_free_bytes: int) -> None:
        self._directory, self._minimum_free_bytes = directory / "spool", minimum_free_bytes
        # Temp files lie apart, on the same file system: study folders hold whole files only, a sweep is one listing.
        self._incoming = self._directory / "incoming"
        missing = [folder for folder in (self._incoming, *self._incoming.parents) if not folder.exists()]
        self._incoming.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            _fsync_folder(folder.parent)
        self._synced: set[Path] = set()
        self._lock = threading.Lock()

    def check_space(self, needed_bytes: int = 0) -> None:
        """Raise `OutOfSpace` if less than the minimum would be free after writing that much."""
        disk = os.statvfs(self._directory)
        free = disk.f_bavail * disk.f_frsize
        if free - needed_bytes < self._minimum_free_bytes:
            raise OutOfSpace(
                doing=f"taking an instance of {needed_bytes} bytes into the spool",
                found=f"{free / 2**30:.2f} GiB are free on its disk",
                rule=f"{self._minimum_free_bytes / 2**30:.2f} GiB stay free (intake.minimum_free_gib; PS3.4 B.2.3)",
                way_out="free or add disk space; the sender may send again",
            )

    def keep(self, data: bytes, *, identity: Identity, transfer_syntax_uid: str, calling_ae_title: str) -> KeptFile:
        """Write an instance to the disk, as a DICOM file (PS3.10 section 7.1) around its bytes as received.

        A file with the same data set is left as it is; one with another is left too, and the new one kept beside.

        Raises
        ------
        OutOfSpace
            If the disk, the quota or the largest size of a file does not allow it; nothing is left behind.
        """
        meta = _file_meta(identity, transfer_syntax_uid, calling_ae_title)
        sha256 = hashlib.sha256(data).hexdigest()
        temp = self._incoming / uuid.uuid4().hex
        try:
            folder = self._study_folder(identity.study_instance_uid)
            try:
                with open(temp, "xb") as file:
                    file.write(meta)
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                path = self._name(temp, folder, identity.sop_instance_uid, sha256)
            finally:
                temp.unlink(missing_ok=True)
            _fsync_folder(folder)  # also where the file was there already: its writer may not have come so far
        except OSError as exc:
            if exc.errno not in _NO_SPACE:
                raise
            raise OutOfSpace(
                doing=f"writing an instance of {len(data)} bytes into the spool",
                found=os.strerror(exc.errno),
                rule="an instance is accepted only when it is on the disk (PS3.4 B.2.3)",
                way_out="free or add disk space, or raise the quota; the sender may send again",
            ) from exc
        return KeptFile(path=path, sha256=sha256)

    def sweep(self) -> int:
        """Remove temp files that have no writer any more, judged by age (the writer may be on another machine)."""
        removed = 0
        for temp in self._incoming.iterdir():
            try:
                if time.time() - temp.stat().st_mtime > _LEFT_OVER_SECONDS:
                    temp.unlink()
                    removed += 1
            except FileNotFoundError:  # its writer, or another sweep, was faster
                continue
        return removed

    def _study_folder(self, study_instance_uid: str) -> Path:
        if not is_uid(study_instance_uid):  # `identify` saw to it; a path is worth a second look
            raise ValueError("no UID")
        folder = self._directory / study_instance_uid
        try:
            folder.mkdir()
        except FileExistsError:
            if folder in self._synced:
                return folder
        _fsync_folder(self._directory)  # once per process, for another may have made it and not come to its fsync
        with self._lock:
            if len(self._synced) > 10_000:
                self._synced.clear()
            self._synced.add(folder)
        return folder

    def _name(self, temp: Path, folder: Path, sop_instance_uid: str, sha256: str) -> Path:
        if not is_uid(sop_instance_uid):
            raise ValueError("no UID")
        # The first free name. A link, not a rename: it fails where the name is taken, so two processes that receive
        # the same UID at once can't replace each other's file.
        for name in (sop_instance_uid, f"{sop_instance_uid}.{sha256[:12]}", f"{sop_instance_uid}.{sha256}"):
            path = folder / f"{name}.dcm"
            try:
                os.link(temp, path)
                return path
            except FileExistsError:
                if _sha256_of_data_set(path) == sha256:
                    return path
        raise FileExistsError(errno.EEXIST, "all names are taken")


def _file_meta(identity: Identity, transfer_syntax_uid: str, calling_ae_title: str) -> bytes:
    """Preamble, prefix and file meta group (PS3.10 section 7.1), Explicit VR Little Endian."""
    elements = b"\x02\x00\x01\x00OB\0\0" + struct.pack("<L", 2) + b"\0\1"
    for number, vr, text in (
        (0x0002, b"UI", identity.sop_class_uid),
        (0x0003, b"UI", identity.sop_instance_uid),
        (0x0010, b"UI", transfer_syntax_uid),
        (0x0012, b"UI", IMPLEMENTATION_CLASS_UID),
        (0x0013, b"SH", IMPLEMENTATION_VERSION_NAME),
        (0x0016, b"AE", calling_ae_title),
    ):
        value = text.encode("ascii", "replace")
        if value:
            value += (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)
            elements += struct.pack("<HH2sH", 0x0002, number, vr, len(value)) + value
    return b"\0" * 128 + b"DICM" + struct.pack("<HH2sHL", 0x0002, 0, b"UL", 4, len(elements)) + elements


def _sha256_of_data_set(path: Path) -> str:
    with open(path, "rb") as file:
        head = file.read(144)
        if head[128:132] == b"DICM":
            file.seek(144 + struct.unpack_from("<L", head, 140)[0])
            return hashlib.file_digest(file, "sha256").hexdigest()
    return ""


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
