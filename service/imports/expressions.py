"""A bundle's configuration, read without running it.

MONAI resolves ``"@id"`` (another item), ``"%id"`` (a copy of its text) and ``"$..."`` (Python, by ``eval``). Here the
last are parsed, and only arithmetic, comparisons, choices, lists and references are worked out: a bundle is a file from
outside, and importing it must not be a way to run its code.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from service.imports.refusal import Unmappable

_REFERENCE = re.compile(r"@(\w+(?:(?:#|::)\w+)*)")
_PLACE = "reference_{}"
_LONGEST = 1000  # characters of an expression, and elements of a list that one makes
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Not: operator.not_,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class Configuration:
    """A bundle's configuration file.

    Parameters
    ----------
    content
        The file, as JSON gives it.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = content

    def __contains__(self, key: str) -> bool:
        return key in self._content

    def item(self, key: str) -> Any:
        """An item of the file's top level as it stands there; None if there is none."""
        return self._content.get(key)

    def resolve(self, raw: Any, *, deep: bool = True) -> Any:
        """The value of what stands in the file.

        Parameters
        ----------
        deep
            Whether the items of a list or an object are resolved too; else they stay as they stand there.

        Raises
        ------
        Unmappable
            If it is an expression that is not simple, or refers to nothing or to itself.
        """
        return self._resolve(raw, (), deep)

    def _resolve(self, raw: Any, trail: tuple[str, ...], deep: bool) -> Any:
        if isinstance(raw, str):
            return self._resolve_text(raw, trail, deep)
        if deep and isinstance(raw, list):
            return [self._resolve(item, trail, deep) for item in raw]
        if deep and isinstance(raw, dict):
            return {key: self._resolve(item, trail, deep) for key, item in raw.items()}
        return raw

    def _resolve_text(self, text: str, trail: tuple[str, ...], deep: bool) -> Any:
        if text.startswith("$"):
            return self._evaluate(text[1:], trail)
        whole = _REFERENCE.fullmatch("@" + text[1:]) if text[:1] in ("@", "%") else None
        if whole:
            return self._refer(whole[1], trail, deep)
        if text.startswith("%"):
            raise Unmappable(f"{text!r} refers to another file")
        return text

    def _refer(self, reference: str, trail: tuple[str, ...], deep: bool) -> Any:
        if reference in trail:
            raise Unmappable(f"@{reference} refers to itself")
        found: Any = self._content
        trail = (*trail, reference)
        for part in re.split("#|::", reference):
            found = self._resolve(found, trail, False)
            if isinstance(found, dict) and part in found:
                found = found[part]
            elif isinstance(found, list) and part.isdigit() and int(part) < len(found):
                found = found[int(part)]
            else:
                raise Unmappable(f"@{reference} refers to nothing in the file")
        return self._resolve(found, trail, deep)

    def _evaluate(self, expression: str, trail: tuple[str, ...]) -> Any:
        if len(expression) > _LONGEST:
            raise Unmappable("an expression is too long to be a simple one")
        references: dict[str, str] = {}

        def place(match: re.Match[str]) -> str:
            name = _PLACE.format(len(references))
            references[name] = match[1]
            return name

        replaced = _REFERENCE.sub(place, expression)
        try:
            tree = ast.parse(replaced.strip(), mode="eval")
            return self._node(tree.body, references, trail)
        except (SyntaxError, RecursionError, MemoryError, ValueError, TypeError, ArithmeticError, LookupError) as exc:
            raise Unmappable(f"the expression ${expression} can't be worked out") from exc
        except _NotSimple as exc:
            raise Unmappable(f"the expression ${expression} is code, which is not run ({exc})") from exc

    def _node(self, node: ast.expr, references: Mapping[str, str], trail: tuple[str, ...]) -> Any:
        def of(inner: ast.expr) -> Any:
            return self._node(inner, references, trail)

        match node:
            case ast.Constant(value=bool() | int() | float() | str() | None):
                return node.value
            case ast.Name(id=name) if name in references:
                return self._refer(references[name], trail, True)
            case ast.List() | ast.Tuple():
                return [of(item) for item in node.elts]
            case ast.UnaryOp() if type(node.op) in _UNARY:
                return _UNARY[type(node.op)](of(node.operand))
            case ast.BinOp() if type(node.op) in _BINARY:
                left, right = of(node.left), of(node.right)
                _sensible(node.op, left, right)
                return _BINARY[type(node.op)](left, right)
            case ast.Compare(ops=[known], comparators=[other]) if type(known) in _COMPARE:
                return _COMPARE[type(known)](of(node.left), of(other))
            case ast.BoolOp(op=ast.And()):
                return all(of(item) for item in node.values)
            case ast.BoolOp(op=ast.Or()):
                return any(of(item) for item in node.values)
            case ast.IfExp():
                return of(node.body) if of(node.test) else of(node.orelse)
            case ast.Subscript():
                return of(node.value)[of(node.slice)]
        raise _NotSimple(type(node).__name__)


class _NotSimple(Exception):
    """A piece of Python that an expression may not have."""


def _sensible(known: ast.operator, left: Any, right: Any) -> None:
    """Numbers with numbers, lists and texts with their like, a list times a small number: nothing that grows."""
    if all(isinstance(side, int | float) for side in (left, right)):
        return
    if isinstance(known, ast.Add) and type(left) is type(right) and isinstance(left, str | list):
        return
    repeats = isinstance(known, ast.Mult) and isinstance(left, list) and isinstance(right, int)
    if repeats and len(left) * right <= _LONGEST:
        return
    raise _NotSimple(f"{type(left).__name__} and {type(right).__name__}")
