"""From stored files to a `Study`: headers only, grouped by their UIDs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from pydicom import Dataset, dcmread

from service.errors import NotUnderstood
from service.types import Completeness, Instance, Series, Study


def read_instance(path: Path) -> Instance:
    """Read one file's header.

    Raises
    ------
    NotUnderstood
        If the file is no DICOM file, or lacks the UIDs that say what it belongs to.
    """
    try:
        header = dcmread(path, stop_before_pixels=True)
        meta = header.file_meta
        found = Instance(
            sop_instance_uid=str(header.SOPInstanceUID),
            sop_class_uid=str(header.SOPClassUID),
            transfer_syntax_uid=str(meta.TransferSyntaxUID),
            path=path,
            header=header,
        )
        uids = (
            found.sop_instance_uid,
            found.sop_class_uid,
            str(header.StudyInstanceUID),
            str(header.SeriesInstanceUID),
        )
        if not all(uids) or "None" in uids:
            raise ValueError("an empty UID")
    except Exception as exc:  # damaged files make pydicom raise anything from zlib.error to NotImplementedError
        raise NotUnderstood(
            doing=f"reading the file {path.name}",
            found=f"{type(exc).__name__}",
            rule="a DICOM file has a file meta group, and Study, Series and SOP Instance UIDs (PS3.10 7.1)",
            way_out="leave the file out, or have its source send it again",
        ) from exc
    return found


def group(
    instances: Iterable[Instance],
    *,
    completeness: Completeness = Completeness.QUIET,
    missing: str = "",
    received_at: float = 0.0,
) -> list[Study]:
    """Group instances into series and studies, each ordered by UID."""
    by_study: dict[str, dict[str, list[Instance]]] = defaultdict(lambda: defaultdict(list))
    for instance in instances:
        by_study[str(instance.header.StudyInstanceUID)][str(instance.header.SeriesInstanceUID)].append(instance)
    return [
        Study(
            study_instance_uid=study_uid,
            series=tuple(
                Series(
                    series_instance_uid=series_uid,
                    modality=_modality(members[0].header),
                    instances=tuple(members),
                )
                for series_uid, members in sorted(by_series.items())
            ),
            completeness=completeness,
            missing=missing,
            received_at=received_at,
        )
        for study_uid, by_series in sorted(by_study.items())
    ]


def _modality(header: Dataset) -> str:
    return str(header.get("Modality", "") or "")
