"""What the models' page says is so: each example is a right model of its task, and the schema is that of the code."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

import pytest

from service.spec import ModelSpec
from service.vocabulary import GROUPS, judge
from tests.support import REPOSITORY
from tests.words import tables

PAGE = (REPOSITORY / "models" / "README.md").read_text("utf-8")
EXAMPLES = dict(re.findall(r"^### ([^\n]+)\n.*?```toml\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL))
SPECS = {title: ModelSpec.model_validate(tomllib.loads(text)) for title, text in EXAMPLES.items()}


def test_there_is_an_example_of_each_task_and_form() -> None:
    assert len(EXAMPLES) == PAGE.count("```toml\n") == 9
    assert {spec.task for spec in SPECS.values()} == {"segmentation", "heatmap", "detection", "classification"}
    stages = {title: spec.stages[-1] for title, spec in SPECS.items()}
    assert stages["Single slices (2D)"].is_flat
    assert stages["Slices with their neighbours (2.5D)"].channels_hold == "neighbours"
    assert stages["Ensemble of checkpoints"].ensemble
    assert stages["Detection"].boxes
    assert len(SPECS["Cascade"].networks()) == 2
    assert len(SPECS["Segmentation of several classes"].classes) > 1
    assert SPECS["Classification"].judgement
    assert {spec.select.modality for spec in SPECS.values()} == {"CT", "MR"}


@pytest.mark.parametrize("title", SPECS)
def test_the_codes_of_an_example_are_right(title: str) -> None:
    for known in SPECS[title].classes:
        for role in GROUPS:
            assert judge(getattr(known, role), role).level == "ok", (known, role)


def test_the_schema_is_that_of_the_code() -> None:
    assert tables.SCHEMA.read_text("utf-8") == tables.schema(), "run: python -m tests.words.tables"


def test_the_schema_has_every_key_of_every_example_and_says_what_it_is() -> None:
    schema = json.loads(tables.schema())
    assert schema["$defs"]["Code"]["prefixItems"] == [
        {"title": part.title(), "type": "string"} for part in ("value", "scheme", "meaning")
    ]
    for text in EXAMPLES.values():
        _look(tomllib.loads(text), schema, schema["$defs"])


def _look(value: Any, schema: dict[str, Any], known: dict[str, Any]) -> None:
    """Walk along a file and the schema together: a table's keys are those of the schema, and each is described."""
    if "anyOf" in schema:
        (schema,) = (kind for kind in schema["anyOf"] if kind.get("type") != "null")
    if "$ref" in schema:
        schema = known[schema["$ref"].rpartition("/")[2]]
    if isinstance(value, dict) and "properties" in schema:
        assert schema["additionalProperties"] is False
        assert set(schema.get("required", ())) <= set(value)
        for key, item in value.items():
            _look(item, schema["properties"][key], known)
    elif isinstance(value, list) and "items" in schema:
        for item in value:
            _look(item, schema["items"], known)


def test_the_export_on_the_page_names_the_tensors_of_no_fixed_batch() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    compile("import torch\nnetwork = None\n" + re.sub(r"^   ", "", code, flags=re.MULTILINE), "page", "exec")
    assert 'dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}}' in code
