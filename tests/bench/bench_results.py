"""Making and proving the objects of an answer, beside highdicom's bare constructor on the same masks, in one run."""

from __future__ import annotations

import io
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import highdicom as hd
import numpy as np
import pytest

from service.forms import OUTLINES, Profile, SegForm, Wanted
from service.results import copied, objects, seg, sr
from service.results.proof import prove
from service.types import Outcome
from tests import phantoms
from tests.phantoms import Phantom
from tests.unit.test_results_identity import conclusion_of

ROUNDS = 5
SHAPE = (250, 512, 512)
BALLS = (((60, 200, 180), 12.0), ((120, 260, 300), 20.0), ((190, 240, 220), 35.0))  # centre in voxels, radius in mm
FORMS = (
    SegForm(),
    SegForm(omit_empty_frames=False, maximum_frames=10_000),
    SegForm(type="labelmap"),
    SegForm(type="labelmap", compression="rle"),
    SegForm(type="labelmap", compression="jpeg-ls"),
    SegForm(type="fractional"),
)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Phantom:
    """A CT of 250 slices with three balls."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantoms, "SHAPE", SHAPE)
        made = phantoms.make(tmp_path_factory.mktemp("series"), spacing=(1.25, 0.75, 0.75), lesions=0)
    grid = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    found = []
    for number, (centre, radius) in enumerate(BALLS, start=1):
        squares = [((axis - at) * step) ** 2 for axis, at, step in zip(grid, centre, (1.25, 0.75, 0.75), strict=True)]
        found.append(phantoms.finding_of(made.source, np.asarray(sum(squares) <= radius**2), number))
    return replace(made, findings=tuple(found))


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def test_each_form_beside_the_bare_constructor(phantom: Phantom) -> None:
    headers = copied.complete_headers(phantom.source)
    labels = np.zeros(SHAPE, np.uint8)
    for lesion in phantom.lesions:
        labels[lesion.box][lesion.mask] = lesion.number
    conclusion = conclusion_of(phantom)
    for form in FORMS:
        made = seg.segmentations(phantom.source, phantom.lesions, phantom.making, form, outcome=Outcome.FINDINGS)
        bare_bytes = io.BytesIO()

        segments = [segment for part in made for segment in part.segments]
        described = [seg._description(segment, n, phantom.making) for n, segment in enumerate(segments, start=1)]

        def bare(
            form: SegForm = form,
            file: io.BytesIO = bare_bytes,
            described: list[hd.seg.SegmentDescription] = described,
        ) -> None:
            """The whole array, one call, and the file: what its documentation shows."""
            file.seek(0)
            hd.seg.Segmentation(
                source_images=headers,
                pixel_array=labels,
                segmentation_type=form.type.upper(),
                segment_descriptions=described,
                series_instance_uid="1.2.3",
                series_number=1,
                sop_instance_uid="1.2.4",
                instance_number=1,
                manufacturer="bench",
                manufacturer_model_name="bench",
                software_versions="1",
                device_serial_number="1",
                transfer_syntax_uid=form.transfer_syntax_uid,
                omit_empty_frames=form.omit_empty_frames,
            ).save_as(file)

        def ours(form: SegForm = form) -> None:
            seg.segmentations(phantom.source, phantom.lesions, phantom.making, form, outcome=Outcome.FINDINGS)

        def proved(made: tuple[seg.Segmented, ...] = made) -> None:
            prove(phantom.making, conclusion, phantom.source, [it.object for it in made])

        rounds = [(_seconds(bare), _seconds(ours), _seconds(proved)) for _ in range(ROUNDS)]
        figures = {
            "form": form.key,
            "ours_over_bare": round(statistics.median(our / bare for bare, our, _ in rounds), 2),
            "proof_over_ours": round(statistics.median(proof / our for _, our, proof in rounds), 2),
            "seconds": [round(statistics.median(column), 3) for column in zip(*rounds, strict=True)],
            "kB": [len(bare_bytes.getvalue()) // 1000, sum(len(it.object.content) for it in made) // 1000],
        }
        print(json.dumps(figures))


def test_all_objects_of_an_answer(phantom: Phantom) -> None:
    conclusion = conclusion_of(phantom)
    making, source = phantom.making, phantom.source
    for name, wanted in {
        "usual": Wanted.by([Profile()]),
        "everything": Wanted.by(
            [
                Profile(capture="findings", gsps=True, ko=True),
                Profile(seg="labelmap", compression="jpeg-ls"),
                Profile(seg="fractional"),
            ]
        ),
    }.items():
        rounds = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            pictures = objects.pictures_of(making, conclusion, source)
            drawn = time.perf_counter()
            made = objects.objects_of(making, conclusion, source, wanted, pictures)
            encoded = time.perf_counter()
            prove(making, conclusion, source, made, pictures)
            rounds.append((drawn - began, encoded - drawn, time.perf_counter() - encoded))
        medians = [round(statistics.median(column), 2) for column in zip(*rounds, strict=True)]
        sizes = {f"{it.kind} {it.form} {it.part}": len(it.content) // 1000 for it in made}
        print(json.dumps({"wanted": name, "draw_encode_prove_seconds": medians, "kB": sizes}))


def test_a_report_with_and_without_a_segmentation(phantom: Phantom) -> None:
    conclusion = conclusion_of(phantom)
    segmented = seg.segmentations(phantom.source, phantom.lesions, phantom.making, SegForm(), outcome=Outcome.FINDINGS)
    for form, parts in (("binary", segmented), (OUTLINES, ())):

        def report(form: str = form, parts: tuple[seg.Segmented, ...] = parts) -> object:
            return sr.report(phantom.making, conclusion, source=phantom.source, segmented=parts, form=form)

        times = [_seconds(report) for _ in range(ROUNDS)]
        print(json.dumps({"report": form, "seconds": round(statistics.median(times), 3)}))
