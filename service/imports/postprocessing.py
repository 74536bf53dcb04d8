"""MONAI's inferers and its transforms behind the network, as what a `Stage` can say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from service.imports.calls import Call
from service.imports.refusal import Unmappable


@dataclass(frozen=True, slots=True, kw_only=True)
class Inferer:
    """How the network is led over the image."""

    window: tuple[int, ...] | None  # None: the whole image at once
    overlap: float = 0.0
    blend: Literal["mean", "gaussian"] = "mean"
    fill: float = 0.0  # network input beyond an image that is smaller than a window
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class After:
    """What the transforms behind the network amount to."""

    activation: Literal["none", "sigmoid", "softmax"] = "none"
    discrete: Literal["", "argmax", "threshold"] = ""
    threshold: float = 0.5
    largest: tuple[int, ...] | None = None  # channels of which the largest component stays; () is: all of them
    minimum_volume_ml: float = 0.0
    inverted: bool = False
    notes: tuple[str, ...] = ()


def inferer(call: Call) -> Inferer:
    """The inferer.

    Raises
    ------
    Unmappable
        If it is another one, or has arguments that are not known here.
    """
    if call.name == "SimpleInferer":
        call.finish()
        return Inferer(window=None)
    if call.name not in ("SlidingWindowInferer", "SlidingWindowInfererAdapt"):
        raise Unmappable("it is not known here")
    notes = []
    overlap = call.take("overlap", 0.25)
    if isinstance(overlap, list) and len(set(overlap)) == 1:
        overlap = overlap[0]
    if isinstance(overlap, bool) or not isinstance(overlap, int | float) or not 0 <= overlap <= 0.75:
        raise Unmappable(f"overlap is {overlap!r}, not a number from 0 to 0.75")
    mode = call.only("mode", "constant", "gaussian")
    if mode == "gaussian":
        call.only("sigma_scale", 0.125)
    padding = call.only("padding_mode", "constant", "replicate", "reflect", "circular")
    if padding != "constant":
        notes.append(
            f"padding_mode is {padding} there: an image smaller than a window is continued by its own values; here it "
            "is by the one value `outside`."
        )
    call.only("with_coord", False)
    call.harmless("sw_batch_size", "sigma_scale", "sw_device", "device", "progress", "cache_roi_weight_map")
    call.harmless("cpu_thresh", "buffer_steps", "buffer_dim")
    found = Inferer(
        window=call.sizes("roi_size"),
        overlap=float(overlap),
        blend="gaussian" if mode == "gaussian" else "mean",
        fill=call.number("cval", 0.0),
        notes=tuple(notes),
    )
    call.finish()
    return found


def after(call: Call, made: After, key: str) -> After:
    """One more transform.

    Raises
    ------
    Unmappable
        If it is not known here, has an argument that is not, or stands where it means something else.
    """
    if call.name == "SaveImaged":
        return made  # results leave as DICOM
    mapped = TRANSFORMS.get(call.name)
    if mapped is None:
        raise Unmappable("it is not known here")
    call.applies_to(key)
    result = mapped(call, made)
    call.finish()
    return result


def _activate(call: Call, made: After) -> After:
    sigmoid, softmax = call.flag("sigmoid"), call.flag("softmax")
    call.only("other", None)
    if (sigmoid and softmax) or made.activation != "none" or made.discrete:
        raise Unmappable("the output is activated twice, or behind its discretisation")
    return replace(made, activation="sigmoid" if sigmoid else "softmax" if softmax else "none")


def _invert(call: Call, made: After) -> After:
    call.refers("transform", "@preprocessing")
    call.only("post_func", None)
    nearest = call.flag("nearest_interp", True)
    call.harmless("orig_keys", "meta_keys", "orig_meta_keys", "meta_key_postfix", "to_tensor", "device")
    notes = made.notes
    if nearest or made.discrete:
        notes += (
            "The bundle decides on the network's grid and carries labels back to the image; here probabilities are "
            "carried back (linearly) and decided there: outlines are smoother, by less than a voxel of the network.",
        )
    return replace(made, inverted=True, notes=notes)


def _decide(call: Call, made: After) -> After:
    if made.discrete:
        raise Unmappable("the output is made discrete twice")
    argmax = call.flag("argmax")
    threshold = call.one("threshold")
    call.only("rounding", None)
    if argmax:
        call.harmless("to_onehot")  # another form of the same labels
        if threshold is not None:
            raise Unmappable("both argmax and threshold are given")
        return replace(made, discrete="argmax")
    call.only("to_onehot", None, False)
    number = call.number("threshold")
    if not 0 < number < 1:
        raise Unmappable(f"threshold is {number:g}, which is no probability between 0 and 1")
    return replace(made, discrete="threshold", threshold=number)


def _largest(call: Call, made: After) -> After:
    if not made.discrete:
        raise Unmappable("it stands before the output is made discrete")
    labels = call.take("applied_labels")
    numbers = labels if isinstance(labels, list) else [] if labels is None else [labels]
    if not all(type(number) is int for number in numbers):
        raise Unmappable(f"applied_labels is {labels!r}")
    call.only("independent", True)
    call.only("num_components", 1)
    call.harmless("is_onehot")
    if (connectivity := call.take("connectivity")) not in (None, 3):
        raise Unmappable(f"connectivity is {connectivity!r}, and not that of voxels that share a corner")
    return replace(made, largest=tuple(numbers))


def _small(call: Call, made: After) -> After:
    call.only("by_measure", True)
    call.only("pixdim", None)
    call.only("independent_channels", True)
    call.harmless("connectivity")
    if not made.discrete or not made.inverted:
        raise Unmappable("it stands before the output is discrete and back on the image's grid")
    return replace(made, minimum_volume_ml=call.number("min_size") / 1000)  # cubic millimetres


def _typed(call: Call, made: After) -> After:
    call.harmless("data_type", "dtype", "device", "wrap_sequence", "track_meta")
    return made


TRANSFORMS: Mapping[str, Callable[[Call, After], After]] = {
    "Activationsd": _activate,
    "Invertd": _invert,
    "AsDiscreted": _decide,
    "KeepLargestConnectedComponentd": _largest,
    "RemoveSmallObjectsd": _small,
    "EnsureTyped": _typed,
    "ToTensord": _typed,
    "ToDeviced": _typed,
}
