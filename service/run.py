"""``overread run``: the same pipeline on files, without any network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from service.analysis.schedule import Scheduler
from service.backend import open_backend
from service.config import Analysis
from service.errors import ConfigError, NotUnderstood
from service.evidence import as_json, object_name, picture_name
from service.intake.study import group, read_instance
from service.models import installed
from service.pipeline import analyse
from service.show import Bars, console, findings_table
from service.types import Model, Outcome, Study


def run(folder: Path, out: Path, *, names: Sequence[str], models_directory: Path) -> int:
    """Analyse every study in a folder and write objects and pictures to ``out/<study>/``.

    Returns
    -------
    int
        0 if no model failed.
    """
    models = installed(models_directory, names)
    scheduler = Scheduler(open_backend(Analysis()))
    try:
        return _run(folder, out, models, scheduler)
    finally:
        scheduler.close()


def _run(folder: Path, out: Path, models: Sequence[Model], scheduler: Scheduler) -> int:
    for model in models:
        scheduler.add(model)
    failed = False
    for study in read_folder(folder):
        with Bars() as bars:
            evidence = analyse(study, models, scheduler, progress=bars.show)
        into = out / study.study_instance_uid
        into.mkdir(parents=True, exist_ok=True)
        for answer in evidence.answers:
            for made in answer.objects:
                (into / object_name(answer, made)).write_bytes(made.content)
            for picture in answer.pictures:
                (into / picture_name(answer, picture.finding)).write_bytes(picture.png)
            failed |= answer.outcome is Outcome.FAILED
        console.print(findings_table(as_json(answer) for answer in evidence.answers))
        console.print(f"Objects and pictures: {into}", soft_wrap=True)
    return int(failed)


def read_folder(folder: Path) -> list[Study]:
    """The studies in a folder and its subfolders; what is no DICOM file is passed over.

    Raises
    ------
    ConfigError
        If there is none.
    """
    instances = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            try:
                instances.append(read_instance(path))
            except NotUnderstood:
                continue
    if not instances:
        raise ConfigError(
            doing=f"looking for DICOM files in {folder}",
            found="none" if folder.is_dir() else "no such folder",
            rule="the folder holds DICOM files (PS3.10), in it or in its subfolders",
            way_out="name another folder",
        )
    return group(instances)
