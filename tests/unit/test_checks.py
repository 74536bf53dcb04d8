"""``overread check``: what is doubtful and what is wrong, each with its way out, in words and as JSON."""

from __future__ import annotations

import json
import os
import socket
import time
from collections import namedtuple
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import trustme

from service.check import check
from service.checks import doors, machine, models, peers, state
from service.checks.types import Checks, Doubtful
from service.config import Config, read_config
from service.errors import ConfigError, ServiceError
from tests.support import free_port


def _config(folder: Path, text: str = "") -> Config:
    path = folder / "site.toml"
    path.write_text(text or f"[intake]\nport = {free_port()}\n[api]\nport = {free_port()}\n")
    return read_config(path)


def _found(checks: Checks) -> dict[str, str | ServiceError]:
    """What each check says, or raises."""
    made: dict[str, str | ServiceError] = {}
    for name, attempt in checks:
        try:
            made[name] = attempt()
        except ServiceError as exc:
            made[name] = exc
    return made


def _explained(errors: Iterable[object]) -> None:
    for error in errors:
        assert isinstance(error, ServiceError)
        assert all(error.parts().values()), "all four parts say something"


# --- The machine ----------------------------------------------------------------------------------------------------


def test_a_slow_disk_is_doubtful_and_a_full_one_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _config(tmp_path)
    assert "is on the disk in" in machine._writes(config)
    monkeypatch.setattr(os, "fsync", lambda _: time.sleep(0.06))
    with pytest.raises(Doubtful, match="ms"):
        machine._writes(config)
    monkeypatch.undo()
    Disk = namedtuple("Disk", "f_bavail f_frsize")
    monkeypatch.setattr(os, "statvfs", lambda _: Disk(1, 1 << 20))
    with pytest.raises(ConfigError, match="instances are refused"):
        machine._writes(config)


def test_a_file_system_without_hard_links_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(ConfigError, match="hard links"):
        machine._writes(_config(tmp_path))


@pytest.mark.parametrize(
    ("driver", "wrong"), [("525.60.13", True), ("580.65.06", False), ("590.1", False), ("unknown", False)]
)
def test_a_driver_too_old_for_onnx_runtime_is_wrong(driver: str, wrong: bool, tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    assert machine._gpu(tmp_path) == "none: networks run on the CPU"
    (tmp_path / "dev" / "nvidiactl").touch()
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text(f"NVRM version: NVIDIA UNIX Open Kernel Module  {driver}  x\n")
    assert machine._cuda_major() == 13
    if wrong:
        with pytest.raises(ConfigError, match="driver 580"):
            machine._gpu(tmp_path)
    else:
        assert "CUDA 13" in machine._gpu(tmp_path)


# --- What is remembered ---------------------------------------------------------------------------------------------


def test_the_database_and_its_clock(tmp_path: Path, postgresql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _config(tmp_path, f'[store]\ndatabase = "{postgresql}"\n')
    assert "PostgreSQL answers, revision" in str(_found(state.checks(config))["database"])
    monkeypatch.setattr("service.store.Store.clock", lambda _: time.time() - 60.0)
    found = _found(state.checks(config))["database"]
    assert isinstance(found, Doubtful)
    assert "60 s" in found.found
    config = _config(tmp_path, f'[store]\ndatabase = "{postgresql.replace("127.0.0.1", "127.0.0.9")}"\n')
    assert isinstance(_found(state.checks(config))["database"], ConfigError)
    config = _config(tmp_path, f'[store]\ndatabase = "{postgresql}"\npassword_file = "nowhere"\n')
    found = _found(state.checks(config))["database"]
    assert isinstance(found, ConfigError)
    assert "No such file" in found.found


def test_the_audit_trail_and_its_repository(tmp_path: Path) -> None:
    with socket.socket() as repository:
        repository.bind(("127.0.0.1", 0))
        repository.listen()
        port = repository.getsockname()[1]
        config = _config(tmp_path, f'[audit]\nsyslog = "127.0.0.1:{port}"\nprotocol = "tcp"\n')
        assert f"to 127.0.0.1:{port} by tcp" in str(_found(state.checks(config))["audit trail"])
    found = _found(state.checks(config))["audit trail"]
    assert isinstance(found, ConfigError)
    assert "refused" in found.found
    (tmp_path / "folder").mkdir()
    found = _found(state.checks(_config(tmp_path, '[audit]\nfile = "folder"\n')))["audit trail"]
    assert isinstance(found, ConfigError)


# --- The doors ------------------------------------------------------------------------------------------------------


def _pair(folder: Path, name: str = "ours", **more: Any) -> str:
    authority = trustme.CA()
    made = authority.issue_cert("127.0.0.1", **more)
    made.private_key_pem.write_to_path(folder / f"{name}.key")
    made.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
    return f'{{ certificate_file = "{name}.pem", key_file = "{name}.key" }}'


def test_doors_that_stand_open_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A", "a-token-of-thirty-two-characters")
    pair = _pair(tmp_path)
    token = '[[api.tokens]]\nname = "a"\nrole = "viewer"\nenvironment = "A"\n'
    open_port = f'[intake]\nhost = "0.0.0.0"\nport = {free_port()}\n'
    open_page = f'[api]\nhost = "0.0.0.0"\nport = {free_port()}\n'
    found = _found(doors.checks(_config(tmp_path, open_port + open_page + token)))
    assert isinstance(found["DICOM doors"], Doubtful)
    assert isinstance(found["HTTP doors"], Doubtful)
    _explained([found["DICOM doors"], found["HTTP doors"]])
    shut = open_port + 'addresses = ["10.0.0.0/8"]\n' + open_page + f"tls = {pair}\n" + token
    found = _found(doors.checks(_config(tmp_path, shut)))
    assert found["DICOM doors"] == "limited by addresses"
    assert found["HTTP doors"] == "limited by 1 tokens"
    assert "ends in" in str(found["TLS of api"])


def test_a_token_that_is_nowhere_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("A", raising=False)
    token = '[[api.tokens]]\nname = "a"\nrole = "viewer"\nenvironment = "A"\n'
    _explained([_found(doors.checks(_config(tmp_path, token)))["HTTP doors"]])


def test_a_certificate_that_ends_soon_or_has_ended(tmp_path: Path) -> None:
    from datetime import UTC, datetime, timedelta

    for days, kind in ((-1, ConfigError), (10, Doubtful), (100, str)):
        pair = _pair(tmp_path, not_after=datetime.now(UTC) + timedelta(days=days, hours=1))
        found = _found(doors.checks(_config(tmp_path, f"[intake]\nport = {free_port()}\ntls = {pair}\n")))[
            "TLS of intake"
        ]
        assert type(found) is kind
    pair = _pair(tmp_path)
    config = _config(tmp_path, f"[intake]\nport = {free_port()}\ntls = {pair}\n")
    (tmp_path / "ours.key").write_text("no key")
    found = _found(doors.checks(config))["TLS of intake"]
    assert isinstance(found, ConfigError)


def test_a_port_that_is_taken_is_wrong(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        config = _config(tmp_path, f"[intake]\nport = {other.getsockname()[1]}\n")
        _explained([_found(doors.checks(config))["DICOM port"]])


def test_only_what_a_process_does_is_checked(tmp_path: Path) -> None:
    config = _config(
        tmp_path, '[process]\nparts = ["page"]\n[store]\ndatabase = "postgresql+psycopg://nobody@127.0.0.9/x"\n'
    )
    names = [name for side in (machine, doors, models) for name, _ in side.checks(config)]
    assert "HTTP port" in names
    assert not {"DICOM port", "GPU", "models"}.intersection(names)


# --- All of it ------------------------------------------------------------------------------------------------------


def test_a_source_that_can_be_asked_nowhere_is_no_mistake(tmp_path: Path) -> None:
    config = _config(tmp_path, '[[sources]]\nae_title = "PACS"\n')
    assert "only the clock" in str(_found(peers.checks(config))["source PACS"])


def test_as_json_it_is_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "site.toml").write_text('[analysis]\nmodels_directory = "nowhere"\n')
    assert check(tmp_path / "site.toml", as_json=True) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is False
    by_name = {it["name"]: it for it in said["checks"]}
    assert by_name["configuration"]["verdict"] == by_name["store"]["verdict"] == "ok"
    assert by_name["models"]["verdict"] == "wrong"
    assert set(by_name["models"]["parts"]) == {"doing", "found", "rule", "way_out"}


def test_a_configuration_that_can_not_be_read_is_json_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path / "nowhere.toml", as_json=True) == 1
    (only,) = json.loads(capsys.readouterr().out)["checks"]
    assert (only["name"], only["verdict"]) == ("configuration", "wrong")
