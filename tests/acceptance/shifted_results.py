"""``overread`` with a fault for which the proof is there: each Segmentation lies 2.5 mm beside its finding."""

from __future__ import annotations

import sys
from dataclasses import replace
from io import BytesIO
from typing import Any

from pydicom import dcmread

from service.__main__ import main
from service.forms import Kind
from service.results import objects
from service.types import ResultObject

_objects_of = objects.objects_of


def _shifted(made: ResultObject) -> ResultObject:
    if made.kind is not Kind.SEG:
        return made
    dataset, buffer = dcmread(BytesIO(made.content)), BytesIO()
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        x, y, z = frame.PlanePositionSequence[0].ImagePositionPatient
        frame.PlanePositionSequence[0].ImagePositionPatient = [x, y, z + 2.5]
    dataset.save_as(buffer)
    return replace(made, content=buffer.getvalue())


def _faulty(*arguments: Any) -> tuple[ResultObject, ...]:
    return tuple(_shifted(made) for made in _objects_of(*arguments))


if __name__ == "__main__":
    setattr(objects, "objects_of", _faulty)  # noqa: B010 - mypy knows that it is another one
    sys.exit(main())
