"""Real series with known truth, pushed into the real service with the real models, results taken from a real Orthanc.

Whether these cases were among a network's training data is unknown: they prove the chain, not clinical accuracy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree

import highdicom as hd
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from service.models import available, is_installed
from tests.acceptance.conftest import Orthanc, Service
from tests.acceptance.test_main_job import push, study_uid_of
from tests.integration.test_matrix import UNKNOWN_TO_DCIODVFY
from tests.integration.validators import complaints, dciodvfy, pixelmed, said
from tests.support import REPOSITORY, missing, real_series

MODELS = REPOSITORY / "models"
LIVER, LUNG = "ct-liver-lesion", "ct-lung-nodule"
MAXIMUM_FALSE_ALARMS = 4


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of one series."""

    folder: Path  # of the unpacked series
    answers: dict[str, dict[str, Any]]  # by model, from the API
    files: dict[tuple[str, str], Path]  # by model and kind: SEG and SR as BINARY, as they came out of Orthanc
    others: tuple[Path, ...]  # all else that came out of it: label maps, pictures, key images, presentation states
    together: bool  # whether both models were seen at work at the same moment


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Result]]:
    """All three studies, pushed one after the other into one service."""
    if not all(is_installed(MODELS, spec) for spec in available(MODELS)):
        missing("a model (make models)")
    folders = {name: real_series(name) for name in ("ircadb-17", "lidc-0314", "lung-dx-a0001")}
    base = tmp_path_factory.mktemp("real")
    orthanc = Orthanc(folder=base / "orthanc").start()
    service = Service(folder=base, models=MODELS)
    everything = 'profile = { capture = "findings", gsps = true, ko = true }'
    service.add_destination("ORTHANC", orthanc.port, more=everything)
    packed = 'profile = { seg = "labelmap", compression = "jpeg-ls" }'
    service.add_destination("ORTHANC", orthanc.port, name="labels", more=packed)
    service.add_destination("ORTHANC", orthanc.port, name="fractions", more='profile = { seg = "fractional" }')
    try:
        service.start()
        yield {name: _analyse(name, folder, service, orthanc, base) for name, folder in folders.items()}
        assert service.stop() == 0
    finally:
        orthanc.stop()
        if service.process and service.process.poll() is None:
            service.process.kill()


def _analyse(name: str, folder: Path, service: Service, orthanc: Orthanc, base: Path) -> Result:
    push(folder / "dicom", service)
    study_uid = study_uid_of(folder / "dicom")
    together = False
    state = ""
    while state not in ("delivering", "done"):
        study = service.get(f"/api/v1/studies/{study_uid}")
        running = [part for part in study["progress"].values() if part["done"] < part["total"]]
        together |= len(running) > 1
        state = study["state"]
    study = service.wait_for_study(study_uid, seconds=600)
    stored = orthanc.instances()
    files, others = {}, []
    for answer in study["answers"]:
        for made in answer["objects"]:
            if made["sop_instance_uid"] not in stored:
                continue  # kept for a destination that would accept nothing better
            path = base / f"{name}-{made['file']}"
            path.write_bytes(orthanc.get_bytes(f"/instances/{stored[made['sop_instance_uid']]}/file"))
            if made["kind"] in ("SEG", "SR") and made["form"] in ("binary", ""):
                files[answer["model"], made["kind"]] = path
            else:
                others.append(path)
    return Result(
        folder=folder,
        answers={a["model"]: a for a in study["answers"]},
        files=files,
        others=tuple(others),
        together=together,
    )


def test_ircadb_both_tumours_are_found_and_nothing_large_beside(results: dict[str, Result]) -> None:
    result = results["ircadb-17"]
    truth = json.loads((result.folder / "truth.json").read_text())["masks"]
    findings = result.answers[LIVER]["findings"]
    hits = set()
    for tumour in ("livertumor1", "livertumor2"):
        near = [f for f in findings if _distance(f, truth[tumour]["centroid_lps_mm"]) <= 10]
        assert near, f"{tumour} was not found: {findings}"
        hits |= {f["number"] for f in near}
    assert all(f["volume_ml"] <= 1 for f in findings if f["number"] not in hits)

    found = _mask_on_sources(result.files[LIVER, "SEG"], result.folder / "dicom")
    wanted = _truth_on_sources(result.folder, ("livertumor1", "livertumor2"))
    dice = 2 * (found & wanted).sum() / (found.sum() + wanted.sum())
    print(f"ircadb-17: lesion Dice {dice:.3f}, {len(findings)} findings")
    assert dice >= 0.6


def test_ircadb_report_and_segmentation_agree(results: dict[str, Result]) -> None:
    result = results["ircadb-17"]
    segmentation = hd.seg.segread(result.files[LIVER, "SEG"])
    report = cast(hd.sr.Comprehensive3DSR, hd.sr.srread(result.files[LIVER, "SR"]))
    volume = segmentation.get_volume()
    by_uid = {str(s.tracking_uid): int(s.SegmentNumber) for s in segmentation.SegmentSequence}
    groups = cast(hd.sr.MeasurementReport, report.content).get_volumetric_roi_measurement_groups()
    assert len(groups) == len(result.answers[LIVER]["findings"])
    for group in groups:
        (measured,) = group.get_measurements(name=hd.sr.CodedConcept("118565006", "SCT", "Volume"))
        segment = volume.array[..., by_uid[str(group.tracking_uid)] - 1]
        assert measured.value == pytest.approx(segment.sum() * volume.voxel_volume / 1000, rel=0.01)


def test_ircadb_both_models_ran_at_the_same_time(results: dict[str, Result]) -> None:
    result = results["ircadb-17"]
    assert result.answers.keys() == {LIVER, LUNG}
    assert all(a["outcome"] in ("findings", "no findings") for a in result.answers.values())
    assert result.together


def test_lidc_the_nodule_is_found(results: dict[str, Result]) -> None:
    result = results["lidc-0314"]
    readers = json.loads((result.folder / "truth.json").read_text())["readers"]
    findings = result.answers[LUNG]["findings"]
    hits = [f for f in findings if all(_inside(f["centroid_lps_mm"], *reader["box_lps_mm"]) for reader in readers)]
    print(f"lidc-0314: {len(findings) - len(hits)} false alarms")
    assert len(hits) == 1
    assert len(findings) - len(hits) <= MAXIMUM_FALSE_ALARMS
    assert result.answers[LIVER]["outcome"] == "unsuitable"


def test_lung_dx_the_tumour_is_hit(results: dict[str, Result]) -> None:
    result = results["lung-dx-a0001"]
    boxes = _tumour_boxes(result.folder)
    findings = result.answers[LUNG]["findings"]
    low, high = boxes.reshape(-1, 3).min(axis=0), boxes.reshape(-1, 3).max(axis=0)
    hits = [f for f in findings if _inside(f["centroid_lps_mm"], low, high)]
    print(f"lung-dx-a0001: {len(findings) - len(hits)} false alarms")
    assert hits
    assert len(findings) - len(hits) <= MAXIMUM_FALSE_ALARMS


@pytest.mark.parametrize("name", ["ircadb-17", "lidc-0314", "lung-dx-a0001"])
def test_others_validators_find_no_error(results: dict[str, Result], name: str) -> None:
    files = results[name].files
    assert {(LIVER, "SR"), (LUNG, "SR"), (LUNG, "SEG")} <= files.keys()
    for (_, kind), path in files.items():
        assert dciodvfy(path) == []
        if kind == "SR":
            assert pixelmed(path) == []
            assert "Measurement Report" in said("dsrdump", path)
        source = dcmread(next((results[name].folder / "dicom").iterdir()), stop_before_pixels=True)
        made = dcmread(path, stop_before_pixels=True)
        for keyword in ("StudyInstanceUID", "PatientID", "PatientName", "AccessionNumber"):
            assert str(made.get(keyword) or "") == str(source.get(keyword) or "")
    kinds = {path.name.split(".")[1] for path in results[name].others}
    assert kinds >= {"SEG", "SR", "SC", "PR", "KO"}
    for path in results[name].others:
        errors, _ = complaints(path)
        if "labelmap" in path.name:
            errors = [line for line in errors if not any(re.search(known, line) for known in UNKNOWN_TO_DCIODVFY)]
        assert errors == [], path.name


def _distance(finding: dict[str, Any], point: list[float]) -> float:
    return float(np.linalg.norm(np.subtract(finding["centroid_lps_mm"], point)))


def _inside(point: list[float], low: Any, high: Any) -> bool:
    return bool((np.asarray(low) <= point).all() and (np.asarray(point) <= high).all())


def _images(folder: Path) -> list[Dataset]:
    """The headers of a series by rising z."""
    headers = [dcmread(path, stop_before_pixels=True) for path in folder.iterdir()]
    return sorted((h for h in headers if "ImagePositionPatient" in h), key=lambda h: float(h.ImagePositionPatient[2]))


def _mask_on_sources(path: Path, folder: Path) -> NDArray[np.bool_]:
    """[images, rows, columns] of all segments together, image by image by the references in the SEG itself."""
    segmentation = dcmread(path)
    order = {str(h.SOPInstanceUID): i for i, h in enumerate(_images(folder))}
    mask = np.zeros((len(order), segmentation.Rows, segmentation.Columns), bool)
    for frame, item in zip(segmentation.pixel_array, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        source = item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        mask[order[str(source)]] |= frame.astype(bool)
    return mask


def _truth_on_sources(folder: Path, names: tuple[str, ...]) -> NDArray[np.bool_]:
    """The same of the truth: a mask file has the same number as its image file."""
    order = {str(h.SOPInstanceUID): i for i, h in enumerate(_images(folder / "dicom"))}
    masks: dict[int, NDArray[np.bool_]] = {}
    for image in (folder / "dicom").iterdir():
        number = image.stem.split("_")[-1]
        index = order[str(dcmread(image, stop_before_pixels=True).SOPInstanceUID)]
        for name in names:
            for path in (folder / "masks" / name).glob(f"image_{number}*"):
                if path.stem.split("_")[-1] == number:
                    masks[index] = masks.get(index, False) | (dcmread(path).pixel_array > 0)
    shape = next(iter(masks.values())).shape
    return np.stack([masks.get(i, np.zeros(shape, bool)) for i in range(len(order))])


def _tumour_boxes(folder: Path) -> NDArray[np.float64]:
    """[boxes, 2, 3] least and greatest corner of each tumour box, LPS mm (axial images along x and y)."""
    headers = {str(h.SOPInstanceUID): h for h in _images(folder / "dicom")}
    corners = []
    for path in (folder / "boxes").glob("*.xml"):
        if path.stem not in headers:  # boxes of another series of that study
            continue
        header = headers[path.stem]
        x0, y0, z = (float(v) for v in header.ImagePositionPatient)
        dy, dx = (float(v) for v in header.PixelSpacing)
        for box in ElementTree.parse(path).iter("bndbox"):
            xmin, ymin, xmax, ymax = (float(box.findtext(tag) or "nan") for tag in ("xmin", "ymin", "xmax", "ymax"))
            corners.append([(x0 + xmin * dx, y0 + ymin * dy, z), (x0 + xmax * dx, y0 + ymax * dy, z)])
    return np.array(corners)
