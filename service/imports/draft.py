"""A model folder from what an import found: ``model.toml`` with the origin of each value, the networks, a card."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from service.files import Frozen
from service.imports.refusal import CannotImport
from service.imports.weights import Weights
from service.install import install
from service.spec import ModelSpec, Source, read_spec

_TABLES = ("source", "select", "findings")
_LISTS = ("stages", "classes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What an import found."""

    fields: Mapping[str, Any]  # of `ModelSpec`, all but the source
    origin: Mapping[str, str]  # of these, by key ("stages.overlap"): where the value comes from
    source: str  # in words
    weights: Sequence[Weights]  # of each network: the model's own first, then the ensemble's
    notes: tuple[str, ...]  # what Overread does otherwise than the model's makers
    card: str  # what their files say of it, in Markdown


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an import made."""

    folder: Path
    spec: ModelSpec
    notes: tuple[str, ...]  # for whoever imported it


def publish(draft: Draft, directory: Path, *, replace: bool) -> Imported:
    """Write the model folder and put it into the models directory, whole or not at all.

    Raises
    ------
    ConfigError
        If what was found makes no model, or a folder of that name is there and `replace` is not asked for.
    ContractBroken
        If a network is not what ``model.toml`` says.
    """
    name = str(draft.fields["name"])
    ensemble = [f"{name}-{number}" for number in range(1, len(draft.weights))]
    with tempfile.TemporaryDirectory(prefix="overread-import-") as scratch:
        digests = {}
        for network, weights in zip([name, *ensemble], draft.weights, strict=True):
            version = Path(scratch) / network / "1"
            version.mkdir(parents=True)
            weights.write(version / "model.onnx")
            digests[network] = hashlib.sha256((version / "model.onnx").read_bytes()).hexdigest()
        spec = _spec(draft, ensemble, digests)
        folder = Path(scratch) / name
        (folder / "model.toml").write_text(_toml(spec, draft), "utf-8")
        (folder / "card.md").write_text(_card(spec, draft), "utf-8")
        if read_spec(folder) != spec:
            raise AssertionError("model.toml does not say what was written into it")
        install(directory, str(folder), replace=replace)
    return Imported(folder=directory / name, spec=spec, notes=draft.notes)


def _spec(draft: Draft, ensemble: Sequence[str], digests: Mapping[str, str]) -> ModelSpec:
    fields = dict(draft.fields)
    if ensemble:
        fields["stages"] = [{**fields["stages"][0], "ensemble": tuple(ensemble)}]
    try:
        return ModelSpec(**fields, source=Source(words=draft.source, onnx_sha256=dict(digests)))
    except ValidationError as exc:
        found = "; ".join(f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in exc.errors())
        raise CannotImport(
            doing=f"describing {fields['name']}",
            found=found,
            rule="a model is what `overread models` can describe in model.toml",
            way_out="correct the options named here; what the model's own files say can't be run here",
        ) from exc


def _toml(spec: ModelSpec, draft: Draft) -> str:
    return "\n".join(_lines(spec, draft.origin)) + "\n"


def _lines(spec: ModelSpec, origin: Mapping[str, str]) -> Iterator[str]:
    yield "# Written by `overread models import`; behind each value, where it comes from."
    yield "# Correct here what is not so: the next import of this model starts afresh."
    fields = _set(spec)
    yield from (_line(key, value, origin.get(key)) for key, value in fields.items() if key not in _TABLES + _LISTS)
    for key in (*_TABLES[:2], *_LISTS, _TABLES[2]):
        for value in fields.get(key, ()) if key in _LISTS else [fields[key]] if key in fields else []:
            yield f"\n[[{key}]]" if key in _LISTS else f"\n[{key}]"
            yield from (_line(inner, one, origin.get(f"{key}.{inner}")) for inner, one in _set(value).items())


def _set(value: Frozen) -> dict[str, Any]:
    """The fields that were given; the others have their defaults, which model.toml need not say."""
    return {key: getattr(value, key) for key in type(value).model_fields if key in value.model_fields_set}


def _line(key: str, value: Any, origin: str | None) -> str:
    return f"{key} = {_value(value)}" + (f"  # {one_line(origin)}" if origin else "")


def _value(value: Any) -> str:
    """A value in TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Frozen):
        return "{ " + ", ".join(f"{key} = {_value(one)}" for key, one in _set(value).items() if one is not None) + " }"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_value(key)} = {_value(one)}" for key, one in value.items()) + " }"
    return "[" + ", ".join(_value(one) for one in value) + "]"


def _card(spec: ModelSpec, draft: Draft) -> str:
    notes = "\n".join(f"- {note}" for note in draft.notes)
    digests = "\n".join(f"- {network}: {digest}" for network, digest in spec.source.onnx_sha256.items())
    return (
        f"# {spec.title}\n\n"
        f"Version {spec.version}, by {spec.manufacturer}, licence {spec.licence}. Brought in by `overread models "
        f"import`: {draft.source}.\n\n"
        "**Nobody has tried it in Overread on images whose answer is known.** Do that before anybody reads its "
        "results: what its makers measured, they measured with their own software, on their own images.\n\n"
        f"## What its makers say of intended use and data\n\n{draft.card}\n\n"
        f"## Limits, and what Overread does otherwise\n\n{notes}\n\n"
        f"## Weights\n\nSHA-256 of the ONNX files, as they lie here:\n\n{digests}\n"
    )


def one_line(text: object) -> str:
    """A text of a foreign file in one line, for a comment or a list."""
    return "".join(letter if letter.isprintable() else " " for letter in " ".join(str(text).split()))
