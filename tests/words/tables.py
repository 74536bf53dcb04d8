"""The pages' reference tables and the models' schema, from the code. ``python -m tests.words.tables`` writes them."""

from __future__ import annotations

import json
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from service import metrics
from service.config import Config
from service.spec import FindingClass, FindingRules, JudgementRules, ModelSpec, Select, Source
from service.stage import Intensity, Smooth, Stage, Tensor, Within
from tests.support import REPOSITORY

PAGES = (REPOSITORY / "README.md", REPOSITORY / "models" / "README.md")
SCHEMA = REPOSITORY / "models" / "model.schema.json"
_MARK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

PURPOSES = {
    "dbos": "durable workflows and queues: what was begun is finished, after any crash",
    "fastapi": "the HTTP API and its OpenAPI description",
    "h5py": "reads the Keras weights of the liver networks, when they are installed",
    "highdicom": "volumes, Segmentation and TID 1500 reports by the standard",
    "numpy": "arrays",
    "onnx": "writes the networks' files, when they are installed",
    "onnxruntime-gpu": "runs the networks, on CUDA or the CPU",
    "packaging": "knows the licences' identifiers (SPDX), when a model is judged",
    "pillow": "draws the pictures of findings",
    "prometheus-client": "counts, and the exposition format",
    "pydantic": "the typed configuration and model.toml",
    "pydicom": "reads and writes DICOM",
    "pynetdicom": "DICOM associations, both as SCP and SCU",
    "python-gdcm": "decodes compressed pixel data (JPEG, JPEG-LS, JPEG 2000, RLE)",
    "rich": "progress bars and tables of the command line",
    "scipy": "filters, components, distances, sparse matrices",
    "sqlalchemy": "the state, on SQLite or PostgreSQL",
    "tritonclient[grpc]": "speaks to a Triton server, where networks run on one",
    "uvicorn": "serves the API",
}


def tables() -> dict[str, str]:
    """All tables by name, as Markdown."""
    return {
        "settings": _settings(),
        "model": _model_table(ModelSpec, ""),
        "source": _model_table(Source, "source."),
        "select": _model_table(Select, "select."),
        "stage": _model_table(Stage, "stages."),
        "tensor": _model_table(Tensor, "stages.input."),
        "intensity": _model_table(Intensity, "stages.intensity."),
        "within": _model_table(Within, "stages.within."),
        "smooth": _model_table(Smooth, "stages.smooth."),
        "classes": _model_table(FindingClass, "classes."),
        "findings": _model_table(FindingRules, "findings."),
        "judgement": _model_table(JudgementRules, "judgement."),
        "metrics": _metrics(),
        "dependencies": _dependencies(),
    }


def filled(text: str) -> str:
    """A page's text with all its tables made anew."""
    made = tables()
    return _MARK.sub(lambda match: f"{match[1]}{made[match[2]]}\n{match[3]}", text)


def schema() -> str:
    """The JSON schema of ``model.toml``."""
    made = {"$schema": "https://json-schema.org/draft/2020-12/schema", **ModelSpec.model_json_schema()}
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


def _settings() -> str:
    rows = []
    for section, field in Config.model_fields.items():
        for key, about in _section_of(field).model_fields.items():
            name = f"[[{section}]]" if typing.get_origin(field.annotation) is tuple else f"[{section}]"
            rows.append((f"`{name}` `{key}`", _default(about), _sentence(about.description)))
            if isinstance(about.annotation, type) and issubclass(about.annotation, BaseModel):  # a table in the table
                for inner, said in about.annotation.model_fields.items():
                    rows.append((f"`{name}` `{key}.{inner}`", _default(said), _sentence(said.description)))
    return _markdown(("setting", "default", "what it means"), rows)


def _section_of(field: FieldInfo) -> type[BaseModel]:
    annotation: Any = field.annotation
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    raise AssertionError(field)


def _model_table(model: type[BaseModel], prefix: str) -> str:
    rows = []
    for key, about in model.model_fields.items():
        if about.description:
            rows.append((f"`{prefix}{key}`", _default(about), _sentence(about.description)))
        else:
            rows.append((f"`{prefix}{key}`", _default(about), _docstring(about)))
    return _markdown(("key", "default", "what it means"), rows)


def _docstring(field: FieldInfo) -> str:
    annotation: Any = field.annotation
    found: list[Any] = [annotation, *typing.get_args(annotation)]
    for candidate in found:
        if isinstance(candidate, type) and not isinstance(candidate, types.GenericAlias):
            return _sentence(candidate.__doc__)
    raise AssertionError(f"{field} has neither a description nor a documented type")


def _metrics() -> str:
    known = {collector.name: collector for collector in REGISTRY.collect() if collector.name.startswith("overread_")}
    gauges = {gauge.name: gauge for gauge in metrics.StateGauges({}, {}).collect()}
    rows = []
    for name, family in sorted({**known, **gauges}.items()):
        suffix = "_total" if family.type == "counter" else ""
        rows.append((f"`{name}{suffix}`", family.type, family.documentation))
    return _markdown(("metric", "type", "what it counts"), rows)


def _dependencies() -> str:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    pinned = dict(entry.split("==") for entry in project["dependencies"])
    return _markdown(
        ("library", "version", "what it is for"),
        [(f"`{name}`", version, PURPOSES[name]) for name, version in sorted(pinned.items())],
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "(required)"
    default = field.get_default(call_default_factory=True)
    if isinstance(default, Path):
        return f"`{default}`"
    if isinstance(default, BaseModel):
        return ""
    if isinstance(default, tuple):
        return f"`{list(default)}`".replace("'", '"')
    if default is None:
        return "none"
    return f'`"{default}"`' if isinstance(default, str) else f"`{default}`"


def _sentence(text: str | None) -> str:
    assert text
    return " ".join(text.split()).replace("|", "\\|")


def _markdown(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    return "\n".join(_lines(head, rows))


def _lines(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text("utf-8")), "utf-8")
    SCHEMA.write_text(schema(), "utf-8")
