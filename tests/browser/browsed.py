"""The operations page in a real browser, told what to do, and looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.browser.driven import HERE, Driven
from tests.support import missing

AXE = HERE / "node_modules" / "axe-core" / "axe.min.js"


class Browsed(Driven):
    """One browser at one address, for as long as the ``with`` block runs."""

    def __init__(self, address: str, folder: Path) -> None:
        for package in (AXE, HERE / "node_modules" / "playwright-core"):
            if not package.exists():
                missing(f"{package.parent.name} (npm ci --prefix tests/browser)")
        super().__init__("page.mjs", folder, address, str(AXE))

    def __call__(self, command: str, **rest: object) -> Any:
        """What the browser answers to a command of ``page.mjs``."""
        return self.ask(command, **rest)
