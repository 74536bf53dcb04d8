"""An nnU-Net export becomes a model folder that says what its plans say, or is refused by name."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.analysis.intensity import Scaling
from service.imports.nnunet import import_nnunet
from service.imports.refusal import CannotImport
from service.models import installed
from service.spec import read_spec
from tests.bundles import DATASET, PLANS, network, wishes, write_nnunet, zipped

FOLDER = "nnUNetTrainer__nnUNetPlans__3d_fullres"


def _plans(configuration: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    plans = {**copy.deepcopy(PLANS), **changes}
    plans["configurations"]["3d_fullres"].update(configuration or {})
    return plans


def _refused(tmp_path: Path, **changes: Any) -> CannotImport:
    asked = changes.pop("wishes", wishes())
    with pytest.raises(CannotImport) as refusal:
        import_nnunet(write_nnunet(tmp_path / FOLDER, **changes), tmp_path / "models", asked)
    assert all(refusal.value.parts().values())
    assert not (tmp_path / "models").exists()
    return refusal.value


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_an_export_becomes_a_model_that_says_the_same(form: str, tmp_path: Path) -> None:
    export = write_nnunet(tmp_path / FOLDER, folds=3)
    made = import_nnunet(export if form == "folder" else zipped(export), tmp_path / "models", wishes())
    spec = read_spec(made.folder)
    assert (spec.name, spec.version, spec.title, spec.select.modality) == ("ball", "1.2", "Dataset999_Ball", "CT")
    (stage,) = spec.stages
    assert stage.input
    assert stage.output
    assert (stage.orientation, stage.spacing_mm, stage.input.dims) == ("SPL", (2.5, 2.0, 1.5), (1, 24, 24, 24))
    assert (stage.overlap, stage.blend, stage.activation, stage.labels) == (0.5, "gaussian", "softmax", "exclusive")
    assert spec.networks_of(stage) == ("ball", "ball-1", "ball-2")
    assert set(spec.source.onnx_sha256) == {"ball", "ball-1", "ball-2"}
    (model,) = installed(tmp_path / "models")
    assert all(file.file.is_file() for file in model.networks)
    assert any(note.startswith("nnU-Net averages over mirrored images") for note in made.notes)
    assert any("lay as LPS" in note for note in made.notes)


def test_the_network_sees_intensities_as_in_nnU_Net(tmp_path: Path) -> None:
    image = np.random.default_rng(5).normal(100, 700, (5, 6, 7)).astype(np.float32)
    image[0] = 0
    masked = np.where(image == 0, 0, (image - image[image != 0].mean()) / image[image != 0].std())
    expected = {
        ("CTNormalization", False): (np.clip(image, -800, 900) - 200) / 400,
        ("ZScoreNormalization", False): (image - image.mean()) / image.std(),
        ("ZScoreNormalization", True): masked,
        ("RescaleTo01Normalization", False): (image - image.min()) / (image.max() - image.min()),
        ("NoNormalization", False): image,
    }
    for number, ((scheme, mask), values) in enumerate(expected.items()):
        plans = _plans({"normalization_schemes": [scheme], "use_mask_for_norm": [mask]})
        export = write_nnunet(tmp_path / str(number) / FOLDER, plans=plans)
        made = import_nnunet(export, tmp_path / "models", wishes(name=f"model-{number}"))
        rule = made.spec.stages[0].intensity
        assert rule
        seen = image.copy()
        Scaling.measured(rule, seen).apply(seen)
        np.testing.assert_allclose(seen, values, atol=1e-3, rtol=1e-4)
        if scheme == "CTNormalization":  # beyond the image nnU-Net fills in 0, which is the mean
            assert rule.outside == 200


@pytest.mark.parametrize(
    ("reader", "order", "asked", "letters"),
    [
        ("SimpleITKIO", [0, 1, 2], "LPS", "SPL"),
        ("SimpleITKIO", [0, 1, 2], "LAS", "SAL"),
        ("SimpleITKIO", [2, 0, 1], "LPS", "LSP"),
        ("NibabelIO", [0, 1, 2], "RAS", "SAR"),
        ("NibabelIOWithReorient", [0, 1, 2], "", "SAR"),
        ("NibabelIOWithReorient", [1, 0, 2], "LPS", "ASR"),
    ],
)
def test_the_axes_are_those_of_the_training_files_reversed_and_transposed(
    reader: str, order: list[int], asked: str, letters: str, tmp_path: Path
) -> None:
    plans = _plans(image_reader_writer=reader, transpose_forward=order)
    made = import_nnunet(write_nnunet(tmp_path / FOLDER, plans=plans), tmp_path / "models", wishes(orientation=asked))
    assert made.spec.stages[0].orientation == letters


def test_how_the_training_images_lay_is_asked_for(tmp_path: Path) -> None:
    refusal = _refused(tmp_path, wishes=wishes(orientation=""))
    assert "--orientation" in refusal.way_out
    assert "SimpleITKIO" in refusal.found


@pytest.mark.parametrize("option", ["version", "manufacturer", "licence", "body_parts", "classes"])
def test_what_no_file_says_is_asked_for_by_its_option(option: str, tmp_path: Path) -> None:
    refusal = _refused(tmp_path, wishes=wishes(**{option: () if option in ("body_parts", "classes") else ""}))
    named = {"body_parts": "--body-part", "classes": '--class "1='}.get(option, f"--{option}")
    assert named in refusal.way_out


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"plans": _plans({"normalization_schemes": ["RGBTo01Normalization"]})}, "RGBTo01Normalization"),
        ({"plans": _plans({"preprocessor_name": "OwnPreprocessor"})}, "OwnPreprocessor"),
        ({"plans": _plans({"previous_stage": "3d_lowres"})}, "works on the result of 3d_lowres"),
        ({"plans": _plans({"inherits_from": "3d_fullres"})}, "inherits from '3d_fullres'"),
        ({"plans": _plans({"patch_size": "all"})}, "patch_size is 'all'"),
        ({"plans": _plans({"spacing": [2.0, 1.5]})}, "2 spacings for windows of 3 sizes"),
        ({"plans": _plans(transpose_forward=[0, 0, 1])}, "transpose_forward"),
        ({"plans": _plans(foreground_intensity_properties_per_channel={})}, "CTNormalization needs"),
        ({"plans": {"modalities": {}}}, "not one of nnU-Net v2"),
        ({"dataset": {**DATASET, "channel_names": {"0": "T1", "1": "T2"}}}, "T1, T2"),
        ({"dataset": {**DATASET, "labels": {"background": 0, "whole": [1, 2]}}}, "'whole' is [1, 2]; regions"),
        ({"dataset": {**DATASET, "labels": {"background": 0, "ball": 2}}}, "[0, 2]"),
        ({"dataset": {**DATASET, "labels": {"0": "background"}}}, "background = 0"),
        ({"dataset": {**DATASET, "labels": {"background": 0, "ball": 1, "bone": 2}}}, "a network of 2 channels"),
        ({"networks": [network(0.0), network(0.0, sizes=("N", 1, 16, 24, 24))]}, "windows of 16 x 24 x 24"),
    ],
)
def test_what_is_not_mapped_is_refused_by_its_name(changes: dict[str, Any], found: str, tmp_path: Path) -> None:
    assert found in _refused(tmp_path, **changes).found


def test_the_configuration_is_the_folders_the_only_one_or_asked_for(tmp_path: Path) -> None:
    export = write_nnunet(tmp_path / "renamed")
    with pytest.raises(CannotImport, match="give --configuration, one of 2d, 3d_fullres"):
        import_nnunet(export, tmp_path / "models", wishes())
    made = import_nnunet(export, tmp_path / "models", wishes(configuration="3d_fullres"))
    assert made.spec.stages[0].spacing_mm == (2.5, 2.0, 1.5)


def test_what_a_configuration_inherits_counts(tmp_path: Path) -> None:
    plans = _plans()
    plans["configurations"]["3d_fullres_fine"] = {"inherits_from": "3d_fullres", "spacing": [1.0, 1.0, 1.0]}
    export = write_nnunet(tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres_fine", plans=plans)
    stage = import_nnunet(export, tmp_path / "models", wishes()).spec.stages[0]
    assert stage.spacing_mm == (1.0, 1.0, 1.0)
    assert stage.intensity
    assert stage.intensity.clip == (-800, 900)


def test_a_configuration_of_single_slices_keeps_their_distance(tmp_path: Path) -> None:
    plans = _plans()
    plans["configurations"]["2d"] |= {"normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [False]}
    export = write_nnunet(
        tmp_path / "nnUNetTrainer__nnUNetPlans__2d", plans=plans, networks=[network(0.0, sizes=("N", 1, 48, 48))]
    )
    stage = import_nnunet(export, tmp_path / "models", wishes()).spec.stages[0]
    assert stage.is_flat
    assert (stage.spacing_mm, stage.orientation) == ((0.0, 2.0, 1.5), "SPL")


def test_an_ignored_label_of_the_training_is_no_channel(tmp_path: Path) -> None:
    dataset = {**DATASET, "labels": {"background": 0, "ball": 1, "ignore": 2}}
    made = import_nnunet(write_nnunet(tmp_path / FOLDER, dataset=dataset), tmp_path / "models", wishes())
    assert [one.channel for one in made.spec.classes] == [1]


def test_an_export_without_onnx_files_is_told_how_to_make_them(tmp_path: Path) -> None:
    refusal = _refused(tmp_path, folds=0)
    assert "torch.onnx.export" in refusal.way_out
