"""What an analysis had computed when it broke off is found again, and nothing else is taken for it."""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.analysis import kept
from service.analysis.infer import infer
from service.analysis.kept import KeptStages, StageKeeper, clear_all_but, folder_of
from service.analysis.layout import Map
from service.analysis.resample import Grid
from service.analysis.schedule import Scheduler
from service.analysis.waiting import Stream
from service.errors import RegionNotFound
from service.intake.study import group, read_instance
from service.models import model_of
from service.pipeline import analyse
from service.spec import ModelSpec, read_spec
from service.types import Answer, Array, MapPrediction, Model, Network, Outcome, SourceVolume
from tests.toys import bright_study, write_model
from tests.unit.test_infer import LIVER, Middle, _spec, _trunk
from tests.unit.test_pipeline import Backend

ANSWERS = {"organ": ((12, 10, 10), 0.5), "made": ((16, 14, 10), 0.5)}
BODY, ORGAN, LAST = "body", "organ", "made"  # the rule, and the networks of the two stages behind it


@pytest.fixture
def dear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage takes long enough."""
    monkeypatch.setattr(kept, "_WORTH_SECONDS", 0.0)


def model_for(spec: ModelSpec, *, weights: str = "0", half_precision: bool = False) -> Model:
    """A model whose networks' files never existed."""
    networks = tuple(
        Network(
            name=name,
            file=Path("nowhere"),
            sha256=weights * 64,
            input=stage.input,
            outputs=stage.outputs,
            half_precision=half_precision,
        )
        for name, stage in spec.networks().items()
        if stage.input
    )
    return Model(spec=spec, folder=Path("nowhere"), weights_sha256=weights * 64, networks=networks)


MODEL = model_for(_spec(LIVER))


class Runner(Middle):
    """Counts the patches of each network; breaks off at the first one of the one that it is told to."""

    def __init__(self, *, breaks_at: str = "") -> None:
        super().__init__(ANSWERS)
        self.asked: dict[str, int] = {}
        self._breaks_at = breaks_at

    def map(self, stream: Stream, network: str, patches: Iterable[Array]) -> Iterator[tuple[Array, ...]]:
        """As `service.analysis.infer.Runner` says."""
        if network == self._breaks_at:
            raise SystemExit
        self.asked[network] = 0
        for answers in super().map(stream, network, patches):
            self.asked[network] += 1
            yield answers


def run(
    keeper: StageKeeper | None, source: SourceVolume, model: Model = MODEL, runner: Runner | None = None
) -> MapPrediction:
    runner = runner or Runner()
    found = infer(source, model.spec, runner, stream=Stream(), progress=lambda **_: None, kept=keeper)
    assert isinstance(found, MapPrediction)
    return found


def networks_asked(folder: Path, source: SourceVolume, model: Model = MODEL, backend: str = "a CPU") -> list[str]:
    """The networks that a run asks, by what is kept in a folder."""
    runner = Runner()
    run(KeptStages(folder).of(source, model, backend), source, model, runner)
    return list(runner.asked)


@pytest.fixture
def source() -> SourceVolume:
    return _trunk()


@pytest.fixture
def filled(tmp_path: Path, source: SourceVolume, dear: None) -> Path:
    """A folder in which a first run kept its stages."""
    assert networks_asked(tmp_path / "kept", source) == [ORGAN, LAST]
    assert len(list((tmp_path / "kept").iterdir())) == 2, "the rule's result, and the first network's"
    return tmp_path / "kept"


def record(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    return [getattr(it, "fields", {}) for it in caplog.records if it.getMessage() == event]


# --- Found again ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("dear")
def test_another_try_runs_the_last_stage_only_and_finds_the_same_bit_for_bit(
    tmp_path: Path, source: SourceVolume, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "overread")
    without = run(None, source)
    with pytest.raises(SystemExit):
        run(KeptStages(tmp_path).of(source, MODEL, "a CPU"), source, runner=Runner(breaks_at=LAST))
    assert record(caplog, "stage.kept_used") == []
    runner, told = Runner(), []
    again = infer(
        source,
        MODEL.spec,
        runner,
        stream=Stream(),
        progress=lambda **step: told.append(step),
        kept=KeptStages(tmp_path).of(source, MODEL, "a CPU"),
    )
    assert list(runner.asked) == [LAST]
    assert isinstance(again, MapPrediction)
    assert again.box == without.box
    np.testing.assert_array_equal(again.probability, without.probability)
    assert list(again.seconds) == ["body", "liver", "lesion"]
    used = record(caplog, "stage.kept_used")
    assert [(it["stage"], it["model"], it["series_uid"]) for it in used] == [
        ("body", "made", "2.25.2"),
        ("liver", "made", "2.25.2"),
    ]
    for fields in used:
        assert 0.0 <= fields["seconds"] <= again.seconds[fields["stage"]] + 0.01, "the time to read it"
    assert [(it["stage"], it["done"], it["total"]) for it in told[:2]] == [("body", 1, 1), ("liver", 1, 1)]


def test_a_break_before_the_network_costs_the_network(tmp_path: Path, source: SourceVolume, dear: None) -> None:
    with pytest.raises(SystemExit):
        run(KeptStages(tmp_path).of(source, MODEL, "a CPU"), source, runner=Runner(breaks_at=ORGAN))
    assert len(list(tmp_path.iterdir())) == 1
    assert networks_asked(tmp_path, source) == [ORGAN, LAST]


def test_two_models_that_share_a_stage_share_its_result(filled: Path, source: SourceVolume) -> None:
    other = model_for(MODEL.spec.model_copy(update={"name": "another", "title": "Another"}))
    found = run(KeptStages(filled).of(source, other, "a CPU"), source, other, another := _Another())
    assert list(another.asked) == ["another"], "its own last stage"
    np.testing.assert_array_equal(found.probability, run(None, source).probability)


class _Another(Runner):
    def __init__(self) -> None:
        super().__init__()
        self._answers = {**ANSWERS, "another": ANSWERS[LAST]}


@pytest.mark.usefixtures("dear")
def test_that_there_is_no_such_region_is_found_again_too(tmp_path: Path, source: SourceVolume) -> None:
    air = replace(source, volume=source.volume.with_array(np.full(source.volume.spatial_shape, -1000, np.float32)))
    for _ in range(2):
        with pytest.raises(RegionNotFound, match="no body in the images"):
            run(KeptStages(tmp_path).of(air, MODEL, "a CPU"), air)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (4, 8, 16)])
def test_any_mask_on_any_grid_comes_back_as_it_was(shape: tuple[int, int, int], tmp_path: Path) -> None:
    masks: list[NDArray[np.bool_]] = [
        np.random.default_rng(0).random(shape) < 0.5,
        np.zeros(shape, bool),
        np.asfortranarray(np.random.default_rng(1).random(shape) < 0.5),
    ]
    grid = Grid(shape=shape, spacing_mm=(0.1, 1 / 3, 2.5), start_mm=(-1e-17, 1e9 / 7, -0.0))
    store = KeptStages(tmp_path)
    for number, mask in enumerate(masks):
        store.write(f"{number}", Map(grid=grid, mask=mask, probability=None))
        found = store.read(f"{number}")
        assert found
        assert found.grid == grid
        assert found.mask.dtype == bool
        np.testing.assert_array_equal(found.mask, mask)
    assert store.read("9") is None


# --- Not taken for something else -----------------------------------------------------------------------------------


def _stage(place: int, **changes: Any) -> Model:
    stages = [dict(stage) for stage in LIVER]
    stages[place] |= changes
    return model_for(_spec(stages))


def _moved(source: SourceVolume) -> SourceVolume:
    volume = source.volume
    affine = volume.affine.copy()
    affine[:3, 0] *= 1.1
    return replace(source, volume=type(volume)(volume.array, affine, coordinate_system="PATIENT"))


def _other_voxel(source: SourceVolume) -> SourceVolume:
    array = source.volume.array.copy()
    array[10, 18, 20] = np.nextafter(array[10, 18, 20], np.float32(np.inf))
    return replace(source, volume=source.volume.with_array(array))


def _other_images(source: SourceVolume) -> SourceVolume:
    first, *others = source.ordered
    return replace(source, ordered=(replace(first, sop_instance_uid="2.25.9"), *others))


@pytest.mark.parametrize(
    ("changed", "anew"),
    [
        (lambda source: (_other_voxel(source), MODEL, "a CPU"), True),
        (lambda source: (_moved(source), MODEL, "a CPU"), True),
        (lambda source: (_other_images(source), MODEL, "a CPU"), True),
        (lambda source: (source, model_for(MODEL.spec, weights="1"), "a CPU"), True),
        (lambda source: (source, model_for(MODEL.spec, half_precision=True), "a CPU"), True),
        (lambda source: (source, _stage(1, threshold=0.6), "a CPU"), True),
        (lambda source: (source, _stage(0, spacing_mm=(9, 9, 9)), "a CPU"), True),  # it works in another mask then
        (lambda source: (source, _stage(2, threshold=0.6), "a CPU"), False),  # the last stage's own is its own
        (lambda source: (source, MODEL, "a GPU"), True),
        (lambda source: (source, MODEL, "a CPU"), False),
    ],
    ids=["voxel", "place", "images", "weights", "precision", "stage", "region", "last-stage", "backend", "nothing"],
)
def test_what_hangs_on_anything_else_is_computed_anew(
    changed: Callable[[SourceVolume], tuple[SourceVolume, Model, str]],
    anew: bool,
    filled: Path,
    source: SourceVolume,
) -> None:
    assert networks_asked(filled, *changed(source)) == ([ORGAN, LAST] if anew else [LAST])


def test_what_an_older_program_computed_is_computed_anew(
    filled: Path, source: SourceVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "__version__", "0.0.0")
    assert networks_asked(filled, source) == [ORGAN, LAST]


def test_the_networks_weights_count_and_not_those_of_the_other_stages(filled: Path, source: SourceVolume) -> None:
    organ, last = MODEL.networks
    other_last = replace(MODEL, networks=(organ, replace(last, sha256="1" * 64)))
    assert networks_asked(filled, source, other_last) == [LAST]
    other_organ = replace(MODEL, networks=(replace(organ, sha256="1" * 64), last))
    assert networks_asked(filled, source, other_organ) == [ORGAN, LAST]


# --- Damaged, full, cheap -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:20],
        lambda content: content[:-1],
        lambda content: content[:40] + bytes([content[40] ^ 1]) + content[41:],
        lambda content: bytes([content[0] ^ 1]) + content[1:],
        lambda content: content + b"\0",
    ],
    ids=["empty", "shorter-than-its-digest", "cut", "flipped", "flipped-digest", "longer"],
)
def test_a_damaged_file_counts_as_none_and_is_replaced(
    damage: Callable[[bytes], bytes], filled: Path, source: SourceVolume, caplog: pytest.LogCaptureFixture
) -> None:
    whole = {path: path.read_bytes() for path in filled.iterdir()}
    for path, content in whole.items():
        path.write_bytes(damage(content))
    assert networks_asked(filled, source) == [ORGAN, LAST]
    assert len(record(caplog, "stage.unreadable")) == 2
    assert {path: path.read_bytes() for path in filled.iterdir()} == whole
    assert networks_asked(filled, source) == [LAST]


def test_a_damaged_file_is_removed_though_nothing_takes_its_place(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"nonsense")
    assert KeptStages(tmp_path).read("key") is None
    assert list(tmp_path.iterdir()) == []


def test_a_file_under_anothers_name_is_not_taken_for_it(filled: Path) -> None:
    """Of the right form and whole, but another stage's."""
    first, second = sorted(filled.iterdir())
    second.write_bytes(first.read_bytes())
    assert KeptStages(filled).read(first.name)
    assert KeptStages(filled).read(second.name) is None


def test_a_file_that_may_not_be_read_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir()
    assert KeptStages(tmp_path).read("key") is None


@pytest.mark.usefixtures("dear")
def test_a_full_disk_costs_nothing_but_what_is_kept_and_is_said_once(
    tmp_path: Path, source: SourceVolume, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[int] = []

    def full(handle: int) -> None:
        tried.append(handle)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    store = KeptStages(tmp_path / "kept")
    for _ in range(2):
        found = run(store.of(source, MODEL, "a CPU"), source)
        np.testing.assert_array_equal(found.probability, run(None, source).probability)
    assert len(record(caplog, "stage.not_kept")) == len(tried) == 1, "of four results"
    assert list((tmp_path / "kept").iterdir()) == [], "no draft stays behind"


def test_a_full_disk_is_said_once_though_two_models_meet_it_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    both = threading.Barrier(2, timeout=10)

    def full(handle: int) -> None:
        both.wait()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    found = Map(grid=Grid(shape=(1, 1, 1), spacing_mm=(1, 1, 1)), mask=np.ones((1, 1, 1), bool), probability=None)
    store = KeptStages(tmp_path)
    threads = [threading.Thread(target=store.write, args=(key, found)) for key in ("one", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (said,) = record(caplog, "stage.not_kept")
    assert said == {"folder": str(tmp_path)}


@pytest.mark.usefixtures("dear")
def test_a_folder_that_can_not_be_made_costs_nothing_either(
    tmp_path: Path, source: SourceVolume, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "work").write_text("in the way")
    run(KeptStages(folder_of(tmp_path, "1.2", 1)).of(source, MODEL, "a CPU"), source)
    assert len(record(caplog, "stage.not_kept")) == 1


@pytest.mark.usefixtures("dear")
def test_a_file_has_its_name_when_it_is_whole_and_on_the_disk(
    tmp_path: Path, source: SourceVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    networks_asked(tmp_path / "kept", source)
    hidden, folder = r"\.[0-9a-f]{32}", "kept"
    assert [name == folder or bool(re.fullmatch(hidden, name)) for name in synced] == [True] * 4
    assert [name == folder for name in synced] == [False, True, False, True]


def test_what_was_cheap_to_compute_is_not_kept(tmp_path: Path, source: SourceVolume) -> None:
    assert networks_asked(tmp_path / "kept", source) == [ORGAN, LAST]
    assert not (tmp_path / "kept").exists()


def test_the_first_try_does_not_read_the_volume_for_nothing(
    tmp_path: Path, source: SourceVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To digest it takes as long as some stages do."""
    monkeypatch.setattr(StageKeeper, "_key", lambda *_: pytest.fail("a key that nobody needs"))
    assert networks_asked(tmp_path / "kept", source) == [ORGAN, LAST]


# --- Cleared --------------------------------------------------------------------------------------------------------


def test_what_is_answered_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    found = Map(grid=Grid(shape=(1, 1, 1), spacing_mm=(1, 1, 1)), mask=np.ones((1, 1, 1), bool), probability=None)
    for study_uid, revision in (("1.2", 1), ("1.2", 2), ("1.3", 1), ("1.4", 1)):
        KeptStages(folder_of(tmp_path, study_uid, revision)).write("key", found)
    (tmp_path / "evidence" / "1.3" / "1").mkdir(parents=True)
    KeptStages(folder_of(tmp_path, "1.4", 1)).clear()
    assert not (tmp_path / "work" / "1.4").exists()
    KeptStages(folder_of(tmp_path, "1.4", 1)).clear()
    clear_all_but(tmp_path, {("1.2", 2), ("1.3", 2), ("1.9", 1)})
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("key"))] == ["work/1.2/2/key"]
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["1.2"]
    assert (tmp_path / "evidence" / "1.3" / "1").exists()
    clear_all_but(tmp_path, ())
    assert list((tmp_path / "work").iterdir()) == []
    clear_all_but(tmp_path / "nowhere", ())


# --- In the pipeline ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("dear")
def test_a_study_that_is_taken_up_again_asks_the_last_network_only(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "models")
    text = (folder / "model.toml").read_text()
    first = text[text.index("[[stages]]") : text.index("[[classes]]")]
    body = '[[stages]]\nname = "body"\nrule = "body"\n'
    region = first.replace('"ball"', '"region"') + 'within = { stage = "body" }\n'
    last = first + 'within = { stage = "region", margin_voxels = 2.0 }\n'
    (folder / "model.toml").write_text(text.replace(first, body + region + last))
    model = model_of(read_spec(folder), folder, folder.parent)
    bright_study(tmp_path / "study")
    (study,) = group(read_instance(path) for path in (tmp_path / "study").iterdir())
    store = KeptStages(folder_of(tmp_path, study.study_instance_uid, 1))
    answers: list[Answer] = []
    calls: list[int] = []
    for keep in (None, store, store):
        backend = Backend()
        scheduler = Scheduler(backend)
        scheduler.add(model)
        answers += analyse(study, [model], scheduler, progress=lambda **_: None, kept=keep).answers
        calls.append(sum(patches for _, patches in backend.batches))  # a batch may go half full
        scheduler.close()
    assert calls[0] == calls[1] > calls[2] > 0
    assert {answer.outcome for answer in answers} == {Outcome.FINDINGS}
    uids = [{made.sop_instance_uid for made in answer.objects} for answer in answers]
    assert uids[0] == uids[1] == uids[2]
    np.testing.assert_array_equal(
        answers[0].lesions[0].likelihood, answers[2].lesions[0].likelihood, "bit for bit the same"
    )
