"""A MONAI bundle becomes a model folder that says what the bundle says, or is refused by name."""

from __future__ import annotations

import copy
import hashlib
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto

from service.errors import ConfigError
from service.imports.bundle import read_plan
from service.imports.monai import import_bundle
from service.imports.refusal import CannotImport
from service.models import installed
from service.spec import read_spec
from tests.bundles import (
    INFERENCE,
    METADATA,
    network,
    wishes,
    with_argument,
    with_transform,
    write_bundle,
    zipped,
)


def _refused(tmp_path: Path, **changes: Any) -> CannotImport:
    asked = changes.pop("wishes", wishes())
    proto = changes.pop("proto", None)
    bundle = write_bundle(tmp_path / "ball_ct", **changes)
    if proto is not None:
        onnx.save(proto, str(bundle / "models" / "model.onnx"))
    with pytest.raises(CannotImport) as refusal:
        import_bundle(bundle, tmp_path / "models", asked)
    assert all(refusal.value.parts().values())
    assert not (tmp_path / "models").exists()
    return refusal.value


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_a_bundle_becomes_a_model_that_says_the_same(form: str, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "ball_ct")
    weights = (bundle / "models" / "model.onnx").read_bytes()
    weights += onnx.ModelProto(producer_name="somebody").SerializeToString()  # not in the order in which onnx writes
    (bundle / "models" / "model.onnx").write_bytes(weights)
    source = bundle if form == "folder" else zipped(bundle)
    made = import_bundle(source, tmp_path / "models", wishes(version="", manufacturer=""))
    spec = read_spec(made.folder)
    assert (spec.name, spec.version, spec.title) == ("ball-ct", "0.5.3", "Bright ball CT segmentation")
    assert (spec.manufacturer, spec.licence, spec.task) == ("Overread tests", "Apache-2.0", "segmentation")
    assert (spec.select.modality, spec.select.body_parts) == ("CT", ("ABDOMEN",))
    (stage,) = spec.stages
    assert (stage.orientation, stage.spacing_mm, stage.fit) == ("RAS", (2.0, 2.0, 2.5), "no")
    assert stage.input
    assert stage.output
    assert (stage.input.name, stage.input.dims) == ("image", (1, 24, 24, 24))
    assert (stage.output.name, stage.output.dims) == ("logits", (2, 24, 24, 24))
    assert stage.intensity
    assert (stage.intensity.clip, stage.intensity.offset, stage.intensity.outside) == ((-1000, 1000), 1000, -1000)
    assert stage.intensity.scale == pytest.approx(1 / 2000)
    assert (stage.overlap, stage.blend) == (0.5, "gaussian")
    assert (stage.activation, stage.labels, stage.threshold, stage.keep) == ("softmax", "exclusive", 0.5, "all")
    (reported,) = spec.classes
    assert (reported.channel, reported.finding.value, reported.site.value) == (1, "52988006", "10200004")
    assert (made.folder / "1" / "model.onnx").read_bytes() == weights
    assert spec.source.onnx_sha256 == {"ball-ct": hashlib.sha256(weights).hexdigest()}
    assert [model.spec.name for model in installed(tmp_path / "models")] == ["ball-ct"]
    assert {path.name for path in made.folder.iterdir()} == {"1", "model.toml", "config.pbtxt", "card.md"}


def test_the_folder_says_where_each_value_comes_from_and_what_is_done_otherwise(tmp_path: Path) -> None:
    made = import_bundle(write_bundle(tmp_path / "ball_ct"), tmp_path / "models", wishes())
    lines = (made.folder / "model.toml").read_text().splitlines()
    for key, origin in {
        "spacing_mm": "Spacingd",
        "intensity": "intensity transforms",
        "licence": "--licence",
        "version": "--version",
        "body_parts": "--body-part",
    }.items():
        (line,) = [line for line in lines if line.startswith(f"{key} = ")]
        assert origin in line.partition("  # ")[2]
    card = (made.folder / "card.md").read_text()
    assert all(note in card for note in made.notes)
    assert any(note.startswith("Windows: MONAI steps") for note in made.notes)
    assert "mean_dice" in card
    assert "Nobody has tried it" in card


def test_words_of_a_bundle_can_not_become_keys_of_model_toml(tmp_path: Path) -> None:
    evil = 'ball" # \nlicence = "MIT"\n\x7f[select]\nmodality = "MR'
    metadata = {**METADATA, "task": evil, "description": evil, "version": '1" \n x = "'}
    made = import_bundle(write_bundle(tmp_path / "ball", metadata=metadata), tmp_path / "models", wishes(version=""))
    assert made.spec.version == '1" x = "'
    assert read_spec(made.folder) == made.spec
    assert made.spec.licence == "Apache-2.0"


@pytest.mark.parametrize(
    ("inference", "named"),
    [
        (with_transform({"_target_": "RandGaussianNoised", "keys": "image"}, at=4), ["RandGaussianNoised"]),
        (with_transform({"_target_": "scripts.own.Spacingd", "keys": "image"}, at=4), ["scripts.own.Spacingd"]),
        (
            with_transform(
                {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x"}, at=2, part="postprocessing"
            ),
            ["Lambdad"],
        ),
        (with_argument(2, labels=[["R", "L"], ["A", "P"], ["I", "S"]]), ["Orientationd", "labels"]),
        (with_argument(2, axcodes="RA"), ["Orientationd", "axcodes"]),
        (with_argument(3, mode="nearest"), ["Spacingd", "mode = 'nearest'"]),
        (with_argument(3, max_pixdim=[3, 3, 3]), ["Spacingd", "max_pixdim"]),
        (with_argument(3, sharpen=True), ["Spacingd", "the argument sharpen is not known"]),
        (with_argument(4, gamma=2.0), ["ScaleIntensityRanged", "the argument gamma is not known"]),
        (with_argument(4, keys=["image", "label"]), ["ScaleIntensityRanged", "keys"]),
        (with_argument(0, keys=["t1", "t2"]), ["LoadImaged", "several images"]),
        (with_argument(0, affine_lps_to_ras=False), ["LoadImaged", "affine_lps_to_ras"]),
        (with_argument(0, reader="PILReader"), ["LoadImaged", "PILReader"]),
        (with_argument(0, "postprocessing", softmax=False, other="$torch.tanh"), ["Activationsd", "torch.tanh"]),
        (with_argument(1, "postprocessing", transform="@other"), ["Invertd", "@other"]),
        (with_argument(2, "postprocessing", argmax=False, threshold=4), ["AsDiscreted", "threshold"]),
        (with_argument(2, "postprocessing", rounding="torchrounding", argmax=False), ["AsDiscreted", "rounding"]),
        ({**INFERENCE, "inferer": {**INFERENCE["inferer"], "roi_size": [24, 24, -1]}}, ["SlidingWindow", "roi_size"]),
        ({**INFERENCE, "inferer": {**INFERENCE["inferer"], "overlap": 0.9}}, ["SlidingWindowInferer", "overlap"]),
        ({**INFERENCE, "inferer": {**INFERENCE["inferer"], "sigma_scale": 0.3}}, ["SlidingWindow", "sigma_scale"]),
        ({**INFERENCE, "inferer": {"_target_": "SliceInferer", "roi_size": [24, 24]}}, ["SliceInferer"]),
        ({**INFERENCE, "inferer": {"_target_": "SimpleInferer"}}, ["sliding window, or SimpleInferer behind Resized"]),
        ({key: value for key, value in INFERENCE.items() if key != "inferer"}, ["inferer: it is missing"]),
        ({**INFERENCE, "dataset": {"_target_": "Dataset", "transform": "@other"}}, ["dataset#transform", "@other"]),
        (
            {**INFERENCE, "postprocessing": {"_target_": "Compose", "transforms": []}},
            ["no AsDiscreted"],
        ),
    ],
)
def test_what_is_not_mapped_is_refused_by_its_name(inference: dict[str, Any], named: list[str], tmp_path: Path) -> None:
    refusal = _refused(tmp_path, inference=inference)
    for name in named:
        assert name in refusal.found


def test_all_that_is_not_mapped_is_named_at_once(tmp_path: Path) -> None:
    inference = with_transform({"_target_": "HistogramNormalized", "keys": "image"}, at=4)
    inference["preprocessing"]["transforms"].append({"_target_": "SpatialPadd", "keys": "image", "spatial_size": 96})
    inference["postprocessing"]["transforms"].append({"_target_": "FillHolesd", "keys": "pred"})
    inference["inferer"]["with_coord"] = True
    found = _refused(tmp_path, inference=inference).found
    assert all(name in found for name in ("HistogramNormalized", "SpatialPadd", "FillHolesd", "with_coord"))


def test_a_transform_in_another_place_is_refused_where_it_means_something_else(tmp_path: Path) -> None:
    space = INFERENCE["preprocessing"]["transforms"][3]
    late = copy.deepcopy(INFERENCE)
    steps = late["preprocessing"]["transforms"]
    steps[3], steps[4] = steps[4], steps[3]
    assert "Spacingd (preprocessing): it stands behind a change" in _refused(tmp_path, inference=late).found
    # A shift and a factor commute with linear resampling, also where a mean and a deviation decide them.
    steps[3] = {"_target_": "NormalizeIntensityd", "keys": "image"}
    assert read_plan(late, doing="testing").before.spacing_mm == (2.0, 2.0, 2.5)
    early = copy.deepcopy(INFERENCE)
    steps = early["preprocessing"]["transforms"]
    steps[2], steps[3] = steps[3], steps[2]
    with pytest.raises(CannotImport, match=r"Orientationd .* behind Spacingd"):
        read_plan(early, doing="testing")
    steps[2] = {**space, "pixdim": 2.0}  # the same along every axis: whatever they are
    assert read_plan(early, doing="testing").before.spacing_mm == (2.0, 2.0, 2.0)


def test_a_crop_is_left_out_only_where_it_takes_away_what_was_clipped_to_0() -> None:
    crop = {"_target_": "CropForegroundd", "keys": "image", "source_key": "image"}
    plan = read_plan(with_transform(crop, at=5), doing="testing")
    assert any(note.startswith("CropForegroundd is left out") for note in plan.before.notes)
    for place, change in ((3, {}), (5, {"select_fn": "$lambda x: x > 1"}), (5, {"k_divisible": 16})):
        with pytest.raises(CannotImport, match="CropForegroundd"):
            read_plan(with_transform({**crop, **change}, at=place), doing="testing")
    grey = with_transform(crop, at=5)
    grey["preprocessing"]["transforms"][4]["b_min"] = -1
    with pytest.raises(CannotImport, match="CropForegroundd"):
        read_plan(grey, doing="testing")
    inference = with_transform(crop, at=5)
    inference["preprocessing"]["transforms"].insert(6, {"_target_": "NormalizeIntensityd", "keys": "image"})
    with pytest.raises(CannotImport, match=r"NormalizeIntensityd .* those of the cropped image"):
        read_plan(inference, doing="testing")


def test_an_expression_that_is_code_is_refused_and_not_run(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    evil = f"$__import__('os').system('touch {proof}')"
    for inference in (with_argument(4, a_min=evil), with_argument(3, pixdim=evil), with_argument(2, _disabled_=evil)):
        with pytest.raises(CannotImport, match="code, which is not run"):
            read_plan(inference, doing="testing")
    # In a place that does not matter it is not even looked at.
    read_plan(with_argument(5, device=evil) | {"initialize": [evil], "device": evil}, doing="testing")
    assert not proof.exists()


def test_a_disabled_transform_is_left_out() -> None:
    inference = with_argument(3, _disabled_="$not @highres")
    assert read_plan(inference, doing="testing").before.spacing_mm == (2.0, 2.0, 2.5)
    inference["highres"] = False
    assert read_plan(inference, doing="testing").before.spacing_mm is None
    assert read_plan(with_argument(3, _disabled_="True"), doing="testing").before.spacing_mm is None


@pytest.mark.parametrize(
    ("asked", "option"),
    [
        ({"classes": ()}, '--class "1=VALUE,SCHEME,MEANING@VALUE,SCHEME,MEANING"'),
        ({"body_parts": ()}, "--body-part"),
        ({"licence": ""}, "--licence"),
    ],
)
def test_what_no_file_says_is_asked_for_by_its_option(asked: dict[str, Any], option: str, tmp_path: Path) -> None:
    refusal = _refused(tmp_path, wishes=wishes(**asked))
    assert option in refusal.way_out
    assert ("'ball'" in refusal.found) == (not asked.get("classes", True))


@pytest.mark.parametrize(
    ("key", "value", "option"),
    [
        ("version", None, "--version"),
        ("authors", "", "--manufacturer"),
        ("authors", "A very long list of authors " * 5, "--manufacturer"),
        ("name", "back\\slash", "--title"),
    ],
)
def test_what_the_metadata_lacks_is_asked_for_by_its_option(
    key: str, value: str | None, option: str, tmp_path: Path
) -> None:
    asked = wishes(version="", manufacturer="")
    assert option in _refused(tmp_path, metadata={**METADATA, key: value}, wishes=asked).way_out


def test_a_modality_that_dicom_does_not_know_is_asked_for(tmp_path: Path) -> None:
    metadata = copy.deepcopy(METADATA)
    metadata["network_data_format"]["inputs"]["image"]["modality"] = "n/a"
    assert "--modality" in _refused(tmp_path, metadata=metadata).way_out
    made = import_bundle(tmp_path / "ball_ct", tmp_path / "models", wishes(modality="MR"))
    assert made.spec.select.modality == "MR"


def test_a_bundle_that_leaves_images_as_they_lie_needs_their_orientation(tmp_path: Path) -> None:
    inference = copy.deepcopy(INFERENCE)
    del inference["preprocessing"]["transforms"][2]
    assert "--orientation" in _refused(tmp_path, inference=inference, wishes=wishes(orientation="")).way_out
    made = import_bundle(tmp_path / "ball_ct", tmp_path / "models", wishes(orientation="LAS"))
    assert made.spec.stages[0].orientation == "LAS"


def test_several_series_in_one_input_are_refused_in_words(tmp_path: Path) -> None:
    metadata = copy.deepcopy(METADATA)
    metadata["network_data_format"]["inputs"]["image"] |= {
        "num_channels": 4,
        "channel_def": {"0": "T1c", "1": "T1", "2": "T2", "3": "FLAIR"},
    }
    refusal = _refused(tmp_path, metadata=metadata)
    assert "4 input channels: T1c, T1, T2, FLAIR" in refusal.found
    assert "several series" in refusal.rule


def test_each_channel_is_reported_or_ignored_by_name(tmp_path: Path) -> None:
    metadata = copy.deepcopy(METADATA)
    metadata["network_data_format"]["outputs"]["pred"]["channel_def"]["0"] = "liver"
    refusal = _refused(tmp_path, metadata=metadata)
    assert "channel 0, 'liver'" in refusal.found
    assert "--ignore 0" in refusal.way_out
    made = import_bundle(tmp_path / "ball_ct", tmp_path / "models", wishes(ignored=frozenset({0})))
    assert [one.channel for one in made.spec.classes] == [1]
    for ignored in ({0, 1}, {0, 7}):
        with pytest.raises(CannotImport, match="channel"):
            import_bundle(tmp_path / "ball_ct", tmp_path / "other", wishes(ignored=frozenset(ignored)))


def test_a_threshold_has_no_background_and_the_largest_component_is_kept(tmp_path: Path) -> None:
    inference = copy.deepcopy(INFERENCE)
    steps = inference["postprocessing"]["transforms"]
    steps[0] = {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}
    steps[2] = {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.3}
    largest = {"_target_": "KeepLargestConnectedComponentd", "keys": "pred", "applied_labels": [1]}
    small = {"_target_": "RemoveSmallObjectsd", "keys": "pred", "by_measure": True, "min_size": 500}
    steps[3:3] = [largest, small]
    assert "channel 0" in _refused(tmp_path, inference=inference).found
    made = import_bundle(tmp_path / "ball_ct", tmp_path / "models", wishes(ignored=frozenset({0})))
    (stage,) = made.spec.stages
    assert (stage.activation, stage.labels, stage.threshold, stage.keep) == ("sigmoid", "independent", 0.3, "connected")
    assert (made.spec.findings.score_threshold, made.spec.findings.minimum_volume_ml) == (0.3, 0.5)
    largest["applied_labels"] = [0]
    assert (
        "KeepLargest" in _refused(tmp_path / "again", inference=inference, wishes=wishes(ignored=frozenset({0}))).found
    )


def test_the_whole_image_made_one_size_is_one_window(tmp_path: Path) -> None:
    inference = copy.deepcopy(INFERENCE)
    inference["preprocessing"]["transforms"][3] = {"_target_": "Resized", "keys": "image", "spatial_size": [24, 24, 24]}
    inference["inferer"] = {"_target_": "SimpleInferer"}
    made = import_bundle(write_bundle(tmp_path / "ball", inference=inference), tmp_path / "models", wishes())
    assert (made.spec.stages[0].fit, made.spec.stages[0].spacing_mm) == ("stretch", (0.0, 0.0, 0.0))


@pytest.mark.parametrize(
    ("proto", "found"),
    [
        (network(0.6, sizes=(1, 1, 24, 24, 24)), "an input of 1 x 1 x 24 x 24 x 24"),
        (network(0.6, sizes=("N", 1, 32, 24, 24)), "windows of 32 x 24 x 24"),
        (network(0.6, sizes=("N", 1, 24, 24)), "an input of ? x 1 x 24 x 24"),
        (network(0.6, sizes=("N", 3, 24, 24, 24), answers=("N", 6, 24, 24, 24)), "3 input channels"),
        (network(0.6, kind=TensorProto.DOUBLE), "'image' is double"),
        (network(0.6, answers=("N", 2, 12, 24, 24)), "an output of ? x 2 x 12 x 24 x 24"),
    ],
)
def test_a_network_that_is_not_the_bundles_is_refused(proto: onnx.ModelProto, found: str, tmp_path: Path) -> None:
    assert found in _refused(tmp_path, proto=proto).found


def test_sizes_that_the_network_leaves_free_are_fixed(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "ball")
    free = ("N", 1, "H", "W", "D")
    onnx.save(network(0.6, sizes=free, answers=("M", "C", "X", "Y", "Z")), str(bundle / "models" / "model.onnx"))
    made = import_bundle(bundle, tmp_path / "models", wishes())
    assert installed(tmp_path / "models")
    proto = onnx.load(str(made.folder / "1" / "model.onnx"))
    for value, channels in ((proto.graph.input[0], 1), (proto.graph.output[0], 2)):
        batch, *sizes = value.type.tensor_type.shape.dim
        assert not batch.HasField("dim_value")
        assert [axis.dim_value for axis in sizes] == [channels, 24, 24, 24]
    digest = hashlib.sha256((made.folder / "1" / "model.onnx").read_bytes()).hexdigest()
    assert made.spec.source.onnx_sha256 == {"ball": digest}
    assert any("fixed" in note for note in made.notes)


def test_weights_in_other_files_are_refused(tmp_path: Path) -> None:
    proto = network(0.6)
    tensor = proto.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")
    bundle = write_bundle(tmp_path / "ball")
    (bundle / "models" / "model.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(CannotImport, match="lie in other files"):
        import_bundle(bundle, tmp_path / "models", wishes())


def test_what_is_no_onnx_file_is_refused(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "ball")
    (bundle / "models" / "model.onnx").write_bytes(b"\x00\x01 no network")
    with pytest.raises(CannotImport, match=r"reading the network model\.onnx"):
        import_bundle(bundle, tmp_path / "models", wishes())


@pytest.mark.parametrize("last", ["", "Softmax", "Sigmoid"])
def test_an_activation_inside_the_network_is_not_applied_again(last: str, tmp_path: Path) -> None:
    inference = copy.deepcopy(INFERENCE)
    del inference["postprocessing"]["transforms"][0]
    bundle = write_bundle(tmp_path / "ball", inference=inference)
    onnx.save(network(0.6, last=last), str(bundle / "models" / "model.onnx"))
    made = import_bundle(bundle, tmp_path / "models", wishes())
    assert made.spec.stages[0].activation == ("none" if last else "softmax")


def test_a_threshold_on_what_is_no_probability_is_refused(tmp_path: Path) -> None:
    inference = with_argument(2, "postprocessing", argmax=False, threshold=0.5)
    del inference["postprocessing"]["transforms"][0]
    assert "a threshold on outputs" in _refused(tmp_path, inference=inference).found


def test_the_weights_alone_or_torchscript_without_pytorch_are_refused_with_the_way_to_onnx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_bundle(tmp_path / "ball")
    (bundle / "models" / "model.onnx").unlink()
    with pytest.raises(CannotImport, match="onnx_export"):
        import_bundle(bundle, tmp_path / "models", wishes())
    (bundle / "models" / "model.ts").write_bytes(b"TorchScript")
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed
    with pytest.raises(CannotImport) as refusal:
        import_bundle(bundle, tmp_path / "models", wishes())
    assert "PyTorch is not installed" in refusal.value.found
    assert "model.onnx" in refusal.value.way_out


def test_a_configuration_in_yaml_is_asked_for_as_json(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "ball")
    (bundle / "configs" / "inference.json").rename(bundle / "configs" / "inference.yaml")
    with pytest.raises(CannotImport, match="YAML must be written as JSON"):
        import_bundle(bundle, tmp_path / "models", wishes())


def test_a_model_that_is_there_is_replaced_only_when_asked_for(tmp_path: Path) -> None:
    directory = tmp_path / "models"
    import_bundle(write_bundle(tmp_path / "ball"), directory, wishes(version="1"))
    other = write_bundle(tmp_path / "new", limit=0.7)
    with pytest.raises(ConfigError, match="--replace"):
        import_bundle(other, directory, wishes(version="2", name="ball"))
    assert read_spec(directory / "ball").version == "1"
    import_bundle(other, directory, wishes(version="2", name="ball", replace=True))
    assert read_spec(directory / "ball").version == "2"
    assert {path.name for path in directory.iterdir()} == {"ball"}


def test_networks_named_by_the_caller_are_an_ensemble(tmp_path: Path) -> None:
    files = tuple(tmp_path / f"{number}.onnx" for number in range(2))
    for file in files:
        onnx.save(network(0.6), str(file))
    made = import_bundle(write_bundle(tmp_path / "ball"), tmp_path / "models", wishes(networks=files))
    assert made.spec.networks_of(made.spec.stages[0]) == ("ball", "ball-1")
    assert [len(model.networks) for model in installed(tmp_path / "models")] == [2]
