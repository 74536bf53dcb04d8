"""An nnU-Net v2 export becomes a model folder: ``plans.json``, ``dataset.json`` and its folds as ONNX files.

nnU-Net itself exports no ONNX; whoever trained the model does, each fold as ``fold_<n>/model.onnx``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.imports.draft import Draft, Imported, one_line, publish
from service.imports.plans import DATASET, PLANS, Plans, read_plans
from service.imports.refusal import CannotImport, Unmappable
from service.imports.source import Opened, opened, read_json
from service.imports.weights import Weights, read_weights
from service.imports.wishes import Labels, Wishes, check_words, choose_classes, folder_name, needed, select_rules

_OVERLAP = 0.5  # nnU-Net's tile_step_size; its own default, and no file says otherwise
_DIFFERENCES = (
    "nnU-Net averages over mirrored images (test-time augmentation); here each window is seen once.",
    "nnU-Net resamples images by cubic splines (along a thick axis by nearest neighbour); here it is linear.",
    "nnU-Net changes intensities before it resamples; here a clip comes after it, which differs where neighbours lie "
    "on either side of a limit. Means and deviations are the same: they are taken of the image as it was received.",
    "nnU-Net crops away what is 0 around the patient before it looks; here the whole image is looked at, and counts in "
    "a mean or a range, unless values of 0 are left out.",
    "nnU-Net averages the network's outputs over windows and folds and then chooses; here probabilities are averaged.",
    "At the image's outermost voxels a map fades out here, where nnU-Net continues it: what lies on the very edge is "
    "found smaller.",
    "Which series it takes beside modality and body part (slices, spacing, plane) is Overread's default. See [select].",
)


def import_nnunet(source: Path, directory: Path, wishes: Wishes) -> Imported:
    """Import an nnU-Net v2 export.

    Parameters
    ----------
    source
        The folder with ``plans.json`` and ``dataset.json`` (of trainer, plans and configuration), or a zip file of it.
    directory
        The models directory.

    Raises
    ------
    CannotImport
        If something is missing (with the option that gives it), unsafe, or not ours to do.
    ConfigError
        If a model of that name is there and `wishes.replace` is not set.
    ContractBroken
        If a network is not what the plans say.
    """
    with opened(source, PLANS) as export:
        doing = f"importing the nnU-Net {export.name}"
        plans = read_json(export.folder / PLANS, PLANS)
        dataset = read_json(export.folder / DATASET, DATASET)
        try:
            read = read_plans(plans, dataset, wishes, export.name, doing)
        except Unmappable as exc:
            raise CannotImport(
                doing=doing,
                found=one_line(exc),
                rule="what the plans say is done here as nnU-Net does it, or the model is refused: nothing is guessed",
                way_out="take a configuration of one image channel, with labels, by the default preprocessor",
            ) from exc
        weights = [read_weights(file, read.window) for file in _folds(export, wishes, doing)]
        _check(weights, read.labels, doing)
        draft = _draft(plans, dataset, read, weights, wishes, doing)
        return publish(draft, directory, replace=wishes.replace)


def _folds(export: Opened, wishes: Wishes, doing: str) -> list[Path]:
    files = list(wishes.networks) or sorted(export.folder.glob("fold_*/model.onnx"))
    if not files and (export.folder / "model.onnx").is_file():
        files = [export.folder / "model.onnx"]
    if not files:
        raise CannotImport(
            doing=doing,
            found="no fold_*/model.onnx",
            rule="the networks are needed as ONNX files; a checkpoint_final.pth is code and weights of PyTorch",
            way_out="export each fold where nnU-Net is installed (torch.onnx.export of predictor.network in eval mode, "
            "deep supervision off, dynamic_axes for axis 0) as fold_<n>/model.onnx, or name the files with --onnx",
        )
    return files


def _check(weights: list[Weights], labels: Labels, doing: str) -> None:
    first = weights[0]
    for one in weights:
        if one.output.channels != len(labels.named) or (one.input, one.output) != (first.input, first.output):
            raise CannotImport(
                doing=doing,
                found=f"a network of {one.output.channels} channels, {one.input.name!r} in and {one.output.name!r} out",
                rule=f"each fold has the same tensors, and one channel for each of the {len(labels.named)} labels",
                way_out="export the folds of one model, all in the same way",
            )


def _draft(
    plans: Mapping[str, Any],
    dataset: Mapping[str, Any],
    read: Plans,
    weights: list[Weights],
    wishes: Wishes,
    doing: str,
) -> Draft:
    select = select_rules(doing, wishes, "CT" if read.channel.upper() == "CT" else "")
    called = str(plans.get("dataset_name", ""))
    fields = {"name": folder_name(doing, wishes.name, re.sub(r"^Dataset\d+_", "", called))}
    for key, found in {
        "title": one_line(dataset.get("name") or called),
        "version": "",
        "manufacturer": "",
        "licence": "",
    }.items():
        fields[key] = needed(
            doing,
            str(getattr(wishes, key)) or found,
            what=key,
            option=f"--{key}" + (" with the SPDX identifier of the weights' licence" if key == "licence" else ""),
            why="it stands in every result or beside the model, and no file of an nnU-Net says it",
        )
    check_words(doing, ((f"--{key}", fields[key]) for key in ("version", "title", "manufacturer", "licence")))
    outside = read.chain.value_for(0.0)
    notes = list(_DIFFERENCES)
    if outside is None:
        outside = 0.0
        notes.append(
            "Beyond the edge of an image smaller than a window nnU-Net fills in the mean; here 0 is taken there."
        )
    if any(one.fixed for one in weights):
        notes.append(
            "The ONNX files left sizes free; in the model folder they are fixed, so that their SHA-256 are new."
        )
    if read.chain.nonzero:
        notes.append("nnU-Net takes mean and deviation over what is not 0 with the holes in it filled; here without.")
    if plans.get("image_reader_writer") != "NibabelIOWithReorient":
        notes.append(
            f"That the training images lay as {wishes.orientation} (left, right, ...) was said by whoever imported it; "
            "if they did not, the network sees mirrored patients."
        )
    stage = {
        "name": "segmentation",
        "orientation": read.orientation,
        "spacing_mm": read.spacing_mm,
        "input": weights[0].input,
        "output": weights[0].output,
        "intensity": read.chain.intensity(outside=outside),
        "overlap": _OVERLAP,
        "blend": "gaussian",
        "activation": "none" if weights[0].ends_in == "softmax" else "softmax",
        "labels": "exclusive",
    }
    classes = choose_classes(wishes, read.labels, weights[0].output.channels, doing=doing)
    return Draft(
        fields={
            **fields,
            "select": select,
            "stages": [stage],
            "classes": classes,
            "findings": {"score_threshold": 0.5},
        },
        origin=_origins(wishes, read.configuration),
        source=one_line(f"nnU-Net v2 export {called}, configuration {read.configuration}, {len(weights)} folds"),
        weights=weights,
        notes=tuple(notes),
        card=_card(plans, dataset, read.configuration),
    )


def _origins(wishes: Wishes, chosen: str) -> dict[str, str]:
    where = f"{PLANS}: configurations, {chosen}"
    return {
        "title": "--title" if wishes.title else f"{DATASET}: name, or {PLANS}: dataset_name",
        **{key: f"--{key}" for key in ("version", "manufacturer", "licence")},
        "select.modality": "--modality" if wishes.modality else f"{DATASET}: channel_names",
        "select.body_parts": "--body-part",
        "select.words": "--word",
        "stages.orientation": f"{PLANS}: reader (or --orientation), reversed, then transpose_forward",
        "stages.spacing_mm": f"{where}, spacing",
        "stages.input": f"{where}, patch_size; the network's own name",
        "stages.intensity": f"{where}, normalization_schemes; outside: what becomes 0",
        "stages.overlap": "nnU-Net's tile_step_size",
        "stages.blend": "nnU-Net's use_gaussian",
        "stages.activation": "nnU-Net's softmax, unless the network ends in it",
        "stages.labels": f"{DATASET}: labels, which are no regions",
        "classes.channel": "--class",
        "findings.score_threshold": "the most probable label wins; nnU-Net drops nothing by its probability",
    }


def _card(plans: Mapping[str, Any], dataset: Mapping[str, Any], chosen: str) -> str:
    keys = ("description", "reference", "licence", "release", "numTraining")
    said = [f"- {key} (of the training set): {one_line(dataset[key])}" for key in keys if dataset.get(key)]
    said.append(f"- plans: {one_line(plans.get('plans_name'))}, configuration {chosen}")
    return "\n".join(said) + "\n- Figures of its quality: none come with an export."
