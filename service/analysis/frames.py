"""A multi-frame image as its frames: each looks like an image of its own, so that one way leads from there (pure).

What a single image says in its header, a frame says in its functional groups (PS3.3 C.7.6.16): its own, or those that
all frames share.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from pydicom import Dataset
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.valuerep import CUSTOMIZABLE_CHARSET_VR

from service.errors import UnsuitableGeometry
from service.types import Instance

_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_MACROS = (  # those whose attributes the analysis and the results read
    "PixelMeasuresSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
)


def is_multi_frame(header: Dataset) -> bool:
    """Whether an image has several frames, or functional groups."""
    return _GROUPS[1] in header or int(header.get("NumberOfFrames") or 1) > 1


def frames_of(instance: Instance) -> tuple[Instance, ...]:
    """The frames of an image; the image itself where it is a single one.

    Returns
    -------
    tuple of Instance
        Each with its number, and a header that has the attributes of its functional groups at the top.

    Raises
    ------
    UnsuitableGeometry
        If it has frames without functional groups: where each lies in the patient is not said.
    """
    header = instance.header
    if not is_multi_frame(header):
        return (instance,)
    if _GROUPS[1] not in header:
        raise UnsuitableGeometry(
            doing=f"reading the frames of image {instance.sop_instance_uid}",
            found="multi-frame images that do not say where each frame lies",
            rule="each frame has its plane position, orientation and pixel measures (PS3.3 C.7.6.16.2)",
            way_out="send an Enhanced CT or MR image, or single-frame images",
        )
    common = _without_groups(header)
    shared = header.get(_GROUPS[0]) or [Dataset()]
    return tuple(
        replace(instance, header=_flat(common, shared[0], own), frame=number)
        for number, own in enumerate(header[_GROUPS[1]].value, start=1)
    )


def _without_groups(header: Dataset) -> Dataset:
    """The attributes that stand at the top; decoded once, but for texts, whose bytes the results copy."""
    common = Dataset()
    for tag in header.keys():  # noqa: SIM118 - iterating the header itself would decode the groups
        with suppress(Exception):  # whatever the decoding of a broken value raises
            found = header.get_item(tag)
            is_text = (found.VR or dictionary_VR(tag)) in CUSTOMIZABLE_CHARSET_VR
            element = found if is_text else header[tag]
            if keyword_for_tag(tag) not in _GROUPS:
                common[tag] = element
    return common


def _flat(common: Dataset, shared: Dataset, own: Dataset) -> Dataset:
    flat = Dataset()
    flat.update(common)
    for macro in _MACROS:
        for item in (own if macro in own else shared).get(macro) or ():
            flat.update(item)
    return flat
