"""What is wrong now: each thing that can be, the worst first, and in the words of the alerts."""

from __future__ import annotations

import re
from typing import Any

import pytest

from service.api.page import banner
from service.api.page.banner import Facts, notices
from service.api.page.words import Words
from tests.support import REPOSITORY

WELL = {"database": "", "receivers": "", "worker": "", "models": "", "backend": "", "disk": ""}
LOADING = {"models": "models: they are being loaded"}
AWAY: dict[str, Any] = {"name": "pacs", "states": {"queued": 2}, "line": "pausing", "failures": 3}
REFUSED: dict[str, Any] = {"name": "archive", "states": {"refused": 4}, "line": "well"}
FINE: dict[str, Any] = {"name": "pacs", "states": {"confirmed": 9}, "line": "well"}

CASES: dict[str, tuple[Facts, str, bool]] = {
    "database": (Facts(parts={**WELL, "database": "OperationalError"}), "database does not answer", True),
    "disk": (Facts(parts={**WELL, "disk": "1.0 GiB free"}), "disk is nearly full", True),
    "receivers": (Facts(parts={**WELL, "receivers": "1 of 2 receiving processes run"}), "1 of 2", True),
    "worker": (Facts(parts={**WELL, "worker": "it does not look"}), "Nobody looks for studies", True),
    "backend": (Facts(parts={**WELL, "backend": "triton does not answer"}), "triton does not answer", True),
    "models": (Facts(parts={**WELL, "models": "ct-x: no file"}), "ct-x: no file", False),
    "loading": (Facts(parts={**WELL, "worker": "it does not look", **LOADING}), "being loaded", False),
    "another part": (Facts(parts={**WELL, "mirror": "no disk"}), "mirror is not well (no disk)", True),
    "away": (Facts(parts=WELL, queues=[AWAY]), "No association with the destination pacs", False),
    "refused": (Facts(parts=WELL, queues=[REFUSED]), "4 results were refused for good", True),
    "in vain": (Facts(parts=WELL, in_vain=2), "(2)", True),
    "silent": (Facts(parts=WELL, silent=["worker-2"]), "worker-2", True),
}  # fmt: skip


def said(facts: Facts, language: str = "en") -> list[str]:
    words = Words(language)
    return [words.t(it.found, **it.values) + words.t(it.way_out) for it in notices(facts)]


@pytest.mark.parametrize("case", CASES)
def test_each_thing_that_is_wrong_is_said_with_a_way_out(case: str) -> None:
    facts, expected, is_grave = CASES[case]
    (notice,) = notices(facts)
    assert expected in said(facts)[0]
    assert notice.way_out
    assert notice.is_grave is is_grave
    assert not re.search(r"[{}]", said(facts, "zh")[0])


def test_nothing_is_said_where_all_is_well() -> None:
    assert not notices(Facts(parts=WELL, queues=[FINE]))
    assert not notices(Facts())


def test_every_part_of_readiness_has_its_words() -> None:
    """A part that is added and forgotten here is said too, but without a way out of its own."""
    parts = []
    for module in ("outlook.py", "working.py"):
        text = (REPOSITORY / "service" / module).read_text()
        body = text[text.index("def readiness") :]
        parts += re.findall(
            r'(?:\{|^ +|parts\[|, )"(\w+)"(?:: |\] = )', body[: body.index("    def ", 10)], re.MULTILINE
        )
    assert len(parts) >= 6
    assert set(parts) <= set(banner._PARTS)


def test_the_worst_comes_first() -> None:
    everything = Facts(
        parts={"models": "ct-x: no file", "disk": "full", "database": "away"}, queues=[AWAY, REFUSED], in_vain=1
    )
    found = said(everything)
    assert "database" in found[0]
    assert "disk" in found[1]
    assert [it.is_grave for it in notices(everything)] == sorted(
        (it.is_grave for it in notices(everything)), reverse=True
    )
    assert "No association" in found[-1]


ALERTS: dict[str, dict[str, Any]] = {"OverreadDeliveryRefused": REFUSED, "OverreadDestinationAway": AWAY}


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_the_same_sentence(alert: str) -> None:
    rules = next(
        path for path in (REPOSITORY / "deploy/prometheus/rules.yml", REPOSITORY / "deploy/alerts.yml") if path.exists()
    ).read_text()
    summary = re.search(rf'alert: {alert}\n.*?summary: "(.*?)"', rules, re.DOTALL)
    assert summary
    (notice,) = notices(Facts(parts=WELL, queues=[ALERTS[alert]]))
    in_alert = summary[1].replace("$labels.", "").replace("$", "").replace("{{ ", "{").replace(" }}", "}")
    assert notice.found == in_alert
