"""How urgent a study is."""

from __future__ import annotations

import pytest

from service.intake.urgency import urgency
from service.settings.intake import Route
from service.types import Priority

ROUTES = (
    Route(calling_ae_title="ER_CT", called_ae_title="RESEARCH", priority="low"),
    Route(calling_ae_title="ER_CT", priority="stat"),
    Route(called_ae_title="OVERREAD_STAT", priority="stat"),
    Route(called_ae_title="NIGHT", priority="high"),
)


@pytest.mark.parametrize(
    ("calling", "called", "requested", "expected"),
    [
        ("ER_CT", "OVERREAD", "", Priority.STAT),
        ("ER_CT", "RESEARCH", "", Priority.LOW),  # the first route that fits counts
        ("WARD_CT", "OVERREAD_STAT", "LOW", Priority.STAT),  # a route says more than the images
        ("WARD_CT", "NIGHT", "STAT", Priority.HIGH),
        ("WARD_CT", "OVERREAD", "STAT", Priority.STAT),
        ("WARD_CT", "OVERREAD", " stat ", Priority.STAT),
        ("WARD_CT", "OVERREAD", "HIGH", Priority.HIGH),
        ("WARD_CT", "OVERREAD", "ROUTINE", Priority.ROUTINE),
        ("WARD_CT", "OVERREAD", "MEDIUM", Priority.ROUTINE),
        ("WARD_CT", "OVERREAD", "LOW", Priority.LOW),
        ("WARD_CT", "OVERREAD", "", Priority.ROUTINE),
        ("WARD_CT", "OVERREAD", "ASAP", Priority.ROUTINE),
        ("er_ct", "OVERREAD", "", Priority.ROUTINE),  # AE titles have cases (PS3.5 6.2)
    ],
)
def test_a_route_first_then_what_the_images_say(calling: str, called: str, requested: str, expected: Priority) -> None:
    assert urgency(ROUTES, calling_ae_title=calling, called_ae_title=called, requested=requested) is expected
