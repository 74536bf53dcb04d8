"""The whole analysis of the phantom, beside the bare networks on the same number of patches, in one run."""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from service.analysis.schedule import Scheduler
from service.analysis.waiting import Stream
from service.backends.engine import OnnxBackend
from service.demo.phantom import chest_abdomen
from service.demo.phantom_dicom import write_series
from service.models import installed
from service.pipeline import analyse
from service.run import read_folder
from service.types import Array
from tests.support import REPOSITORY

ROUNDS = 3


class _Counting(OnnxBackend):
    """Remembers which patches it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()
        self.example: dict[str, Array] = {}

    def infer(self, network: str, patches: Sequence[Array]) -> tuple[Array, ...]:
        self.asked[network] += len(patches)
        self.example.setdefault(network, patches[0])
        return super().infer(network, patches)


def test_the_analysis_beside_the_bare_networks(tmp_path: Path) -> None:
    write_series(chest_abdomen(), tmp_path / "study")
    (study,) = read_folder(tmp_path / "study")
    models = installed(REPOSITORY / "models")
    backend = _Counting()
    scheduler = Scheduler(backend)
    for model in models:
        scheduler.add(model)
    ratios, seconds = [], []
    for _ in range(ROUNDS):
        backend.asked.clear()
        began = time.perf_counter()
        evidence = analyse(study, models, scheduler, progress=lambda **_: None)
        whole = time.perf_counter() - began
        assert sum(len(answer.findings) for answer in evidence.answers) >= 8
        # The same patches, back to back, through the same sessions and threads, with nothing around them.
        began = time.perf_counter()
        for network, count in dict(backend.asked).items():
            for _ in scheduler.map(Stream(), network, [backend.example[network]] * count):
                pass
        bare = time.perf_counter() - began
        ratios.append(bare / whole)
        seconds.append(whole)
    scheduler.close()
    figures = {"seconds": round(statistics.median(seconds), 1), "bare_over_whole": round(statistics.median(ratios), 2)}
    print(json.dumps(figures))
