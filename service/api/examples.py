"""An example of each answer: the same study everywhere."""

from __future__ import annotations

from typing import Any, Final

from service.api import shapes
from service.types import DeliveryState, Outcome, Step, StudyState

_STUDY, _SERIES = "1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.1.1"
_REPORT = "2.25.157063203847210987143206741953076"
Responses = dict[int | str, dict[str, Any]]  # as FastAPI takes them
_AT: Final = 1764144000.0

_row: Final[dict[str, Any]] = {
    "study_uid": _STUDY,
    "state": StudyState.DELIVERING,
    "priority": "routine",
    "source": "CT_SCANNER",
    "revision": 0,
    "instances": 250,
    "findings": 1,
    "waits": "its results are on their way",
    "age_seconds": 42.5,
    "completeness": "verified",
    "judged": "the source counts 250 instances, as many as are here",
    "missing": "",
    "tries": 0,
    "holder": "",
    "first_at": _AT,
    "last_at": _AT + 20.0,
    "started_at": _AT + 20.3,
    "answered_at": _AT + 55.1,
    "done_at": None,
}
DELIVERY: Final = shapes.DeliveryRow(
    delivery_id=17,
    study_uid=_STUDY,
    destination="pacs",
    model="lung-nodule",
    kind="SR",
    class_uid="1.2.840.10008.5.1.4.1.1.88.34",
    series_uid=f"{_REPORT}1",
    sop_uid=_REPORT,
    state=DeliveryState.RETRYING,
    attempts=1,
    reason="no connection, or no answer. Way out: start it, or correct host and port",
    queued_at=_AT + 55.1,
    changed_at=_AT + 57.0,
    due_in_seconds=4.5,
    priority="routine",
)
_ANSWER: Final = shapes.AnswerRow(
    model="lung-nodule",
    version="1.0.0",
    title="Lung nodules on CT",
    weights_sha256="9f2b1c" + "0" * 58,
    outcome=Outcome.FINDINGS,
    series_uid=_SERIES,
    why="thinnest slices of 2 that fit",
    excluded=[shapes.Exclusion(series_uid=f"{_SERIES}.2", reason="localizer", cause="derived")],
    findings=[
        shapes.FindingRow(
            kind="lesion",
            number=1,
            tracking_uid="2.25.271828182845904523536028747135266",
            finding="Nodule",
            site="Lung",
            laterality="Left",
            probability=0.93,
            slice=118,
            picture="lung-nodule-1.png",
            volume_ml=0.412,
            long_axis_mm=10.4,
            short_axis_mm=8.1,
            mean=-12.5,
            centroid_lps_mm=[61.2, -14.0, 212.5],
            extent_lps_mm=[[56.0, -19.1, 208.0], [66.3, -9.4, 217.0]],
        )
    ],
    seconds={"infer": 21.4, "objects": 1.9},
    objects=[
        shapes.ObjectRow(
            kind="SR",
            form="binary",
            sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34",
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            sop_instance_uid=_REPORT,
            series_instance_uid=f"{_REPORT}1",
            file="lung-nodule.SR.binary.dcm",
        )
    ],
)
ROW: Final = shapes.StudyRow(**_row, answers=[shapes.Chip(model="lung-nodule", outcome=Outcome.FINDINGS, findings=1)])
STUDY: Final = shapes.StudyDetail(
    **_row,
    answers=[_ANSWER],
    answered_revision=0,
    series=[
        shapes.SeriesRow(series_uid=_SERIES, instances=248),
        shapes.SeriesRow(series_uid=f"{_SERIES}.2", instances=2),
    ],
    deliveries=[DELIVERY],
    conflicts=[],
    progress={},
    kept="images, results, records: the study is not done yet (delivering)",
)
STEPS: Final = [
    shapes.StepRow(at=_AT, step=Step.FIRST_INSTANCE, words="from CT_SCANNER"),
    shapes.StepRow(at=_AT + 20.3, step=Step.READY, words="verified: the source counts 250 instances"),
    shapes.StepRow(at=_AT + 55.1, step=Step.ANSWERED, words="lung-nodule: findings"),
]
DESTINATION: Final = shapes.DestinationRow(
    name="pacs",
    ae_title="PACS",
    address="pacs.hospital:11112",
    confirm="auto",
    states={"confirmed": 120, "retrying": 1},
    waiting_since=_AT + 55.1,
    confirmed_at=_AT - 300.0,
    explained="1 wait; 1 of them failed by themselves and are tried again, each by its own reason",
)
SOURCE: Final = shapes.SourceRow(
    ae_title="CT_SCANNER",
    asked_by="C-FIND",
    address="pacs.hospital:11112",
    modalities=["CT"],
    studies=12,
    last_at=_AT + 20.0,
    receiving=0,
)
ECHO: Final = shapes.Echo(answered=True, milliseconds=12.5)
MODEL: Final = shapes.ModelRow(
    name="lung-nodule",
    version="1.0.0",
    broken="",
    networks=[
        shapes.NetworkRow(
            name="lung-nodule",
            loaded=True,
            last_used=_AT + 50.0,
            envelope=shapes.Measured(
                device="onnxruntime 1.31 CUDA", resident_bytes=310 << 20, batch_bytes={1: 800 << 20}, best_batch=1
            ),
        )
    ],
)
PROCESS: Final = shapes.ProcessRow(
    name="overread-0",
    parts=["receive", "work", "page"],
    version="0.1.0",
    started_at=_AT - 86400.0,
    seen_at=_AT + 56.0,
    status={},
)


def shown(example: Any, words: str = "") -> Responses:
    """The 200 of a route, with its example: a shape, a list of shapes, or plain values."""
    match example:
        case shapes.Shape():
            value: Any = example.model_dump(mode="json")
        case [*items] if all(isinstance(item, shapes.Shape) for item in items):
            value = [item.model_dump(mode="json") for item in items]
        case _:
            value = example
    described: dict[str, Any] = {"content": {"application/json": {"example": value}}}
    return {200: described | ({"description": words} if words else {})}
