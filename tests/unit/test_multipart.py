"""A multipart body in pieces of any size is the same parts; what is malformed or too large is a problem."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from service.api.multipart import Part, parts_of
from service.api.problems import Problem
from tests.apis import multipart

_MIB = 1 << 20


def read(
    body: bytes, size: int, *, boundary: str = "limit", part: int = _MIB, whole: int = _MIB
) -> tuple[list[Part], int]:
    """The parts of a body that comes in pieces of that size, and how much of it was asked for."""
    asked = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal asked
        for at in range(0, len(body), size):
            asked = at + size
            yield body[at : at + size]

    async def collect() -> list[Part]:
        parts = parts_of(pieces(), boundary, maximum_part_bytes=part, maximum_bytes=whole)
        return [part async for part in parts]

    try:
        return asyncio.run(collect()), asked
    except Problem as exc:
        exc.asked = asked  # type: ignore[attr-defined]
        raise


@pytest.mark.parametrize("size", [1, 2, 7, 31, 1000, _MIB])
@pytest.mark.parametrize("lead", [b"", b"\r\n"])
def test_parts_are_the_same_in_pieces_of_any_size(size: int, lead: bytes) -> None:
    dice = random.Random(3)
    contents = [
        dice.randbytes(3000) + b"\r\n--limi" * 5 + b"\r\n\r\n-",
        b"",
        b"\r\n",
        b"--limit--",
        dice.randbytes(257) + b"\r",
    ]
    body = lead + multipart(*contents) + b"what follows is nothing"
    parts, _ = read(body, size)
    assert [part.content for part in parts] == contents
    assert {part.media_type for part in parts} == {"application/dicom"}


@pytest.mark.parametrize("size", [1, 10, 1000])
def test_a_body_is_not_read_beyond_its_limit(size: int) -> None:
    body = multipart(bytes(40_000), bytes(40_000))
    with pytest.raises(Problem) as caught:
        read(body, size, whole=50_000)
    assert caught.value.status == 413
    assert "maximum_body_mib" in caught.value.parts["rule"]
    assert caught.value.asked <= 50_000 + size  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [1, 10, 1000])
def test_a_part_is_not_held_beyond_its_limit(size: int) -> None:
    with pytest.raises(Problem) as caught:
        read(multipart(bytes(100), bytes(40_000)), size, part=20_000)
    assert caught.value.status == 413
    assert "maximum_instance_mib" in caught.value.parts["rule"]
    assert caught.value.asked <= 20_400 + size  # type: ignore[attr-defined]


def test_a_body_ends_with_its_last_boundary_whatever_follows_or_not() -> None:
    body = multipart(b"a").removesuffix(b"\r\n")
    assert body.endswith(b"--")
    for end in (b"", b"\r\n", b"\r\nepilogue"):
        assert [part.content for part in read(body + end, 3)[0]] == [b"a"]


def test_limits_are_inclusive() -> None:
    body = multipart(bytes(1000))
    assert len(read(body, 10, part=1000, whole=len(body))[0]) == 1


@pytest.mark.parametrize("boundary", ["", "b" * 201, "gr\u00fc\u00df", "a\r\nb"])
def test_a_boundary_that_may_not_be_is_refused(boundary: str) -> None:
    with pytest.raises(Problem) as caught:
        read(b"", 1, boundary=boundary)
    assert caught.value.status == 400
