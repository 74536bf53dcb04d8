"""Where others' programs see our findings in the patient, whichever way the scanner wrote the images.

One body (`tests/written.py`) is analysed in each of its writings in the public way. What comes out is read back: the
segmentation by highdicom, by SimpleITK and from the text that DCMTK's dcmdump prints; the report by highdicom and from
dsrdump's text, its coordinates brought into the patient by three programs' geometry; and the report that needs no
segmentation, by the outlines that it draws slice by slice. Each lesion's centre and volume (on its key slice: centre
and area) must be the body's own to 0.5 mm and 1 %, and those of any two writings must agree as closely.

Of SimpleITK (ITK 5.4): it reads the geometry of a segmentation whose frames are one even stack. Of several segments'
frames it makes a single stack all the same, and says that every spacing is 1 mm; so each segment is cut out before it
reads it. It does not read which image a frame belongs to; a second reading puts the frames on their images as SimpleITK
orders and places those.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.pixels.utils import pack_bits
from pydicom.sr.codedict import codes

from service.analysis.schedule import Scheduler
from service.forms import OUTLINES, Kind, SegForm
from service.models import model_of
from service.pipeline import analyse
from service.spec import read_spec
from service.types import Outcome
from tests import written
from tests.bare import BareBackend
from tests.integration.validators import said
from tests.toys import write_model
from tests.unit.test_results_sr import items
from tests.written import LESIONS, WRITINGS, Vector, Writing, drawn

sitk: Any = importlib.import_module("SimpleITK")  # it says that it has types, and has none
NEAR_MM, LIKE = 0.5, 0.01
IMAGE_REGION = "111030"
NAMES = [writing.name for writing in WRITINGS]


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """Files of one analysis of the body."""

    writing: Writing
    series: Path  # folder of the images
    seg: Path
    sr: Path  # the report that refers to it
    outlines: Path  # the report that refers to none


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A lesion as a report draws it on its key slice."""

    image: str  # SOPInstanceUID
    tracking_uid: str
    volume_ml: float
    area_mm2: float
    outline: Vector  # [points, (column, row)] as SCOORD counts
    axes: tuple[tuple[float, Vector], ...]  # long and short: mm, and the two ends


Seen = tuple[tuple[Vector, float], ...]  # of each lesion, the larger first: centre (LPS mm), volume (ml)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    """All writings, analysed by a network that finds what is denser than 200 HU on a grid of 1.5 mm."""
    folder = tmp_path_factory.mktemp("writings")
    toml = write_model(folder / "models") / "model.toml"
    toml.write_text(toml.read_text().replace("spacing_mm = [2.5, 2.5, 2.5]", "spacing_mm = [1.5, 1.5, 1.5]"))
    model = model_of(read_spec(toml.parent), toml.parent, folder / "models")
    scheduler = Scheduler(BareBackend())
    scheduler.add(model)
    results = {}
    for writing in WRITINGS:
        one = Made(
            writing=writing,
            series=folder / writing.name,
            seg=folder / f"{writing.name}.seg",
            sr=folder / f"{writing.name}.sr",
            outlines=folder / f"{writing.name}.outlines",
        )
        study = written.write(writing, one.series)
        (answer,) = analyse(study, [model], scheduler, progress=lambda **_: None).answers
        assert answer.outcome is Outcome.FINDINGS, answer.reason
        contents = {(it.kind, it.form): it.content for it in answer.objects}
        one.seg.write_bytes(contents[Kind.SEG, SegForm().key])
        one.sr.write_bytes(contents[Kind.SR, SegForm().key])
        one.outlines.write_bytes(contents[Kind.SR, OUTLINES])
        results[writing.name] = one
    scheduler.close()
    return results


# --- The segmentation, by each reader ---------------------------------------------------------------------------------


def _by_highdicom(made: Made) -> Seen:
    seg = hd.seg.segread(made.seg)
    volume = seg.get_volume(combine_segments=False)
    found = []
    for segment in range(len(seg.segment_numbers)):
        indices = np.argwhere(volume.array[..., segment])
        place = volume.map_indices_to_reference(indices.mean(axis=0, keepdims=True))[0]
        found.append((place, len(indices) * volume.voxel_volume / 1000))
    return _larger_first(found)


def _by_simpleitk(made: Made) -> Seen:
    """The geometry is what SimpleITK reads from the segmentation's frames, a segment at a time."""
    cut_out = made.seg.with_suffix(".one-segment")
    whole = dcmread(made.seg)
    groups, pixels = whole.PerFrameFunctionalGroupsSequence, whole.pixel_array
    numbers = np.array([group.SegmentIdentificationSequence[0].ReferencedSegmentNumber for group in groups])
    found = []
    for number in np.unique(numbers):
        part = dcmread(made.seg)
        frames = np.flatnonzero(numbers == number)
        part.PerFrameFunctionalGroupsSequence = [groups[frame] for frame in frames]
        part.NumberOfFrames, part.PixelData = len(frames), pack_bits(pixels[frames])
        part.save_as(cut_out)
        found += _shapes(sitk.ReadImage(str(cut_out)) > 0)
    return _larger_first(found)


def _on_source_by_simpleitk(made: Made) -> Seen:
    """The geometry is the source series' as SimpleITK reads it; the frames go where their references say."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(made.series)))
    reader.MetaDataDictionaryArrayUpdateOn()
    source = reader.Execute()
    uids = [reader.GetMetaData(index, "0008|0018") for index in range(source.GetSize()[2])]
    frames = sitk.GetArrayFromImage(sitk.ReadImage(str(made.seg)))
    labels = np.zeros(source.GetSize()[::-1], np.uint8)
    for frame, group in zip(frames, dcmread(made.seg).PerFrameFunctionalGroupsSequence, strict=True):
        uid = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        labels[uids.index(uid)][frame > 0] = number
    placed = sitk.GetImageFromArray(labels)
    placed.CopyInformation(source)
    return _larger_first(_shapes(placed))


def _by_dcmdump(made: Made) -> Seen:
    tags = "0020,0032 0020,0037 0028,0030 0018,0088 0062,000b 0028,0010 0028,0011 7fe0,0010"
    said_of = _dumped(made.seg, *tags.split())
    (orientation,), (spacing,), (between,) = (_numbers(said_of[tag]) for tag in ("0020,0037", "0028,0030", "0018,0088"))
    positions, numbers = _numbers(said_of["0020,0032"]), _numbers(said_of["0062,000b"])[:, 0]
    rows, columns = (int(said_of[tag][0]) for tag in ("0028,0010", "0028,0011"))
    stored = np.frombuffer(bytes.fromhex(said_of["7fe0,0010"][0].replace("\\", "")), np.uint8)
    frames = np.unpackbits(stored, bitorder="little")[: len(positions) * rows * columns].reshape(-1, rows, columns)
    found = []
    for number in np.unique(numbers):
        frame, row, column = np.nonzero(frames * (numbers == number)[:, None, None])
        places = positions[frame] + np.outer(column * spacing[1], orientation[:3])
        places += np.outer(row * spacing[0], orientation[3:])
        found.append((places.mean(axis=0), len(places) * float(np.prod(spacing) * between[0]) / 1000))
    return _larger_first(found)


def _shapes(labels: Any) -> list[tuple[Vector, float]]:
    shapes = sitk.LabelShapeStatisticsImageFilter()
    shapes.Execute(labels)
    return [(np.array(shapes.GetCentroid(it)), shapes.GetPhysicalSize(it) / 1000) for it in shapes.GetLabels()]


def _larger_first(found: list[tuple[Vector, float]]) -> Seen:
    assert len(found) == len(LESIONS)
    return tuple(sorted(found, key=lambda it: -it[1]))


def _dumped(path: Path, *tags: str) -> dict[str, list[str]]:
    """The values of some tags in the order of the file, as dcmdump prints them."""
    words = said("dcmdump", "-q", "+L", *(word for tag in tags for word in ("+P", tag)), path)
    found: dict[str, list[str]] = {tag: [] for tag in tags}
    for tag, value in re.findall(r"^\(([0-9a-f]{4},[0-9a-f]{4})\) [A-Z]{2} \[?([^\] ]*)", words, re.MULTILINE):
        found[tag].append(value)
    return found


def _numbers(values: list[str]) -> Vector:
    return np.array([[float(number) for number in value.split("\\")] for value in values])


# --- The report, by each reader ---------------------------------------------------------------------------------------


def _regions_by_highdicom(made: Made) -> list[Region]:
    report = hd.sr.srread(made.sr)
    content: Any = report.content  # a MeasurementReport, as only the file can tell
    found = []
    for volumetric in content.get_volumetric_roi_measurement_groups():
        uid = str(volumetric.tracking_uid)
        planar = content.get_planar_roi_measurement_groups(tracking_uid=uid)
        # The outline, the two axes with their lengths, and the outline again with its area.
        values = [measured.value for group in planar for measured in group.get_measurements()]
        points = [np.asarray(group.roi.value) for group in planar]
        (volume,) = volumetric.get_measurements(name=codes.SCT.Volume)
        (image,) = {str(group.roi.ContentSequence[0].referenced_sop_instance_uid) for group in planar}
        found.append(Region(
            image=image, tracking_uid=uid, volume_ml=volume.value, area_mm2=values[-1], outline=points[0],
            axes=tuple(zip(values[:-1], points[1:-1], strict=True)),
        ))  # fmt: skip
    return sorted(found, key=lambda it: -it.volume_ml)


def _groups_by_dsrdump(report: Path) -> dict[str, list[str]]:
    """What dsrdump prints of the measurement groups, by tracking UID."""
    groups: dict[str, list[str]] = {}
    for group in said("dsrdump", "+Pl", "+Pu", "+Pc", report).split('(125007,DCM,"Measurement Group")')[1:]:
        (uid,) = re.findall(r'UIDREF:\(112040,DCM,[^)]*\)="([0-9.]+)"', group)
        groups.setdefault(uid, []).append(group)
    return groups


def _drawn_by_dsrdump(group: str) -> list[tuple[str, Vector]]:
    """Each polyline of a group: its image, and its points (column, row)."""
    pairs = re.findall(
        r'SCOORD:\([^)]*\)=\(POLYLINE,([^)]*)\)>\s*<selected from IMAGE:.*=\(CT image,"(.*)"\)', group, re.MULTILINE
    )
    return [
        (uid, np.array([[float(it) for it in point.split("/")] for point in text.split(",")])) for text, uid in pairs
    ]


def _regions_by_dsrdump(made: Made) -> list[Region]:
    found = []
    for uid, (whole, *planar) in _groups_by_dsrdump(made.sr).items():
        values = [float(value) for group in planar for value in re.findall(r'NUM:\([^)]*\)="([^"]*)"', group)]
        lines = [line for group in planar for line in _drawn_by_dsrdump(group)]
        (image,) = {image for image, _ in lines}
        outline, *axes, _ = (points for _, points in lines)
        (volume,) = re.findall(r'NUM:\(118565006,SCT,"Volume"\)="([^"]*)" \(ml,', whole)
        found.append(Region(
            image=image, tracking_uid=uid, volume_ml=float(volume), area_mm2=values[-1], outline=outline,
            axes=tuple(zip(values[:-1], axes, strict=True)),
        ))  # fmt: skip
    return sorted(found, key=lambda it: -it.volume_ml)


def _outlines_by_dsrdump(made: Made) -> Seen:
    """Of the report without a segmentation: the stack of a lesion's outlines, each as thick as slices are apart."""
    images = _images(made)
    found = []
    for whole, *_ in _groups_by_dsrdump(made.outlines).values():
        cuts = [drawn(_place_by_highdicom(images[uid], points)) for uid, points in _drawn_by_dsrdump(whole)]
        centres, areas = np.array([centre for centre, _ in cuts]), np.array([area for _, area in cuts])
        found.append((areas @ centres / areas.sum(), float(areas.sum()) * made.writing.spacing[0] / 1000))
    return _larger_first(found)


def _images(made: Made) -> dict[str, Path]:
    """The images in the order of their files, by SOPInstanceUID."""
    paths = sorted(made.series.iterdir())
    return {str(dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID): path for path in paths}


def _place_by_highdicom(image: Path, points: Vector) -> Vector:
    return hd.spatial.ImageToReferenceTransformer.for_image(dcmread(image))(points)


def _place_by_simpleitk(image: Path, points: Vector) -> Vector:
    plane = sitk.ReadImage(str(image))  # its index 0 is the middle of the first pixel, where a SCOORD has 0.5
    return np.array([plane.TransformContinuousIndexToPhysicalPoint((x - 0.5, y - 0.5, 0.0)) for x, y in points])


def _place_by_dcmdump(image: Path, points: Vector) -> Vector:
    told = [_numbers(it)[0] for it in _dumped(image, "0020,0032", "0020,0037", "0028,0030").values()]
    position, orientation, spacing = told
    placed: Vector = position + (points - 0.5) * spacing[::-1] @ orientation.reshape(2, 3)
    return placed


# --- What they see ----------------------------------------------------------------------------------------------------

SEG_READERS: dict[str, Callable[[Made], Seen]] = {
    "highdicom": _by_highdicom,
    "simpleitk": _by_simpleitk,
    "simpleitk-source": _on_source_by_simpleitk,
    "dcmdump": _by_dcmdump,
}
READERS = SEG_READERS | {"outlines-dsrdump": _outlines_by_dsrdump}
REPORT_READERS: dict[str, tuple[Callable[[Made], list[Region]], Callable[[Path, Vector], Vector]]] = {
    "highdicom": (_regions_by_highdicom, _place_by_highdicom),
    "dsrdump-simpleitk": (_regions_by_dsrdump, _place_by_simpleitk),
    "dsrdump-dcmdump": (_regions_by_dsrdump, _place_by_dcmdump),
}


def _amiss(seen: Seen) -> list[str]:
    """In what lesions differ from the body's."""
    found = []
    for number, ((centre, volume_ml), lesion) in enumerate(zip(seen, LESIONS, strict=True), start=1):
        off, more = float(np.linalg.norm(centre - lesion.centre)), volume_ml / lesion.volume_ml - 1
        if off > NEAR_MM or abs(more) > LIKE:
            found.append(f"lesion {number}: {off:.2f} mm off, volume {more:+.2%}")
    return found


def _amiss_in_report(made: Made, reader: str) -> list[str]:
    """In what a report's lesions differ from the body's: the volume, and all that is drawn on the key slice."""
    read, place = REPORT_READERS[reader]
    images = {
        str(dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID): path for path in made.series.iterdir()
    }
    writing, found = made.writing, []
    pixel = float(np.hypot(*writing.spacing[1:]))
    for region, lesion in zip(read(made), LESIONS, strict=True):
        outline = place(images[region.image], region.outline)
        (centre, area), cut = drawn(outline), lesion.cut(outline[0], writing.row, writing.column)
        depth = float((outline[0] - lesion.centre) @ writing.normal)
        checks = {
            f"volume {region.volume_ml} ml": abs(region.volume_ml / lesion.volume_ml - 1) <= LIKE,
            f"area {region.area_mm2} mm2": abs(region.area_mm2 / cut[1] - 1) <= LIKE,
            f"outline around {area:.0f} mm2": abs(area / region.area_mm2 - 1) <= 1e-3,
            f"outline's centre {centre.round(2)}": float(np.linalg.norm(centre - cut[0])) <= NEAR_MM,
            f"slice {depth:.2f} mm off the middle": abs(depth) <= 0.55 * writing.spacing[0],  # the nearest one
            "outline off the surface": bool((np.abs(lesion.outside_mm(outline)) <= pixel).all()),
        }
        for (length, ends), true in zip(region.axes, cut[2:], strict=True):
            line = place(images[region.image], ends)
            checks[f"axis of {length} mm"] = abs(length - true) <= pixel  # from edge to edge of pixels
            checks[f"ends of the axis of {length} mm"] = abs(float(np.linalg.norm(line[1] - line[0])) - length) <= 1e-3
            checks[f"place of the axis of {length} mm"] = bool((np.abs(lesion.outside_mm(line)) <= pixel).all())
        found += [what for what, holds in checks.items() if not holds]
    return found


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", NAMES)
def test_findings_are_where_the_lesions_are(made: dict[str, Made], name: str, reader: str) -> None:
    assert _amiss(READERS[reader](made[name])) == []


@pytest.mark.parametrize("reader", REPORT_READERS)
@pytest.mark.parametrize("name", NAMES)
def test_the_report_draws_where_the_lesions_are(made: dict[str, Made], name: str, reader: str) -> None:
    assert _amiss_in_report(made[name], reader) == []


@pytest.mark.parametrize("reader", READERS)
def test_all_writings_agree(made: dict[str, Made], reader: str) -> None:
    """Any two of them, and not only each with the body."""
    seen = [READERS[reader](one) for one in made.values()]
    centres = np.array([[centre for centre, _ in one] for one in seen])
    volumes = np.array([[volume_ml for _, volume_ml in one] for one in seen])
    assert np.linalg.norm(centres[:, None] - centres[None], axis=-1).max() <= NEAR_MM
    assert (volumes.max(axis=0) / volumes.min(axis=0) - 1).max() <= LIKE


@pytest.mark.parametrize("name", NAMES)
def test_report_and_segmentation_speak_of_the_same(made: dict[str, Made], name: str) -> None:
    """The area on a key slice is that of the segment's frame of that image; tracking UIDs join the two."""
    seg = dcmread(made[name].seg)
    spacing = float(np.prod(seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing))
    tracked = {int(segment.SegmentNumber): str(segment.TrackingUID) for segment in seg.SegmentSequence}
    areas = {}
    for group, frame in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array, strict=True):
        image = str(group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID)
        number = int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        areas[image, tracked[number]] = float(frame.sum()) * spacing
    for region in _regions_by_dsrdump(made[name]):
        assert region.area_mm2 == pytest.approx(areas[region.image, region.tracking_uid], rel=1e-4)


# --- That the checks see what is wrong --------------------------------------------------------------------------------


def _turned_pixels(turn: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> Callable[[Dataset], None]:
    def fault(seg: Dataset) -> None:
        seg.PixelData = pack_bits(turn(seg.pixel_array))

    return fault


def _moved(seg: Dataset) -> None:
    """A millimetre to the left of the patient."""
    for group in seg.PerFrameFunctionalGroupsSequence:
        position = group.PlanePositionSequence[0]
        position.ImagePositionPatient = [
            float(position.ImagePositionPatient[0]) + 1,
            *position.ImagePositionPatient[1:],
        ]


def _swapped_spacing(seg: Dataset) -> None:
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.PixelSpacing = list(reversed(measures.PixelSpacing))


def _next_image(seg: Dataset) -> None:
    """Each frame says that it was made from the image of the next one."""
    groups = list(seg.PerFrameFunctionalGroupsSequence)
    sources = [group.DerivationImageSequence for group in groups]
    for group, source in zip(groups, sources[1:] + sources[:1], strict=True):
        group.DerivationImageSequence = source


@pytest.mark.parametrize(
    ("fault", "readers"),
    [
        (_turned_pixels(lambda frames: frames[:, ::-1]), set(SEG_READERS)),
        (_turned_pixels(lambda frames: frames[:, :, ::-1]), set(SEG_READERS)),
        (_turned_pixels(lambda frames: frames[::-1]), set(SEG_READERS)),
        (_moved, set(SEG_READERS) - {"simpleitk-source"}),
        (_swapped_spacing, set(SEG_READERS) - {"simpleitk-source"}),
        (_next_image, {"simpleitk-source"}),
    ],
)
def test_a_wrong_segmentation_is_seen(
    made: dict[str, Made], tmp_path: Path, fault: Callable[[Dataset], None], readers: set[str]
) -> None:
    seg = dcmread(made["anisotropic"].seg)
    fault(seg)
    seg.save_as(tmp_path / "wrong.dcm")
    wrong = replace(made["anisotropic"], seg=tmp_path / "wrong.dcm")
    assert {reader for reader, read in SEG_READERS.items() if _amiss(read(wrong))} == readers


def _swapped_points(made: Made, report: Dataset) -> None:
    for item in items(report, IMAGE_REGION):
        item.GraphicData = np.reshape(item.GraphicData, (-1, 2))[:, ::-1].ravel().tolist()


def _points_of_middles(made: Made, report: Dataset) -> None:
    """As if the middle of the first pixel were 0, 0."""
    for item in items(report, IMAGE_REGION):
        item.GraphicData = [value - 0.5 for value in item.GraphicData]


def _other_slice(made: Made, report: Dataset) -> None:
    """On the image beside the one that is meant."""
    uids = [
        str(dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID) for path in sorted(made.series.iterdir())
    ]
    for item in items(report, IMAGE_REGION):
        image = item.ContentSequence[0].ReferencedSOPSequence[0]
        image.ReferencedSOPInstanceUID = uids[uids.index(image.ReferencedSOPInstanceUID) + 1]


def _greater_volume(made: Made, report: Dataset) -> None:
    for item in items(report, codes.SCT.Volume.value):
        value = item.MeasuredValueSequence[0]
        value.FloatingPointValue *= 1.02
        value.NumericValue = f"{value.FloatingPointValue:.5g}"


@pytest.mark.parametrize("reader", REPORT_READERS)
@pytest.mark.parametrize("fault", [_swapped_points, _points_of_middles, _other_slice, _greater_volume])
def test_a_wrong_report_is_seen(
    made: dict[str, Made], tmp_path: Path, fault: Callable[[Made, Dataset], None], reader: str
) -> None:
    report = dcmread(made["anisotropic"].sr)
    fault(made["anisotropic"], report)
    report.save_as(tmp_path / "wrong.dcm")
    assert _amiss_in_report(replace(made["anisotropic"], sr=tmp_path / "wrong.dcm"), reader)


@pytest.mark.parametrize("fault", [_swapped_points, _points_of_middles, _other_slice])
def test_wrong_outlines_are_seen(made: dict[str, Made], tmp_path: Path, fault: Callable[[Made, Dataset], None]) -> None:
    report = dcmread(made["anisotropic"].outlines)
    fault(made["anisotropic"], report)
    report.save_as(tmp_path / "wrong.dcm")
    assert _amiss(_outlines_by_dsrdump(replace(made["anisotropic"], outlines=tmp_path / "wrong.dcm")))
