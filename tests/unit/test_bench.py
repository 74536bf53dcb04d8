"""`overread models bench`: what is measured really ran, and is shown."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from service.bench import bench, measure
from service.models import installed
from tests.bare import BareBackend
from tests.toys import write_model


def test_each_network_is_measured_alone_and_scheduled(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_model(tmp_path, name)
    backend = BareBackend(slots=2)
    speeds = list(measure(installed(tmp_path), backend, seconds=0.06))
    assert [speed.network for speed in speeds] == ["a", "b"]
    assert backend.closed
    for speed in speeds:
        assert speed.patches == 10, "0.06 s at 0.006 s each"
        assert sorted(speed.direct) == [1, 2]
        ran = Counter(size for network, size in backend.batches if network == speed.network)
        direct = {1: 10, 2: 5}
        scheduled = sum(size * count for size, count in ran.items()) - sum(s * n for s, n in direct.items())
        assert scheduled == 10 + 2, "the measured ones, and a batch to load it"
        assert speed.ratio == speed.scheduled / max(speed.direct.values())


def test_the_table_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path, "a")
    assert bench(installed(tmp_path), BareBackend(), seconds=0.01) == 0
    shown = capsys.readouterr().out
    for words in ("bare, 1 batches at once", "a ", "1: ", "2: ", "patches/s scheduled"):
        assert words in shown
