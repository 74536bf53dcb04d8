"""What the spool promises: on the disk before it says so, and no file ever replaced."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from service import codes
from service.errors import OutOfSpace
from service.intake.encoding import Identity, is_uid
from service.intake.spool import KeptFile, Spool
from tests.support import REPOSITORY, missing
from tests.unit.encoded import EXPLICIT, IDENTITY, data_set, encode


def keep(spool: Spool, data: bytes) -> KeptFile:
    return spool.keep(data, identity=IDENTITY, transfer_syntax_uid=EXPLICIT, calling_ae_title="SENDER")


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory / "spool")) for path in directory.rglob("*") if path.is_file())


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
    assert meta.ImplementationClassUID == codes.IMPLEMENTATION_CLASS_UID
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


def test_what_is_forgotten_is_gone_and_may_come_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 0)
    kept, other = keep(spool, b"one"), keep(spool, b"two")
    spool.forget(kept.path)
    spool.forget(kept.path)  # another was faster
    assert files(tmp_path) == [str(other.path.relative_to(tmp_path / "spool"))]
    assert keep(spool, b"one") == kept


def test_a_file_forgotten_while_it_is_compared_is_kept_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool, real_link = Spool(tmp_path, 0), os.link
    first = keep(spool, b"one")

    def link(temp: Path, path: Path) -> None:
        try:
            real_link(temp, path)
        except FileExistsError:
            spool.forget(path)
            raise

    monkeypatch.setattr(os, "link", link)
    again = keep(spool, b"one")
    assert again.path != first.path
    assert again.path.read_bytes().endswith(b"one")


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
