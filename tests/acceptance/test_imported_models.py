"""A model from outside, by the command line alone: imported, judged, run on a study with a known lesion, removed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest

from tests.bundles import CLASS, with_transform, write_bundle, write_nnunet, zipped
from tests.support import REPOSITORY
from tests.toys import bright_study

CODES = ("--class", CLASS, "--ignore", "0")
WISHES = (*CODES, "--body-part", "ABDOMEN", "--licence", "Apache-2.0", "--name", "from-outside")
NNUNET = ("--configuration", "3d_fullres", "--version", "1", "--manufacturer", "tests", "--orientation", "LPS")


def overread(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command, with lines wide enough that none is folded."""
    return subprocess.run(
        [sys.executable, "-m", "service", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "COLUMNS": "300"},
        check=False,
    )


@pytest.mark.parametrize("kind", ["bundle folder", "bundle zip", "nnunet folder"])
def test_an_imported_model_is_judged_sound_and_finds_the_lesion(kind: str, tmp_path: Path) -> None:
    more: tuple[str, ...] = ()
    if kind == "nnunet folder":
        source, command, more = write_nnunet(tmp_path / "export"), "nnunet", NNUNET
    else:
        source, command = write_bundle(tmp_path / "ball_ct"), "monai-bundle"
        source = zipped(source) if kind == "bundle zip" else source
    models = tmp_path / "models"
    done = overread("models", "import", command, source, *WISHES, *more, "--models-directory", models)
    assert done.returncode == 0, done.stdout + done.stderr

    judged = overread("models", "validate", models / "from-outside", "--models-directory", models)
    assert "WRONG" not in judged.stdout, judged.stdout
    assert judged.returncode == 0

    ball = bright_study(tmp_path / "study", BodyPartExamined="ABDOMEN")
    ran = overread("run", tmp_path / "study", "--out", tmp_path / "out", "--models-directory", models)
    assert ran.returncode == 0, ran.stderr
    (segmentation,) = (tmp_path / "out").rglob("*SEG*.dcm")
    volume = hd.seg.segread(segmentation).get_volume(combine_segments=True)
    voxels = np.argwhere(np.asarray(volume.array) > 0)
    np.testing.assert_allclose(volume.map_indices_to_reference(voxels).mean(axis=0), ball.centre_lps_mm, atol=0.5)
    assert len(voxels) * volume.voxel_volume / 1000 == pytest.approx(ball.volume_ml, rel=0.05)

    assert overread("models", "remove", "from-outside", "--models-directory", models).returncode == 0
    assert not (models / "from-outside").exists()


def test_a_bundle_with_a_transform_that_nobody_knows_is_refused_by_its_name(tmp_path: Path) -> None:
    inference = with_transform({"_target_": "HistogramNormalized", "keys": "image"}, at=3)
    source = write_bundle(tmp_path / "ball_ct", inference=inference)
    models = tmp_path / "models"
    done = overread("models", "import", "monai-bundle", source, *WISHES, "--models-directory", models)
    assert done.returncode == 1
    assert "HistogramNormalized" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (models / "from-outside").exists()
