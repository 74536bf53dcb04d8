"""The tests of one process share the package: to import one of them must leave it as it is."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator

import tests


def _put_there_by_tests() -> Iterator[str]:
    """Name each function of the package that is defined in the tests."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] != "service":
            continue
        classes = [it for it in vars(module).values() if isinstance(it, type) and it.__module__ == name]
        for holder in (module, *classes):
            for key, value in list(vars(holder).items()):
                if (getattr(value, "__module__", None) or "").startswith("tests."):
                    yield f"{holder}: {key}"


def test_importing_the_tests_changes_nothing_of_the_service() -> None:
    for module in pkgutil.walk_packages(tests.__path__, "tests."):
        importlib.import_module(module.name)
    assert list(_put_there_by_tests()) == []
