"""A phantom that a model's ``[select]`` takes, so that any model can be run once, from the files to the results."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import CTImageStorage, MRImageStorage

from service.demo.phantom import CHEST, LIVER, WHOLE, Phantom, chest_abdomen, tiny
from service.demo.phantom_dicom import write_series
from service.demo.phantom_mr import MR_MODULE
from service.errors import ConfigError
from service.spec import ModelSpec, Select

_CLASSES = {"CT": CTImageStorage, "MR": MRImageStorage}
_WORDS = (
    "Phantom",
    "Chest abdomen pelvis",
    "Chest",
    "Thorax lung",
    "Abdomen",
    "Liver",
    "Kidney",
    "Pelvis prostate",
    "Head",
    "Brain",
    "Neck",
    "Heart",
    "Spine",
    "Breast",
    "Knee",
)
_EDGE, _FIELD_MM = 128, 230.0  # of the small phantom's images: pixels, mm


def write_fitting(spec: ModelSpec, folder: Path) -> None:
    """Write a series that a model takes.

    Raises
    ------
    ConfigError
        If none can be made for it.
    """
    rules = spec.select
    if rules.modality not in _CLASSES:
        raise _impossible(spec, f"modality {rules.modality}", f"phantoms are {' or '.join(_CLASSES)}")
    phantom = _anatomy(spec) if rules.modality == "CT" and rules.orientation in ("axial", "any") else None
    attributes: dict[str, object] = {"Modality": rules.modality, "SOPClassUID": _CLASSES[rules.modality]}
    if rules.modality == "MR":
        attributes |= MR_MODULE
    if rules.contrast == "none":
        attributes |= {"ContrastBolusAgent": None, "ContrastBolusRoute": None}
    description = _description(rules)
    if description is None:
        raise _impossible(spec, "words that no description of ours has", "its [select] takes what a phantom can say")
    attributes |= dict.fromkeys(("StudyDescription", "SeriesDescription", "ProtocolName"), description)
    attributes["BodyPartExamined"] = rules.body_parts[0] if rules.body_parts else ""
    write_series(phantom or _small(rules), folder, attributes=attributes)


def _anatomy(spec: ModelSpec) -> Phantom | None:
    """The coarse chest or abdomen, where the model looks there; else None."""
    parts = " ".join(spec.select.body_parts)
    chest = any(stage.rule == "lungs" for stage in spec.stages)
    if not chest and ("LIVER" in parts or "ABD" in parts):
        heights = LIVER
    elif chest or "CHEST" in parts or "LUNG" in parts or "THORAX" in parts:
        heights = CHEST
    elif any(stage.rule == "body" for stage in spec.stages):
        heights = WHOLE
    else:
        return None
    low, high = spec.select.slice_spacing_mm
    least, most = spec.select.slices
    height = heights[1] - heights[0]
    spacing = max(min(5.0, high, height / least), low, height / most)
    if spacing > high or height / spacing < least:
        return None
    return chest_abdomen(spacing_mm=(spacing, 1.35, 1.35), heights_mm=heights)


def _small(rules: Select) -> Phantom:
    low, high = rules.slice_spacing_mm
    least, most = rules.slices
    slices = max(least, min(24, most))
    return tiny(affine=_affine(rules.orientation, max(low, min(5.0, high))), shape=(slices, _EDGE, _EDGE))


def _affine(plane: str, spacing_mm: float) -> NDArray[np.float64]:
    """(slice, row, column, 1) -> LPS mm, the pixels square."""
    pixel = _FIELD_MM / _EDGE
    left, back, up = np.eye(3)
    slices, rows, columns = {
        "coronal": (back, -up, left),
        "sagittal": (left, -up, back),
    }.get(plane, (-up, back, left))
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([slices * spacing_mm, rows * pixel, columns * pixel])
    return affine


def _description(rules: Select) -> str | None:
    """Words for the descriptions that `[select]` takes; empty where silence is better, None where nothing would do."""
    for word in _WORDS:
        if not _any(rules.words_against, word) and (rules.body_parts or not rules.words or _any(rules.words, word)):
            return word
    return "" if rules.body_parts or rules.silent_series else None


def _any(patterns: tuple[str, ...], text: str) -> bool:
    return any(re.search(pattern, text, re.IGNORECASE) for pattern in patterns)


def _impossible(spec: ModelSpec, found: str, rule: str) -> ConfigError:
    return ConfigError(
        doing=f"making a phantom for {spec.name}",
        found=found,
        rule=rule,
        way_out="run it on a real series of yours: overread run FOLDER --model " + spec.name,
    )
