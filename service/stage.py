"""One step of a model, typed: the tensors of its network, and what lies between them and the source image."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from service.files import Frozen

Triple = tuple[float, float, float]
Size = Annotated[int, Field(ge=1, le=4096)]
Millimetres = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
MillimetresOrOwn = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]
Spacing = tuple[Millimetres, Millimetres, Millimetres]
SpacingOrOwn = tuple[MillimetresOrOwn, MillimetresOrOwn, MillimetresOrOwn]
Shape = tuple[int, int, int]
NetworkName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]


def ascending(limits: tuple[float, float]) -> tuple[float, float]:
    """The two limits, if the first is the smaller one."""
    if not limits[0] < limits[1]:
        raise ValueError(f"{limits[0]:g} to {limits[1]:g} is no range: the first is the smaller one")
    return limits


class Tensor(Frozen):
    """One tensor of a network, without its batch axis: [channels, *shape], float32."""

    name: str = Field(description="Name in the ONNX graph.")
    channels: int = Field(default=1, ge=1, description="Size of the axis behind the batch axis.")
    shape: tuple[Size, ...] = Field(
        max_length=3,
        description="The further sizes. Images and maps: three spatial sizes in the order of the stage's orientation, "
        "or two for single slices. Boxes: the count of numbers that describe one. Scores: none, or the classes.",
    )

    @property
    def dims(self) -> tuple[int, ...]:
        """All sizes behind the batch axis."""
        return (self.channels, *self.shape)


class Intensity(Frozen):
    """From real-world values (HU on CT) to the network's input: clip, normalise, then ``(value + offset) * scale``."""

    clip: tuple[float, float] | None = Field(default=None, description="Least and greatest value kept.")
    percentiles: tuple[float, float] | None = Field(
        default=None, description="The same, as percentiles (0 to 100) of the image's own values; not beside `clip`."
    )
    normalise: Literal["none", "z-score", "range"] = Field(
        default="none",
        description="z-score: mean 0 and standard deviation 1; range: least value 0, greatest 1 (of what `clip` or "
        "`percentiles` keep).",
    )
    over: Literal["volume", "window"] = Field(
        default="volume", description="Whose values percentiles and normalisation are taken of; window: each by itself."
    )
    nonzero: bool = Field(default=False, description="Whether values of 0 are left out of these, and stay 0.")
    offset: float = Field(default=0.0, description="Added after that.")
    scale: float = Field(default=1.0, description="Multiplied next.")
    channel_mean: tuple[float, ...] = Field(
        default=(), description="Subtracted last, per input channel; empty: nothing."
    )
    channel_std: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(), description="Divided by at the very end, per input channel; empty: nothing."
    )
    outside: float = Field(default=-1000.0, description="Real-world value assumed beyond the image's edge.")

    @field_validator("clip", "percentiles")
    @classmethod
    def _ascends(cls, limits: tuple[float, float] | None) -> tuple[float, float] | None:
        return limits and ascending(limits)

    @field_validator("scale")
    @classmethod
    def _changes(cls, scale: float) -> float:
        if scale == 0:
            raise ValueError("a scale of 0 leaves nothing of the image")
        return scale

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.clip and self.percentiles:
            raise ValueError("clip and percentiles are two ways to say the same: name one")
        if self.percentiles and not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError("percentiles lie between 0 and 100")
        if len(self.channel_mean) != len(self.channel_std):
            raise ValueError("channel_mean and channel_std have one number each per input channel")
        return self


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
    ensemble: tuple[NetworkName, ...] = Field(
        default=(), description="Folders of further networks with the same tensors; all their answers are averaged."
    )
    orientation: str = Field(
        default="LPS",
        description="Patient direction in which each spatial axis of the tensors grows (PS3.3 C.7.6.1). A network of "
        "single slices has two of them: the first letter is then the axis across the slices.",
    )
    spacing_mm: SpacingOrOwn = Field(
        default=(3.0, 3.0, 3.0), description="Voxel spacing of the network, per axis; 0: the source's own."
    )
    fit: Literal["no", "stretch", "pad"] = Field(
        default="no",
        description="stretch: the whole image becomes one window, each axis scaled by itself; pad: the same with equal "
        "scale, centred, `outside` beside it. Of a network of single slices: each slice. no: windows of `spacing_mm`.",
    )
    channels_hold: Literal["copies", "neighbours"] = Field(
        default="copies",
        description="What several input channels hold: the same image in each, or (2.5D) the slices before and behind "
        "the one that is asked about, which stands in the middle.",
    )
    input: Tensor | None = None
    output: Tensor | None = None
    scores: Tensor | None = None
    boxes: Literal["", "corners", "centre-size", "centres"] = Field(
        default="",
        description="What each row of `output` holds, where the task is detection, in voxels of the window, axis by "
        "axis: least corner then greatest; centre then size; centre alone.",
    )
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
    blend: Literal["mean", "gaussian"] = Field(
        default="mean",
        description="How overlapping windows are averaged: alike, or with weights that fall from a window's centre "
        "(standard deviation an eighth of its size).",
    )
    activation: Literal["none", "sigmoid", "softmax"] = Field(
        default="none", description="Applied to the network's output to make it a probability."
    )
    labels: Literal["independent", "exclusive"] = Field(
        default="independent",
        description="exclusive: the channels are classes of which a voxel has the most probable one; its map is then "
        "how far it is ahead, 0.5 + (own - greatest other) / 2: of two classes the probability itself.",
    )
    channel: int = Field(
        default=0, ge=0, description="Channel of the output that holds this stage's mask; the last stage has `classes`."
    )
    threshold: float = Field(default=0.5, gt=0, lt=1, description="A voxel belongs to the mask above this value.")
    between: Literal["mean", "maximum"] = Field(
        default="mean",
        description="How the last stage's map is read at a source voxel that lies between voxels of the network: their "
        "weighted mean, or the greatest of them (a lesion then reaches to the edge of every voxel that it touches).",
    )
    keep: Literal["all", "largest", "connected"] = Field(
        default="all",
        description="Components of the mask that are kept. largest: sought after one opening, so that a thin bridge "
        "does not join two organs; connected: the largest whose voxels share a corner at least.",
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if sorted(_AXIS_OF.get(letter, "?") for letter in self.orientation) != ["x", "y", "z"]:
            raise ValueError(f"orientation {self.orientation!r} is not one letter each of L/R, P/A and S/I")
        if self.rule != "network":
            return self
        if not (self.input and self.output and self.intensity):
            raise ValueError(f"stage {self.name!r} runs a network and needs input, output and intensity")
        if len(self.input.shape) not in (2, 3):
            raise ValueError(f"the input of stage {self.name!r} has two or three spatial sizes")
        means = len(self.intensity.channel_mean)
        if means not in (0, self.input.channels):
            raise ValueError(f"{means} channel_mean for {self.input.channels} input channels")
        if self.channels_hold == "neighbours" and not (self.is_flat and self.input.channels % 2):
            raise ValueError("neighbouring slices stand in an odd number of channels of a two-dimensional input")
        if self.boxes and self.ensemble:
            raise ValueError("boxes of several networks have no mean: a detection has no ensemble")
        last = self.scores or self.output
        classes = (*last.shape, 1)[0] if self.boxes else last.channels
        if classes < 2 and self.activation == "softmax":
            raise ValueError("a softmax of one channel is always 1")
        if self.gives_map:
            self._check_map(self.input, self.output)
        return self

    def _check_map(self, reads: Tensor, answers: Tensor) -> None:
        if len(answers.shape) != len(reads.shape):
            raise ValueError(f"a map of {len(answers.shape)} axes for an image of {len(reads.shape)}")
        if self.channel >= answers.channels:
            raise ValueError(f"channel {self.channel} is not in the output's {answers.channels} channels")
        if self.labels == "exclusive" and answers.channels < 2:
            raise ValueError("labels exclude each other where there are two channels or more")
        for wide, narrow in zip(reads.shape, answers.shape, strict=True):
            if narrow > wide or (wide - narrow) % 2:
                raise ValueError(f"an output of {narrow} does not lie in the middle of an input of {wide}")
            if narrow < wide and self.fit != "no":
                raise ValueError(f"an output of {narrow} leaves out the rim of an image that fits an input of {wide}")

    @property
    def is_flat(self) -> bool:
        """Whether the network sees single slices."""
        return self.input is not None and len(self.input.shape) == 2

    @property
    def gives_map(self) -> bool:
        """Whether the network's output is a map, and neither boxes nor scores."""
        return not self.boxes and self.output is not None and bool(self.output.shape)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The network's outputs, in the order in which a backend answers them."""
        return tuple(tensor for tensor in (self.output, self.scores) if tensor)


_AXIS_OF = {"L": "x", "R": "x", "P": "y", "A": "y", "S": "z", "H": "z", "I": "z", "F": "z"}
