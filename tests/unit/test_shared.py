"""Memory that two processes see: the same bytes on both sides, and nothing left behind."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from service.backends import shared
from service.backends.shared import Block, sweep


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of names of this test's own, so that the blocks of a running service are not touched."""
    monkeypatch.setattr(shared, "_NAMED", tmp_path)
    yield tmp_path
    assert list(tmp_path.glob("overread-*")) == []


def test_another_process_sees_and_changes_the_same_bytes() -> None:
    block = Block.anonymous(3 * mmap.PAGESIZE)
    array = block.array((4, 8), offset=64)
    array[:] = np.arange(32, dtype=np.float32).reshape(4, 8)
    script = (
        "import sys; from service.backends.shared import Block\n"
        "array = Block(int(sys.argv[1]), int(sys.argv[2])).array((32,), offset=64)\n"
        "assert list(array) == list(range(32)), array\n"
        "array += 100"
    )
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", script, str(block.fd), str(block.size)]
    subprocess.run(command, pass_fds=[block.fd], check=True, cwd=root)
    np.testing.assert_array_equal(array.ravel(), np.arange(100, 132))
    assert block.address % mmap.PAGESIZE == 0
    assert array.ctypes.data == block.address + 64
    del array
    block.close()


def test_an_array_beyond_the_block_is_refused() -> None:
    block = Block.anonymous(4096)
    block.array((1024,))
    with pytest.raises(ValueError, match="buffer"):
        block.array((1025,))
    block.close()


def test_a_closed_block_holds_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    block = Block.anonymous(4096)
    assert len(os.listdir("/proc/self/fd")) > before
    array = block.array((2,))
    block.close()  # an array still lies in it: its memory stays as long as the array does
    array[:] = 7.0
    assert array.sum() == 14.0
    del array, block
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_named_block_is_opened_by_its_name_and_its_name_goes_with_it(names: Path) -> None:
    block = Block.named("lane-0", 8192)
    block.array((2,))[:] = (1.5, -2.0)
    file = names / block.name
    assert file.stat().st_mode & 0o777 == 0o600  # patients' images: nobody else's
    assert file.stat().st_size == 8192
    assert np.frombuffer(file.read_bytes(), np.float32)[:2].tolist() == [1.5, -2.0]
    block.close()
    assert not file.exists()


def test_two_blocks_of_one_label_are_refused(names: Path) -> None:
    block = Block.named("lane-0", 4096)
    with pytest.raises(FileExistsError):
        Block.named("lane-0", 4096)
    assert (names / block.name).exists()
    block.close()


def test_a_named_block_that_has_no_room_leaves_no_name(names: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError):  # noqa: PT011 (which of them, the file system says)
        Block.named("lane-0", 2**62)
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_killed_services_left_is_swept_and_nothing_else(names: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead, other = names / f"overread-{gone.pid}-lane-0", names / "somebody-else-1"
    for file in (dead, other):
        file.touch()
    block = Block.named("lane-0", 4096)
    sweep()
    assert {file.name for file in names.iterdir()} == {block.name, other.name}
    block.close()
