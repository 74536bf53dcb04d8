"""The values that pass through Overread. Nothing else defines a type that two modules share.

Space is always the patient's: LPS millimetres (x grows to the patient's left, y to the back, z to the head). A volume
is a ``highdicom.Volume`` with axis 0 = slices, and "source grid" is the grid of the series as it was received.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from service.codes import Code
from service.forms import Kind
from service.spec import FindingClass, ModelSpec
from service.stage import Tensor

if TYPE_CHECKING:  # half a second, in each receiving process
    import highdicom as hd

Array = NDArray[np.float32]
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
    header: Dataset  # the data set without its pixel data; of a frame, with what the functional groups say of it
    frame: int | None = None  # its number, from 1, where this is one frame of a multi-frame image


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


class Completeness(StrEnum):
    """How a study was judged ready to be analysed."""

    QUIET = "quiet"  # nothing more came for a while, and nothing is seen to be missing
    VERIFIED = "verified"  # its source counts as many instances as are here
    PARTIAL = "partial"  # instances are missing, and did not come in time


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """The series of one study."""

    study_instance_uid: str
    series: tuple[Series, ...]  # ordered by SeriesInstanceUID
    completeness: Completeness  # how it was judged whole; never assumed
    missing: str = ""  # what of a partial one is missing, in words
    received_at: float  # when the last instance came, seconds since 1970


# --- Analysis -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusion:
    """A series that a model leaves out, and why."""

    series_instance_uid: str
    reason: str  # in words, for the API and the report
    cause: str = "no-series"  # the same as one of `codes.CAUSES`


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The series that a model will read, why that one, and what it leaves out."""

    series: Series
    why: str  # how it ranked against the other candidates
    excluded: tuple[Exclusion, ...]
    others: tuple[Series, ...] = ()  # that fit too, by rank; they are among the excluded


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceVolume:
    """A series as a volume."""

    series: Series
    volume: hd.Volume  # float32 [slices, rows, columns], real-world values (HU on CT), LPS mm
    ordered: tuple[Instance, ...]  # the instance of each slice of axis 0
    notes: tuple[str, ...]  # what was odd about it and was accepted


@dataclass(frozen=True, slots=True, kw_only=True)
class MapPrediction:
    """The maps of a model's last stage on the source grid, cropped to where any of them is not zero."""

    probability: Array  # [classes, slices, rows, columns] of the box, 0..1; classes in the order of the spec
    box: Box  # where that lies in the source grid
    seconds: Mapping[str, float]  # by stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A box or a centre that a detection network proposes, on the source grid."""

    channel: int  # its class
    score: float  # 0..1
    low: Point  # least corner (slice, row, column), in voxels; a voxel's centre has its index
    high: Point  # greatest corner; the same as `low` for a centre


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxPrediction:
    """What a detection network proposes, of all its windows, not yet merged."""

    candidates: tuple[Candidate, ...]
    seconds: Mapping[str, float]  # by stage


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorePrediction:
    """The scores that a classification network gives its windows."""

    scores: Array  # [windows, channels], 0..1
    slices: tuple[int, ...]  # of each window, the source slice in its middle
    seconds: Mapping[str, float]  # by stage


Prediction = MapPrediction | BoxPrediction | ScorePrediction


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that a model suspects: what every kind of finding has."""

    number: int  # from 1, the most probable first
    tracking_uid: str  # shared by the SR group and the SEG segment (TID 1410)
    kind: FindingClass  # what it is, where, in which colour
    probability: float  # 0..1, the greatest value of the model's map, or the box's score
    key_slice: int  # the slice of axis 0 that shows it best
    laterality: Code | None = None  # of its site, where that is a paired organ and the side is beyond doubt


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesion(Finding):
    """A segmented finding, measured on the source grid."""

    mask: NDArray[np.bool_]  # [slices, rows, columns] of the box
    likelihood: Array  # [slices, rows, columns] of the box, 0..1: the model's map, where the mask is
    box: Box  # where the mask lies in the source grid
    centroid_lps_mm: Point  # mean of the voxels' centres
    extent_lps_mm: tuple[Point, Point]  # least and greatest coordinate of the voxels' centres
    volume_ml: float  # number of voxels times the volume of one
    mean: float  # mean real-world value (HU on CT)
    long_axis: Line  # its two ends on the key slice: (slice, row, column) in voxels of the source grid
    long_axis_mm: float  # longest diameter on the key slice
    short_axis: Line  # longest line perpendicular to it on that slice
    short_axis_mm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark(Finding):
    """A detected finding: a box or a point, without an outline."""

    centre_lps_mm: Point
    low: Point  # least corner (slice, row, column) in voxels of the source grid, as in `Candidate`
    high: Point  # greatest corner; the same as `low` for a point
    size_mm: tuple[float, float, float] | None  # along slices, rows and columns; None for a point


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement(Finding):
    """A classified finding: it is somewhere in the images, the key slice decided."""

    level: Literal["image", "series", "study"]  # what was judged


class Outcome(StrEnum):
    """How a model's work on a study ended."""

    FINDINGS = "findings"
    NO_FINDINGS = "no findings"
    PARTIAL = "partial"  # with findings or without: not all was looked at that should have been
    UNSUITABLE = "unsuitable"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclusion:
    """What a model's work on a study came to: all that its results have to say."""

    outcome: Outcome
    reason: str = ""  # in words, where the outcome is no finding list
    causes: tuple[str, ...] = ()  # the same as keys of `codes.CAUSES`
    findings: tuple[Finding, ...] = ()
    dropped: int = 0  # findings beyond the model's maximum_count
    excluded: tuple[Exclusion, ...] = ()  # the series left out
    notes: tuple[str, ...] = ()  # what was odd and accepted

    @property
    def lesions(self) -> tuple[Lesion, ...]:
        """Those of the findings that are segmented."""
        return tuple(finding for finding in self.findings if isinstance(finding, Lesion))


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultObject:
    """A DICOM object that is ready to leave; its bytes never change again."""

    kind: Kind
    form: str = ""  # of the segmentation that it is or refers to (`SegForm.key`, `OUTLINES`); empty: of none
    part: int = 1  # of several of one kind and form
    sop_class_uid: str
    transfer_syntax_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    base: str  # the same for reports of one content, whichever report they supersede
    supersedes: str = ""  # SOP Instance UIDs of the reports that this one names as its predecessors
    content: bytes  # a DICOM file (PS3.10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A finding's key slice with its outline, for people; or the sheet that sums up an answer."""

    finding: int  # its number; 0: the sheet
    png: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Conclusion):
    """What one model says of one study. There is always one."""

    model: ModelSpec
    weights_sha256: str  # of all its networks together
    selection: Selection | None  # None where no series fitted
    seconds: dict[str, float]  # by stage of the work
    objects: tuple[ResultObject, ...]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that is known of one analysis of one study."""

    study_instance_uid: str
    answers: tuple[Answer, ...]  # one for each installed model


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A report that an earlier analysis of a study made; a new one names it as its predecessor."""

    revision: int  # of the study
    form: str
    base: str
    sop_class_uid: str
    series_instance_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenObject:
    """An object of a frozen answer, as its file is known by."""

    kind: Kind
    form: str  # see `ResultObject`, as the next ones
    part: int
    sop_class_uid: str
    transfer_syntax_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    base: str
    supersedes: str
    file: str  # its name in the evidence folder


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenAnswer:
    """An answer as it was frozen: what a delivery needs to know of it."""

    model: str
    outcome: Outcome
    has_findings: bool
    objects: tuple[FrozenObject, ...]  # in every form that any destination wants or may need


# --- Delivery -------------------------------------------------------------------------------------------------------


class DeliveryState(StrEnum):
    """Where an object is on its way to a destination."""

    QUEUED = "queued"
    RETRYING = "retrying"
    SENT = "sent"  # the peer said Success; not yet committed to, nor seen there
    CONFIRMED = "confirmed"  # the peer committed to it, or answered a presence query for it
    UNCONFIRMED = "unconfirmed"  # the peer said Success, and can't be asked or is not to be
    REFUSED = "refused"  # for good; somebody has to act
    DROPPED = "dropped"  # somebody decided that it is not to be sent
    REPLACED = "replaced"  # the destination does not accept it: what stands in its place is on its way


OPEN: Final = (DeliveryState.QUEUED, DeliveryState.RETRYING, DeliveryState.SENT)  # something will still happen


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One object on its way to one destination."""

    delivery_id: int
    study_instance_uid: str
    destination: str  # its name in the configuration
    model: str  # of whose answer it is
    kind: str
    sop_class_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    path: Path  # the frozen bytes
    state: DeliveryState
    attempts: int
    reason: str  # how the last attempt ended, in words
    queued_at: float  # seconds since 1970
    remark: str = ""  # the warning with which the peer stored it, in words
    transaction_uid: str = ""  # of the commitment that was asked for last (PS3.4 Annex J)
    commitment: str = ""  # what became of it: "committed", or the failure reason as four hexadecimal digits
    asked_at: float = 0.0  # when it was asked for; before that, when it was sent
    failed_at: float = 0.0  # when it first failed by itself; 0: it did not


# --- What is remembered ---------------------------------------------------------------------------------------------


class StudyState(StrEnum):
    """Where a study is. RECEIVING -> ANALYSING -> DELIVERING -> DONE or UNDELIVERED; a late instance leads back.

    An operator may end RECEIVING and ANALYSING (CANCELLED); a late instance, or a wish to run it again, leads back.
    """

    RECEIVING = "receiving"
    ANALYSING = "analysing"
    DELIVERING = "delivering"
    DONE = "done"
    UNDELIVERED = "undelivered"  # nothing more will happen by itself: a destination refused a result for good
    CANCELLED = "cancelled"  # an operator wants no answer; what was answered before stands


class Step(StrEnum):
    """What happens to a study, for its time line."""

    FIRST_INSTANCE = "first instance"
    REOPENED = "reopened"  # an instance came after the analysis had begun
    READY = "ready"  # judged whole, or partial; the words say why
    BEGUN = "begun"  # a process took it
    POSTPONED = "postponed"  # an attempt came to nothing; the words say why
    ANSWERED = "answered"
    SENT = "sent"  # an object, to a destination
    CONFIRMED = "confirmed"
    UNCONFIRMED = "unconfirmed"
    REFUSED = "refused"
    REPLACED = "replaced"
    DROPPED = "dropped"
    DONE = "done"
    RERUN = "rerun"  # an operator asked for it, as for the next ones
    RESENT = "resent"
    CANCELLED = "cancelled"
    URGENCY = "urgency changed"


ENDED: Final = (StudyState.DONE, StudyState.CANCELLED)  # of which the files may be forgotten


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiving:
    """A study of which instances may still come."""

    study_instance_uid: str
    revision: int
    source: str  # calling AE title of its last sender
    last_at: float  # when its last instance came, seconds since 1970: to tell whether one came since, not how long ago


class Kept(StrEnum):
    """What became of an instance's row."""

    NEW = "new"
    SAME = "same"  # known already, with the same bytes
    OTHER = "other"  # known already, with other bytes: the first ones stay
    OURS = "ours"  # a result of this Overread that came back; it starts nothing, or it would start itself for ever


# --- The seams ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """One ONNX file of a model, as a backend needs it."""

    name: str  # its folder's name, and its name on a Triton server
    file: Path  # <models directory>/<name>/1/model.onnx
    sha256: str  # of the file
    input: Tensor
    outputs: tuple[Tensor, ...]  # in the order in which `Backend.infer` answers them
    half_precision: bool  # whether 16 bit will do


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """An installed model: its specification and the identity of its weights."""

    spec: ModelSpec
    folder: Path
    weights_sha256: str  # of all its networks together
    networks: tuple[Network, ...]  # those of `spec.networks()`, in order


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What a network takes of a device; measured there, and kept beside the network."""

    device: str  # runtime, device and their versions: on another one it is measured anew
    resident_bytes: int  # held while it is loaded and idle: weights, and what the runtime keeps
    batch_bytes: Mapping[int, int]  # by batch size: taken beside that while a batch runs
    batch_seconds: Mapping[int, float]  # by batch size: time of a batch, median
    load_seconds: float  # to load it and to warm it up

    @property
    def best_batch(self) -> int:
        """The smallest measured batch size that is within 5 % of the best time per patch."""
        times = {size: seconds / size for size, seconds in self.batch_seconds.items()}
        return min(size for size, time in times.items() if time <= 1.05 * min(times.values()))


class Priority(IntEnum):
    """How urgent a study is (Requested Procedure Priority (0040,1003), PS3.3 C.4.11); the smaller goes first."""

    STAT = 0
    HIGH = 1
    ROUTINE = 2
    LOW = 3


class Backend(Protocol):
    """Where networks run. Thread-safe. Implemented by ``backends/engine.py`` and ``backends/triton.py``."""

    name: str  # with the device, for logs and results: "onnxruntime CPU"
    slots: int  # how many batches it works on at once
    memory_bytes: int  # what loaded networks and running batches may take together; 0: the backend sees to it itself

    def load(self, network: Network) -> Envelope:
        """Make a network ready to run: load it, hold it against ``model.toml``, warm it up.

        Loading a loaded network again does nothing. Blocks; other networks run meanwhile.

        Raises
        ------
        ContractBroken
            If the network is missing, can't be read, or has other tensors than ``model.toml`` says.
        BackendError
            OutOfMemory if it does not fit beside what is loaded; Unavailable and Timeout may be tried again.
        """

    def unload(self, network: str) -> None:
        """Give back what a network holds; none of its batches may be running. Not loaded: does nothing."""

    def infer(self, network: str, patches: Sequence[Array]) -> tuple[Array, ...]:
        """Run one batch.

        Parameters
        ----------
        network
            Name of a loaded network.
        patches
            Each [channels, *shape], as the network's input says; 1 or more.

        Returns
        -------
        tuple of numpy.ndarray
            One for each of the network's outputs: [N, channels, *shape], N patches in their order. They are the
            caller's own.

        Raises
        ------
        OutOfMemory
            A smaller batch may do.
        BackendUnavailable
            Nobody answers; `ready` tells when somebody does again.
        BackendCrashed
            The runtime died while this batch ran, perhaps of another one; it is being started again.
        BackendTimeout
            No answer within the time limit; the runtime was ended and is being started again.
        ContractBroken
            The network can't run such a batch at all.
        """

    def ready(self) -> bool:
        """Whether it would answer now; cheap."""

    def close(self) -> None:
        """Unload everything and let the device go."""


class Progress(Protocol):
    """Told how far a study is; must return at once and never raise."""

    def __call__(self, *, model: str, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` parts (patches, for a network) of a stage are finished."""
