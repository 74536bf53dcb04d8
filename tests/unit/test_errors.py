"""The error tree is the one that is drawn, and each error tells its four parts."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from service import errors
from service.analysis.select import NoSeriesFits
from service.codes import status_may_pass, status_word
from service.errors import ServiceError

CLASSES = {name: it for name, it in vars(errors).items() if inspect.isclass(it) and issubclass(it, ServiceError)}
PARTS = {"doing": "reading a thing", "found": "nothing", "rule": "there is something", "way_out": "put it there"}
ASKED = frozenset({"AssociationRejected", "InstanceRefused"})  # told at each raise whether it may pass


def _drawn() -> dict[str, tuple[str, str]]:
    """By class, the parent and the words of the tree in the module's docstring."""
    found: dict[str, tuple[str, str]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^    ([│├└─ ]*)([A-Z]\w+)\s*(.*)$", line)
        if match:
            depth = len(match[1]) // 4
            path[depth:] = [match[2]]
            found[match[2]] = (path[depth - 1] if depth else "Exception", match[3])
    return found


def _make(cls: type[ServiceError]) -> ServiceError:
    more: dict[str, Any] = {"retry": True} if cls.__name__ in ASKED else {}
    return cls(**PARTS, **more)


def test_the_tree_drawn_is_the_tree_of_classes() -> None:
    assert {name: parent for name, (parent, _) in _drawn().items()} == {
        name: cls.__mro__[1].__name__ for name, cls in CLASSES.items()
    }


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_an_error_tells_four_parts_and_whether_to_try_again(name: str) -> None:
    error = _make(CLASSES[name])
    assert error.parts() == PARTS
    assert all(part in str(error) for part in PARTS.values())
    words = _drawn()[name][1]
    assert error.retry is (words.startswith("retry") or name in ASKED)
    if name not in ASKED:
        assert ("retry" in words) is error.retry
    drawn = re.match(r"[0-9A-F]{4}\b", words)
    if drawn:
        assert error.status == int(drawn[0], 16)


@pytest.mark.parametrize("name", sorted(ASKED))
@pytest.mark.parametrize("retry", [True, False])
def test_a_peers_no_may_pass_or_not(name: str, retry: bool) -> None:
    more: dict[str, Any] = {"retry": retry}
    assert CLASSES[name](**PARTS, **more).retry is retry
    assert CLASSES[name].retry is False, "one error must not change the others"


def test_a_part_left_out_is_refused() -> None:
    with pytest.raises(TypeError):
        ServiceError(doing="a", found="b", rule="c")  # type: ignore[call-arg]


def test_no_series_fits_is_a_study_that_no_model_takes() -> None:
    error = NoSeriesFits(**PARTS, excluded=())
    assert isinstance(error, errors.NoModelApplies)
    assert error.retry is False


@pytest.mark.parametrize(
    ("status", "word", "passes"),
    [
        (0x0000, "Success", False),
        (0xA700, "out of resources", True),
        (0xA701, "out of resources", True),
        (0xA9FF, "does not match", False),
        (0xC000, "cannot understand", False),
        (0xC123, "cannot understand", False),
        (0x0122, "SOP class not supported", False),
        (0xB006, "elements discarded", False),
        (0x4242, "Unknown", False),
        (0x0119, "Unknown", False),  # of another service: not a kind of Success
    ],
)
def test_a_status_has_the_standards_words(status: int, word: str, passes: bool) -> None:
    assert word in status_word(status)
    assert status_may_pass(status) is passes
