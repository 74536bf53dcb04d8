"""[edge: fastapi] What an operator may decide about a study: run again, cancel, send again, change its urgency."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from service.api import examples, shapes
from service.api.doors import Caller, Operator
from service.api.examples import Responses, shown
from service.api.looked import decided
from service.api.parameters import Some, StudyUid
from service.api.problems import Problem, example
from service.api.rows import one_study, unknown_study
from service.api.seen import Seen
from service.types import Priority, StudyState

_UNANSWERED = (StudyState.RECEIVING, StudyState.ANALYSING)
_DECIDED: Responses = shown(examples.ROW, "The study as it is now.") | {409: example(409)}


class Again(BaseModel):
    """Where a study's results are to be sent once more."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"destination": "pacs"}, {}]})

    destination: Some = Field(default="", description="Its name in the configuration; empty: to all that had them.")


_TO_ALL = Again()


class Urgent(BaseModel):
    """How urgent a study is to be."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"priority": "stat"}]})

    priority: shapes.Urgency = Field(description="The smaller goes first: stat, high, routine, low.")


class Resent(shapes.Shape):
    """What is sent once more."""

    resent: list[int] = Field(description="Numbers of the deliveries that are due now.")


def router(seen: Seen) -> APIRouter:
    """The routes of what is decided about studies."""
    made = APIRouter(prefix="/api/v1/studies/{study_uid}", tags=["decisions"])
    store = seen.store

    @made.post("/rerun", summary="Run a study again", responses=_DECIDED)
    def rerun(study_uid: StudyUid, caller: Operator) -> shapes.StudyRow:
        """Have it analysed again, as a new revision, with the models as they are now."""
        if not store.rerun(study_uid):
            raise _not_again(seen, study_uid)
        return _decided(study_uid, caller)

    @made.post("/cancel", summary="Cancel a study", responses=_DECIDED)
    def cancel(study_uid: StudyUid, caller: Operator) -> shapes.StudyRow:
        """Decide that it is not to be analysed; what was answered stands, and a later instance makes it wait anew."""
        if not store.cancel(study_uid):
            row = one_study(seen, study_uid)
            raise _conflict(
                "cancelling a study",
                f"it is {row.state}",
                "what waits for its analysis, or is analysed, can be cancelled",
                "drop its deliveries, if its results are not to be sent",
            )
        return _decided(study_uid, caller)

    @made.post(
        "/resend",
        summary="Send a study's results again",
        responses=shown({"resent": [17]}) | {409: example(409)},
    )
    def resend(study_uid: StudyUid, caller: Operator, again: Again = _TO_ALL) -> Resent:
        """Send its results once more, the same bytes: those that arrived too."""
        if again.destination and seen.config.destination(again.destination) is None:
            raise Problem(
                404,
                doing="sending results again",
                found="the configuration names no such destination",
                rule="a destination is one of [[destinations]]",
                way_out="take a name from /api/v1/destinations",
            )
        numbers = store.resend(study_uid, again.destination)
        if not numbers:
            one_study(seen, study_uid)
            raise _conflict(
                "sending results again",
                "nothing of it was sent there, or its results were removed",
                "what was sent, or refused, is sent again while [retention] evidence_days keeps it",
                "see the study's deliveries; run it again if its results are gone",
            )
        decided(study_uid, caller)
        return Resent(resent=numbers)

    @made.post("/priority", summary="Change how urgent a study is", responses=_DECIDED)
    def priority(study_uid: StudyUid, urgent: Urgent, caller: Operator) -> shapes.StudyRow:
        """Make it more or less urgent, for its analysis and for what of it is still to be delivered."""
        if not store.set_priority(study_uid, Priority[urgent.priority.upper()]):
            raise unknown_study()
        return _decided(study_uid, caller)

    def _decided(study_uid: str, caller: Caller) -> shapes.StudyRow:
        decided(study_uid, caller)
        return one_study(seen, study_uid)

    return made


def _not_again(seen: Seen, study_uid: str) -> Problem:
    row = one_study(seen, study_uid)
    doing = "running a study again"
    if row.state in _UNANSWERED:
        return _conflict(
            doing,
            f"it is {row.state}: not answered yet",
            "what was answered, or cancelled, can be run again",
            "wait for its answer, or see why it waits",
        )
    return _conflict(
        doing,
        "its images were removed",
        "images are kept for [retention] sources_days after the study was done",
        "send the study again",
    )


def _conflict(doing: str, found: str, rule: str, way_out: str) -> Problem:
    return Problem(409, doing=doing, found=found, rule=rule, way_out=way_out)
