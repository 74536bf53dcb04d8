"""[edge: disk] The pictures of findings, from the images that are still kept and the objects that were frozen.

A volume is read once for all findings of an answer, by one thread, and let go: what stays in memory is three planes of
each finding. Another window is then a matter of milliseconds.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, get_args

import highdicom as hd
import numpy as np
from pydicom import Dataset, dcmread

from service.analysis.volume import read_volume
from service.errors import DecoderLost, NotUnderstood, ServiceError, StudyUnsuitable
from service.evidence import folder_of
from service.forms import Kind
from service.intake.study import group, read_instance
from service.results import viewed
from service.results.planes import WINDOWS, Bools, Floats, Plane, auto_window, cut
from service.results.reading import references
from service.store import Store
from service.types import SourceVolume

View = Literal["near", "whole", "axial", "coronal", "sagittal"]
VIEWS: Final[tuple[View, ...]] = get_args(View)
AUTO: Final = "auto"  # the window of images without HU, and a choice for all
_LONGEST: Final = {"near": 400, "whole": 560, "axial": 400, "coronal": 400, "sagittal": 400}  # pixels
_LIMIT_BYTES = 96 << 20  # of planes kept

Key = tuple[str, int, str]  # study, revision, model
Planes = dict[int, tuple[Plane, ...]]  # by finding


class NoPicture(Exception):
    """There is no picture, in words."""


def windows_of(modality: str) -> tuple[str, ...]:
    """The windows to choose from."""
    return (*WINDOWS, AUTO) if modality == "CT" else (AUTO,)


def usual_window(modality: str, site: str) -> str:
    """The window in which a finding is looked at first, by the modality and the organ that the model names."""
    if modality != "CT":
        return AUTO
    return next((name for name in ("lung", "liver", "brain", "bone") if name in site.lower()), "soft-tissue")


class Pictures:
    """Draws findings, and keeps the planes that it cut.

    Parameters
    ----------
    directory
        The store's.
    store
        Is asked for the files of a study.
    """

    def __init__(self, directory: Path, store: Store) -> None:
        self._directory, self._store = directory, store
        self._kept: OrderedDict[Key, Planes] = OrderedDict()
        self._loading = threading.Lock()  # one volume at a time, whoever asks

    def draw(self, study: dict[str, Any], model: str, number: int, view: View, window: str) -> bytes:
        """A picture of a finding, as PNG.

        Parameters
        ----------
        study
            As `Store.study` gives it.
        window
            One of `WINDOWS`, or `AUTO`.

        Raises
        ------
        NoPicture
            Why there is none.
        """
        planes = self._planes(study, model)
        if number not in planes:
            raise NoPicture("the answer has no such finding, or its place is not known")
        plane = next(it for it in planes[number] if (it.is_acquired if view in ("near", "whole") else it.name == view))
        chosen = WINDOWS[window] if window in WINDOWS else auto_window(plane.values)
        is_cut = view not in ("near", "whole")
        return viewed.drawn(plane, chosen, longest=_LONGEST[view], near=view == "near", cross=is_cut)

    def _planes(self, study: dict[str, Any], model: str) -> Planes:
        answer = next((it for it in study["answers"] if it["model"] == model), None)
        if answer is None:
            raise NoPicture("no such model answered")
        key = (study["study_uid"], int(study["answered_revision"]), model)
        with self._loading:
            if key not in self._kept:
                self._kept[key] = self._load(study, answer)
                while len(self._kept) > 1 and sum(map(_size, self._kept.values())) > _LIMIT_BYTES:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]

    def _load(self, study: dict[str, Any], answer: dict[str, Any]) -> Planes:
        folder = folder_of(self._directory, study["study_uid"], int(study["answered_revision"]))
        try:
            source = self._read(study["study_uid"], answer, folder)
            masks = dict(_masks(answer, folder, source))
        except (OSError, NotUnderstood, StudyUnsuitable, DecoderLost) as exc:
            raise NoPicture(exc.found if isinstance(exc, ServiceError) else "its files are gone") from exc
        affine = np.asarray(source.volume.affine, np.float64)
        array = np.asarray(source.volume.array, np.float32)
        planes = {}
        for finding in answer["findings"]:
            mask = masks.get(finding["tracking_uid"])
            place = _place(finding, mask, affine, array.shape)
            if place is not None:
                planes[finding["number"]] = cut(array, affine, place, mask=mask, corners=_corners(finding, affine))
        return planes

    def _read(self, study_uid: str, answer: dict[str, Any], folder: Path) -> SourceVolume:
        """The volume that was analysed: of the images that the report refers to."""
        named = {
            uid
            for made in answer["objects"]
            if made["kind"] == Kind.SR
            for uid in references(dcmread(folder / made["file"], stop_before_pixels=True))
        }
        found = []
        for path in self._store.files_of(study_uid)[0]:
            if _tag(path, "SeriesInstanceUID") == answer["series_uid"]:
                instance = read_instance(path)
                if not named or instance.sop_instance_uid in named:
                    found.append(instance)
        if not found:
            raise NoPicture("its images are no longer kept")
        return read_volume(group(found)[0].series[0])


def _tag(path: Path, keyword: str) -> str:
    try:
        return str(dcmread(path, stop_before_pixels=True, specific_tags=[keyword]).get(keyword, ""))
    except Exception:  # damaged files make pydicom raise anything; such a one was not analysed either
        return ""


def _masks(answer: dict[str, Any], folder: Path, source: SourceVolume) -> Iterator[tuple[str, Bools]]:
    """Where the findings are on the source grid, by Tracking UID, as the frozen Segmentations say."""
    objects = [made for made in answer["objects"] if made["kind"] == Kind.SEG]
    wanted = {finding["tracking_uid"] for finding in answer["findings"]}
    forms = [made["form"] for made in objects if "by-class" not in made["form"]]  # those have no segment of a finding
    for made in objects:
        if made["form"] not in forms[:1]:  # each form says the same
            continue
        segmentation = hd.seg.segread(str(folder / made["file"]))
        for item in segmentation.SegmentSequence:
            if item.get("TrackingUID") in wanted:
                volume = segmentation.get_volume(
                    segment_numbers=[int(item.SegmentNumber)], combine_segments=False, rescale_fractional=False
                )
                on_grid = volume.match_geometry(source.volume)
                yield str(item.TrackingUID), np.asarray(on_grid.array[..., 0] > 0)


def _place(
    finding: dict[str, Any], mask: Bools | None, affine: Floats, shape: tuple[int, ...]
) -> tuple[int, int, int] | None:
    """The voxel that the planes go through: on the key slice, in the finding's middle."""
    key = int(finding["slice"]) - 1
    centre = finding.get("centroid_lps_mm") or finding.get("centre_lps_mm")
    if not 0 <= key < shape[0]:
        return None
    if mask is not None and mask[key].any():
        rows, columns = np.nonzero(mask[key])
        nearest = int(np.argmin(np.hypot(rows - rows.mean(), columns - columns.mean())))
        return key, int(rows[nearest]), int(columns[nearest])
    if centre is None:  # a judgement has no place
        return key, shape[1] // 2, shape[2] // 2
    index = np.rint(np.linalg.inv(affine) @ (*centre, 1))[:3].astype(int)
    row, column = (int(np.clip(index[axis], 0, shape[axis] - 1)) for axis in (1, 2))
    return key, row, column


def _corners(finding: dict[str, Any], affine: Floats) -> tuple[Floats, Floats] | None:
    """Least and greatest corner of a detected box, in voxels."""
    if not finding.get("size_mm"):
        return None
    middle = (np.linalg.inv(affine) @ (*finding["centre_lps_mm"], 1))[:3]
    half = np.array(finding["size_mm"]) / np.linalg.norm(affine[:3, :3], axis=0) / 2
    return middle - half, middle + half


def _size(planes: Planes) -> int:
    return sum(
        plane.values.nbytes + (plane.mask.nbytes if plane.mask is not None else 0)
        for each in planes.values()
        for plane in each
    )


def report_of(directory: Path, study: dict[str, Any], answer: dict[str, Any]) -> Dataset | None:
    """The frozen report of an answer; None where it is no longer kept."""
    folder = folder_of(directory, study["study_uid"], int(study["answered_revision"]))
    for made in answer["objects"]:
        if made["kind"] == Kind.SR and (folder / made["file"]).is_file():
            return dcmread(folder / made["file"])
    return None
