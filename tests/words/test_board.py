"""Grafana's board is one, by Grafana's own types; it lies well, and asks for what there is."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.support import REPOSITORY
from tests.words.test_alerts import KNOWN, SUFFIXES

FOLDER = REPOSITORY / "deploy" / "grafana"
BOARD: dict[str, Any] = json.loads((FOLDER / "overread.json").read_text())


def lost(before: Any, after: Any, where: str = "") -> list[str]:
    """What the second of two JSON values lacks, or has otherwise."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [it for key in before for it in lost(before[key], after.get(key), f"{where}.{key}")]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [it for number, (old, new) in pairs for it in lost(old, new, f"{where}.{number}")]
    return [] if before == after else [where]


def read(board: dict[str, Any]) -> dict[str, Any]:
    """The board, through Grafana's types and out again."""
    plugins.register_default_plugins()
    again: dict[str, Any] = json.loads(JSONEncoder().encode(Dashboard.from_json(board)))
    return again


def test_grafanas_types_know_all_of_it() -> None:
    assert lost(BOARD, read(BOARD)) == []


def test_a_misspelt_key_would_be_noticed() -> None:
    board = json.loads(json.dumps(BOARD))
    board["panels"][1]["fieldConfig"]["defaults"]["unitt"] = "s"
    assert lost(board, read(board)) == [".panels.1.fieldConfig.defaults.unitt"]


def test_no_panel_lies_on_another() -> None:
    taken = [
        {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        for place in (panel["gridPos"] for panel in BOARD["panels"])
    ]
    for one, other in itertools.combinations(taken, 2):
        assert not one & other
    assert max(x for cells in taken for x, _ in cells) < 24
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


@pytest.mark.parametrize("panel", [it for it in BOARD["panels"] if it["type"] != "row"], ids=lambda it: it["title"])
def test_a_panel_asks_for_what_there_is_of_the_chosen_service(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        named = re.findall(r"\b(overread_\w+)", target["expr"])
        assert {SUFFIXES.sub("", name) for name in named} <= KNOWN
        assert target["expr"].count('job="$job"') >= max(1, len(named))


def test_it_is_provisioned() -> None:
    (source,) = yaml.safe_load((FOLDER / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    (provider,) = yaml.safe_load((FOLDER / "provisioning/dashboards/overread.yml").read_text())["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"]
