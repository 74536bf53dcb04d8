"""A specimen of every result, of a coarse phantom with known lesions: what a destination can be tried with.

No network runs: the lesions are where the phantom has them. Patient, study and words say that it is a test.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from service.analysis import lesions
from service.analysis.volume import read_volume
from service.codes import Code
from service.demo.phantom import LIVER, LIVER_LESION, Phantom, chest_abdomen
from service.demo.phantom_dicom import write_series
from service.forms import Profile, Wanted
from service.intake.study import group, read_instance
from service.results import objects
from service.results.identity import Making, tracking_uid
from service.results.proof import prove
from service.spec import FindingClass, ModelSpec
from service.types import Conclusion, Lesion, Model, Outcome, ResultObject, SourceVolume

PATIENT_ID: Final = "OVERREAD-PROBE"
_WANTED = Wanted.by(
    [
        Profile(seg="binary", capture="findings", gsps=True, ko=True),
        Profile(seg="labelmap"),
        Profile(seg="labelmap", compression="rle"),
        Profile(seg="labelmap", compression="jpeg-ls"),
        Profile(seg="fractional", compression="rle"),
    ]
)
_ATTRIBUTES = {
    "PatientName": "Overread^Probe",
    "PatientID": PATIENT_ID,
    "AccessionNumber": "PROBE",
    "StudyDescription": "Test of Overread, no patient",
    "SeriesDescription": "Phantom, no patient",
}


def make_specimen(folder: Path) -> tuple[list[Path], tuple[ResultObject, ...]]:
    """Write the phantom's images into a folder, and make every result of its lesions; proved, and always the same.

    Returns
    -------
    images
        The files.
    results
        Every kind and form.
    """
    phantom = chest_abdomen(spacing_mm=(5.0, 2.7, 2.7), heights_mm=LIVER)
    images = write_series(phantom, folder, attributes=_ATTRIBUTES)
    (study,) = group([read_instance(path) for path in images])
    source = read_volume(study.series[0])
    model = Model(spec=_spec(), folder=folder, weights_sha256="0" * 64, networks=())
    making = Making(study=study, model=model, backend="no backend", made_at=datetime(2026, 1, 1, tzinfo=UTC))
    conclusion = Conclusion(outcome=Outcome.FINDINGS, findings=_lesions(phantom, source, model.spec))
    pictures = objects.pictures_of(making, conclusion, source)
    made = objects.objects_of(making, conclusion, source, _WANTED, pictures)
    prove(making, conclusion, source, made, pictures)
    return images, made


def _lesions(phantom: Phantom, source: SourceVolume, spec: ModelSpec) -> tuple[Lesion, ...]:
    """The phantom's liver lesions as a model would report them."""
    tracking = partial(tracking_uid, source.series, spec.name)
    centres = [planted for planted in phantom.lesions if planted.kind == LIVER_LESION]
    places = np.asarray(source.volume.map_indices_to_reference(np.argwhere(np.ones(source.volume.spatial_shape, bool))))
    found = []
    for number, planted in enumerate(centres, start=1):
        near = np.linalg.norm(places - planted.centre_lps_mm, axis=1) <= planted.diameter_mm / 2
        mask = near.reshape(source.volume.spatial_shape)
        edges = np.argwhere(mask)
        slices, rows, columns = (
            slice(int(low), int(high) + 1) for low, high in zip(edges.min(0), edges.max(0), strict=True)
        )
        box = (slices, rows, columns)
        component = lesions.Component(
            kind=spec.classes[0], score=0.9, mask=mask[box], likelihood=mask[box] * np.float32(0.9), box=box
        )
        found.append(lesions.measured(component, source, number, tracking))
    return tuple(found)


def _spec() -> ModelSpec:
    network = {"name": "in", "shape": (8, 8, 8)}
    return ModelSpec.model_validate(
        {
            "name": "probe",
            "version": "1",
            "title": "Probe of Overread, no patient",
            "manufacturer": "Overread",
            "licence": "Apache-2.0",
            "source": {"words": "no weights: nothing is run"},
            "select": {"modality": "CT"},
            "stages": [
                {
                    "name": "none",
                    "input": network,
                    "output": network | {"name": "out"},
                    "intensity": {"clip": (0.0, 1.0)},
                }
            ],
            "classes": [
                FindingClass(
                    finding=Code("52988006", "SCT", "Lesion"),
                    site=Code("10200004", "SCT", "Liver"),
                    colour=(230, 159, 0),
                ).model_dump()
            ],
        }
    )
