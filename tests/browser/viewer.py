"""OHIF in a real browser, told what to do, and looked at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.browser.driven import HERE, Driven
from tests.support import missing

_PACKAGES = HERE / "node_modules"
Floats = NDArray[np.float64]


def files() -> Path:
    """OHIF's files; without them the test is skipped by name, or fails in CI."""
    for package in ("@ohif/app/dist", "playwright-core"):
        if not (_PACKAGES / package).is_dir():
            missing(f"{package} (npm ci --prefix tests/browser)")
    return _PACKAGES / "@ohif/app/dist"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A series as OHIF lists it."""

    series: str
    modality: str
    description: str
    unsupported: bool
    images: int
    said: tuple[int, ...]  # OHIF's remarks on it, by their numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a radiologist sees of one viewport; nothing but words, where OHIF leaves it empty."""

    file: Path  # the picture of the whole window
    pixels: NDArray[np.uint8]  # [rows, columns, RGB] of the viewport
    image: str  # SOP Instance UID of what is shown in it
    points: Floats  # [points, (column, row)] of the points asked for, in `pixels`
    corners: Floats  # [3, (column, row)] of the image's first pixel, the last of its row, and the last of its column
    lines: tuple[str, ...]  # what is written beside measurements
    outlines: tuple[Floats, ...]  # [points, (column, row)] of what is drawn for measurements
    words: str  # all words in the window
    troubles: tuple[str, ...]  # errors since the study was opened


class Viewer(Driven):
    """One browser with OHIF in it, for as long as the ``with`` block runs."""

    def __init__(self, address: str, folder: Path) -> None:
        self._pictures = 0
        super().__init__("view.mjs", folder, address)

    def open(self, study_uid: str) -> list[Listed]:
        """Open a study, wait for its first image, and say what OHIF lists of it."""
        return [Listed(**{**each, "said": tuple(each["said"])}) for each in self.ask("open", study=study_uid)]

    def show(self, series_uid: str) -> str:
        """Double-click on a series and say yes to what OHIF asks then; returns the question."""
        return str(self.ask("show", series=series_uid))

    def go_to(self, image_uid: str) -> None:
        """Scroll to an image of the series shown."""
        self.ask("go", image=image_uid)

    def next(self) -> None:
        """Step to the next measurement of the report shown."""
        self.ask("next")

    def panel(self, name: str) -> str:
        """Open a panel on the right side; returns its words."""
        return str(self.ask("panel", name=name))

    def look(self, name: str, points: Floats | None = None) -> View:
        """Take a picture, and find points of the patient ([points, LPS mm]) in it."""
        self._pictures += 1
        path = self._folder / f"{self._pictures:02}-{name}.png"
        seen = self.ask("look", file=str(path), points=[] if points is None else points.tolist())
        left, top, width, height = (round(value) for value in seen.get("canvas", (0, 0, 0, 0)))
        whole = np.asarray(Image.open(path).convert("RGB"))
        return View(
            file=path,
            pixels=whole[top : top + height, left : left + width],
            image=seen.get("image", "").partition("/instances/")[2].partition("/")[0],
            points=_pairs(seen.get("points", ())),
            corners=_pairs(seen.get("corners", ())),
            lines=tuple(seen.get("lines", ())),
            outlines=tuple(_pairs(each) for each in seen.get("outlines", ())),
            words=seen["words"],
            troubles=tuple(seen["troubles"]),
        )


def _pairs(values: object) -> Floats:
    return np.array(values, np.float64).reshape(-1, 2)
