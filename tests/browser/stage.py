"""A PACS with studies and our results in it, and a browser with OHIF that looks at them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset, dcmread

from service.analysis.schedule import Scheduler
from service.intake.study import group, read_instance
from service.pipeline import analyse
from service.types import Answer, Model
from tests.browser import viewer
from tests.browser.pacs import WebPacs
from tests.browser.site import Site
from tests.browser.viewer import Viewer
from tests.support import counterpart


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What all tests share."""

    pacs: WebPacs
    viewer: Viewer


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A study in the PACS, with what one model says of it."""

    study_uid: str
    images: tuple[Dataset, ...]  # headers of the analysed series, by the name of their files
    files: tuple[Path, ...]  # of the same
    answer: Answer

    def contents(self, kind: str) -> list[bytes]:
        """Its objects of a kind, as DICOM files."""
        return [made.content for made in self.answer.objects if made.kind == kind]

    def image(self, uid: str) -> Dataset:
        """The header of one image."""
        return next(image for image in self.images if image.SOPInstanceUID == uid)


@contextmanager
def opened(folder: Path) -> Iterator[Stage]:
    """All programs running, or the test skipped by the name of what is missing."""
    files = viewer.files()
    for program in ("node", "chromium", "Orthanc"):
        counterpart(program)
    pacs = WebPacs(folder / "pacs")
    try:
        with Site(files, pacs.http_port) as site, Viewer(site.address, folder / "browser") as browser:
            yield Stage(pacs=pacs, viewer=browser)
    finally:
        pacs.stop()


def put(stage: Stage, folder: Path, models: Sequence[Model], scheduler: Scheduler) -> Case:
    """Analyse a series by the public way, and file it with all that comes of it."""
    files = tuple(sorted(folder.iterdir()))
    (study,) = group(read_instance(path) for path in files)
    for model in models:
        scheduler.add(model)
    (answer,) = analyse(study, models, scheduler, progress=_nobody).answers
    for path in files:
        stage.pacs.store(_viewable(path))
    for made in answer.objects:
        stage.pacs.store(made.content)
    images = tuple(dcmread(path, stop_before_pixels=True) for path in files)
    return Case(study_uid=study.study_instance_uid, images=images, files=files, answer=answer)


def read(content: bytes) -> Dataset:
    """Read a DICOM file."""
    return dcmread(io.BytesIO(content))


def written(dataset: Dataset) -> bytes:
    """Write a DICOM file."""
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _viewable(path: Path) -> bytes:
    """An image as it is; or with a window, where its own has the width 0, which OHIF shows inverted."""
    image = dcmread(path)
    if image.get("WindowWidth") != 0:
        return path.read_bytes()
    image.WindowCenter, image.WindowWidth = 40, 400
    return written(image)


def _nobody(*, model: str, stage: str, done: int, total: int) -> None:
    """Nobody looks on."""
