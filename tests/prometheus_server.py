"""A real Prometheus that scrapes a service, with our rules; and how it is asked."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from service.demo.pacs import wait_for_port
from tests.support import REPOSITORY, counterpart, free_port

RULES = REPOSITORY / "deploy" / "prometheus" / "rules.yml"
_UNITS = {"m": 60, "h": 3600}
_FOR = re.compile(r"(?<=for: )(\d+)([mh])\b")
_RANGE = re.compile(r"(?<=\[)(\d+)([mh])(?=\])")
_OFFSET = re.compile(r"(?<=offset )(\d+)([mh])\b")
_AGE = re.compile(r"(?<=> )(\d{4,})\b")
_HOURS = re.compile(r"(record: overread:working_hours\n\s+expr: )>-\n.*\n.*\n")


def quickened(rules: str) -> str:
    """The rules for those who can't wait, nothing else changed: minutes are seconds, ages a 600th; it is working hours.

    A range stays long enough for two scrapes of a second each.
    """

    def shorter(by: int, least: int) -> Callable[[re.Match[str]], str]:
        return lambda found: f"{max(least, int(found[1]) * _UNITS[found[2]] // by)}s"

    rules = _FOR.sub(shorter(60, 1), rules)
    rules = _RANGE.sub(shorter(60, 5), rules)
    rules = _OFFSET.sub(shorter(600, 5), rules)
    rules = _AGE.sub(lambda found: str(int(found[1]) // 600), rules)
    return _HOURS.sub(r"\1vector(1)\n", rules)


@dataclass(kw_only=True)
class Prometheus:
    """Prometheus's own program in a folder of its own, on loopback."""

    folder: Path
    targets: Iterable[str]  # host:port of each process of Overread
    rules: str = RULES.read_text()
    interval: str = "1s"
    scheme: dict[str, Any] = field(default_factory=dict)  # of the scrape: scheme, tls_config, authorization
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> Prometheus:
        """Start it and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "rules.yml").write_text(self.rules)
        settings = {
            "global": {"scrape_interval": self.interval, "evaluation_interval": self.interval},
            "rule_files": ["rules.yml"],
            "scrape_configs": [
                {"job_name": "overread", "static_configs": [{"targets": list(self.targets)}], **self.scheme}
            ],
        }
        (self.folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
        command = [
            counterpart("prometheus"),
            f"--config.file={self.folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self.folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--log.level=warn",
        ]
        with (self.folder / "prometheus.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for_port(self.port, self.process)
        until = time.monotonic() + 60
        while not self._is_ready():
            assert time.monotonic() < until, "Prometheus did not become ready"
            time.sleep(0.1)
        return self

    def stop(self) -> None:
        """End the process by its id."""
        if self.process:
            self.process.terminate()
            self.process.wait(timeout=30)
            self.process = None

    def _is_ready(self) -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=20).close()
        except urllib.error.HTTPError:
            return False
        return True

    def get(self, path: str, **parameters: str) -> Any:
        """What its API answers."""
        question = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/{path}?{question}", timeout=20) as reply:
            return json.load(reply)["data"]

    def ask(self, query: str) -> list[dict[str, Any]]:
        """What an expression comes to now: labels and value of each series.

        Raises
        ------
        urllib.error.HTTPError
            If it is no PromQL.
        """
        found: list[dict[str, Any]] = self.get("query", query=query)["result"]
        return found

    def names(self) -> set[str]:
        """Of all the metrics that it has seen."""
        return set(self.get("label/__name__/values"))

    def rules_seen(self) -> list[dict[str, Any]]:
        """Each of its rules, with how its last evaluation went."""
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]

    def firing(self) -> dict[str, list[dict[str, Any]]]:
        """The alerts that ring now, by name."""
        ringing: dict[str, list[dict[str, Any]]] = {}
        for alert in self.get("alerts")["alerts"]:
            if alert["state"] == "firing":
                ringing.setdefault(alert["labels"]["alertname"], []).append(alert)
        return ringing

    def wait_until(self, condition: Callable[[], bool], what: str, *, seconds: float) -> None:
        """Wait for something that it is to see."""
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, f"waited {seconds:.0f} s for {what}; it rings: {sorted(self.firing())}"
            time.sleep(0.3)
