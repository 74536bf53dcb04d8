"""The receiving processes and their connections: started, shared, probed, crowded, killed, stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from pydicom.filereader import read_file_meta_info

from service import codes
from service.config import Config
from service.errors import ConfigError
from service.intake.processes import Receivers
from service.settings.intake import Intake
from service.settings.store import StoreSection
from tests.integration.receiver import CT, EXPLICIT, associated, image, put, rejection, running, wait
from tests.support import REPOSITORY, free_port

MAXIMUM_ASSOCIATIONS = Intake().maximum_associations
PRIVATE = "1.2.826.0.1.3680043.9.9999.1"


def _connections(pid: int, port: int) -> int:
    """How many established connections to the port a process holds."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            inodes.add(os.readlink(descriptor))
    held = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        columns = line.split()
        if int(columns[1].split(":")[1], 16) == port and columns[3] == "01":
            held += f"socket:[{columns[9]}]" in inodes
    return held


def test_all_processes_serve_one_port(tmp_path: Path) -> None:
    with running(tmp_path, processes=2) as site:
        opened = [associated(site.port) for _ in range(24)]
        associations = [one.__enter__() for one in opened]
        shares = [_connections(pid, site.port) for pid in site.pids()]
        assert sum(shares) == 24
        assert min(shares) > 0
        assert [put(one, image()) for one in associations] == [0] * 24
        for one in opened:
            one.__exit__(None, None, None)


def test_stopping_ends_what_runs_and_refuses_what_comes(tmp_path: Path) -> None:
    with running(tmp_path, processes=2) as site:
        with associated(site.port) as association:
            stopping = threading.Thread(target=site.receivers.stop)
            stopping.start()
            wait(lambda: not accepts(site.port))
            assert put(association, image()) == 0
        began = time.monotonic()
        stopping.join()
        assert time.monotonic() - began < 3.0  # the last association has ended: nothing to wait for
        assert len(site.rows()) == 1
        assert site.receivers.alive() == 0


def test_stopping_does_not_wait_for_ever(tmp_path: Path) -> None:
    with running(tmp_path) as site, associated(site.port) as association:
        began = time.monotonic()
        site.receivers.stop()
        assert time.monotonic() - began < 10.0
        wait(lambda: association.is_aborted)


def accepts(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def test_a_killed_process_is_replaced_and_the_others_go_on(tmp_path: Path) -> None:
    with running(tmp_path, processes=2) as site:
        before = site.pids()
        os.kill(before[0], signal.SIGKILL)
        wait(lambda: site.receivers.alive() == 1)
        with associated(site.port) as association:
            assert put(association, image()) == 0
        wait(lambda: site.receivers.alive() == 2)
        assert before[1] in site.pids()
        assert before[0] not in site.pids()


def test_the_processes_end_with_their_parent(tmp_path: Path) -> None:
    port = free_port()
    code = (
        "import sys, time; from pathlib import Path\n"
        "from service.config import *; from service.intake.processes import Receivers\n"
        "if __name__ == '__main__':\n"
        "    config = Config(intake=Intake(port=int(sys.argv[2]), minimum_free_gib=0),\n"
        "                    store=StoreSection(directory=Path(sys.argv[1])))\n"
        "    Receivers(config).start(); time.sleep(60)\n"
    )
    (tmp_path / "parent.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(tmp_path / "parent.py"), str(tmp_path), str(port)]
    with subprocess.Popen(command, env=environment, cwd=REPOSITORY) as parent:
        wait(lambda: accepts(port))
        parent.kill()
    wait(lambda: not accepts(port), 10.0)


def test_a_port_in_use_is_a_clear_refusal_to_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.intake.processes.GRACE_SECONDS", -3.0)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # even one that would share
        other.bind(("127.0.0.1", 0))
        other.listen()
        config = Config(intake=Intake(port=other.getsockname()[1]), store=StoreSection(directory=tmp_path))
        receivers = Receivers(config)
        with pytest.raises(ConfigError, match="Address already in use"):
            receivers.start()
        receivers.stop()


def test_a_receiver_stays_small() -> None:
    heavy = {"onnxruntime", "fastapi", "highdicom", "scipy"}
    code = f"import sys, service.intake.processes; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- Connections ------------------------------------------------------------------------------------------------------


def test_an_unknown_class_is_refused_by_name_and_the_rest_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with running(tmp_path) as site, associated(site.port, (PRIVATE, EXPLICIT), (CT, EXPLICIT)) as association:
        (refused,) = association.rejected_contexts
        assert (refused.abstract_syntax, refused.result) == (PRIVATE, 3)  # abstract syntax not supported
        assert put(association, image()) == 0
    (line,) = [json.loads(one) for one in capfd.readouterr().err.splitlines() if "contexts_refused" in one]
    assert line["sop_class_uids"] == [PRIVATE]


def test_it_says_who_it_is(tmp_path: Path) -> None:
    with running(tmp_path) as site, associated(site.port) as association:
        assert association.acceptor.implementation_class_uid == codes.IMPLEMENTATION_CLASS_UID
        assert association.acceptor.implementation_version_name == codes.IMPLEMENTATION_VERSION_NAME
        assert put(association, image()) == 0
        ((_, path, _),) = site.rows()
    meta = read_file_meta_info(path)
    assert meta.ImplementationClassUID == codes.IMPLEMENTATION_CLASS_UID
    assert meta.ImplementationVersionName == codes.IMPLEMENTATION_VERSION_NAME


def test_probes_cost_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with running(tmp_path) as site:
        (pid,) = site.pids()
        for _ in range(2 * MAXIMUM_ASSOCIATIONS):
            socket.create_connection(("127.0.0.1", site.port)).close()
            with socket.create_connection(("127.0.0.1", site.port)) as scanner:
                scanner.sendall(b"GET / HTTP/1.0\r\n\r\n")
        wait(lambda: len(list(Path(f"/proc/{pid}/task").iterdir())) < 6, 5.0)
        with associated(site.port) as association:
            assert association.send_c_echo().Status == 0
    lines = [json.loads(line)["event"] for line in capfd.readouterr().err.splitlines()]
    assert lines == ["receiver.listening", "receiver.stopped"]


def test_more_associations_than_allowed_are_rejected_for_now(tmp_path: Path) -> None:
    with running(tmp_path) as site:
        opened = [associated(site.port) for _ in range(MAXIMUM_ASSOCIATIONS)]
        for one in opened:
            one.__enter__()
        assert rejection(site.port) == (2, 3, 2)  # transient, presentation related, local limit exceeded
        for one in opened:
            one.__exit__(None, None, None)
        with associated(site.port) as association:
            assert association.send_c_echo().Status == 0
