"""[edge] What a destination accepts of all that results can be, asked in one association."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from pydicom.uid import (
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    JPEGLSLossless,
    KeyObjectSelectionDocumentStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from service.codes import LABEL_MAP_SEGMENTATION_STORAGE
from service.errors import InstanceRefused, NotAccepted
from service.results.association import association_with, context_of
from service.settings.destinations import Destination

RESULTS: tuple[tuple[str, str], ...] = (  # SOP class and transfer syntax of every object that we can write
    (SegmentationStorage, ExplicitVRLittleEndian),
    (SegmentationStorage, RLELossless),
    (LABEL_MAP_SEGMENTATION_STORAGE, ExplicitVRLittleEndian),
    (LABEL_MAP_SEGMENTATION_STORAGE, RLELossless),
    (LABEL_MAP_SEGMENTATION_STORAGE, JPEGLSLossless),
    (Comprehensive3DSRStorage, ExplicitVRLittleEndian),
    (SecondaryCaptureImageStorage, ExplicitVRLittleEndian),
    (GrayscaleSoftcopyPresentationStateStorage, ExplicitVRLittleEndian),
    (KeyObjectSelectionDocumentStorage, ExplicitVRLittleEndian),
)
_FRESH_SECONDS = 300.0  # how long an answer holds; a refusal of a context ends it at once


def negotiate(destination: Destination, *, our_ae_title: str) -> frozenset[tuple[str, str]]:
    """Ask a destination, in one association, which of `RESULTS` it accepts, and whether it commits and can be queried.

    Each pair is proposed in a context of its own, since of one with several transfer syntaxes only one is accepted
    (PS3.8 section 9.3.3.2).

    Returns
    -------
    frozenset
        SOP Class UID (also of Verification, of storage commitment and of the query) and Transfer Syntax UID.

    Raises
    ------
    DeliveryError
        If it can't be asked.
    """
    contexts = [context_of(sop_class, syntax) for sop_class, syntax in RESULTS]
    contexts += [
        context_of(service)
        for service in (Verification, StorageCommitmentPushModel, StudyRootQueryRetrieveInformationModelFind)
    ]
    try:
        with association_with(destination, our_ae_title, contexts) as association:
            return frozenset(
                (str(context.abstract_syntax), str(syntax))
                for context in association.accepted_contexts
                for syntax in context.transfer_syntax
            )
    except NotAccepted:
        return frozenset()


def can_be_queried(accepted: frozenset[tuple[str, str]]) -> bool:
    """Whether a destination that accepts these can be asked for what it has."""
    return any(sop_class == StudyRootQueryRetrieveInformationModelFind for sop_class, _ in accepted)


def commits(accepted: frozenset[tuple[str, str]]) -> bool:
    """Whether a destination that accepts these can be asked to commit to what it stored (PS3.4 Annex J)."""
    return any(sop_class == StorageCommitmentPushModel for sop_class, _ in accepted)


def no_receipt(destination: Destination, accepted: frozenset[tuple[str, str]]) -> str:
    """Why results can't be confirmed at a destination that accepts these, as its settings ask; empty if they can."""
    can_find = bool(destination.qido_url) or can_be_queried(accepted)
    match destination.confirm:
        case "commitment" if not commits(accepted):
            return "it offers no storage commitment"
        case "query" if not can_find:
            return "it can't be asked whether it has them (C-FIND)"
        case "auto" if not commits(accepted) and not can_find:
            return "it offers neither storage commitment nor C-FIND"
    return ""


def is_verified(accepted: frozenset[tuple[str, str]]) -> bool:
    """Whether a destination that accepts these answers a C-ECHO."""
    return any(sop_class == Verification for sop_class, _ in accepted)


class Acceptance:
    """What destinations accept, asked once and remembered for some minutes. Thread-safe.

    Parameters
    ----------
    ask
        `negotiate` with our AE title.
    """

    def __init__(self, ask: Callable[[Destination], frozenset[tuple[str, str]]]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, frozenset[tuple[str, str]]]] = {}

    def of(self, destination: Destination) -> Callable[[str, str], bool]:
        """Whether the destination accepts an object, by SOP Class UID and Transfer Syntax UID.

        Raises
        ------
        DeliveryError
            If it has to be asked, and can't be.
        """
        accepted = self._fresh(destination)
        return lambda sop_class, syntax: (sop_class, syntax) in accepted

    def commits(self, destination: Destination) -> bool:
        """Whether the destination can be asked to commit to what it stored.

        Raises
        ------
        DeliveryError
            If it has to be asked, and can't be.
        """
        return commits(self._fresh(destination))

    def refuse(self, destination: Destination, sop_class: str, syntax: str) -> None:
        """Remember that it has just refused what it had accepted; asked again, it may say as before."""
        with self._lock:
            asked_at, accepted = self._known.get(destination.name, (-_FRESH_SECONDS, frozenset()))
            self._known[destination.name] = (asked_at, accepted - {(sop_class, syntax)})

    def no_commitment(self, destination: Destination) -> None:
        """Remember that it offers storage commitment and does not give it."""
        for sop_class, syntax in self._fresh(destination):
            if sop_class == StorageCommitmentPushModel:
                self.refuse(destination, sop_class, syntax)

    def _fresh(self, destination: Destination) -> frozenset[tuple[str, str]]:
        with self._lock:
            asked_at, accepted = self._known.get(destination.name, (-_FRESH_SECONDS, frozenset()))
        if time.monotonic() - asked_at >= _FRESH_SECONDS:
            accepted = self._ask(destination)
            if not accepted:  # while it starts, or somebody edits its list; for good only when it lasts
                raise InstanceRefused(
                    doing=f"asking {destination.name} what it accepts",
                    found="it accepts none of the objects that results can be",
                    rule="a service is used in a presentation context that both sides accept (PS3.8 section 9.3.3)",
                    way_out=f"allow these SOP classes there (overread probe {destination.name} names them)",
                    retry=True,
                )
            with self._lock:
                self._known[destination.name] = (time.monotonic(), accepted)
        return accepted
