"""The alarms: Prometheus's rules are right by its own tools, speak of what exists, and the README says what to do."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.__main__ import _parser
from service.config import Config
from tests.support import REPOSITORY, counterpart
from tests.words import tables

FOLDER = REPOSITORY / "deploy" / "prometheus"
CASES = sorted(FOLDER.glob("*_test.yml"))
ALERTS = tables.alerts()
NAMES = [rule["alert"] for rule in ALERTS]
KNOWN = set(re.findall(r"`(overread_\w+)`", tables.tables()["metrics"]))
SUFFIXES = re.compile(r"_(bucket|count|sum)$")  # of a histogram's own series
EVENTS = set(
    re.findall(r'log\.\w+\(\s*f?"([\w.]+)"', "".join(it.read_text() for it in REPOSITORY.glob("service/**/*.py")))
)


def promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Prometheus's own tool."""
    command = [counterpart("promtool"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_rules_are_rules() -> None:
    found = promtool("check", "rules", FOLDER / "rules.yml")
    assert found.returncode == 0, found.stderr
    assert f"{len(ALERTS) + 2} rules found" in found.stdout
    assert len(set(NAMES)) == len(NAMES)


def test_each_alert_fires_by_its_cause_and_else_is_silent() -> None:
    found = promtool("test", "rules", *CASES)
    assert found.returncode == 0, found.stderr + found.stdout


@pytest.mark.parametrize("always", [False, True], ids=["never", "always"])
@pytest.mark.parametrize("name", NAMES)
def test_an_alert_that_does_not_tell_its_causes_apart_is_seen(name: str, always: bool, tmp_path: Path) -> None:
    """Each has a case in which it fires, and one in which it does not."""
    rules = yaml.safe_load((FOLDER / "rules.yml").read_text())
    (rule,) = [it for group in rules["groups"] for it in group["rules"] if it.get("alert") == name]
    rule["expr"] = "vector(1)" if always else "vector(1) > 2"
    rule.pop("for", None)
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    for file in CASES:
        cases = yaml.safe_load(file.read_text())
        cases["tests"] = [it for it in cases["tests"] if it["name"].startswith(f"{name}:")]
        (tmp_path / file.name).write_text(yaml.safe_dump(cases))
    found = promtool("test", "rules", *(tmp_path / file.name for file in CASES))
    assert found.returncode == 1
    assert f'"{name}"' in found.stdout + found.stderr


def test_the_example_of_prometheus_is_one(tmp_path: Path) -> None:
    for file in FOLDER.glob("*.yml"):
        (tmp_path / file.name).write_text(file.read_text())
    for secret in ("ca.pem", "overread.token"):
        (tmp_path / secret).touch()
    found = promtool("check", "config", tmp_path / "prometheus.yml")
    assert found.returncode == 0, found.stderr
    asked = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    assert [it["job_name"] for it in asked["scrape_configs"]] == ["overread"], "the rules ask for this name"


@pytest.mark.parametrize("rule", ALERTS, ids=NAMES)
def test_an_alert_says_what_is_so_and_what_to_do(rule: dict[str, Any]) -> None:
    said = rule["annotations"]
    assert set(said) == {"summary", "description", "action", "runbook"}
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert said["runbook"] == f"README.md#{rule['alert']}"
    assert "{{" not in said["description"] + said["action"], "they stand in the README too"
    assert all(words.endswith(".") for words in (said["description"], said["action"]))


def test_the_readme_has_a_runbook_of_each_alert() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    for rule in ALERTS:
        row = f'<a id="{rule["alert"]}"></a>`{rule["alert"]}` | {rule["labels"]["severity"]} |'
        assert row in readme, f"{rule['annotations']['runbook']} leads nowhere"


def test_rules_name_metrics_that_exist() -> None:
    for file in (FOLDER / "rules.yml", *CASES):
        named = set(re.findall(r"\boverread_\w+", file.read_text()))
        assert named
        assert {SUFFIXES.sub("", name) for name in named} <= KNOWN


def test_actions_name_settings_events_and_commands_that_exist() -> None:
    words = " ".join(f"{said['description']} {said['action']}" for said in (it["annotations"] for it in ALERTS))
    assert set(re.findall(r"\b[a-z]+\.[a-z_]+\b", words)) <= EVENTS
    for section in set(re.findall(r"`\[(\w+)\]", words)):
        assert section in Config.model_fields
    for line in set(re.findall(r"`(overread [^`]+)`", words)):
        _parser().parse_args([*shlex.split(line)[1:], "--config", "overread.toml"])
