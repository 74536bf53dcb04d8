"""Others' programs that judge our objects: dciodvfy of the IOD, PixelMed of the SR templates, DCMTK of reading."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.support import counterpart

# PixelMed's rules are one XSLT larger than the JVM takes without being told.
JAVA_OPTIONS = " ".join(f"-Djdk.xml.xpath{limit}Limit=0" for limit in ("ExprGrp", "ExprOp", "TotalOp"))


def said(program: str, *arguments: str | Path) -> str:
    """All that a validator says, on both streams; they tell faults in words and not by their exit status."""
    environment = {**os.environ, "JAVA_TOOL_OPTIONS": JAVA_OPTIONS}
    done = subprocess.run(
        [counterpart(program), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
        text=True,
        errors="replace",
    )
    return done.stdout


IODS = (
    "Segmentation",
    "Comprehensive3DSR",
    "SCImage",
    "GrayscaleSoftcopyPresentationState",
    "KeyObjectSelectionDocument",
)


def dciodvfy(path: Path) -> list[str]:
    """The errors that dciodvfy finds."""
    words = said("dciodvfy", path)
    assert any(line in words.splitlines() for line in IODS), words  # it was read
    return _beginning(words, "Error", "Abort")


def complaints(path: Path) -> tuple[list[str], list[str]]:
    """The errors and the warnings of dciodvfy, also where it does not know the IOD."""
    words = said("dciodvfy", path)
    return _beginning(words, "Error", "Abort"), _beginning(words, "Warning")


def _beginning(words: str, *beginnings: str) -> list[str]:
    return [line for line in words.splitlines() if line.startswith(beginnings)]


def pixelmed(path: Path) -> list[str]:
    """The errors that PixelMed's SR validator finds."""
    words = said("DicomSRValidator", path)
    assert "IOD validation complete" in words, words
    return [line for line in words.splitlines() if line.startswith("Error")]
