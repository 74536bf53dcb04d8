"""What an nnU-Net's ``plans.json`` and ``dataset.json`` say of one configuration, in our words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.imports.chain import Chain
from service.imports.draft import one_line
from service.imports.refusal import Unmappable
from service.imports.wishes import Labels, Wishes, needed

PLANS, DATASET = "plans.json", "dataset.json"
_LEAST_STD = 1e-8  # as its normalisations have it


@dataclass(frozen=True, slots=True, kw_only=True)
class Plans:
    """One configuration."""

    configuration: str  # its name
    channel: str  # what the one input channel is called: "CT"
    chain: Chain
    labels: Labels
    window: tuple[int, ...]  # two or three sizes
    spacing_mm: tuple[float, float, float]  # 0: the image's own
    orientation: str  # as `Stage.orientation`


def read_plans(plans: Mapping[str, Any], dataset: Mapping[str, Any], wishes: Wishes, called: str, doing: str) -> Plans:
    """What the two files say.

    Raises
    ------
    Unmappable
        Where they say what is not done here.
    """
    chosen, configuration = _configuration(plans, wishes, called)
    channels = dataset.get("channel_names", dataset.get("modality"))
    if not isinstance(channels, dict) or len(channels) != 1:
        names = ", ".join(map(str, channels.values())) if isinstance(channels, dict) else "none"
        raise Unmappable(f"the input channels {names}: images of several series in one input are not read together")
    spacing = _numbers(configuration, "spacing")
    window = _numbers(configuration, "patch_size")
    if len(spacing) != len(window):
        raise Unmappable(f"{len(spacing)} spacings for windows of {len(window)} sizes")
    if len(spacing) == 2:  # single slices keep their distance
        spacing = (0.0, *spacing)
    return Plans(
        configuration=chosen,
        channel=str(next(iter(channels.values()))),
        chain=_chain(plans, configuration),
        labels=_labels(dataset),
        window=tuple(map(int, window)),
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
        orientation=_orientation(plans, wishes, doing),
    )


def _configuration(plans: Mapping[str, Any], wishes: Wishes, called: str) -> tuple[str, Mapping[str, Any]]:
    """The configuration's name and content, with what it inherits."""
    known = plans.get("configurations")
    if not isinstance(known, dict) or not known:
        raise Unmappable(f"no configurations in {PLANS}: it is not one of nnU-Net v2")
    # nnU-Net calls the folder <trainer>__<plans>__<configuration>.
    by_name = called.rpartition("__")[2]
    chosen = (
        wishes.configuration or (by_name if by_name in known else "") or (next(iter(known)) if len(known) == 1 else "")
    )
    if chosen not in known:
        raise Unmappable(
            f"the configuration {chosen or 'to take'} is not clear: give --configuration, one of {', '.join(known)}"
        )
    found: dict[str, Any] = {}
    parents: list[str] = []
    name: Any = chosen
    while name is not None:
        if name in parents or not isinstance(known.get(name), dict):
            raise Unmappable(f"the configuration {chosen} inherits from {name!r}, which is not there or itself")
        parents.append(name)
        found = {**known[name], **found}
        name = known[name].get("inherits_from")
    if found.get("previous_stage"):
        raise Unmappable(f"{chosen} works on the result of {found['previous_stage']}: its cascade is not mapped")
    if found.get("preprocessor_name", "DefaultPreprocessor") != "DefaultPreprocessor":
        raise Unmappable(f"the preprocessor {found['preprocessor_name']}; only DefaultPreprocessor is mapped")
    return chosen, found


def _chain(plans: Mapping[str, Any], configuration: Mapping[str, Any]) -> Chain:
    """The normalisation of the one channel."""
    schemes = configuration.get("normalization_schemes")
    masks = configuration.get("use_mask_for_norm")
    if not isinstance(schemes, list) or len(schemes) != 1 or not isinstance(masks, list) or len(masks) != 1:
        raise Unmappable(f"normalization_schemes {schemes!r} and use_mask_for_norm {masks!r} for one channel")
    match schemes[0]:
        case "CTNormalization":
            low, high, mean, deviation = _foreground(plans)
            by = max(deviation, _LEAST_STD)
            return Chain().clipped(low, high).linear(1 / by, -mean / by)
        case "ZScoreNormalization":
            return Chain().standardised(nonzero=masks[0] is True)
        case "RescaleTo01Normalization":
            return Chain().ranged(0.0, 1.0)
        case "NoNormalization":
            return Chain()
    raise Unmappable(f"the normalisation {schemes[0]}")


def _foreground(plans: Mapping[str, Any]) -> tuple[float, float, float, float]:
    keys = ("foreground_intensity_properties_per_channel", "foreground_intensity_properties_by_modality")
    by_channel: Mapping[str, Any] = next((plans[key] for key in keys if isinstance(plans.get(key), dict)), {})
    found = by_channel.get("0")
    names = ("percentile_00_5", "percentile_99_5", "mean", "std")
    if not isinstance(found, dict) or not all(isinstance(found.get(name), int | float) for name in names):
        raise Unmappable(f"CTNormalization needs {', '.join(names)} of channel 0 in {keys[0]}")
    low, high, mean, deviation = (float(found[name]) for name in names)
    return low, high, mean, deviation


def _labels(dataset: Mapping[str, Any]) -> Labels:
    labels = dataset.get("labels")
    if not isinstance(labels, dict) or labels.get("background") != 0:
        raise Unmappable(f"no labels with background = 0 in {DATASET}: it is not one of nnU-Net v2")
    named: dict[int, str] = {}
    for name, value in labels.items():
        numbers = value if isinstance(value, list) else [value]
        if len(numbers) != 1 or type(numbers[0]) is not int:
            raise Unmappable(f"the label {name!r} is {value!r}; regions of several are not mapped")
        if name != "ignore":  # no channel of the output: it was left out of the training
            named[numbers[0]] = one_line(name)
    if sorted(named) != list(range(len(named))):
        raise Unmappable(f"the labels {sorted(named)} are not counted from 0 without a gap")
    return Labels(named=named, background=0)


def _numbers(configuration: Mapping[str, Any], key: str) -> tuple[float, ...]:
    value = configuration.get(key)
    if not isinstance(value, list) or len(value) not in (2, 3) or not all(isinstance(n, int | float) for n in value):
        raise Unmappable(f"{key} is {value!r}, not two or three numbers")
    return tuple(value)


def _orientation(plans: Mapping[str, Any], wishes: Wishes, doing: str) -> str:
    """Where the axes of the network's input grow.

    nnU-Net reads a file's axes as they are, in reverse order (z, y, x), and then puts them in the order of
    ``transpose_forward``. Only NibabelIOWithReorient turns every file to RAS before; of all others no file of the model
    says how its training images lay.
    """
    letters = "RAS"
    if plans.get("image_reader_writer") != "NibabelIOWithReorient":
        letters = needed(
            doing,
            wishes.orientation,
            what=f"orientation of the training images (their reader: {plans.get('image_reader_writer')})",
            option="--orientation with their letters in the files' own order (nibabel.aff2axcodes): LPS where "
            "SimpleITK wrote them from DICOM, LAS as dcm2niix writes axial series, RAS as many public sets have them",
            why="an nnU-Net sees images as they lay in its training files, and no file of the model says how",
        )
    if not re.fullmatch("[LRPASI]{3}", letters):
        raise Unmappable(f"--orientation {letters}: it has one letter each of L/R, P/A and I/S")
    order = plans.get("transpose_forward")
    if not isinstance(order, list) or sorted(order) != [0, 1, 2]:
        raise Unmappable(f"transpose_forward is {order!r}")
    return "".join(letters[::-1][axis] for axis in order)
