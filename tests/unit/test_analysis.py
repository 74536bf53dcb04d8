"""A phantom goes in, a measured finding comes out at the right place: every orientation, order and spacing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread

from service.analysis.findings import find
from service.analysis.infer import infer
from service.analysis.lesions import _diameters
from service.analysis.resample import Grid, greatest
from service.analysis.schedule import Scheduler
from service.analysis.select import select
from service.analysis.volume import read_volume
from service.analysis.waiting import Stream
from service.demo.phantom_dicom import write_series
from service.intake.study import group, read_instance
from service.models import model_of
from service.spec import read_spec
from service.types import Lesion, SourceVolume
from tests.bare import BareBackend
from tests.toys import bright_phantom, write_model

Vector = NDArray[np.float64]


def _affine(slices: Vector, rows: Vector, columns: Vector) -> Vector:
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = slices, rows, columns
    affine[:3, 3] = (-31.0, 17.0, 240.0)
    return affine


X, Y, Z = np.eye(3)
_TURN = np.array([[0.8, 0.6, 0], [-0.6, 0.8, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, 0.96, 0.28], [0, -0.28, 0.96]])
GRIDS = {
    "axial": _affine(3 * Z, 2.0 * Y, 2.0 * X),
    "axial, feet first": _affine(-3 * Z, 2.0 * Y, 2.0 * X),
    "axial, prone": _affine(3 * Z, -2.0 * Y, -2.0 * X),
    "coronal": _affine(3 * Y, -2.0 * Z, 2.0 * X),
    "sagittal": _affine(3 * X, -2.0 * Z, 2.0 * Y),
    "oblique": _affine(*(length * axis for length, axis in zip((3, 2, 2), _TURN[::-1], strict=True))),
    "anisotropic": _affine(4.5 * Z, 1.5 * Y, 2.2 * X),
}


def _analyse(folder: Path, models: Path, *, orientation: str = "LPS") -> tuple[SourceVolume, tuple[Lesion, ...]]:
    model = write_model(models, orientation=orientation)
    spec = read_spec(model)
    (study,) = group(read_instance(path) for path in folder.iterdir())
    source = read_volume(select(study, spec).series)
    scheduler = Scheduler(BareBackend())
    try:
        scheduler.add(model_of(spec, model, models))
        prediction = infer(source, spec, scheduler, stream=Stream(), progress=lambda **_: None)
    finally:
        scheduler.close()
    findings, dropped = find(prediction, source, spec, tracking_uid=lambda channel, place: f"{channel} {place}")
    assert dropped == 0
    return source, tuple(finding for finding in findings if isinstance(finding, Lesion))


@pytest.mark.parametrize("grid", GRIDS)
def test_a_ball_is_found_where_it_is_in_the_patient(grid: str, tmp_path: Path) -> None:
    phantom, ball = bright_phantom(affine=GRIDS[grid], shape=(22, 44, 52))
    write_series(phantom, tmp_path / "study")
    source, (finding,) = _analyse(tmp_path / "study", tmp_path / "models")
    np.testing.assert_allclose(finding.centroid_lps_mm, ball.centre_lps_mm, atol=0.5)
    assert finding.volume_ml == pytest.approx(ball.volume_ml, rel=0.1)  # resampling rounds the edge
    assert finding.mean == pytest.approx(400, abs=40)
    assert finding.probability > 0.99
    key = source.volume.affine @ (*finding.long_axis[0], 1)
    assert np.linalg.norm(key[:3] - ball.centre_lps_mm) < 17


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "SPL", "IRA"])
def test_a_network_may_want_its_axes_in_any_order(orientation: str, tmp_path: Path) -> None:
    phantom, ball = bright_phantom()
    write_series(phantom, tmp_path / "study")
    _, (finding,) = _analyse(tmp_path / "study", tmp_path / "models", orientation=orientation)
    np.testing.assert_allclose(finding.centroid_lps_mm, ball.centre_lps_mm, atol=0.3)


def test_the_order_of_files_and_instance_numbers_means_nothing(tmp_path: Path) -> None:
    phantom, ball = bright_phantom()
    paths = write_series(phantom, tmp_path / "study")
    for number, path in enumerate(reversed(paths)):
        dataset = dcmread(path)
        dataset.InstanceNumber = (number * 7) % len(paths)
        dataset.save_as(path)
    _, (finding,) = _analyse(tmp_path / "study", tmp_path / "models")
    np.testing.assert_allclose(finding.centroid_lps_mm, ball.centre_lps_mm, atol=0.3)


def test_diameters_of_a_known_ellipse(tmp_path: Path) -> None:
    """An ellipse of 40 x 20 mm, turned by 30 degrees, is measured to a pixel on anisotropic pixels."""
    rows, columns = np.indices((120, 160))
    y, x = (rows - 60) * 0.8, (columns - 80) * 0.5
    c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
    area = ((x * c + y * s) / 20) ** 2 + ((-x * s + y * c) / 10) ** 2 <= 1
    long_axis, long_mm, short_axis, short_mm = _diameters(area, (0.8, 0.5))
    assert long_mm == pytest.approx(40, abs=0.8)
    assert short_mm == pytest.approx(20, abs=0.8)
    along = (long_axis[1] - long_axis[0]) * (0.8, 0.5)
    across = (short_axis[1] - short_axis[0]) * (0.8, 0.5)
    assert abs(along @ across) / (long_mm * short_mm) < 1e-6
    assert abs(abs(along @ (s, c)) / long_mm - 1) < 0.01


def test_a_lone_pixel_measures_its_own_width() -> None:
    _, long_mm, _, short_mm = _diameters(np.ones((1, 1), bool), (0.8, 0.5))
    assert long_mm == pytest.approx(0.8)
    assert short_mm == pytest.approx(0.5)


def test_the_greatest_voxel_around_a_place() -> None:
    """At a voxel's centre it is that voxel; between two, the greater; beyond the edge, nothing."""
    array = np.zeros((1, 1, 4), np.float32)
    array[0, 0] = [0.1, 0.9, 0.3, 0.2]
    grid = Grid(shape=(1, 1, 4), spacing_mm=(1.0, 1.0, 1.0))
    target = Grid(shape=(1, 1, 11), spacing_mm=(1.0, 1.0, 0.5), start_mm=(0.0, 0.0, -1.0))
    expected = [0, 0.1, 0.1, 0.9, 0.9, 0.9, 0.3, 0.3, 0.2, 0.2, 0]
    np.testing.assert_allclose(greatest(array, grid, target)[0, 0], expected)
