"""A snapshot of the parts: all of them are asked, and none of them can spoil it."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from service.config import Config
from service.observe import Parts, certificates, not_after, take
from tests.snapshots import figures


def _parts(config: Config, **changes: Any) -> Parts:
    told: dict[str, Any] = {
        "config": config,
        "backend": "onnxruntime CPU",
        "readiness": lambda: {"disk": ""},
        "figures": figures,
        "lines": lambda: {"pacs": {"line": "pausing"}, "archive": {"line": "well"}},
        "memory": lambda: (5, 10),
        "networks": lambda: {"network": 5},
        "receivers": lambda: (1, 3),
        "processes": lambda: {"main": [os.getpid()], "engine": [None]},
    }
    return Parts(**{**told, **changes})


def _config(folder: Path, **sections: Any) -> Config:
    return Config.model_validate({"store": {"directory": folder}, **sections})


def _pem(path: Path, *days: float) -> float:
    """Write certificates that end in so many days; when the first of them does."""
    ends = [datetime.now(UTC).replace(microsecond=0) + timedelta(days=it) for it in days]
    for end in ends:
        trustme.CA().issue_cert("pacs", not_after=end).cert_chain_pems[0].write_to_path(str(path), append=True)
    return min(ends).timestamp()


def test_each_part_is_asked(tmp_path: Path) -> None:
    config = _config(tmp_path, intake={"minimum_free_gib": 1.0, "processes": 4})
    found = take(_parts(config))
    assert found.lines == {"pacs": False, "archive": True}
    assert (found.device_used_bytes, found.device_limit_bytes) == (5, 10)
    assert (found.receivers, found.associations, found.receivers_wanted) == (1, 3, 4)
    assert found.processes == {"main": [os.getpid()], "engine": []}
    assert found.disk_reserved_bytes == 1 << 30
    assert 0 < found.disk_free_bytes < found.disk_size_bytes
    assert found.figures == figures()


def test_a_process_that_does_not_receive_wants_no_receivers(tmp_path: Path) -> None:
    store = {"directory": str(tmp_path), "database": "postgresql+psycopg://db/overread"}
    found = take(_parts(_config(tmp_path, process={"parts": ["work"]}, store=store)))
    assert found.receivers_wanted == 0


def test_a_part_that_fails_is_left_out(tmp_path: Path) -> None:
    def fails() -> Any:
        raise RuntimeError

    found = take(_parts(_config(tmp_path / "gone"), figures=fails))
    assert found.figures is None
    assert (found.disk_free_bytes, found.disk_size_bytes) == (0, 0), "a folder that is gone has no room"
    assert found.backend == "onnxruntime CPU"


def test_every_certificate_of_ours_is_watched(tmp_path: Path) -> None:
    def pair(name: str) -> dict[str, str]:
        return {"certificate_file": str(tmp_path / name), "key_file": str(tmp_path / "key")}

    config = _config(
        tmp_path,
        intake={"tls": pair("intake")},
        api={"tls": pair("api")},
        audit={"syslog": "repository:6514", "tls": pair("audit")},
        triton=pair("triton"),
        destinations=[
            {"name": "pacs", "ae_title": "PACS", "host": "h", "port": 1, "tls": pair("pacs")},
            {"name": "open", "ae_title": "OPEN", "host": "h", "port": 1},
            {"name": "one-way", "ae_title": "ONE", "host": "h", "port": 1, "tls": {}},
        ],
        sources=[{"ae_title": "CT1", "query": {"ae_title": "CT1", "host": "h", "port": 1, "tls": pair("ct")}}],
    )
    assert {use: file.name for use, file in certificates(config)} == {
        "intake": "intake",
        "api": "api",
        "audit": "audit",
        "triton": "triton",
        "destination pacs": "pacs",
        "source CT1": "ct",
    }
    ends = _pem(tmp_path / "intake", 5)
    found = take(_parts(config)).certificates
    assert found["intake"] == ends
    assert found["api"] == 0, "it can't be read"


def test_a_chain_ends_with_its_first(tmp_path: Path) -> None:
    assert not_after(tmp_path / "nothing") == 0
    assert not_after(tmp_path) == 0
    ends = _pem(tmp_path / "chain", 300, 20, 100)
    assert not_after(tmp_path / "chain") == ends == pytest.approx(datetime.now(UTC).timestamp() + 20 * 86400, abs=60)
    (tmp_path / "text").write_text("no certificate")
    assert not_after(tmp_path / "text") == 0
