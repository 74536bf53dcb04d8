"""MONAI's transforms before the network, one by one, as what a `Stage` can say.

Overread orients, resamples, then changes intensities. A bundle may have another order where the result is the same;
where it is not, the transform that stands in the wrong place is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from service.imports.calls import Call
from service.imports.chain import Chain
from service.imports.refusal import Unmappable

_LINEAR = ("bilinear", "linear", "trilinear", 1)
_READERS = (None, "ITKReader", "itkreader", "NibabelReader", "nibabelreader", "PydicomReader", "pydicomreader")


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """What the transforms before the network amount to."""

    orientation: str = ""  # as `Stage.orientation`; empty: the file's own
    spacing_mm: tuple[float, float, float] | None = None
    shape: tuple[int, ...] | None = None  # the whole image is made this large
    chain: Chain = field(default_factory=Chain)
    cropped: bool = False
    notes: tuple[str, ...] = ()


def image_key(calls: list[Call]) -> str:
    """The item of the data that is the image: what is loaded."""
    for call in calls:
        if call.name == "LoadImaged":
            keys = call.take("keys")
            keys = keys if isinstance(keys, list) else [keys]
            if len(keys) == 1 and isinstance(keys[0], str):
                return keys[0]
            raise Unmappable(f"LoadImaged loads {keys!r}: a model of several images, while one series is read here")
    raise Unmappable("no LoadImaged, so that nobody can tell what the transforms work on")


def before(call: Call, made: Before, key: str) -> Before:
    """One more transform.

    Raises
    ------
    Unmappable
        If it is not known here, has an argument that is not, or stands where it means something else.
    """
    mapped = TRANSFORMS.get(call.name)
    if mapped is None:
        raise Unmappable("it is not known here")
    call.applies_to(key)
    result = mapped(call, made)
    call.finish()
    return result


def _load(call: Call, made: Before) -> Before:
    call.only("reader", *_READERS)
    call.only("affine_lps_to_ras", True)
    call.only("reverse_indexing", False)
    call.only("simple_keys", False)
    call.float32()
    call.harmless("meta_keys", "meta_key_postfix", "overwriting", "image_only", "ensure_channel_first", "expanduser")
    call.harmless("prune_meta_pattern", "prune_meta_sep")
    return made


def _channel_first(call: Call, made: Before) -> Before:
    call.only("channel_dim", None, "no_channel")
    call.harmless("strict_check", "meta_keys", "meta_key_postfix")
    return made


def _typed(call: Call, made: Before) -> Before:
    call.only("data_type", "tensor", "numpy")
    call.float32()
    call.harmless("device", "wrap_sequence", "track_meta")
    return made


def _orient(call: Call, made: Before) -> Before:
    canonical = call.flag("as_closest_canonical")
    axcodes = call.take("axcodes")
    labels = call.take("labels")
    if labels not in (None, [["L", "R"], ["P", "A"], ["I", "S"]]):
        raise Unmappable(f"labels = {labels!r}; only MONAI's own are mapped")
    letters = "RAS" if canonical else "".join(axcodes) if isinstance(axcodes, str | list) else ""
    if sorted({"L": "x", "R": "x", "P": "y", "A": "y", "I": "z", "S": "z"}.get(c, c) for c in letters) != [*"xyz"]:
        raise Unmappable(f"axcodes is {axcodes!r}, not one letter each of L/R, P/A and I/S")
    if made.spacing_mm and len(set(made.spacing_mm)) > 1:
        raise Unmappable("it stands behind Spacingd, whose spacings then belong to the file's own axes")
    return replace(made, orientation=letters)


def _space(call: Call, made: Before) -> Before:
    if not made.chain.is_linear or made.cropped:
        raise Unmappable("it stands behind a change of intensities, or a crop; here the image is resampled first")
    if made.shape:
        raise Unmappable("it stands behind Resized")
    pixdim = call.take("pixdim")
    numbers = list(pixdim) if isinstance(pixdim, list) else [pixdim]
    if not numbers or not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        raise Unmappable(f"pixdim is {pixdim!r}, not spacings in mm")
    numbers = (numbers + [numbers[-1]] * 3)[:3]  # as MONAI does: the last one stands for those that are missing
    mode = call.one("mode", "bilinear")
    if mode not in _LINEAR:
        raise Unmappable(f"mode = {mode!r}; only linear interpolation is mapped")
    call.only("padding_mode", "border")
    for flag in ("diagonal", "align_corners", "scale_extent"):
        call.only(flag, False)
    for limit in ("min_pixdim", "max_pixdim"):
        call.only(limit, None)
    call.harmless("dtype", "recompute_affine", "ensure_same_shape", "meta_keys", "meta_key_postfix")
    first, second, third = (max(0.0, float(number)) for number in numbers)  # not positive: the source's own
    return replace(made, spacing_mm=(first, second, third))


def _resize(call: Call, made: Before) -> Before:
    if not made.chain.is_linear or made.cropped:
        raise Unmappable("it stands behind a change of intensities, or a crop; here the image is resampled first")
    call.only("size_mode", "all")
    mode = call.one("mode", "area")
    if mode not in ("area", *_LINEAR):
        raise Unmappable(f"mode = {mode!r}; only area and linear interpolation are mapped")
    call.only("align_corners", None, False)
    call.float32()
    call.harmless("anti_aliasing", "anti_aliasing_sigma")  # ours averages over a wider voxel in any case
    return replace(made, shape=call.sizes("spatial_size"))


def _range(call: Call, made: Before) -> Before:
    low, high = call.number("a_min"), call.number("a_max")
    to_low, to_high = call.take("b_min"), call.take("b_max")
    clip = call.flag("clip")
    call.float32()
    if low == high:
        raise Unmappable("a_min and a_max are the same")
    if to_low is None and to_high is None and not clip:
        to_low, to_high = 0.0, 1.0
    if not all(isinstance(number, int | float) for number in (to_low, to_high)):
        raise Unmappable(f"b_min and b_max are {to_low!r} and {to_high!r}")
    slope = (to_high - to_low) / (high - low)
    chain = made.chain.linear(slope, to_low - low * slope)
    return replace(made, chain=chain.clipped(to_low, to_high) if clip else chain)


def _scale(call: Call, made: Before) -> Before:
    low, high, factor = call.take("minv", 0.0), call.take("maxv", 1.0), call.take("factor")
    call.harmless("channel_wise")  # there is one channel
    call.float32()
    if low is None and high is None:
        number = call.number("factor", 0.0)
        return replace(made, chain=made.chain.linear(1 + number, 0.0))
    if factor is not None or not all(isinstance(number, int | float) for number in (low, high)):
        raise Unmappable(f"minv, maxv and factor are {low!r}, {high!r} and {factor!r}")
    _whole(made)
    return replace(made, chain=made.chain.ranged(float(low), float(high)))


def _percentiles(call: Call, made: Before) -> Before:
    lower, upper, low, high = (call.number(key) for key in ("lower", "upper", "b_min", "b_max"))
    if not call.flag("clip"):
        raise Unmappable("clip is not true: values beyond the percentiles go on, which no rule here says")
    if call.flag("relative"):
        low, high = (low + (high - low) * percentile / 100 for percentile in (lower, upper))
    call.harmless("channel_wise")
    call.float32()
    _whole(made)
    return replace(made, chain=made.chain.between_percentiles(lower, upper, low, high))


def _clip_percentiles(call: Call, made: Before) -> Before:
    lower, upper = call.take("lower"), call.take("upper")
    call.only("sharpness_factor", None)
    call.harmless("channel_wise")
    call.float32()
    _whole(made)
    limits = (0.0 if lower is None else call.number("lower"), 100.0 if upper is None else call.number("upper"))
    return replace(made, chain=made.chain.clipped_at_percentiles(*limits))


def _normalise(call: Call, made: Before) -> Before:
    subtrahend, divisor = call.one("subtrahend"), call.one("divisor")
    nonzero = call.flag("nonzero")
    call.harmless("channel_wise")
    call.float32()
    if subtrahend is None and divisor is None:
        if not nonzero:
            _whole(made)
        return replace(made, chain=made.chain.standardised(nonzero=nonzero))
    if subtrahend is None or divisor is None or nonzero:
        raise Unmappable("of subtrahend, divisor and nonzero only both numbers, or the last alone, are mapped")
    by = call.number("divisor") or 1.0  # as MONAI does
    return replace(made, chain=made.chain.linear(1 / by, -call.number("subtrahend") / by))


def _shift(call: Call, made: Before) -> Before:
    call.only("factor_key", None)
    call.harmless("safe", "meta_keys", "meta_key_postfix")
    return replace(made, chain=made.chain.linear(1.0, call.number("offset")))


def _threshold(call: Call, made: Before) -> Before:
    threshold, value = call.number("threshold"), call.number("cval", 0.0)
    if value != threshold:
        raise Unmappable(
            f"values beyond {threshold:g} become {value:g}; only a clip, to the threshold itself, is mapped"
        )
    limits = (threshold, math.inf) if call.flag("above", True) else (-math.inf, threshold)
    return replace(made, chain=made.chain.clipped(*limits))


def _crop(call: Call, made: Before) -> Before:
    """A crop to what is above 0. It is left out where what it takes away was clipped to 0 before: air stays air."""
    call.only("source_key", call.one("keys"))
    call.only("k_divisible", 1)
    call.only("channel_indices", None)
    call.harmless("margin", "allow_smaller", "start_coord_key", "end_coord_key", "mode")
    chain = made.chain
    if chain.clip is None or chain.slope < 0 or abs(chain.of(chain.clip[0])) > 1e-6:
        raise Unmappable("what it cuts away is not all 0 at this place, so that it changes what the network sees")
    note = (
        "CropForegroundd is left out: what it cuts away was clipped to 0 before. Overread looks there too, so that "
        "something may be found in what MONAI does not show the network."
    )
    return replace(made, cropped=True, notes=(*made.notes, note))


def _whole(made: Before) -> None:
    if made.cropped:
        raise Unmappable("it stands behind CropForegroundd: its statistics are those of the cropped image")


TRANSFORMS: Mapping[str, Callable[[Call, Before], Before]] = {
    "LoadImaged": _load,
    "EnsureChannelFirstd": _channel_first,
    "AddChanneld": lambda _, made: made,  # as older bundles have it
    "EnsureTyped": _typed,
    "CastToTyped": _typed,
    "ToTensord": _typed,
    "Orientationd": _orient,
    "Spacingd": _space,
    "Resized": _resize,
    "ScaleIntensityRanged": _range,
    "ScaleIntensityd": _scale,
    "ScaleIntensityRangePercentilesd": _percentiles,
    "ClipIntensityPercentilesd": _clip_percentiles,
    "NormalizeIntensityd": _normalise,
    "ShiftIntensityd": _shift,
    "ThresholdIntensityd": _threshold,
    "CropForegroundd": _crop,
}
