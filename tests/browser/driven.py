"""A real browser, driven by a script of ours that takes a command a line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Self

from tests.support import counterpart

HERE = Path(__file__).resolve().parent


class Driven:
    """One browser for as long as the ``with`` block runs.

    Parameters
    ----------
    script
        Beside this file; gets Chromium's path, a folder for its profile, and the arguments.
    folder
        For the profile and the log.
    """

    def __init__(self, script: str, folder: Path, *arguments: str) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        node, chromium, profile = counterpart("node"), counterpart("chromium"), str(folder / "profile")
        self._log = (folder / "browser.log").open("ab")
        self._process = subprocess.Popen(
            [node, str(HERE / script), chromium, profile, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.close()  # its loop ends, and it closes the browser
            self._process.wait(timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()  # the browser ends with the pipe to it
            self._process.wait()
        self._log.close()

    def ask(self, command: str, **rest: object) -> Any:
        """What the browser answers to a command of the script."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"command": command, **rest}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the browser ended at {command}: {(self._folder / 'browser.log').read_text()[-2000:]}"
        answer = json.loads(line)
        assert "error" not in answer, answer
        return answer["found"]
