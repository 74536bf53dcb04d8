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

import yaml
from prometheus_client import REGISTRY
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import service.metrics  # noqa: F401 - its counters are looked at
from service.config import Config
from service.snapshot import StateGauges
from service.spec import FindingClass, FindingRules, JudgementRules, ModelSpec, Select, Source
from service.stage import Intensity, Smooth, Stage, Tensor, Within
from tests.snapshots import snapshot
from tests.support import REPOSITORY

PAGES = tuple(REPOSITORY / name for name in ("README.md", "models/README.md", "deploy/README.md"))
SCHEMA = REPOSITORY / "models" / "model.schema.json"
_MARK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

PURPOSES = {
    "alembic": "brings an older database's tables to what this version knows",
    "cryptography": "reads certificates: when they end, whose they are",
    "fastapi": "the HTTP API and its OpenAPI description",
    "h5py": "reads the Keras weights of the liver networks, when they are installed",
    "highdicom": "volumes, Segmentation and TID 1500 reports by the standard",
    "jinja2": "the operations page, with everything escaped that comes from outside",
    "joserfc": "checks the signatures of sign-in tokens (JWS, JWK)",
    "numpy": "arrays",
    "onnx": "writes the networks' files, when they are installed",
    "onnxruntime-gpu": "runs the networks, on CUDA or the CPU",
    "packaging": "knows the licences' identifiers (SPDX), when a model is judged",
    "pillow": "draws the pictures of findings",
    "prometheus-client": "counts, and the exposition format",
    "psycopg[binary]": "speaks to PostgreSQL, where the state is kept in one",
    "pydantic": "the typed configuration and model.toml",
    "pydicom": "reads and writes DICOM",
    "pynetdicom": "DICOM associations, both as SCP and SCU",
    "python-gdcm": "decodes compressed pixel data (JPEG, JPEG-LS, JPEG 2000), in processes of their own",
    "python-multipart": "takes STOW-RS bodies apart as they come",
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
        "alerts": _alerts(),
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
    rows: list[tuple[str, ...]] = []
    for section, field in Config.model_fields.items():
        found = _section_of(field)
        assert found
        rows += _rows_of(found, section, "", is_list=_is_list(field))
    return _markdown(("setting", "default", "what it means"), rows)


def _rows_of(section: type[BaseModel], name: str, prefix: str, *, is_list: bool) -> Iterator[tuple[str, ...]]:
    """A row for each key, and those of a table in the table behind its own; lists of tables come last, as in TOML."""
    lists = []
    for key, about in section.model_fields.items():
        shown = f"[[{name}]]" if is_list else f"[{name}]"
        yield (f"`{shown}` `{prefix}{key}`", _default(about), _sentence(about.description))
        inner = _section_of(about)
        if inner and _is_list(about):
            lists.append((key, inner))
        elif inner:
            yield from _rows_of(inner, name, f"{prefix}{key}.", is_list=is_list)
    for key, inner in lists:
        yield from _rows_of(inner, f"{name}.{key}", "", is_list=True)


def _is_list(field: FieldInfo) -> bool:
    return typing.get_origin(field.annotation) is tuple


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    annotation: Any = field.annotation
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


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
    gauges = {gauge.name: gauge for gauge in StateGauges(snapshot()).collect()}
    rows = []
    for name, family in sorted({**known, **gauges}.items()):
        suffix = "_total" if family.type == "counter" else ""
        rows.append((f"`{name}{suffix}`", family.type, family.documentation))
    return _markdown(("metric", "type", "what it counts"), rows)


def alerts() -> list[dict[str, Any]]:
    """The alerting rules, as Prometheus reads them."""
    rules = yaml.safe_load((REPOSITORY / "deploy" / "prometheus" / "rules.yml").read_text("utf-8"))
    return [rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule]


def _alerts() -> str:
    rows = []
    for rule in alerts():
        name, said = rule["alert"], rule["annotations"]
        shown = f'<a id="{name}"></a>`{name}`'
        rows.append((shown, rule["labels"]["severity"], _sentence(said["description"]), _sentence(said["action"])))
    return _markdown(("alert", "severity", "what it means", "the first thing to do"), rows)


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
