"""Models from outside, as their makers hand them over: a MONAI bundle and an nnU-Net export.

Both hold the same tiny network, which anybody can check by hand: a voxel belongs to channel 1 where it is denser than
200 HU. The files around it are written as the model zoo and nnU-Net write theirs.
"""

from __future__ import annotations

import copy
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from service.imports.wishes import Wishes, parse_class

WINDOW = (24, 24, 24)
CLASS = "1=52988006,SCT,Lesion@10200004,SCT,Liver"

_TENSOR = {"type": "image", "spatial_shape": list(WINDOW), "dtype": "float32", "is_patch_data": True}
METADATA: dict[str, Any] = {
    "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20220324.json",
    "version": "0.5.3",
    "changelog": {"0.5.3": "fix the window", "0.0.1": "initialize the model package structure"},
    "monai_version": "1.4.0",
    "pytorch_version": "2.4.0",
    "numpy_version": "1.24.4",
    "required_packages_version": {"nibabel": "5.2.1", "pytorch-ignite": "0.4.11"},
    "name": "Bright ball CT segmentation",
    "task": "Segmentation of bright balls",
    "description": "A model for volumetric (3D) segmentation of bright balls from CT image",
    "authors": "Overread tests",
    "copyright": "Copyright (c) Overread",
    "data_source": "made by the tests",
    "data_type": "nibabel",
    "image_classes": "single channel data, intensity scaled to [0, 1]",
    "label_classes": "single channel data, 1 is ball, 0 is everything else",
    "pred_classes": "2 channels OneHot data, channel 1 is ball, channel 0 is background",
    "eval_metrics": {"mean_dice": 0.961},
    "intended_use": "This is an example, not to be used for diagnostic purposes",
    "references": ["none"],
    "network_data_format": {
        "inputs": {
            "image": _TENSOR
            | {
                "format": "hounsfield",
                "modality": "CT",
                "num_channels": 1,
                "value_range": [0, 1],
                "channel_def": {"0": "image"},
            }
        },
        "outputs": {
            "pred": _TENSOR
            | {
                "format": "segmentation",
                "num_channels": 2,
                "value_range": [0, 1],
                "channel_def": {"0": "background", "1": "ball"},
            }
        },
    },
}

INFERENCE: dict[str, Any] = {
    "imports": ["$import glob", "$import os"],
    "bundle_root": ".",
    "image_key": "image",
    "output_dir": "$@bundle_root + '/eval'",
    "output_dtype": "$numpy.float32",
    "dataset_dir": "/workspace/data/Task99_Ball",
    "datalist": "$list(sorted(glob.glob(@dataset_dir + '/imagesTs/*.nii.gz')))",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "highres": True,
    "pixdim": "$[2.0, 2.0, 2.5] if @highres else [4.0] * 3",
    "network_def": {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2},
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "@image_key", "reader": "ITKReader"},
            {"_target_": "EnsureChannelFirstd", "keys": "@image_key"},
            {"_target_": "Orientationd", "keys": "@image_key", "axcodes": "RAS"},
            {"_target_": "Spacingd", "keys": "@image_key", "pixdim": "@pixdim", "mode": "bilinear"},
            {
                "_target_": "ScaleIntensityRanged",
                "keys": "@image_key",
                "a_min": -1000,
                "a_max": 1000,
                "b_min": 0,
                "b_max": 1,
                "clip": True,
            },
            {"_target_": "EnsureTyped", "keys": "@image_key"},
        ],
    },
    "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]", "transform": "@preprocessing"},
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "shuffle": False},
    "inferer": {
        "_target_": "SlidingWindowInferer",
        "roi_size": list(WINDOW),
        "sw_batch_size": 4,
        "overlap": 0.5,
        "mode": "gaussian",
    },
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "Activationsd", "keys": "pred", "softmax": True},
            {
                "_target_": "Invertd",
                "keys": "pred",
                "transform": "@preprocessing",
                "orig_keys": "@image_key",
                "nearest_interp": False,
                "to_tensor": True,
            },
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_dtype": "@output_dtype"},
        ],
    },
    "handlers": [{"_target_": "StatsHandler", "iteration_log": False}],
    "evaluator": {
        "_target_": "SupervisedEvaluator",
        "device": "@device",
        "val_data_loader": "@dataloader",
        "network": "@network",
        "inferer": "@inferer",
        "postprocessing": "@postprocessing",
        "val_handlers": "@handlers",
        "amp": True,
    },
    "initialize": ["$monai.utils.set_determinism(seed=123)"],
    "run": ["$@evaluator.run()"],
}

PLANS: dict[str, Any] = {
    "dataset_name": "Dataset999_Ball",
    "plans_name": "nnUNetPlans",
    "original_median_spacing_after_transp": [2.5, 2.0, 1.5],
    "original_median_shape_after_transp": [20, 48, 48],
    "image_reader_writer": "SimpleITKIO",
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "configurations": {
        "2d": {"patch_size": [48, 48], "spacing": [2.0, 1.5], "preprocessor_name": "DefaultPreprocessor"},
        "3d_fullres": {
            "data_identifier": "nnUNetPlans_3d_fullres",
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": 2,
            "patch_size": list(WINDOW),
            "median_image_size_in_voxels": [20.0, 48.0, 48.0],
            "spacing": [2.5, 2.0, 1.5],
            "normalization_schemes": ["CTNormalization"],
            "use_mask_for_norm": [False],
            "resampling_fn_data": "resample_data_or_seg_to_shape",
            "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
        },
    },
    "experiment_planner_used": "ExperimentPlanner",
    "label_manager": "LabelManager",
    "foreground_intensity_properties_per_channel": {
        "0": {
            "max": 1200.0,
            "mean": 200.0,
            "median": 180.0,
            "min": -900.0,
            "percentile_00_5": -800.0,
            "percentile_99_5": 900.0,
            "std": 400.0,
        }
    },
}

DATASET: dict[str, Any] = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "ball": 1},
    "numTraining": 32,
    "file_ending": ".nii.gz",
}


def wishes(**others: Any) -> Wishes:
    """What the operator says, enough for either model."""
    given: dict[str, Any] = {
        "licence": "Apache-2.0",
        "body_parts": ("ABDOMEN",),
        "classes": (parse_class(CLASS),),
        "version": "1.2",
        "manufacturer": "Overread tests",
        "orientation": "LPS",
    }
    return Wishes(**{**given, **others})


def write_bundle(
    folder: Path,
    *,
    metadata: dict[str, Any] | None = None,
    inference: dict[str, Any] | None = None,
    limit: float = 0.6,  # 200 HU, of -1000 to 1000
) -> Path:
    """Write a MONAI bundle: configs, the network, a licence for its code, and the weights that nobody here reads."""
    for inner in ("configs", "models", "docs"):
        (folder / inner).mkdir(parents=True)
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata or METADATA, indent=4))
    (folder / "configs" / "inference.json").write_text(json.dumps(inference or INFERENCE, indent=4))
    (folder / "models" / "model.pt").write_bytes(b"a state dictionary")
    onnx.save(network(limit), str(folder / "models" / "model.onnx"))
    (folder / "LICENSE").write_text("Code License\n\nThis license applies to all files except the model weights.\n")
    (folder / "docs" / "README.md").write_text("# Ball\n")
    return folder


def with_transform(transform: dict[str, Any], *, at: int, part: str = "preprocessing") -> dict[str, Any]:
    """The inference configuration with one more transform, before the one at a place."""
    changed = copy.deepcopy(INFERENCE)
    changed[part]["transforms"].insert(at, transform)
    return changed


def with_argument(place: int, part: str = "preprocessing", **arguments: Any) -> dict[str, Any]:
    """The inference configuration with other arguments of the transform at a place."""
    changed = copy.deepcopy(INFERENCE)
    changed[part]["transforms"][place].update(arguments)
    return changed


def with_intensities(*transforms: dict[str, Any]) -> dict[str, Any]:
    """The inference configuration with these in the place of its one intensity transform."""
    changed = copy.deepcopy(INFERENCE)
    steps = changed["preprocessing"]["transforms"]
    steps[4:5] = [{"keys": "image", **transform} for transform in transforms]
    return changed


def write_nnunet(
    folder: Path,
    *,
    plans: dict[str, Any] | None = None,
    dataset: dict[str, Any] | None = None,
    folds: int = 1,
    networks: Sequence[onnx.ModelProto] = (),
) -> Path:
    """Write an nnU-Net export, its folds as ONNX files."""
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans or PLANS))
    (folder / "dataset.json").write_text(json.dumps(dataset or DATASET))
    for number, proto in enumerate(networks or [network(0.0)] * folds):  # 200 HU is the mean
        (folder / f"fold_{number}").mkdir()
        (folder / f"fold_{number}" / "checkpoint_final.pth").write_bytes(b"a checkpoint")
        onnx.save(proto, str(folder / f"fold_{number}" / "model.onnx"))
    return folder


def zipped(folder: Path) -> Path:
    """The folder as a zip file beside it, its own name first in each entry, as the specification has it."""
    file = folder.with_suffix(".zip")
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder.parent))
    return file


def network(
    limit: float,
    *,
    sizes: Sequence[int | str] = ("N", 1, *WINDOW),
    answers: Sequence[int | str] | None = None,
    last: str = "",
    kind: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """Two channels of logits: channel 1 is ahead where the input is above a limit.

    Parameters
    ----------
    last
        An operator behind that: "Softmax" or "Sigmoid".
    """
    constants = {"limit": np.array(limit, np.float32), "slope": np.array(50.0, np.float32)}
    nodes = [
        helper.make_node("Sub", ["image", "limit"], ["above"]),
        helper.make_node("Mul", ["above", "slope"], ["ball"]),
        helper.make_node("Neg", ["ball"], ["rest"]),
        helper.make_node("Concat", ["rest", "ball"], ["both" if last else "logits"], axis=1),
    ]
    if last:
        nodes.append(helper.make_node(last, ["both"], ["logits"]))
        if last == "Softmax":
            nodes[-1].attribute.append(helper.make_attribute("axis", 1))
    graph = helper.make_graph(
        nodes,
        "ball",
        [helper.make_tensor_value_info("image", kind, list(sizes))],
        [helper.make_tensor_value_info("logits", kind, list(answers or (sizes[0], 2, *sizes[2:])))],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
