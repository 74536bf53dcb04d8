"""A bundle's plan as the fields of a `Stage`, and what is to be said of the differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from service.imports.bundle import Plan
from service.imports.postprocessing import After
from service.imports.refusal import CannotImport
from service.imports.weights import Weights
from service.imports.wishes import Wishes, needed

_AIR_HU = -1000.0


def stage_fields(
    plan: Plan, weights: Sequence[Weights], modality: str, wishes: Wishes, doing: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The fields of the one stage, and what is to be said of them."""
    chain, led, done = plan.before.chain, plan.inferer, plan.after
    orientation = needed(
        doing,
        plan.before.orientation or wishes.orientation,
        what="Orientationd in the preprocessing",
        option="--orientation, the letters of the images that it was trained on (nibabel.aff2axcodes: RAS, LPS, ...)",
        why="a network is shown images as it was trained on them, and the bundle leaves them as their files have them",
    )
    outside = chain.value_for(led.fill)
    unknown = outside is None
    if outside is None:
        outside = _AIR_HU if modality == "CT" else 0.0
    activation, labels, more = _decision(done, weights[0], doing)
    stage = {
        "name": "segmentation",
        "orientation": orientation,
        "spacing_mm": plan.before.spacing_mm or (0.0, 0.0, 0.0),
        **({"fit": "stretch"} if plan.before.shape else {}),
        "input": weights[0].input,
        "output": weights[0].output,
        "intensity": chain.intensity(outside=outside),
        "overlap": led.overlap,
        "blend": led.blend,
        "activation": activation,
        "labels": labels,
        "threshold": done.threshold if done.discrete == "threshold" else 0.5,
        **({"keep": "connected"} if done.largest is not None else {}),
    }
    notes = [*plan.before.notes, *led.notes, *done.notes, *more]
    if unknown or (chain.normalise == "none" and abs(chain.of(outside) - led.fill) > 1e-6):
        notes.append(
            f"Beyond the edge of an image smaller than a window MONAI fills in {led.fill:g} as the network sees it; "
            f"here {outside:g} is taken for the image's own value there."
        )
    if chain.percentiles or chain.normalise != "none":
        notes.append(
            "Percentiles, mean and range are taken of the image as it was received; MONAI takes them of what its "
            "earlier transforms made of it."
        )
    return stage, (*notes, *_always(plan, weights))


def _decision(done: After, weights: Weights, doing: str) -> tuple[str, str, list[str]]:
    """Activation and kind of labels, and what is to be said of them."""
    if done.discrete == "argmax":
        if weights.output.channels < 2:
            raise CannotImport(
                doing=doing,
                found="AsDiscreted takes the greatest of one channel",
                rule="argmax chooses among two channels or more",
                way_out="correct the bundle: a single channel has a threshold",
            )
        if done.activation == "none" and not weights.ends_in:
            note = "The bundle takes the greatest output as it is; here softmax goes before, which keeps the order."
            return "softmax", "exclusive", [note]
    elif done.activation == "none" and not weights.ends_in:
        raise CannotImport(
            doing=doing,
            found="a threshold on outputs that neither the network nor Activationsd makes probabilities",
            rule="results carry a probability between 0 and 1",
            way_out="put Activationsd with sigmoid or softmax before AsDiscreted, with the threshold for that",
        )
    twice = done.activation != "none" and weights.ends_in
    notes = [f"The network ends in a {weights.ends_in}, and the bundle applies {done.activation} again: so it is here."]
    labels = "exclusive" if done.discrete == "argmax" else "independent"
    return done.activation, labels, notes if twice else []


def _always(plan: Plan, weights: Sequence[Weights]) -> list[str]:
    notes = []
    if plan.inferer.window:
        notes.append(
            "Windows: MONAI steps by a fixed interval and pushes the last one back to the edge; here they are spread "
            "evenly from edge to edge with at least that overlap"
            + (" (0: side by side, the last ones beyond the edge)." if not plan.inferer.overlap else ".")
        )
    if plan.inferer.blend == "gaussian":
        notes.append("Gaussian weights: both fall with an eighth of the window; their least weights differ slightly.")
    notes.append(
        "Where windows overlap, MONAI averages the network's outputs and then applies the activation; here "
        "probabilities are averaged."
    )
    notes.append(
        "Resampling is linear in both; where the network's voxels are wider than the image's, here it is averaged over "
        "their width, and the network's grid lies centred on the image instead of beginning at its first voxel."
    )
    notes.append(
        "At the image's outermost voxels a map fades out here, where MONAI continues it: what lies on the very edge is "
        "found smaller."
    )
    if any(one.fixed for one in weights):
        notes.append("The ONNX file left sizes free; in the model folder they are fixed, so that its SHA-256 is new.")
    notes.append(
        "Which series it takes beside modality and body part (slices, spacing, plane) is Overread's default: the "
        "bundle does not say it. See [select]."
    )
    return notes
