"""What the command line shows people: progress while models run, and the table of findings."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

_WIDTH = 130  # of tables, where the output is no terminal

console = Console() if sys.stdout.isatty() else Console(width=_WIDTH)


class Bars:
    """A bar for each model, told by `show` how far it is; a context manager."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description:34}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        )
        self._tasks: dict[str, TaskID] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, *, model: str, stage: str, done: int, total: int) -> None:
        """Show that so many parts of a model's stage are done; any thread may call."""
        with self._lock:
            if model not in self._tasks:
                self._tasks[model] = self._progress.add_task(model, total=total)
            self._progress.update(self._tasks[model], description=f"{model}: {stage}", completed=done, total=total)


def findings_table(answers: Iterable[dict[str, Any]]) -> Table:
    """The findings of all answers (as `evidence.as_json` gives them), one row each; a row too where there are none."""
    table = Table(title="Findings (research use only, not for diagnosis)", title_style="bold")
    for name in ("model", "no.", "finding", "site", "ml", "mm", "centre, LPS mm", "slice", "probability"):
        table.add_column(name, justify="right" if name in ("no.", "ml", "slice", "probability") else "left")
    for answer in answers:
        if not answer["findings"]:
            reason = f": {answer['reason']}" if answer["reason"] else ""
            table.add_row(answer["model"], "", f"{answer['outcome']}{reason}")
        for finding in answer["findings"]:
            table.add_row(
                answer["model"],
                str(finding["number"]),
                finding["finding"],
                finding["site"],
                *_measured(finding),
                str(finding["slice"]),
                f"{finding['probability']:.2f}",
            )
    return table


def _measured(finding: dict[str, Any]) -> tuple[str, str, str]:
    """Volume, size and centre, as far as its kind of finding has them."""
    volume, size = "", ""
    if "volume_ml" in finding:
        volume = f"{finding['volume_ml']:.2f}"
        size = f"{finding['long_axis_mm']:.0f} x {finding['short_axis_mm']:.0f}"
    elif finding.get("size_mm"):
        across, down, along = finding["size_mm"]
        size = f"{along:.0f} x {down:.0f} x {across:.0f}"
    centre = place_of(finding)
    return volume, size, ", ".join(f"{coordinate:.0f}" for coordinate in centre) if centre else ""


def place_of(finding: dict[str, Any]) -> list[float] | None:
    """Where a finding (as `evidence.as_json` gives it) lies, LPS mm; None for a judgement, which has no place."""
    return finding.get("centroid_lps_mm") or finding.get("centre_lps_mm")
