"""The values that pass through Overread. Nothing else defines a type that two modules share.

Space is always the patient's: LPS millimetres (x grows to the patient's left, y to the back, z to the head). A volume
is a ``highdicom.Volume`` with axis 0 = slices, and "source grid" is the grid of the series as it was received.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from service.codes import Code
from service.spec import ModelSpec

if TYPE_CHECKING:  # half a second, in each receiving process
    import highdicom as hd

Point = tuple[float, float, float]
Box = tuple[slice, slice, slice]
Line = tuple[Point, Point]

# --- What came in ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One stored SOP instance."""

    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str  # as received; the file is kept byte for byte
    path: Path  # DICOM file (PS3.10) in the spool
    header: Dataset  # the data set without its pixel data


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """The instances of one series; never empty."""

    series_instance_uid: str
    modality: str
    instances: tuple[Instance, ...]  # in the order of arrival, which means nothing

    @property
    def header(self) -> Dataset:
        """Header of the first instance, for what all instances of a series share (PS3.3 A.1.4)."""
        return self.instances[0].header


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """The series of one study."""

    study_instance_uid: str
    series: tuple[Series, ...]  # ordered by SeriesInstanceUID
    completeness: Literal["quiet", "verified"]  # how it was judged whole; never assumed
    received_at: float  # when the last instance came, seconds since 1970


# --- Analysis -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusion:
    """A series that a model leaves out, and why."""

    series_instance_uid: str
    reason: str  # in words, for the API and the report


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The series that a model will read, why that one, and what it leaves out."""

    series: Series
    why: str  # how it ranked against the other candidates
    excluded: tuple[Exclusion, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceVolume:
    """A series as a volume."""

    series: Series
    volume: hd.Volume  # float32 [slices, rows, columns], real-world values (HU on CT), LPS mm
    ordered: tuple[Instance, ...]  # the instance of each slice of axis 0
    notes: tuple[str, ...]  # what was odd about it and was accepted


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The map of a model's last stage on the source grid, cropped to where it is not zero."""

    probability: NDArray[np.float32]  # [slices, rows, columns] of the box, 0..1
    box: Box  # where that lies in the source grid
    seconds: dict[str, float]  # by stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One suspected lesion, measured on the source grid."""

    number: int  # from 1, the most probable first
    tracking_uid: str  # shared by the SR group and the SEG segment (TID 1410)
    finding: Code  # what it is
    site: Code  # where, as an organ
    probability: float  # 0..1, the greatest value of the model's map in the component
    mask: NDArray[np.bool_]  # [slices, rows, columns] of the box
    box: Box  # where the mask lies in the source grid
    centroid_lps_mm: Point  # mean of the voxels' centres
    extent_lps_mm: tuple[Point, Point]  # least and greatest coordinate of the voxels' centres
    volume_ml: float  # number of voxels times the volume of one
    mean: float  # mean real-world value (HU on CT)
    key_slice: int  # the slice of axis 0 in which the mask's area is greatest
    long_axis: Line  # its two ends on the key slice: (slice, row, column) in voxels of the source grid
    long_axis_mm: float  # longest diameter on the key slice
    short_axis: Line  # longest line perpendicular to it on that slice
    short_axis_mm: float


class Outcome(StrEnum):
    """How a model's work on a study ended."""

    FINDINGS = "findings"
    NO_FINDINGS = "no findings"
    UNSUITABLE = "unsuitable"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultObject:
    """A DICOM object that is ready to leave; its bytes never change again."""

    kind: Literal["SEG", "SR"]
    sop_class_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    content: bytes  # a DICOM file (PS3.10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A finding's key slice with its outline, for people."""

    finding: int  # its number
    png: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one model says of one study. There is always one."""

    model: ModelSpec
    weights_sha256: str  # of all its networks together
    outcome: Outcome
    reason: str  # in words, where the outcome is no finding list
    selection: Selection | None  # None where no series fitted
    excluded: tuple[Exclusion, ...]
    findings: tuple[Finding, ...]
    dropped: int  # findings beyond the model's maximum_count
    notes: tuple[str, ...]  # what was odd and accepted
    seconds: dict[str, float]  # by stage of the work
    objects: tuple[ResultObject, ...]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that is known of one analysis of one study."""

    study_instance_uid: str
    answers: tuple[Answer, ...]  # one for each installed model


# --- Delivery -------------------------------------------------------------------------------------------------------


class DeliveryState(StrEnum):
    """Where an object is on its way to a destination."""

    QUEUED = "queued"
    RETRYING = "retrying"
    SENT = "sent"  # the peer said Success; not yet seen there
    CONFIRMED = "confirmed"  # the peer answered a presence query for it
    UNCONFIRMED = "unconfirmed"  # the peer said Success, and can't be asked or is not to be
    REFUSED = "refused"  # for good; somebody has to act


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One object on its way to one destination."""

    delivery_id: int
    study_instance_uid: str
    destination: str  # its name in the configuration
    kind: str
    sop_class_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    path: Path  # the frozen bytes
    state: DeliveryState
    attempts: int
    reason: str  # of the last attempt that failed, or the peer's remark, in words
    queued_at: float  # seconds since 1970


# --- What is remembered ---------------------------------------------------------------------------------------------


class StudyState(StrEnum):
    """Where a study is. RECEIVING -> ANALYSING -> DELIVERING -> DONE or UNDELIVERED; a late instance leads back."""

    RECEIVING = "receiving"
    ANALYSING = "analysing"
    DELIVERING = "delivering"
    DONE = "done"
    UNDELIVERED = "undelivered"  # nothing more will happen by itself: a destination refused a result for good


class Kept(StrEnum):
    """What became of an instance's row."""

    NEW = "new"
    SAME = "same"  # known already, with the same bytes
    OTHER = "other"  # known already, with other bytes: the first ones stay
    OURS = "ours"  # a result of this Overread that came back; it starts nothing, or it would start itself for ever


# --- The seams ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """An installed model: its specification and the identity of its weights."""

    spec: ModelSpec
    folder: Path
    weights_sha256: str


class Backend(Protocol):
    """Where networks run. Implemented by ``analysis/onnx.py``; thread-safe."""

    name: str  # with the device, for logs and results: "onnxruntime CPU"
    slots: int  # how many batches it works on at once

    def load(self, model: Model) -> None:
        """Make the model's networks ready, and hold them against ``model.toml``.

        Raises
        ------
        ContractBroken
            If a network is missing, can't be read, or has other tensors than ``model.toml`` says.
        """

    def infer(self, network: str, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run one batch.

        Parameters
        ----------
        network
            Name of a network of a loaded model.
        batch
            [N, channels, *spatial*], float32, as the stage's ``input`` says.

        Returns
        -------
        numpy.ndarray
            [N, channels, *spatial*], float32, as the stage's ``output`` says.

        Raises
        ------
        BackendError
            Unavailable, Timeout and OutOfMemory may be tried again; ContractBroken may not.
        """


class Progress(Protocol):
    """Told how far a study is; must return at once and never raise."""

    def __call__(self, *, model: str, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` parts (patches, for a network) of a stage are finished."""
