"""Pixels that crash, hang or lose what decodes them cost a process that does nothing else."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from service import decoding
from service.decoding import frames
from service.errors import DecoderLost, Undecodable
from tests.support import REPOSITORY
from tests.toys import bright_study
from tests.transcoded import JPEG_2000, JPEG_LOSSLESS, JPEG_LS, belie, transcode

SYNTAXES = {JPEG_LOSSLESS: "1.2.840.10008.1.2.4.70", JPEG_LS: "1.2.840.10008.1.2.4.80"}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    bright_study(tmp_path)
    return sorted(tmp_path.iterdir())[:4]


@pytest.fixture(autouse=True)
def decoders(monkeypatch: pytest.MonkeyPatch) -> Iterator[decoding._Decoders]:
    made = decoding._Decoders()
    monkeypatch.setattr(decoding, "_decoders", made)
    yield made
    made.end()


def _pid(decoders: decoding._Decoders) -> int:
    (pid,) = decoders.pids()
    assert pid
    return pid


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_damaged_pixels_take_no_process_of_ours_along(syntax: int, files: list[Path]) -> None:
    wanted = [dcmread(path).pixel_array for path in files]
    for path in files:
        transcode(path, syntax)
    belie(files[1], syntax)
    for path, pixels in zip(files, wanted, strict=True):
        if path == files[1]:
            with pytest.raises(Undecodable, match="crashes on them"):
                list(frames(path, SYNTAXES[syntax]))
        else:
            np.testing.assert_array_equal(list(frames(path, SYNTAXES[syntax])), [pixels])


def test_what_the_codec_itself_refuses_is_said_by_its_name(files: list[Path]) -> None:
    transcode(files[0], JPEG_2000)
    damaged = dcmread(files[0])
    damaged.Rows = 7
    damaged.save_as(files[0])
    with pytest.raises(Undecodable, match="Error"):
        list(frames(files[0], "1.2.840.10008.1.2.4.90"))


def test_one_process_decodes_file_after_file(files: list[Path], decoders: decoding._Decoders) -> None:
    pids = set()
    for path in files:
        transcode(path, JPEG_LS)
        list(frames(path, SYNTAXES[JPEG_LS]))
        pids.add(_pid(decoders))
    assert len(pids) == 1


def test_several_are_asked_at_the_same_time_and_no_more_than_may(
    files: list[Path], decoders: decoding._Decoders
) -> None:
    for path in files:
        transcode(path, JPEG_LS)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda path: list(frames(path, SYNTAXES[JPEG_LS])), files * 6):
            assert found[0].shape == found[0].shape
    assert 1 <= len(decoders._idle) <= decoding._MOST
    assert decoders._lent == []


def test_one_that_somebody_ends_while_it_is_idle_is_replaced(files: list[Path], decoders: decoding._Decoders) -> None:
    transcode(files[0], JPEG_LS)
    list(frames(files[0], SYNTAXES[JPEG_LS]))
    os.kill(_pid(decoders), signal.SIGKILL)
    decoders._idle[0]._process.join(10)
    assert len(list(frames(files[0], SYNTAXES[JPEG_LS]))) == 1


def test_one_that_somebody_ends_at_its_work_is_no_fault_of_the_image(
    files: list[Path], decoders: decoding._Decoders
) -> None:
    transcode(files[0], JPEG_LS)
    list(frames(files[0], SYNTAXES[JPEG_LS]))
    pid = _pid(decoders)
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(0.5, os.kill, (pid, signal.SIGKILL)).start()
    with pytest.raises(DecoderLost, match="was ended") as caught:
        list(frames(files[0], SYNTAXES[JPEG_LS]))
    assert caught.value.retry


def test_one_that_hangs_is_ended(
    files: list[Path], decoders: decoding._Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    transcode(files[0], JPEG_LS)
    list(frames(files[0], SYNTAXES[JPEG_LS]))
    pid = _pid(decoders)
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(decoding, "_SECONDS", 0.2)
    with pytest.raises(Undecodable, match="no end after"):
        list(frames(files[0], SYNTAXES[JPEG_LS]))
    assert not Path(f"/proc/{pid}").exists()


def test_one_whose_answer_was_not_read_to_its_end_is_asked_nothing_more(
    files: list[Path], decoders: decoding._Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in files:
        transcode(path, JPEG_LS)
    list(frames(files[0], SYNTAXES[JPEG_LS]))
    pid, receive = _pid(decoders), Connection._recv  # type: ignore[attr-defined]

    def too_much(self: Connection, size: int, *more: Any) -> Any:
        if size > 1000:
            raise MemoryError
        return receive(self, size, *more)

    monkeypatch.setattr(Connection, "_recv", too_much)
    with pytest.raises(DecoderLost):
        list(frames(files[1], SYNTAXES[JPEG_LS]))
    monkeypatch.setattr(Connection, "_recv", receive)
    assert not Path(f"/proc/{pid}").exists()
    np.testing.assert_array_equal(list(frames(files[2], SYNTAXES[JPEG_LS])), [dcmread(files[2]).pixel_array])


def test_one_that_can_not_be_started_is_no_fault_of_the_image(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(self: decoding._Decoder) -> None:
        raise OSError(errno.EAGAIN, "no more processes")

    transcode(files[0], JPEG_LS)
    monkeypatch.setattr(decoding._Decoder, "__init__", no_more)
    with pytest.raises(DecoderLost, match="EAGAIN"):
        list(frames(files[0], SYNTAXES[JPEG_LS]))


@pytest.mark.parametrize("compressed", [False, True])
def test_a_disk_that_gives_nothing_now_is_no_fault_of_the_image(compressed: bool, tmp_path: Path) -> None:
    syntax = SYNTAXES[JPEG_LS] if compressed else "1.2.840.10008.1.2.1"
    with pytest.raises(DecoderLost, match="EISDIR"):  # an errno that a test can have
        list(frames(tmp_path, syntax))
    with pytest.raises(Undecodable, match="FileNotFoundError"):
        list(frames(tmp_path / "gone", syntax))


def test_what_decodes_when_the_service_stops_is_not_waited_for(files: list[Path], decoders: decoding._Decoders) -> None:
    transcode(files[0], JPEG_LS)
    list(frames(files[0], SYNTAXES[JPEG_LS]))
    os.kill(_pid(decoders), signal.SIGSTOP)
    threading.Timer(0.5, decoding.end).start()
    with pytest.raises(DecoderLost):
        list(frames(files[0], SYNTAXES[JPEG_LS]))


def test_none_is_left_when_the_service_is_killed(files: list[Path]) -> None:
    transcode(files[0], JPEG_LS)
    program = (
        "import sys, time; from pathlib import Path; from service import decoding\n"
        "if __name__ == '__main__':\n"
        f"    list(decoding.frames(Path(sys.argv[1]), '{SYNTAXES[JPEG_LS]}'))\n"
        "    print(decoding.pids()[0], flush=True); time.sleep(60)\n"
    )
    script = files[0].with_name("program.py")
    script.write_text(program)
    with subprocess.Popen(
        [sys.executable, str(script), str(files[0])],
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    ) as service:
        assert service.stdout
        pid = int(service.stdout.readline())
        service.kill()
    until = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
