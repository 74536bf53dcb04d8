"""What the API answers, as OpenAPI describes it. What is not named here does not leave by it.

Times are seconds since 1970, as everywhere in Overread. UIDs and words of ours; no patient data.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.types import DeliveryState, Outcome, Step, StudyState

Urgency = Literal["stat", "high", "routine", "low"]


class Shape(BaseModel):
    """Something that is answered."""

    model_config = ConfigDict(frozen=True)


# --- Studies ----------------------------------------------------------------------------------------------------------


class Chip(Shape):
    """What one model came to, in short."""

    model: str
    outcome: Outcome
    findings: int = Field(description="How many.")


class StudyBase(Shape):
    """What is said of a study wherever it is shown."""

    study_uid: str = Field(description="Study Instance UID.")
    state: StudyState
    priority: Urgency = Field(description="How urgent it is.")
    source: str = Field(description="Calling AE title of its last sender, or the name of a STOW-RS caller.")
    revision: int = Field(description="Grows when instances come after the analysis began, or it is run again.")
    instances: int = Field(description="How many have come.")
    findings: int = Field(description="How many, of all models together, in the answers that stand.")
    waits: str = Field(description="Why it waits, in words; empty once it is answered and nothing waits.")
    seconds_left: float | None = Field(
        default=None, description="How long it waits for more instances at most; null: it does not."
    )
    age_seconds: float = Field(description="Since its last instance came.")
    completeness: Literal["", "quiet", "verified", "partial"] = Field(
        description="How it was judged ready; empty: it is not yet."
    )
    judged: str = Field(description="The evidence for that.")
    missing: str = Field(description="What of a partial one is missing.")
    tries: int = Field(description="Attempts at its analysis that came to nothing.")
    holder: str = Field(description="The process that is at work on it.")
    first_at: float = Field(description="When its first instance came.")
    last_at: float = Field(description="When its last instance came.")
    started_at: float | None = Field(default=None, description="When it was judged ready.")
    answered_at: float | None = Field(default=None, description="When its answers were frozen.")
    done_at: float | None = Field(default=None, description="When its last result was confirmed, or it was cancelled.")


class StudyRow(StudyBase):
    """A study in a list."""

    answers: list[Chip] = Field(description="The answers that stand, in short.")


class SeriesRow(Shape):
    """A series that came in."""

    series_uid: str
    instances: int


class Exclusion(Shape):
    """A series that a model leaves out."""

    series_uid: str
    reason: str = Field(description="In words.")
    cause: str = Field(default="", description="In short.")


class FindingRow(Shape):
    """Something that a model suspects. Which measures it has goes by its kind; null: it has no such thing."""

    kind: Literal["lesion", "mark", "judgement"] = Field(
        default="lesion", description="With an outline; with a box or a point; or without a place."
    )
    number: int = Field(description="From 1, the most probable first.")
    tracking_uid: str = Field(description="Tracking Unique Identifier, in the SR and the SEG.")
    finding: str
    site: str
    laterality: str | None = None
    probability: float = Field(description="0 to 1.")
    slice: int = Field(description="Number of the slice that shows it best, from 1, in the order of the volume.")
    picture: str | None = Field(default=None, description="Its picture's file name.")
    volume_ml: float | None = None
    long_axis_mm: float | None = None
    short_axis_mm: float | None = None
    mean: float | None = Field(default=None, description="Real-world value; HU on CT.")
    centroid_lps_mm: list[float] | None = None
    extent_lps_mm: list[list[float]] | None = None
    centre_lps_mm: list[float] | None = None
    size_mm: list[float] | None = None
    level: str | None = Field(default=None, description="Of a judgement: of an image, a series, or the study.")


class ObjectRow(Shape):
    """A DICOM object that was made."""

    kind: str
    form: str = ""
    part: int = 1
    sop_class_uid: str
    transfer_syntax_uid: str = ""
    sop_instance_uid: str
    series_instance_uid: str
    base: str = Field(default="", description="The same for reports of one content.")
    supersedes: str = Field(default="", description="SOP Instance UIDs of the reports that it supersedes.")
    file: str = Field(description="Its file's name: `/api/v1/studies/{study_uid}/files/{file}`.")


class AnswerRow(Shape):
    """What one model says of a study."""

    model: str
    version: str
    title: str = ""
    weights_sha256: str = ""
    outcome: Outcome
    reason: str = Field(default="", description="In words, where there is no finding list.")
    causes: list[str] = []
    series_uid: str | None = Field(default=None, description="The series that it read; null: none fitted.")
    why: str | None = Field(default=None, description="Why that one.")
    excluded: list[Exclusion] = Field(default=[], description="The series left out, and why.")
    notes: list[str] = Field(default=[], description="What was odd, and accepted.")
    findings: list[FindingRow]
    dropped: int = Field(default=0, description="Findings beyond the model's maximum.")
    summary: str | None = Field(default=None, description="File name of the sheet that sums it up.")
    seconds: dict[str, float] = Field(default={}, description="By stage of the work.")
    objects: list[ObjectRow]


class Conflict(Shape):
    """Other bytes under a known UID: kept beside, not analysed."""

    series_uid: str
    sop_uid: str
    source: str
    received_at: float


class Progress(Shape):
    """How far a model is with a study."""

    stage: str
    done: int
    total: int


class DeliveryRow(Shape):
    """An object on its way to a destination."""

    delivery_id: int
    study_uid: str
    destination: str
    model: str
    kind: str
    class_uid: str
    series_uid: str
    sop_uid: str
    state: DeliveryState
    attempts: int
    reason: str = Field(description="How the last attempt ended, in words.")
    remark: str = Field(default="", description="The warning with which it was stored.")
    commitment: str = Field(default="", description='"committed", or the failure reason.')
    queued_at: float
    changed_at: float
    due_in_seconds: float | None = Field(default=None, description="When it is tried again; null: it is not.")
    priority: Urgency | None = Field(default=None, description="Of its study; in lists only.")
    holder: str = Field(default="", description="The process that is at work on it.")


class StudyDetail(StudyBase):
    """A study with all that is known of it."""

    answers: list[AnswerRow] = Field(description="The answers that stand.")
    answered_revision: int | None = Field(default=None, description="The revision that these answers are of.")
    series: list[SeriesRow]
    deliveries: list[DeliveryRow]
    conflicts: list[Conflict]
    progress: dict[str, Progress] = Field(description="By model, while it is analysed.")
    kept: str = Field(description="What is still kept of it, how long, and why.")


class StepRow(Shape):
    """Something that happened to a study."""

    at: float
    step: Step
    words: str


# --- Destinations, sources, models, processes -------------------------------------------------------------------------


class DestinationRow(Shape):
    """A destination, and how it is doing."""

    name: str
    ae_title: str
    address: str
    confirm: str
    states: dict[str, int] = Field(description="How many deliveries are in each state.")
    waiting_since: float | None = Field(default=None, description="When the oldest that waits was queued.")
    confirmed_at: float | None = Field(default=None, description="When one was confirmed last.")
    line: str = Field(default="well", description="Whether associations come about.")
    failures: int = Field(default=0, description="How often in a row none did.")
    reason: str = Field(default="", description="Why none did.")
    next_try_in_seconds: float = 0.0
    explained: str = Field(description="All that, in a sentence.")


class SourceRow(Shape):
    """A sender of studies that the configuration names."""

    ae_title: str
    asked_by: Literal["C-FIND", "QIDO-RS", ""] = Field(
        description="How it is asked how much of a study there is; empty: it can't be."
    )
    address: str
    modalities: list[str]
    studies: int = Field(description="How many of those that are known came from it last.")
    last_at: float | None = Field(default=None, description="When an instance of it came last.")
    receiving: int = Field(description="Of how many of its studies more may come.")


class Echo(Shape):
    """Whether somebody answered, and how fast."""

    answered: bool
    milliseconds: float
    found: str = Field(default="", description="What was found instead of an answer.")
    way_out: str = Field(default="", description="What can be done about it.")


class Measured(Shape):
    """What a network takes of the device; measured there."""

    device: str
    resident_bytes: int
    batch_bytes: dict[int, int] = Field(description="By batch size.")
    best_batch: int


class NetworkRow(Shape):
    """A network of a model."""

    name: str
    loaded: bool
    last_used: float | None = None
    failing: str = Field(default="", description="Why it does not run; empty: it does.")
    envelope: Measured | None = None


class ModelRow(Shape):
    """A model that is run."""

    name: str
    version: str
    broken: str = Field(description="Why it can't run; empty: it can.")
    networks: list[NetworkRow]


class ProcessRow(Shape):
    """A process that works on this database."""

    name: str
    parts: list[str]
    version: str
    started_at: float
    seen_at: float = Field(description="When it said last that it is there.")
    status: dict[str, Any] = Field(description="What only it knows.")
