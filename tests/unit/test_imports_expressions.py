"""A bundle's references and expressions are worked out without running any of its code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.imports.expressions import Configuration
from service.imports.refusal import Unmappable

CONTENT: dict[str, Any] = {
    "root": ".",
    "size": [96, 96, 64],
    "highres": False,
    "display": {"overlap": 0.25, "steps": [{"name": "first"}, {"name": "second"}]},
    "window": "@size",
    "loop": "@loop2",
    "loop2": "$@loop + 1",
    "ring": "@ring2",
    "ring2": "@ring",
}


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("@size", [96, 96, 64]),
        ("@window", [96, 96, 64]),
        ("%size", [96, 96, 64]),
        ("@size#2", 64),
        ("@display::overlap", 0.25),
        ("@display#steps#1#name", "second"),
        ("$[0.1] * 3", [0.1, 0.1, 0.1]),
        ("$@root + '/models'", "./models"),
        ("$@size[0] // 2 - 1", 47),
        ("$-(@display#overlap) / 2", -0.125),
        ("$[1.5] * 3 if @highres else [3.0, 3.0, 3.0]", [3.0, 3.0, 3.0]),
        ("$not @highres and @size#0 >= 96", True),
        (["@highres", {"of": "$1 + 1"}], [False, {"of": 2}]),
        ("plain @size text", "plain @size text"),
        (7, 7),
    ],
)
def test_references_and_simple_expressions_have_the_value_that_MONAI_gives_them(raw: Any, value: Any) -> None:
    assert Configuration(CONTENT).resolve(raw) == value


@pytest.mark.parametrize(
    "expression",
    [
        "$__import__('os').system('touch {proof}')",
        "$open('{proof}', 'w')",
        "$[].__class__.__base__.__subclasses__()",
        "$(lambda: open('{proof}', 'w'))()",
        "$[open('{proof}', 'w') for _ in [1]]",
        '$f\'{{open("{proof}", "w")}}\'',
        "$@size.clear()",
        "$import os",
        "$9 ** 9 ** 9",
        "$'a' * 1000000000",
        "$'%1000000000d' % 1",
        "$[0] * 1000000000",
        "$((((1",
        "$1 / 0",
        "$" + "(" * 400 + "1" + ")" * 400,
        "$" + "1 + " * 500 + "1",
        "$[" + "1, " * 400 + "]",
        "$b'bytes'",
        "@nothing",
        "@size#9",
        "@size#first",
        "@loop",
        "@ring",
        "%other.json#size",
    ],
)
def test_what_is_no_simple_expression_is_refused_and_not_run(expression: str, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    with pytest.raises(Unmappable):
        Configuration(CONTENT).resolve(expression.replace("{proof}", str(proof)))
    assert not proof.exists()


def test_what_nobody_asks_for_is_not_worked_out() -> None:
    configuration = Configuration({**CONTENT, "device": "$torch.device('cuda:0')", "inner": {"of": "@device"}})
    assert configuration.resolve("@inner", deep=False) == {"of": "@device"}
    with pytest.raises(Unmappable, match=r"torch\.device.*code, which is not run"):
        configuration.resolve("@inner")
