"""A MONAI bundle becomes a model folder.

Its ``configs/metadata.json`` says what the network reads and answers, its ``configs/inference.json`` what lies before
and behind it (MONAI Bundle Specification). Both are read; nothing of them is run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.imports import torchscript
from service.imports.bundle import INFERENCE, METADATA, Plan, read_plan
from service.imports.bundle_stage import stage_fields
from service.imports.draft import Draft, Imported, one_line, publish
from service.imports.postprocessing import After
from service.imports.refusal import CannotImport
from service.imports.source import opened, read_json
from service.imports.weights import Weights, read_weights
from service.imports.wishes import (
    Labels,
    Wishes,
    check_words,
    choose_classes,
    folder_name,
    needed,
    select_rules,
)

_MODALITIES = {"CT": "CT", "MR": "MR", "MRI": "MR", "PT": "PT", "PET": "PT", "US": "US"}


def import_bundle(source: Path, directory: Path, wishes: Wishes) -> Imported:
    """Import a MONAI bundle.

    Parameters
    ----------
    source
        The bundle's folder, or its zip file.
    directory
        The models directory.

    Raises
    ------
    CannotImport
        If something is missing (with the option that gives it), unsafe, or not ours to do (all of it by name).
    ConfigError
        If a model of that name is there and `wishes.replace` is not set.
    ContractBroken
        If the network is not what the bundle says.
    """
    with opened(source, METADATA) as bundle, tempfile.TemporaryDirectory(prefix="overread-import-") as scratch:
        doing = f"importing the MONAI bundle {bundle.name}"
        metadata = read_json(bundle.folder / METADATA, METADATA)
        plan = read_plan(read_json(bundle.folder / INFERENCE, INFERENCE), doing=doing)
        reads, answers = _tensors(metadata, doing)
        files = wishes.networks or (_network(bundle.folder, plan, Path(scratch), doing),)
        weights = [read_weights(file, plan.window) for file in files]
        draft = _draft(metadata, reads, answers, plan, weights, wishes, bundle.folder, bundle.name, doing)
        return publish(draft, directory, replace=wishes.replace)


def _tensors(metadata: Mapping[str, Any], doing: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """What the metadata says of the network's one input and its one output."""
    formats = metadata.get("network_data_format")
    sides = []
    for side in ("inputs", "outputs"):
        tensors = formats.get(side) if isinstance(formats, dict) else None
        if not isinstance(tensors, dict) or len(tensors) != 1 or not isinstance(next(iter(tensors.values())), dict):
            names = ", ".join(map(str, tensors)) if isinstance(tensors, dict) else "none"
            raise CannotImport(
                doing=doing,
                found=f"the {side} {names} in {METADATA}",
                rule="one image goes into a network, and one map comes out",
                way_out="take a bundle of such a network; images of several series are not read together here",
            )
        sides.append(next(iter(tensors.values())))
    reads, answers = sides
    if reads.get("num_channels") != 1:
        raise CannotImport(
            doing=doing,
            found=f"{reads.get('num_channels')} input channels: {_named(reads)}",
            rule="one series is one channel: images of several series in one input (T1 and T2 of a brain) are not read "
            "together here",
            way_out="take a bundle of a network that reads one series",
        )
    if reads.get("type") != "image" or answers.get("type") != "image":
        raise CannotImport(
            doing=doing,
            found=f"{reads.get('type')!r} goes in and {answers.get('type')!r} comes out, by {METADATA}",
            rule="segmentations are imported: an image in, an image of labels out",
            way_out="describe another kind of model in a model.toml of its own (README, Models)",
        )
    return reads, answers


def _network(folder: Path, plan: Plan, scratch: Path, doing: str) -> Path:
    if (folder / "models" / "model.onnx").is_file():
        return folder / "models" / "model.onnx"
    if (folder / "models" / "model.ts").is_file():
        return torchscript.export(folder / "models" / "model.ts", plan.window, scratch)
    raise CannotImport(
        doing=doing,
        found="neither models/model.onnx nor models/model.ts",
        rule="the network itself is needed; models/model.pt holds its weights alone, and code would have to be run",
        way_out="export it where MONAI is installed: python -m monai.bundle onnx_export, with a free batch axis; then "
        "import again, or name the file with --onnx",
    )


def _draft(
    metadata: Mapping[str, Any],
    reads: Mapping[str, Any],
    answers: Mapping[str, Any],
    plan: Plan,
    weights: list[Weights],
    wishes: Wishes,
    folder: Path,
    called: str,
    doing: str,
) -> Draft:
    channels = weights[0].output.channels
    if answers.get("num_channels") != channels:
        raise CannotImport(
            doing=doing,
            found=f"{channels} channels come out of the network, {answers.get('num_channels')} by {METADATA}",
            rule="the bundle's network is the one that its metadata describes",
            way_out="correct whichever is wrong, or give the right network with --onnx",
        )
    select = select_rules(doing, wishes, _MODALITIES.get(str(reads.get("modality", "")).upper(), ""))
    stage, notes = stage_fields(plan, weights, select["modality"], wishes, doing)
    fields = {
        "name": folder_name(doing, wishes.name, called),
        "version": _said(wishes.version, metadata, "version", "--version", doing),
        "title": wishes.title or _said("", metadata, "name" if metadata.get("name") else "task", "--title", doing),
        "manufacturer": _said(wishes.manufacturer, metadata, "authors", "--manufacturer", doing),
        "licence": _licence(wishes, metadata, folder, doing),
    }
    check_words(doing, ((f"--{key}", fields[key]) for key in ("version", "title", "manufacturer", "licence")))
    classes = choose_classes(wishes, _labels(answers, plan), channels, doing=doing)
    _check_largest(plan.after, {one.channel for one in classes}, doing)
    findings = {"score_threshold": stage["threshold"]}
    if plan.after.minimum_volume_ml:
        findings["minimum_volume_ml"] = plan.after.minimum_volume_ml
    return Draft(
        fields={**fields, "select": select, "stages": [stage], "classes": classes, "findings": findings},
        origin=_origins(wishes),
        source=one_line(f"MONAI bundle {called}, version {metadata.get('version')}"),
        weights=weights,
        notes=notes,
        card=_card(metadata),
    )


def _check_largest(done: After, reported: set[int], doing: str) -> None:
    """The largest component is kept of every class that is reported, or of none."""
    if done.largest and not reported <= set(done.largest):
        raise CannotImport(
            doing=doing,
            found=f"KeepLargestConnectedComponentd for channel {', '.join(map(str, done.largest))} alone",
            rule="here it is done for all channels that are reported, or for none",
            way_out="leave the other channels out with --ignore, or name them in applied_labels if that is right",
        )


def _labels(answers: Mapping[str, Any], plan: Plan) -> Labels:
    definition = answers.get("channel_def")
    items = definition.items() if isinstance(definition, dict) else ()
    named = {int(key): one_line(value) for key, value in items if str(key).isdigit()}
    background = [channel for channel, word in named.items() if word.lower() == "background"]
    exclusive = plan.after.discrete == "argmax"
    return Labels(named=named, background=background[0] if exclusive and background == [0] else None)


def _licence(wishes: Wishes, metadata: Mapping[str, Any], folder: Path, doing: str) -> str:
    files = sorted(
        path.relative_to(folder).as_posix()
        for path in (*folder.glob("*"), *folder.glob("docs/*"))
        if path.name.lower().startswith(("license", "licence"))
    )
    return needed(
        doing,
        wishes.licence or str(metadata.get("license") or metadata.get("licence") or ""),
        what="licence of the weights" + (f" ({', '.join(files)} may say it: read it)" if files else ""),
        option="--licence with its SPDX identifier (Apache-2.0, CC-BY-4.0, ...)",
        why="a bundle's licence file is that of its code, which need not be that of its weights",
    )


def _said(given: str, metadata: Mapping[str, Any], key: str, option: str, doing: str) -> str:
    return needed(
        doing,
        given or one_line(metadata.get(key) or ""),
        what=f"{key} in {METADATA}",
        option=option,
        why="the MONAI Bundle Specification asks for it, and it stands in every result",
    )


def _origins(wishes: Wishes) -> dict[str, str]:
    options = {key: f"--{key}" for key in ("version", "title", "manufacturer", "licence") if getattr(wishes, key)}
    return {
        "version": METADATA,
        "title": f"{METADATA}: name or task",
        "manufacturer": f"{METADATA}: authors",
        "licence": METADATA,
        **options,
        "select.modality": "--modality" if wishes.modality else f"{METADATA}: inputs",
        "select.body_parts": "--body-part",
        "select.words": "--word",
        "stages.orientation": f"--orientation, unless {INFERENCE} has Orientationd",
        "stages.spacing_mm": f"{INFERENCE}: Spacingd; 0: the image's own",
        "stages.fit": f"{INFERENCE}: Resized",
        "stages.input": f"{INFERENCE}: the inferer's window; the network's own names and channels",
        "stages.intensity": f"{INFERENCE}: the intensity transforms, in one; outside: what becomes the fill value",
        "stages.overlap": f"{INFERENCE}: inferer",
        "stages.blend": f"{INFERENCE}: inferer, mode",
        "stages.activation": f"{INFERENCE}: Activationsd",
        "stages.labels": f"{INFERENCE}: AsDiscreted, argmax or threshold",
        "stages.threshold": f"{INFERENCE}: AsDiscreted; of classes that exclude each other it is always 0.5",
        "stages.keep": f"{INFERENCE}: KeepLargestConnectedComponentd",
        "classes.channel": "--class",
        "findings.score_threshold": "the stage's threshold: the bundle drops nothing by its probability",
        "findings.minimum_volume_ml": f"{INFERENCE}: RemoveSmallObjectsd",
    }


def _named(tensor: Mapping[str, Any]) -> str:
    definition = tensor.get("channel_def")
    return one_line(", ".join(map(str, definition.values()))) if isinstance(definition, dict) else "not named"


def _card(metadata: Mapping[str, Any]) -> str:
    keys = (
        "task",
        "description",
        "intended_use",
        "data_source",
        "eval_metrics",
        "copyright",
        "monai_version",
        "references",
    )
    return "\n".join(f"- {key}: {one_line(metadata[key])}" for key in keys if metadata.get(key)) or "Nothing."
