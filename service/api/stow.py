"""[edge: fastapi] Studies come in by STOW-RS (PS3.18 section 10.5), with the same promises as by C-STORE.

Each instance is answered for by itself: Success is said of it only when it is on the disk and its row is committed.
Nothing can be retrieved here (there is no WADO-RS), so Retrieve URL (0008,1190), Type 2, is empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Final

import anyio
from anyio import to_thread
from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect

from service import audit
from service.api.doors import Caller, Operator
from service.api.multipart import Part, media_type_of, parts_of, too_large
from service.api.parameters import StudyUid
from service.api.problems import Problem
from service.api.seen import Seen
from service.api.stored import DICOM, DOING, FULL_SECONDS, JSON, REQUEST_BODY, RESPONSES, Came, DicomJson, answer
from service.errors import ClassNotTaken, OutOfSpace, SyntaxNotTaken, WrongClass
from service.intake.encoding import Identity
from service.intake.fileformat import FileMeta, read_file_meta
from service.intake.keep import Answered, Arrived, Keeper
from service.intake.receive import storage_classes, transfer_syntaxes

_ANSWERS: Final = frozenset({JSON, "application/json", "application/*", "*/*"})
_REQUESTS: Final = 8  # at the same time; each holds one instance in memory, for a moment twice
_KEEPING: Final = 4  # threads that write and wait for the disk
_BUSY_SECONDS: Final = 5
_NOBODY: Final = "STOW-RS"  # stands for a calling AE title where callers have no names


def router(seen: Seen) -> APIRouter:
    """The routes of STOW-RS."""
    made = APIRouter(prefix="/dicom-web/studies", tags=["dicomweb"])
    places = anyio.Semaphore(_REQUESTS)
    threads = anyio.CapacityLimiter(_KEEPING)
    classes, syntaxes = frozenset(storage_classes()), frozenset(transfer_syntaxes())

    async def store(request: Request, caller: Caller, study_uid: str) -> DicomJson:
        keeper, boundary = _open(request, seen)
        try:
            places.acquire_nowait()
        except anyio.WouldBlock:
            raise _busy() from None
        came = Came()
        try:
            await to_thread.run_sync(_see_space, keeper, limiter=threads)
            parts = parts_of(
                _body(request, seen.config.intake.idle_seconds),
                boundary,
                maximum_part_bytes=seen.config.intake.maximum_instance_mib << 20,
                maximum_bytes=seen.config.api.maximum_body_mib << 20,
            )
            async for part in parts:
                one = partial(_keep, keeper, _file_of(part), caller, study_uid, classes, syntaxes)
                came.files.append(await to_thread.run_sync(one, limiter=threads))
                del part, one  # the next one may be as large
        except Problem as exc:
            if came.files:
                exc.parts["found"] += f"; {len(came.kept())} instances before that were kept"
            raise
        finally:
            places.release()
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(_audit, came, caller, limiter=threads)
        return answer(came)

    described: dict[str, Any] = {
        "responses": RESPONSES,
        "openapi_extra": {"requestBody": REQUEST_BODY},
        "response_class": DicomJson,
    }

    @made.post("", summary="Store instances", **described)
    async def store_any(request: Request, caller: Operator) -> DicomJson:
        """Store instances of whatever studies (STOW-RS). Answered when all of them are on the disk, each with what
        became of it."""
        return await store(request, caller, "")

    @made.post("/{study_uid}", summary="Store instances of one study", **described)
    async def store_of_study(study_uid: StudyUid, request: Request, caller: Operator) -> DicomJson:
        """Store instances of this study (STOW-RS); those of another one are refused with A900."""
        return await store(request, caller, study_uid)

    return made


def _open(request: Request, seen: Seen) -> tuple[Keeper, str]:
    """What keeps the instances, and the boundary between them; everything is looked at that can be before the body."""
    if seen.keep is None:
        raise Problem(
            503,
            doing=DOING,
            found="this process takes no studies",
            rule='studies are taken where [process] has the part "receive"',
            way_out="send them to a process that has it",
        )
    media_type, parameters = media_type_of(request.headers.get("content-type", ""))
    if (media_type, parameters.get("type", "").lower()) != ("multipart/related", DICOM):
        raise _wrong_type("the body is of another media type")
    accepted = {media_type_of(one)[0] for one in request.headers.get("accept", "*/*").split(",")}
    if not accepted & _ANSWERS:
        raise Problem(
            406,
            doing=DOING,
            found="an answer is wanted in another media type",
            rule=f"the answer is {JSON} (PS3.18 section 10.5.3)",
            way_out="accept that",
        )
    length = request.headers.get("content-length", "")
    maximum = seen.config.api.maximum_body_mib << 20
    if length.isdecimal() and int(length) > maximum:
        raise too_large(f"the body has more than {maximum} bytes", "[api] maximum_body_mib")
    return seen.keep, parameters.get("boundary", "")


async def _body(request: Request, idle_seconds: float) -> AsyncIterator[bytes]:
    """The body as it comes; a sender that falls silent is not waited for."""
    chunks = request.stream()
    while True:
        try:
            with anyio.fail_after(idle_seconds):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except (TimeoutError, ClientDisconnect) as exc:
            silent = isinstance(exc, TimeoutError)
            raise Problem(
                408 if silent else 400,
                doing=DOING,
                found=f"nothing came for {idle_seconds:g} s" if silent else "the connection ended",
                rule="a body comes to its end, and never waits longer than [intake] idle_seconds",
                way_out="send it again; what was kept already is recognised",
            ) from exc
        yield chunk


def _see_space(keeper: Keeper) -> None:
    try:
        keeper.check_space()
    except OutOfSpace as exc:
        raise Problem(503, **exc.parts(), headers={"Retry-After": str(FULL_SECONDS)}) from exc


def _file_of(part: Part) -> bytes:
    if part.media_type not in ("", DICOM):
        raise _wrong_type("a part is of another media type")
    return part.content


def _keep(
    keeper: Keeper, content: bytes, caller: Caller, study_uid: str, classes: frozenset[str], syntaxes: frozenset[str]
) -> tuple[FileMeta | None, Answered]:
    """One file, kept as a C-STORE request's data set is."""
    metas: list[FileMeta] = []

    def read() -> Arrived:
        meta = read_file_meta(content)
        metas.append(meta)
        return Arrived(
            data=content[meta.size :],
            transfer_syntax_uid=meta.transfer_syntax_uid,
            calling_ae_title=_title(caller),
            check=partial(_check, meta, study_uid=study_uid, classes=classes, syntaxes=syntaxes),
        )

    answered = keeper.answer(read, size=len(content), fields={"calling_ae_title": _title(caller), "by": _NOBODY})
    return (metas[0] if metas else None), answered


def _check(
    meta: FileMeta, identity: Identity, *, study_uid: str, classes: frozenset[str], syntaxes: frozenset[str]
) -> None:
    """Refuse what an association would not have let through, and what does not belong here."""
    way_out = "send the instance as its source wrote it; a program on its way is at fault"
    if identity.sop_class_uid not in classes:
        raise ClassNotTaken(
            doing=DOING,
            found="the SOP class is no storage class of the standard",
            rule="instances are of storage SOP classes (PS3.4 section B.5)",
            way_out="leave it out",
        )
    if meta.transfer_syntax_uid not in syntaxes:
        raise SyntaxNotTaken(
            doing=DOING,
            found="the transfer syntax is none of the standard",
            rule="data sets are encoded in a transfer syntax of PS3.6 Annex A",
            way_out="send it in another one",
        )
    if meta.sop_class_uid not in ("", identity.sop_class_uid) or meta.sop_instance_uid not in (
        "",
        identity.sop_instance_uid,
    ):
        raise WrongClass(
            doing=DOING,
            found="SOP class or instance UID differ between file meta group and data set",
            rule="they are the same (PS3.10 Table 7.1-1)",
            way_out=way_out,
        )
    if study_uid not in ("", identity.study_instance_uid):
        raise WrongClass(
            doing=DOING,
            found="it is of another study than the address",
            rule="what is sent to the address of a study belongs to it (PS3.18 section 10.5.1)",
            way_out="send it to the study's own address, or to /dicom-web/studies",
        )


def _title(caller: Caller) -> str:
    """By which sources and routes know the sender, as by a calling AE title (16 characters, PS3.5 section 6.2)."""
    return caller.name.encode("ascii", "replace").decode()[:16] or _NOBODY


def _audit(came: Came, caller: Caller) -> None:
    by_study: dict[str, Counter[str]] = {}
    for identity in came.kept():
        by_study.setdefault(identity.study_instance_uid, Counter())[identity.sop_class_uid] += 1
    for study_uid, instances in by_study.items():
        audit.transferred(
            incoming=True,
            study_uid=study_uid,
            peer=caller.name or _NOBODY,
            address=caller.address,
            instances=instances,
            by_dicom=False,
        )


def _busy() -> Problem:
    return Problem(
        503,
        doing=DOING,
        found=f"{_REQUESTS} requests are being taken",
        rule="so many at the same time, for each needs memory",
        way_out="send it again a little later",
        headers={"Retry-After": str(_BUSY_SECONDS)},
    )


def _wrong_type(found: str) -> Problem:
    return Problem(
        415,
        doing=DOING,
        found=found,
        rule=f'the body is multipart/related; type="{DICOM}", and so is each part {DICOM} (PS3.18 section 10.5.2)',
        way_out="send DICOM files; metadata and bulk data apart are not taken",
    )
