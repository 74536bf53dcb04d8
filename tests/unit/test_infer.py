"""A map comes back to the source grid whole."""

from __future__ import annotations

import highdicom as hd
import numpy as np
import pytest
from numpy.typing import NDArray

from service.analysis.infer import infer
from service.analysis.schedule import Scheduler, Stream
from service.spec import Stage
from service.types import Model, Prediction, SourceVolume
from tests.phantoms import Phantom, make


class Backend:
    """Finds the same block of 3 x 3 x 3 voxels in any patch, on a background of its own."""

    name = "fake"
    slots = 1

    def __init__(self, background: float) -> None:
        self._background = background

    def load(self, model: Model) -> None:
        """Nothing to load."""

    def infer(self, network: str, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        answer = np.full_like(batch, self._background)
        answer[:, :, 6:9, 6:9, 6:9] = 0.9
        return answer


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Phantom:
    return make(tmp_path_factory.mktemp("series"))


def _infer(phantom: Phantom, background: float, between: str, threshold: float) -> Prediction:
    tensor = {"name": "t", "shape": (16, 16, 16)}
    stage = Stage.model_validate(
        {
            "name": "s",
            "spacing_mm": (2.5, 2.5, 2.5),
            "input": tensor,
            "output": tensor,
            "intensity": {"clip": (0.0, 1.0)},
            "between": between,
            "threshold": threshold,
        }
    )
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = 1.0, 0.8, 0.8, 1.0
    source = SourceVolume(
        series=phantom.source.series,
        volume=hd.Volume(np.zeros((40, 50, 50), np.float32), affine, coordinate_system="PATIENT"),
        ordered=phantom.source.ordered,
        notes=(),
    )
    scheduler = Scheduler(Backend(background))
    try:
        spec = phantom.making.model.spec.model_copy(update={"stages": (stage,)})
        return infer(source, spec, scheduler, stream=Stream(), progress=lambda **_: None)
    finally:
        scheduler.close()


@pytest.mark.parametrize(
    ("between", "threshold"),
    [("mean", 0.5), ("mean", 0.2), ("maximum", 0.5)],
)
def test_a_lesions_size_does_not_hang_on_its_background(between: str, threshold: float, phantom: Phantom) -> None:
    """Around a lesion a network may say 0 or next to nothing: it is as large either way."""
    sizes = [
        int((_infer(phantom, background, between, threshold).probability > threshold).sum())
        for background in (0.0, 1e-9)
    ]
    assert sizes[0] == sizes[1]


def test_the_map_is_cropped_to_where_it_is_not_zero(phantom: Phantom) -> None:
    found = _infer(phantom, 0.0, "mean", 0.5)
    assert found.probability.shape == tuple(axis.stop - axis.start for axis in found.box)
    assert found.probability.size < 40 * 50 * 50 / 10
    assert set(found.seconds) == {"s"}
