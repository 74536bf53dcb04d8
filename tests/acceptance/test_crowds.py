"""Many at once, and many after one another: nothing is dropped, the service answers meanwhile, memory stays flat.

The figures of the README are of the long form (OVERREAD_FULL=1).
"""

from __future__ import annotations

import os
import socket
import statistics
import threading
import time
import urllib.request
from pathlib import Path

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE

from service.demo.phantom import tiny
from service.demo.phantom_dicom import write_series
from service.requestor import steady
from tests.acceptance.conftest import Orthanc, Service, wait
from tests.acceptance.test_main_job import push
from tests.toys import bright_study

FULL = os.environ.get("OVERREAD_FULL") == "1"
HALF_OPEN, SENDERS, EACH = (200, 64, 40) if FULL else (100, 32, 8)
STUDIES = 1000 if FULL else 40


class _Answers:
    """Asks /health/live again and again, and notes how long each answer took."""

    def __init__(self, service: Service) -> None:
        self._url = f"http://127.0.0.1:{service.http_port}/health/live"
        self.seconds: list[float] = []
        self.failed = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        while not self._stop.wait(0.05):
            begun = time.monotonic()
            try:
                with urllib.request.urlopen(self._url, timeout=10) as reply:
                    assert reply.status == 200
                self.seconds.append(time.monotonic() - begun)
            except OSError:
                self.failed += 1

    def end(self) -> str:
        self._stop.set()
        self._thread.join()
        cuts = statistics.quantiles(self.seconds, n=100)
        milliseconds = ", ".join(f"p{p} {cuts[p - 1] * 1000:.0f}" for p in (50, 95, 99))
        most = max(self.seconds) * 1000
        return f"{len(self.seconds)} answers, {self.failed} failures, ms: {milliseconds}, max {most:.0f}"


def _half_open(service: Service) -> list[socket.socket]:
    """Connections that say nothing, or half an A-ASSOCIATE-RQ."""
    made = []
    for number in range(HALF_OPEN):
        made.append(socket.create_connection(("127.0.0.1", service.dicom_port), timeout=10))
        if number % 2:
            made[-1].sendall(b"\x01\x00\x00\x00\x00\xcd\x00\x01")
    return made


def _send(service: Service, files: list[Path], statuses: list[int]) -> None:
    """Send files on one association; each answer's status, -1 where none came."""
    ae = AE("CROWD")
    ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", service.dicom_port, ae_title="OVERREAD")
    steady(association)
    for file in files:
        answer = association.send_c_store(file) if association.is_established else None
        statuses.append(int(getattr(answer, "Status", -1)) if answer else -1)
    if association.is_established:
        association.release()


def test_half_open_connections_and_a_crowd_of_senders_lose_nothing(service: Service, tmp_path: Path) -> None:
    service.extra_intake = "associate_seconds = 10"
    files = [_series(tmp_path / f"{number}", number) for number in range(SENDERS)]
    service.start()
    answers = _Answers(service)
    idle = _half_open(service)
    statuses: list[list[int]] = [[] for _ in range(SENDERS)]
    threads = [
        threading.Thread(target=_send, args=(service, files[number], statuses[number])) for number in range(SENDERS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = answers.end()
    assert [set(of_one) for of_one in statuses] == [{0}] * SENDERS
    assert [len(of_one) for of_one in statuses] == [EACH] * SENDERS
    assert answers.failed == 0
    rows = service.get("/api/v1/studies?limit=1000")
    assert sum(row["instances"] for row in rows) == SENDERS * EACH
    for number, connection in enumerate(idle):  # they were ended
        connection.settimeout(30)
        assert connection.recv(64)[:1] in (b"", b"\x07"), number  # closed, or A-ABORT
        connection.close()
    print(f"\n{HALF_OPEN} half-open, {SENDERS} senders of {EACH} instances: all kept; /health/live: {said}")


def _series(folder: Path, seed: int) -> list[Path]:
    return write_series(tiny(shape=(EACH, 64, 64), seed=seed), folder)


def _memory(service: Service) -> dict[str, int]:
    """MiB of the main process, and of its children together."""
    assert service.process
    main = service.process.pid
    children = [int(it) for it in Path(f"/proc/{main}/task/{main}/children").read_text().split()]
    return {"main": _resident(main), "children": sum(_resident(pid) for pid in children)}


def _resident(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS"))


def test_memory_stays_flat_over_many_studies(service: Service, orthanc: Orthanc, tmp_path: Path) -> None:
    service.add_destination("ORTHANC", orthanc.port)
    service.start()
    answers = _Answers(service)
    taken: list[tuple[int, dict[str, int]]] = []
    for number in range(STUDIES):
        bright_study(tmp_path / "one", seed=number)
        push(tmp_path / "one", service)
        for path in (tmp_path / "one").iterdir():
            path.unlink()
        if number % max(1, STUDIES // 10) == max(1, STUDIES // 10) - 1:
            wait(lambda sent=number + 1: _done(service) >= sent, f"{number + 1} studies", seconds=600)  # type: ignore[misc]
            taken.append((number + 1, _memory(service)))
    said = answers.end()
    print(f"\nafter so many studies, MiB: {taken}; /health/live: {said}")
    assert answers.failed == 0
    # The first tenths warm everything up; from the third on, it may not grow by a tenth and what a volume takes.
    for kind in ("main", "children"):
        early = max(memory[kind] for _, memory in taken[2:4])
        late = min(memory[kind] for _, memory in taken[-2:])
        assert late <= early * 1.1 + 32, f"{kind}: {taken}"


def _done(service: Service) -> int:
    text = service.get_bytes("/metrics") or b""
    line = next((it for it in text.decode().splitlines() if it.startswith('overread_studies{state="done"}')), "x 0")
    return int(float(line.split()[-1]))
