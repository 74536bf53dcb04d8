"""The kill harness: the real service, ended at a named place, started again; and at the end the count."""

from __future__ import annotations

import hashlib
import random
import sqlite3
import time
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, evt

from service.demo.pacs import OwnPacs
from service.requestor import steady
from tests.acceptance.conftest import Orthanc, Service, wait
from tests.toys import bright_study, write_model

_KINDS = ["SEG", "SR"]  # of the toy model's answer


@dataclass(kw_only=True)
class Count:
    """What a study came to, against what it should have."""

    lost: list[str] = field(default_factory=list)  # acknowledged instances that are not on the disk as they were sent
    doubled: list[str] = field(default_factory=list)  # results too many, or one UID with two contents
    forgotten: list[str] = field(default_factory=list)  # studies without answer, results that did not arrive

    def __bool__(self) -> bool:
        return bool(self.lost or self.doubled or self.forgotten)

    def __add__(self, other: Count) -> Count:
        return Count(
            lost=self.lost + other.lost,
            doubled=self.doubled + other.doubled,
            forgotten=self.forgotten + other.forgotten,
        )


class Recorder(OwnPacs):
    """A PACS that remembers each object as often as it came."""

    def __init__(self, directory: Path, *, port: int = 0) -> None:
        super().__init__(directory, port=port)
        self.came: dict[str, list[str]] = defaultdict(list)  # SHA-256 of its data set, by SOP Instance UID

    def _store(self, event: evt.Event) -> int:
        content = event.encoded_dataset(include_meta=False)
        self.came[str(event.dataset.SOPInstanceUID)].append(hashlib.sha256(content).hexdigest())
        return super()._store(event)


@dataclass(kw_only=True)
class Sent:
    """A study, and what of it was acknowledged."""

    uid: str
    files: list[Path]
    acknowledged: set[Path] = field(default_factory=set)


class Harness:
    """A service, a real Orthanc that commits to what it stores, and a second destination that counts.

    Parameters
    ----------
    settings
        More of the configuration file.
    command
        What runs the service, in place of ``-m service``.
    """

    def __init__(self, folder: Path, *, settings: str = "", command: tuple[str, ...] = ("-m", "service")) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._armed = folder, folder / "armed"
        write_model(folder / "models")
        self.recorder = Recorder(folder / "recorder")
        self.service = Service(
            folder=folder,
            models=folder / "models",
            command=command,
            environment={"OVERREAD_FAULTS": str(self._armed)},
            extra_intake="processes = 1",
            extra_analysis=settings,
        )
        self.orthanc = Orthanc(folder=folder / "orthanc").knows(self.service).start()
        self.service.add_destination("ORTHANC", self.orthanc.port)
        self.service.add_destination("DEMOPACS", self.recorder.port, name="recorder")
        self.service.start()
        self._studies = 0

    def close(self) -> None:
        """End everything that was started."""
        self._armed.unlink(missing_ok=True)
        if self.service.process and self.service.process.poll() is None:
            self.service.kill()
        self.orthanc.stop()
        self.recorder.stop()

    def round(self, point: str, passage: int, *, again: bool) -> Count:
        """Send a study, end the service at a place, start it again, and count.

        Parameters
        ----------
        passage
            At which passage of the place.
        again
            Whether the sender sends the whole study again afterwards, or only what was not acknowledged.
        """
        study = self.study()
        self._armed.write_text(f"{point}:{passage}")
        self.send(study)
        self.service.wait_until_dead()
        self._armed.unlink()
        self.service.start(lambda: self.send(study, again=again))
        return self.count(study)

    def study(self) -> Sent:
        """A new study on the disk."""
        self._studies += 1
        folder = self._folder / "studies" / str(self._studies)
        bright_study(folder, seed=self._studies)
        files = sorted(folder.iterdir())
        return Sent(uid=str(dcmread(files[0], stop_before_pixels=True).StudyInstanceUID), files=files)

    def send(self, study: Sent, *, again: bool = False) -> None:
        """Send what is not acknowledged yet, or all again; remember what is."""
        wanted = [file for file in study.files if again or file not in study.acknowledged]
        ae = AE("SENDER")
        ae.dimse_timeout = ae.network_timeout = 5
        ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
        association = ae.associate("127.0.0.1", self.service.dicom_port, ae_title="OVERREAD")
        steady(association)
        for file in wanted:
            if not association.is_established:
                break
            with suppress(RuntimeError):  # it died between two instances
                answer = association.send_c_store(dcmread(file))
                if answer and answer.Status == 0x0000:
                    study.acknowledged.add(file)
        if association.is_established:
            association.release()

    def count(self, study: Sent) -> Count:
        """Wait for the study's end, and hold everything against what was promised."""
        found = Count()
        with suppress(AssertionError):
            self.service.wait_for_study(study.uid, seconds=60)
        seen = self.service.get(f"/api/v1/studies/{study.uid}")
        found.lost = self._lost(study)
        if not seen or seen["state"] != "done":
            found.forgotten.append(f"study {study.uid} is {seen['state'] if seen else 'unknown'}")
            return found
        if seen["revision"] or len(seen["answers"]) != 1:
            found.doubled.append(f"study {study.uid} has {len(seen['answers'])} answers, revision {seen['revision']}")
        frozen = self._frozen(study.uid, seen)
        found += self._held(study.uid, frozen)
        for row in self.service.get("/api/v1/studies?limit=1000"):
            if row["state"] != "done":
                found.forgotten.append(f"study {row['study_uid']} is {row['state']}")
        return found

    def _lost(self, study: Sent) -> list[str]:
        """Acknowledged instances that have no row, or not their bytes on the disk."""
        with sqlite3.connect(self._folder / "var" / "overread.sqlite") as database:
            rows = dict(database.execute("SELECT sop_uid, path FROM instances WHERE study_uid = ?", (study.uid,)))
        lost = []
        for file in study.acknowledged:
            path = Path(rows.get(str(dcmread(file, stop_before_pixels=True).SOPInstanceUID), "nowhere"))
            if not path.is_file() or _data_set(path.read_bytes()) != _data_set(file.read_bytes()):
                lost.append(f"instance {file.name} of study {study.uid}")
        return lost

    def _frozen(self, study_uid: str, seen: dict[str, Any]) -> dict[str, bytes]:
        """The frozen results by SOP Instance UID: their data sets."""
        return {
            made["sop_instance_uid"]: _data_set(
                (self._folder / "var" / "evidence" / study_uid / str(seen["revision"]) / made["file"]).read_bytes()
            )
            for answer in seen["answers"]
            for made in answer["objects"]
        }

    def _held(self, study_uid: str, frozen: dict[str, bytes]) -> Count:
        """What the two destinations have of it."""
        found = Count()
        instances = self.orthanc.find(study_uid)
        kinds = Counter(it["Modality"] for it in instances)
        if sorted(kinds.elements()) != _KINDS:
            what = found.doubled if len(instances) > len(_KINDS) else found.forgotten
            what.append(f"Orthanc has {dict(kinds)} of study {study_uid}")
        for instance in instances:
            uid = instance["MainDicomTags"]["SOPInstanceUID"]
            content = _data_set(self.orthanc.get_bytes(f"/instances/{instance['ID']}/file"))
            if content != frozen.get(uid):
                found.doubled.append(f"{uid} has other bytes in Orthanc than were frozen")
        wanted = {it["MainDicomTags"]["SOPInstanceUID"] for it in instances}
        for uid in wanted:
            hashes = self.recorder.came.get(uid, [])
            if not hashes:
                found.forgotten.append(f"{uid} never came to the recorder")
            if set(hashes) - {hashlib.sha256(frozen.get(uid, b"")).hexdigest()}:
                found.doubled.append(f"{uid} came to the recorder with other bytes than were frozen")
        return found


class Forgetting(Harness):
    """A service that forgets at its start whatever is done."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.service.extra_analysis += "[retention]\nsources_days = 0\nevidence_days = 0\nrecords_days = 0\n"

    def forget(self, point: str) -> Count:
        """Bring a study to its end, end the service while it forgets it, and let it go on."""
        study = self.study()
        self.send(study)
        found = self.count(study)
        self.service.stop()
        self._armed.write_text(point)
        self.service.start_to_die()
        self._armed.unlink()
        self.service.start()
        spool, evidence = (self._folder / "var" / name / study.uid for name in ("spool", "evidence"))
        with suppress(AssertionError):
            wait(lambda: not spool.exists() and not evidence.exists(), "the files to go", seconds=30)
        if _files(spool) or _files(evidence):
            found.forgotten.append(f"files of study {study.uid} are still there: it was not forgotten")
        before = {uid: list(hashes) for uid, hashes in self.recorder.came.items()}
        self.send(study, again=True)  # records are gone too: it is analysed again, and makes nothing new
        with suppress(AssertionError):
            self.service.wait_for_study(study.uid, seconds=60)
        if self.recorder.came != before or len(self.orthanc.find(study.uid)) != len(_KINDS):
            found.doubled.append(f"results of study {study.uid} were sent again")
        return found


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def passages(point: str, rounds: int, *, chance: random.Random) -> list[int]:
    """At which passage of a place each round ends; the first round at the first one."""
    most = {"receive": 20, "spool": 20, "instance": 20}.get(point.partition(".")[0], 1)
    if point in ("freeze.written",):
        most = 3
    if point.startswith("delivery.") and point not in ("delivery.asking", "delivery.asked", "delivery.reported"):
        most = 4
    return [1] + [chance.randint(1, most) for _ in range(rounds - 1)]


def _data_set(file: bytes) -> bytes:
    """A DICOM file's data set, without preamble and file meta group (PS3.10 section 7.1)."""
    length = int.from_bytes(file[140:144], "little")
    return file[144 + length :]


def run(folder: Path, points: list[str], *, rounds: int, seed: int = 0) -> tuple[Count, list[str]]:
    """Go through places, each so many times, all of them once in each turn; returns the sum, and a line for each."""
    chance = random.Random(seed)
    turns = {point: passages(point, rounds, chance=chance) for point in points}
    found, took = {point: Count() for point in points}, dict.fromkeys(points, 0.0)
    harness = Harness(folder)
    try:
        for turn in range(rounds):
            for point in points:
                began = time.monotonic()
                seen = harness.round(point, turns[point][turn], again=chance.random() < 0.5)
                found[point] += seen
                took[point] += time.monotonic() - began
                if seen:
                    print(f"{point}, passage {turns[point][turn]}: {seen}", flush=True)
            faulty = [point for point, it in found.items() if it]
            print(f"turn {turn + 1} of {rounds} is over, faults at: {', '.join(faulty) or 'none'}", flush=True)
    finally:
        harness.close()
    lines = [
        f"{point:22} {rounds:3} rounds of {took[point] / rounds:4.1f} s: "
        f"{len(it.lost)} lost, {len(it.doubled)} doubled, {len(it.forgotten)} forgotten"
        for point, it in found.items()
    ]
    print(*lines, sep="\n", flush=True)
    return sum(found.values(), Count()), lines
