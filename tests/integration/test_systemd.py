"""The systemd unit, judged by systemd; what it was seen to do under a booted one stands in README.md."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from service.config import Config, read_config
from tests.support import REPOSITORY, counterpart

UNITS = REPOSITORY / "deploy" / "systemd"
_MOST_EXPOSED = {"": 15, "port-104.conf": 17}  # tenths, of systemd 252: 0 is closed, 100 is open


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, with a program in the place of one that only an installed machine has."""
    text = (UNITS / "overread.service").read_text()
    assert text.count("/opt/overread/bin/overread ") == 1
    path = tmp_path / "overread.service"
    path.write_text(text.replace("/opt/overread/bin/overread ", "/bin/true "))
    return path


def test_systemd_takes_the_unit(unit: Path) -> None:
    done = subprocess.run([counterpart("systemd-analyze"), "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_a_misspelt_key_would_be_noticed(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("ProtectHome=", "ProtectHomes="))
    done = subprocess.run([counterpart("systemd-analyze"), "verify", unit], capture_output=True, text=True, check=False)
    assert "ProtectHomes" in done.stderr


@pytest.mark.parametrize("more", _MOST_EXPOSED)
def test_the_unit_is_hardened(unit: Path, more: str) -> None:
    if more:
        (unit.parent / "overread.service.d").mkdir()
        shutil.copy(UNITS / more, unit.parent / "overread.service.d")
    command = [
        counterpart("systemd-analyze"),
        "security",
        "--offline=true",
        f"--threshold={_MOST_EXPOSED[more]}",
        str(unit),
    ]
    subprocess.run(command, check=True, capture_output=True)


def test_a_softer_unit_would_be_noticed(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("CapabilityBoundingSet=\n", "").replace("NoNewPrivileges=yes\n", ""))
    command = [
        counterpart("systemd-analyze"),
        "security",
        "--offline=true",
        f"--threshold={_MOST_EXPOSED['']}",
        str(unit),
    ]
    assert subprocess.run(command, check=False, capture_output=True).returncode


def test_its_configuration_and_the_unit_name_the_same_places(tmp_path: Path) -> None:
    config = read_config(UNITS / "overread.toml")
    text = (UNITS / "overread.service").read_text()
    assert config.store.directory == Path("/var/lib") / re.findall(r"^StateDirectory=(.*)$", text, re.MULTILINE)[0]
    assert (
        config.audit.file == Path("/var/log") / re.findall(r"^LogsDirectory=(.*)$", text, re.MULTILINE)[0] / "audit.log"
    )
    assert str(config.audit.file) in (UNITS / "overread.logrotate").read_text()
    places = {"analysis": None, "store": None, "audit": None}
    assert config.model_copy(update=places) == Config().model_copy(update=places)
    # What stands there as a comment is right too.
    (tmp_path / "overread.toml").write_text(
        re.sub(r"(?m)^# (?=[\w\[]+( =|\]))", "", (UNITS / "overread.toml").read_text())
    )
    whole = read_config(tmp_path / "overread.toml")
    assert whole.store.password_file == Path("/run/credentials/overread.service/secret_database_password")
    assert whole.destinations


def test_a_stop_lets_the_service_end_by_itself() -> None:
    parsed = configparser.ConfigParser(strict=False, interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read(UNITS / "overread.service")
    service = parsed["Service"]
    assert (service["KillMode"], service["Restart"], service["OOMPolicy"]) == ("mixed", "on-failure", "continue")
    assert int(service["TimeoutStopSec"]) >= 15  # its own parts take up to ten


def test_the_steps_name_what_is_in_the_repository() -> None:
    text = (UNITS / "install.sh").read_text()
    subprocess.run(["sh", "-n", UNITS / "install.sh"], check=True)
    named = set(re.findall(r"deploy/[\w./-]+\w", text))
    assert named
    assert not [path for path in named if not (REPOSITORY / path).exists()]
