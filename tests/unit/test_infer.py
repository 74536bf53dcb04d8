"""Stages in order, each in the region of one before it; a map comes back to the source grid whole, bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from pydantic import ValidationError

from service.analysis.infer import infer
from service.analysis.waiting import Stream
from service.errors import RegionNotFound
from service.spec import ModelSpec
from service.types import Array, MapPrediction, SourceVolume
from tests.toys import source_of

CLASS = {"finding": ("52988006", "SCT", "Lesion"), "site": ("10200004", "SCT", "Liver")}


def _spec(stages: list[dict[str, Any]], **more: Any) -> ModelSpec:
    return ModelSpec.model_validate(
        {
            "name": "made",
            "version": "1",
            "title": "Made",
            "manufacturer": "Overread tests",
            "licence": "Apache-2.0",
            "source": {"words": "none"},
            "select": {"modality": "CT"},
            "stages": stages,
            "classes": [CLASS],
            **more,
        }
    )


def _infer(source: SourceVolume, spec: ModelSpec, runner: Any) -> MapPrediction:
    found = infer(source, spec, runner, stream=Stream(), progress=lambda **_: None)
    assert isinstance(found, MapPrediction)
    return found


# --- Back on the source grid ----------------------------------------------------------------------------------------


class Block:
    """Finds the same block of 3 x 3 x 3 voxels in any patch, on a background of its own."""

    def __init__(self, background: float) -> None:
        self._background = background

    def map(self, stream: Stream, network: str, patches: Iterable[Array]) -> Iterator[tuple[Array, ...]]:
        """As `Runner` says."""
        for patch in patches:
            answer = np.full_like(patch, self._background)
            answer[:, 6:9, 6:9, 6:9] = 0.9
            yield (answer,)


def _block(background: float, between: str, threshold: float) -> MapPrediction:
    tensor = {"name": "t", "shape": (16, 16, 16)}
    stage = {
        "name": "s",
        "spacing_mm": (2.5, 2.5, 2.5),
        "input": tensor,
        "output": tensor,
        "intensity": {"clip": (0.0, 1.0)},
        "between": between,
        "threshold": threshold,
    }
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = 1.0, 0.8, 0.8, 1.0
    source = source_of(hd.Volume(np.zeros((40, 50, 50), np.float32), affine, coordinate_system="PATIENT"))
    return _infer(source, _spec([stage]), Block(background))


@pytest.mark.parametrize(
    ("between", "threshold"),
    [("mean", 0.5), ("mean", 0.2), ("maximum", 0.5)],
)
def test_a_lesions_size_does_not_hang_on_its_background(between: str, threshold: float) -> None:
    """Around a lesion a network may say 0 or next to nothing: it is as large either way."""
    sizes = [int((_block(background, between, threshold).probability > threshold).sum()) for background in (0.0, 1e-9)]
    assert sizes[0] == sizes[1]


def test_the_map_is_cropped_to_where_it_is_not_zero() -> None:
    found = _block(0.0, "mean", 0.5)
    assert found.probability.shape == (1, *(axis.stop - axis.start for axis in found.box))
    assert found.probability.size < 40 * 50 * 50 / 10
    assert set(found.seconds) == {"s"}


# --- A cascade, frozen ----------------------------------------------------------------------------------------------


class Middle:
    """Networks of valid convolutions that change nothing: each answers with the middle of what it reads."""

    def __init__(self, answers: Mapping[str, tuple[tuple[int, int, int], float]]) -> None:
        self._answers = answers
        self.patches = 0

    def map(self, stream: Stream, network: str, patches: Iterable[Array]) -> Iterator[tuple[Array, ...]]:
        """As `Runner` says."""
        shape, add = self._answers[network]
        for patch in patches:
            self.patches += 1
            a, b, c = (slice((n - m) // 2, (n + m) // 2) for n, m in zip(patch.shape[1:], shape, strict=True))
            yield (patch[:, a, b, c] + np.float32(add),)


def _trunk() -> SourceVolume:
    """A body with two lungs, a nodule in each, under a ripple that is the same on every machine."""
    shape, spacing = (20, 36, 40), (7.0, 4.1, 4.0)
    k, j, i = np.indices(shape)
    z, y, x = ((n - (size - 1) / 2) * mm for n, size, mm in zip((k, j, i), shape, spacing, strict=True))
    values = np.full(shape, -1000.0)
    values[(x / 72) ** 2 + (y / 66) ** 2 <= 1] = 40
    for side in (-1, 1):
        values[((x - side * 32) / 22) ** 2 + (y / 34) ** 2 + ((z - 8) / 46) ** 2 <= 1] = -800
        values[((x - side * 28) / 9) ** 2 + ((y + 6) / 9) ** 2 + ((z - 14) / 9) ** 2 <= 1] = 60
    values += ((k * 7919 + j * 104729 + i * 1299709) % 997) / 997 * 90 - 45
    affine = np.eye(4)
    affine[:3, :3] = [[0, 0, spacing[2]], [0, spacing[1], 0], [spacing[0], 0, 0]]
    return source_of(hd.Volume(values.astype(np.float32), affine, coordinate_system="PATIENT"))


def _network(name: str, reads: tuple[int, ...], answers: tuple[int, ...], **more: Any) -> dict[str, Any]:
    tensors = {"input": {"name": "i", "shape": reads}, "output": {"name": "o", "shape": answers}}
    return {"name": name, **tensors, **more}


_HU = {"clip": (-200.0, 200.0), "scale": 0.0025, "outside": 0.0}
LIVER = [  # the stages of ct-liver-lesion, on coarser grids
    {"name": "body", "rule": "body", "spacing_mm": (6, 6, 6)},
    _network(
        "liver", (20, 18, 16), (12, 10, 10), network="organ", orientation="RAS", spacing_mm=(6.0, 6.0, 6.0),
        intensity=_HU, smooth={"spacing_mm": (3.0, 3.0, 3.0), "median_voxels": 3}, within={"stage": "body"},
        overlap=0.3, keep="largest",
    ),
    _network(
        "lesion", (28, 26, 18), (16, 14, 10), orientation="RAS", spacing_mm=(3.0, 3.0, 6.0), intensity=_HU,
        within={"stage": "liver", "margin_voxels": 2.0, "outside": -0.5}, overlap=0.02, between="maximum",
    ),
]  # fmt: skip
LUNG = [  # and of ct-lung-nodule
    {"name": "lungs", "rule": "lungs", "orientation": "SPL", "spacing_mm": (4.0, 4.0, 4.0)},
    _network(
        "nodule", (20, 18, 16), (10, 10, 10), orientation="SPL", spacing_mm=(5.0, 5.0, 5.0), within={"stage": "lungs"},
        intensity={"clip": (-1100.0, 100.0), "offset": 1100.0, "scale": 0.000833333333, "outside": -1100.0},
    ),
]  # fmt: skip
FROZEN = {  # by the code of commit f218cd5, on x86-64: box, sum, voxels above 0.5, SHA-256 of the map
    "liver": (
        LIVER, {"organ": ((12, 10, 10), 0.5), "made": ((16, 14, 10), 0.5)}, ((0, 20), (2, 34), (2, 38)),
        8630.394977807999, 13670, "db104e1b6d7f0aedf87733a11f353a514ff2b5bdae10fe01d42f92c32194cd66",
    ),
    "lung": (
        LUNG, {"made": ((10, 10, 10), 0.0)}, ((5, 18), (9, 27), (7, 33)),
        852.7170863956562, 54, "97541616681b2f24404169c610358cbd21b97fba378c4ebf98a47d0d04ee2ec0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FROZEN)
def test_a_cascades_map_is_what_it_was_bit_for_bit(case: str) -> None:
    """The figures of the models' cards hold for these numbers, and for no others."""
    stages, answers, box, total, above, digest = FROZEN[case]
    found = _infer(_trunk(), _spec(stages), Middle(answers))
    (probability,) = found.probability
    assert tuple((axis.start, axis.stop) for axis in found.box) == box
    assert float(probability.sum(dtype=np.float64)) == pytest.approx(total, rel=1e-9)
    assert int((probability > 0.5).sum()) == above
    assert hashlib.sha256(np.ascontiguousarray(probability).tobytes()).hexdigest() == digest


# --- Refusals -------------------------------------------------------------------------------------------------------


def test_without_the_region_nothing_is_run_and_it_is_named() -> None:
    source = _trunk()
    air = source_of(source.volume.with_array(np.full(source.volume.spatial_shape, -1000, np.float32)))
    runner = Middle({"organ": ((12, 10, 10), 0.5)})
    with pytest.raises(RegionNotFound) as refused:
        _infer(air, _spec(LIVER), runner)
    assert refused.value.found == "no body in the images"
    assert "2.25.2" in refused.value.doing, "the series, by its UID"
    assert runner.patches == 0


def test_a_region_too_small_for_a_voxel_is_an_answer_too() -> None:
    """Without a window there would be no finding, and nobody had looked."""
    speck = _network("speck", (40, 40, 40), (40, 40, 40), network="organ", spacing_mm=(4.0, 4.0, 7.0), intensity=_HU)
    coarse = _network(
        "coarse", (4, 4, 4), (4, 4, 4), spacing_mm=(60.0, 60.0, 60.0), intensity=_HU, within={"stage": "speck"}
    )

    class Speck(Middle):
        def map(self, stream: Stream, network: str, patches: Iterable[Array]) -> Iterator[tuple[Array, ...]]:
            for patch in patches:
                answer = np.zeros_like(patch)
                answer[0, 20, 20, 20] = 1.0
                yield (answer,)

    with pytest.raises(RegionNotFound) as refused:
        _infer(_trunk(), _spec([speck, coarse]), Speck({}))
    assert "so little of the speck" in refused.value.found


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"activation": "softmax"}, "softmax of one channel"),
        (
            {
                "boxes": "corners",
                "ensemble": ["second"],
                "output": {"name": "o", "channels": 4, "shape": (6,)},
                "scores": {"name": "s", "channels": 4, "shape": ()},
            },
            "no mean",
        ),
    ],
)
def test_a_stage_that_could_not_be_true_is_refused(more: dict[str, Any], said: str) -> None:
    stage = {**_network("s", (8, 8, 8), (8, 8, 8), intensity=_HU), **more}
    with pytest.raises(ValidationError, match=said):
        _spec([stage])
