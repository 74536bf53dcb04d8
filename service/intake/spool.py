"""[edge: disk] What came in, kept on disk: temp file, fsync, link, fsync.

It promises that a file which `Spool.keep` has returned is on the disk under its final name with the bytes that were
received, also after a power cut, and that no file is ever replaced; only `Spool.forget` takes one away. It does not
look into the bytes; `encoding.identify` does.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from service import faults
from service.codes import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from service.errors import OutOfSpace
from service.files import make_folder, sync_folder
from service.intake.encoding import Identity, is_uid

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_LEFT_OVER_SECONDS = 600.0  # a data set is written from memory in seconds; a temp file older than this has no writer


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFile:
    """A file in the spool."""

    path: Path
    sha256: str  # of the data set's bytes, without the file meta group


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
        make_folder(self._incoming)
        # The study folders whose names are durable, as of the time (ns) at which one was last made or removed.
        self._synced, self._synced_at = set[Path](), 0
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
        try:
            return self._keep(meta, data, identity, sha256)
        except FileNotFoundError:  # retention took the study's folder away meanwhile: it is made anew
            return self._keep(meta, data, identity, sha256)

    def _keep(self, meta: bytes, data: bytes, identity: Identity, sha256: str) -> KeptFile:
        temp = self._incoming / uuid.uuid4().hex
        try:
            folder = self._study_folder(identity.study_instance_uid)
            try:
                with open(temp, "xb") as file:
                    file.write(meta)
                    file.write(data)
                    file.flush()
                    faults.point("spool.written")
                    os.fsync(file.fileno())
                faults.point("spool.fsynced")
                path = self._name(temp, folder, identity.sop_instance_uid, sha256)
                faults.point("spool.linked")
            finally:
                temp.unlink(missing_ok=True)
            sync_folder(folder)  # also where the file was there already: its writer may not have come so far
            faults.point("spool.kept")
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

    def forget(self, path: Path) -> None:
        """Remove a kept file that no row names. After a crash it may be there again, which harms nothing."""
        path.unlink(missing_ok=True)

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
        with suppress(FileExistsError):
            folder.mkdir()
        # Each process does the fsync itself, for the one that made the folder may not have come to it. It does so once,
        # until a folder is made or removed: it might be this one, removed and made again by another process.
        changed_at = self._directory.stat().st_mtime_ns
        with self._lock:
            if changed_at == self._synced_at and folder in self._synced:
                return folder
        sync_folder(self._directory)
        with self._lock:
            if changed_at != self._synced_at:
                self._synced, self._synced_at = set(), changed_at
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
    """In hexadecimal digits; empty where the file is none of ours, or was forgotten a moment ago."""
    with suppress(FileNotFoundError), open(path, "rb") as file:
        head = file.read(144)
        if head[128:132] == b"DICM":
            file.seek(144 + struct.unpack_from("<L", head, 140)[0])
            return hashlib.file_digest(file, "sha256").hexdigest()
    return ""
