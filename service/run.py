"""``overread run``: the same pipeline on files, without any network."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from service.analysis.schedule import Scheduler
from service.backend import open_backend
from service.errors import ConfigError, NotUnderstood
from service.evidence import answer_from, as_json, object_name, picture_name
from service.forms import Profile, Wanted
from service.intake.study import group, read_instance
from service.models import installed
from service.pipeline import analyse
from service.results.choice import choose, everything
from service.settings.analysis import Analysis
from service.show import Bars, console, findings_table
from service.types import Model, Outcome, Study

_USUAL = Profile()


def run(folder: Path, out: Path, *, names: Sequence[str], models_directory: Path, profile: Profile = _USUAL) -> int:
    """Analyse every study in a folder and write objects and pictures to ``out/<study>/``.

    Parameters
    ----------
    profile
        Which objects are written: those that a destination with this profile would get.

    Returns
    -------
    int
        0 if no model failed.
    """
    models = installed(models_directory, names)
    scheduler = Scheduler(open_backend(Analysis()))
    try:
        return _run(folder, out, models, scheduler, profile)
    finally:
        scheduler.close()


def profile_from(text: str) -> Profile:
    """A profile as it stands in a site's file, between the braces.

    Raises
    ------
    ConfigError
        If it is none.
    """
    try:
        return Profile.model_validate(tomllib.loads(f"profile = {{{text}}}")["profile"])
    except (tomllib.TOMLDecodeError, ValidationError) as exc:
        found = exc.errors()[0]["msg"] if isinstance(exc, ValidationError) else str(exc)
        raise ConfigError(
            doing=f"reading the profile {text!r}",
            found=found,
            rule='it is a list like: seg = "labelmap", capture = "findings"; keys as in [[destinations]] profile',
            way_out="mend it",
        ) from exc


def _run(folder: Path, out: Path, models: Sequence[Model], scheduler: Scheduler, profile: Profile) -> int:
    for model in models:
        scheduler.add(model)
    failed = False
    for study in read_folder(folder):
        with Bars() as bars:
            evidence = analyse(study, models, scheduler, progress=bars.show, wanted=Wanted.by([profile]))
        into = out / study.study_instance_uid
        into.mkdir(parents=True, exist_ok=True)
        for answer in evidence.answers:
            chosen = choose(answer_from(as_json(answer)), profile, everything).objects
            uids = {made.sop_instance_uid for made in chosen}
            for made in answer.objects:
                if made.sop_instance_uid in uids:
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
