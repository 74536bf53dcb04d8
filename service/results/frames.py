"""Frames of multi-frame sources in our objects: highdicom is given each as an image, and the references put right here.

So one way leads from a slice to a frame of ours, whether the slice was an image or a frame of one (PS3.3 A.38, A.36).
"""

from __future__ import annotations

import numpy as np
from pydicom import Dataset
from pydicom.uid import CTImageStorage, MRImageStorage

from service.types import Instance, SourceVolume

_SINGLE = {"CT": CTImageStorage, "MR": MRImageStorage}


def class_for_highdicom(instance: Instance, modality: str) -> str:
    """The class under which highdicom takes a slice: of a frame, that of the single images of its modality."""
    return instance.sop_class_uid if instance.frame is None else str(_SINGLE.get(modality, CTImageStorage))


def numbers(*instances: Instance) -> list[int] | None:
    """Referenced Frame Number (0008,1160) of slices of one source; None where they are images of their own."""
    found = [instance.frame for instance in instances if instance.frame is not None]
    return found or None


def restore(made: Dataset, source: SourceVolume) -> None:
    """Let an object that was made of slices refer to the multi-frame image whose frames they are.

    Parameters
    ----------
    made
        As highdicom made it; changed in place. References to single images stay as they are.
    source
        The analysed series.
    """
    real = {it.sop_instance_uid: it.sop_class_uid for it in source.ordered if it.frame is not None}
    if not real:
        return
    _put_right(made, real)
    positions = np.array([it.header.ImagePositionPatient for it in source.ordered], float)
    for frame in made.get("PerFrameFunctionalGroupsSequence", ()):
        place = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        nearest = source.ordered[int(np.argmin(np.abs(positions - place).sum(axis=1)))]
        for derivation in frame.get("DerivationImageSequence", ()):
            for image in derivation.SourceImageSequence:
                image.ReferencedFrameNumber = nearest.frame


def _put_right(item: Dataset, real: dict[str, str]) -> None:
    """The true class of every reference below, and each instance once in the lists of what is referred to."""
    uid = str(item.get("ReferencedSOPInstanceUID", ""))
    if uid in real:
        item.ReferencedSOPClassUID = real[uid]
    for element in item:
        if element.VR != "SQ":
            continue
        for child in element.value:
            _put_right(child, real)
        if element.keyword in ("ReferencedInstanceSequence", "ReferencedSOPSequence") and len(element.value) > 1:
            once = {
                str(child.get("ReferencedSOPInstanceUID", number)): child for number, child in enumerate(element.value)
            }
            item[element.tag].value = list(once.values())
