"""[edge: fastapi] What STOW-RS answers (PS3.18 section 10.5.3 and Annex I), and how it is described."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from fastapi.responses import JSONResponse
from pydicom import Dataset

from service import log
from service.api.examples import Responses
from service.api.problems import Problem, example
from service.codes import SUCCESS, WARNINGS
from service.errors import OutOfSpace
from service.intake.encoding import Identity
from service.intake.fileformat import FileMeta
from service.intake.keep import CONFLICTING, Answered

DICOM, JSON = "application/dicom", "application/dicom+json"


class DicomJson(JSONResponse):
    """An answer in the DICOM JSON Model (PS3.18 Annex F)."""

    media_type = JSON


DOING: Final = "storing instances (STOW-RS)"
FULL_SECONDS: Final = 300  # somebody has to make room


@dataclass(kw_only=True)
class Came:
    """What came in one request, and what became of it."""

    files: list[tuple[FileMeta | None, Answered]] = field(default_factory=list)

    def kept(self) -> list[Identity]:
        """Those that are on the disk."""
        return [it.identity for _, it in self.files if it.identity and _is_stored(it)]


def answer(came: Came) -> DicomJson:
    """What became of each instance, under the status of PS3.18 Table 10.5.3-1."""
    if not came.files:
        raise Problem(
            400,
            doing=DOING,
            found="the body has no parts",
            rule="each part is an instance (PS3.18 section 10.5.2)",
            way_out="send at least one",
        )
    statuses, kept = [it.status for _, it in came.files], len(came.kept())
    headers = {}
    if kept:
        status = 200 if set(statuses) == {SUCCESS} else 202
    elif OutOfSpace.status in statuses:
        status, headers = 503, {"Retry-After": str(FULL_SECONDS)}
    else:
        status = 409
    log.event("stow.answered", instances=len(statuses), kept=kept, status=status)
    return DicomJson(_module(came).to_json_dict(), status_code=status, headers=headers)


def _is_stored(answered: Answered) -> bool:
    return answered.status == SUCCESS or answered.status in WARNINGS


def _module(came: Came) -> Dataset:
    """The Store Instances Response Module (PS3.18 Table I.1-1)."""
    stored: list[Dataset] = []
    failed: list[Dataset] = []
    others: list[Dataset] = []
    for meta, answered in came.files:
        item = Dataset()
        named = answered.identity or meta
        is_named = named is not None and bool(named.sop_class_uid and named.sop_instance_uid)
        if named is not None and is_named:
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = named.sop_class_uid, named.sop_instance_uid
        if _is_stored(answered):
            item.RetrieveURL = ""
            if answered.status != SUCCESS:
                item.WarningReason = answered.status
            stored.append(item)
        else:
            item.FailureReason = answered.status
            (failed if is_named else others).append(item)
    module = Dataset()
    module.RetrieveURL = ""
    for keyword, items in (
        ("FailedSOPSequence", failed),
        ("ReferencedSOPSequence", stored),
        ("OtherFailuresSequence", others),  # of which not even the UIDs are known
    ):
        if items:
            setattr(module, keyword, items)
    return module


# --- How it is described ----------------------------------------------------------------------------------------------

_SCHEMA: Final = {  # the DICOM JSON Model (PS3.18 Annex F), as far as the module needs it
    "type": "object",
    "properties": {
        "00081190": {"type": "object", "description": "Retrieve URL; empty, for nothing can be retrieved here."},
        "00081198": {"type": "object", "description": "Failed SOP Sequence, each with its Failure Reason (0008,1197)."},
        "00081199": {"type": "object", "description": "Referenced SOP Sequence: what is stored, and any warning."},
        "0008119A": {"type": "object", "description": "Other Failures Sequence: parts that name no instance."},
    },
    "patternProperties": {"^[0-9A-F]{8}$": {"type": "object", "required": ["vr"]}},
}


def _described(words: str, *statuses: int) -> dict[str, Any]:
    """A response with one instance for each status."""
    came = Came(
        files=[
            (
                None,
                Answered(
                    status=status,
                    identity=Identity(
                        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
                        sop_instance_uid=f"1.2.826.0.1.3680043.8.498.1.{number}",
                        study_instance_uid="1.2.826.0.1.3680043.8.498.1",
                        series_instance_uid="1.2.826.0.1.3680043.8.498.1.9",
                    ),
                ),
            )
            for number, status in enumerate(statuses, start=1)
        ]
    )
    return {"description": words, "content": {JSON: {"schema": _SCHEMA, "example": _module(came).to_json_dict()}}}


RESPONSES: Final[Responses] = {
    200: _described("All instances are on the disk.", SUCCESS),
    202: _described("Some are; others were refused, or stored with a warning.", SUCCESS, CONFLICTING, 0xA900),
    409: _described("None is: each was refused, by a reason of its own.", 0xC122),
    **{status: example(status) for status in (400, 406, 408, 413, 415, 503)},
}
REQUEST_BODY: Final = {
    "required": True,
    "description": "Files as PS3.10 has them, each a part of its own. [api] maximum_body_mib bounds them all, "
    "[intake] maximum_instance_mib each.",
    "content": {
        f'multipart/related; type="{DICOM}"': {
            "schema": {
                "type": "object",
                "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}},
            },
            "encoding": {"file": {"contentType": DICOM}},
        }
    },
}
