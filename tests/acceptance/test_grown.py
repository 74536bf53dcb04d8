"""A receiver, two workers and a page on one PostgreSQL and one folder: killed, replaced, migrated in the middle."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.demo.pacs import wait_for_port
from service.pulse import alive
from service.schema import HEAD
from service.store import Store
from tests.acceptance.conftest import Orthanc, Service, wait
from tests.acceptance.test_main_job import push, study_uid_of
from tests.support import REPOSITORY
from tests.toys import bright_study, write_model

FULL = os.environ.get("OVERREAD_FULL") == "1"
STUDIES = 40 if FULL else 8
NEWER = "9999"  # the revision of a program that is newer than this one
_MIGRATION = f'''"""What a newer program adds."""

import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "{NEWER}", "{HEAD}", None, None


def upgrade() -> None:
    op.add_column("studies", sa.Column("novelty", sa.Text, nullable=False, server_default="new"))
    op.add_column("deliveries", sa.Column("novelty", sa.Integer, nullable=False, server_default="1"))
    op.create_table("novelties", sa.Column("number", sa.Integer, primary_key=True))
    op.create_index("studies_by_novelty", "studies", ["novelty"])
'''


@dataclass(kw_only=True)
class Process(Service):
    """One of several processes on one database and one folder."""

    name: str = ""
    parts: tuple[str, ...] = ("receive", "work", "page")
    program: Path = REPOSITORY  # whose program it runs

    @property
    def config(self) -> Path:
        path = super().config
        own = self.folder / f"{self.name}.toml"
        parts = ", ".join(f'"{part}"' for part in self.parts)
        own.write_text(f'[process]\nname = "{self.name}"\nparts = [{parts}]\n' + path.read_text())
        return own

    def begin(self) -> None:
        """Start it, and wait until it says so."""
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "service", "serve", "--config", str(self.config)],
                stderr=log,
                cwd=self.program,
                env={**os.environ, "PYTHONPATH": str(self.program)},
                start_new_session=True,
            )
        wait_for_port(self.http_port, self.process)
        wait(lambda: "service.started" in self.log(), f"{self.name} to start", seconds=90)

    def kill_now(self) -> None:
        """SIGKILL."""
        assert self.process
        self.process.kill()
        self.process.wait()

    def log(self) -> str:
        return (self.folder / f"{self.name}.log").read_text()


@dataclass(kw_only=True)
class Fleet:
    """All processes of a site, made by name and parts."""

    folder: Path
    database: str
    orthanc: Orthanc
    processes: list[Process] = field(default_factory=list)

    def add(self, name: str, *parts: str, program: Path = REPOSITORY) -> Process:
        """Start one more process."""
        made = Process(
            folder=self.folder,
            models=self.folder / "models",
            store=str(self.folder / "shared"),
            database=self.database,
            name=name,
            parts=parts,
            program=program,
            extra_analysis="studies_at_once = 1",
        )
        made.add_destination("ORTHANC", self.orthanc.port)
        made.begin()
        self.processes.append(made)
        return made

    def end(self) -> None:
        """SIGKILL all."""
        for it in self.processes:
            if it.process and it.process.poll() is None:
                it.process.kill()
                it.process.wait()


@pytest.fixture
def fleet(tmp_path: Path, postgresql: str, orthanc: Orthanc) -> Iterator[Fleet]:
    engine = sa.create_engine(postgresql, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        connection.execute(sa.text("CREATE SCHEMA public"))
    engine.dispose()
    write_model(tmp_path / "models")
    made = Fleet(folder=tmp_path, database=postgresql, orthanc=orthanc)
    try:
        yield made
    finally:
        made.end()


def _studies(folder: Path, count: int) -> list[str]:
    uids = []
    for number in range(count):
        bright_study(folder / str(number), seed=number)
        uids.append(study_uid_of(folder / str(number)))
    return uids


def _newer_program(folder: Path) -> Path:
    """A copy of the program, as its next version will be: with one more revision of the database."""
    shutil.copytree(REPOSITORY / "service", folder / "service", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "service" / "migrations" / "versions" / "v9999_novelty.py").write_text(_MIGRATION)
    schema = folder / "service" / "schema.py"
    text = schema.read_text()
    assert f'HEAD: Final = "{HEAD}"' in text
    schema.write_text(text.replace(f'HEAD: Final = "{HEAD}"', f'HEAD: Final = "{NEWER}"'))
    return folder


def _states(page: Process) -> Counter[str]:
    return Counter(row["state"] for row in page.get("/api/v1/studies?limit=1000"))


def test_workers_are_killed_and_replaced_by_newer_ones_and_every_study_is_answered_once(fleet: Fleet) -> None:
    """One worker is killed in its work, comes back as a newer program that migrates under the others."""
    folder, orthanc = fleet.folder, fleet.orthanc
    uids = _studies(folder / "studies", STUDIES)
    newer = _newer_program(folder / "newer")
    receiver = fleet.add("receiver", "receive")
    page = fleet.add("page", "page")
    first, second = fleet.add("worker-1", "work"), fleet.add("worker-2", "work")
    for number in range(STUDIES):
        push(folder / "studies" / str(number), receiver)
    wait(lambda: _states(page)["done"] >= STUDIES // 4, "a quarter of the studies", seconds=300)
    first.kill_now()
    wait(lambda: _states(page)["done"] >= STUDIES // 2, "half of the studies", seconds=300)
    first = fleet.add("worker-1", "work", program=newer)
    assert "database.migrated" in first.log()
    wait(lambda: _states(page)["done"] == STUDIES, "all studies", seconds=600)
    for uid in uids:
        study = page.get(f"/api/v1/studies/{uid}")
        assert [answer["outcome"] for answer in study["answers"]] == ["findings"]
        assert {delivery["state"] for delivery in study["deliveries"]} == {"confirmed"}
        assert len(orthanc.find(uid)) == len(study["deliveries"]) == 2, "the segmentation and the report, once each"
    assert len(orthanc.instances()) == 2 * STUDIES
    worked = Counter(
        name for name, it in (("worker-1", first), ("worker-2", second)) for _ in it.log().split('"study.answered"')[1:]
    )
    assert sum(worked.values()) >= STUDIES
    assert min(worked["worker-1"], worked["worker-2"]) > 0, "both worked"
    # The processes that were not replaced are of the older program, and go on with the newer tables.
    bright_study(folder / "late", seed=999)
    first.kill_now()
    push(folder / "late", receiver)
    page.wait_for_study(study_uid_of(folder / "late"))
    store = Store(fleet.database)
    assert {"receiver", "page", "worker-2"} <= {it["name"] for it in alive(store.processes(), now=time.time())}
    store.close()


def test_a_second_process_of_one_name_is_refused(fleet: Fleet) -> None:
    fleet.add("page", "page")
    twin = Process(folder=fleet.folder, models=fleet.folder / "models", store=str(fleet.folder / "elsewhere"))
    twin.database, twin.name, twin.parts = fleet.database, "page", ("page",)
    done = subprocess.run(
        [sys.executable, "-m", "service", "serve", "--config", str(twin.config)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=90,
    )
    assert done.returncode == 1
    assert "another Overread named page runs on it" in done.stderr


@pytest.mark.skipif(not FULL, reason="a measurement: OVERREAD_FULL=1")
def test_throughput_of_two_workers_beside_one(fleet: Fleet) -> None:
    folder = fleet.folder
    receiver, page = fleet.add("receiver", "receive"), fleet.add("page", "page")
    seconds: dict[int, list[float]] = {1: [], 2: []}
    seed = 0
    for _ in range(3):
        for workers in (1, 2):
            running = [fleet.add(f"worker-{number}", "work") for number in range(workers)]
            done = _states(page)["done"]
            for _number in range(12):
                bright_study(folder / f"m{seed}", seed=seed)
                seed += 1
                push(folder / f"m{seed - 1}", receiver)
            begun = time.monotonic()
            wait(lambda done=done: _states(page)["done"] == done + 12, "twelve studies", seconds=600)  # type: ignore[misc]
            seconds[workers].append(time.monotonic() - begun)
            for it in running:
                it.kill_now()
                fleet.processes.remove(it)
    one, two = (statistics.median(seconds[workers]) for workers in (1, 2))
    print(f"\n12 studies: one worker {one:.1f} s, two {two:.1f} s, ratio {one / two:.2f} (medians of 3)")
