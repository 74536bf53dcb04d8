"""What `overread models validate` says of a folder: each mistake its line and its way out, and never a traceback."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from onnx import TensorProto
from pydicom import dcmread

from service.analysis.select import select
from service.demo.fitting import write_fitting
from service.errors import BackendUnavailable, ConfigError
from service.install import install
from service.run import read_folder
from service.spec import ModelSpec, read_spec
from service.types import Backend
from service.validate import Line, examine, validate
from tests.bare import BareBackend
from tests.crops import write_crop
from tests.toys import MODEL_TOML, write_model

CARD = """\
# Bright balls
## Intended use
Tests.
## Data
None.
## Limits
Many.
"""


def _folder(tmp_path: Path) -> Path:
    """A model that is right in everything, and installed."""
    folder = write_model(tmp_path, "bright")
    (folder / "card.md").write_text(CARD)
    return folder


def _lines(folder: Path, directory: Path | None = None) -> list[Line]:
    return list(examine(folder, models_directory=directory or folder.parent, open_backend=BareBackend))


def _line(lines: list[Line], name: str) -> Line:
    return next(line for line in lines[::-1] if line.name == name)


def _edit(old: str, new: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        text = (folder / "model.toml").read_text()
        assert old in text
        (folder / "model.toml").write_text(text.replace(old, new))

    return spoil


def test_a_right_folder_has_no_line_that_is_wrong_and_runs_through_to_the_results(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    lines = _lines(folder)
    assert [line for line in lines if line.level == "WRONG"] == []
    assert [line.name for line in lines if line.level == "warning"] == ["weights", "bright/config.pbtxt"]
    assert _line(lines, "run").words.startswith("on a phantom: no finding, SR and SC made and proved")


def test_what_it_finds_on_the_phantom_becomes_a_segmentation_too(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    # What the network calls bright now begins at -80 HU: the whole body.
    _edit("offset = 1000.0, scale = 0.0005", "offset = 1080.0, scale = 0.0006")(folder)
    assert re.search(r": \d findings?, SEG and SR and SC made and proved", _line(_lines(folder), "run").words)


def test_its_warnings_can_be_mended_by_what_they_say(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "elsewhere")
    pins = _line(_lines(folder), "weights").way_out.removeprefix("[source.onnx_sha256] ")
    _edit("[select]", f"[source.onnx_sha256]\n{pins}\n[select]")(folder)
    lines = _lines(folder, tmp_path / "models")
    assert _line(lines, "weights").level == "ok"
    assert _line(lines, "installed").way_out == f"overread models install {folder}"
    install(tmp_path / "models", str(folder))
    assert {line.level for line in _lines(tmp_path / "models" / "bright")} == {"ok"}


WRONG: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "a key misspelt": (_edit("threshold", "treshold"), "model.toml", "stages.0.treshold: there is no such key"),
    "a code missing": (
        _edit('finding = ["52988006", "SCT", "Lesion"]\n', ""), "model.toml", "classes.0.finding: Field required"
    ),
    "a code without a meaning": (
        _edit('["52988006", "SCT", "Lesion"]', '["52988006", "SCT", ""]'), "classes.0.finding", "no meaning"
    ),
    "a code of something else": (
        _edit('["10200004", "SCT", "Liver"]', '["10200004", "SCT", "Brain"]'), "classes.0.site", "means 'Liver'"
    ),
    "a licence that is none": (_edit("Apache-2.0", "free"), "licence", "'free' is no SPDX"),
    "no card": (lambda folder: (folder / "card.md").unlink(), "card.md", "missing"),
    "a card without limits": (
        lambda folder: (folder / "card.md").write_text(CARD.replace("Many.", "")), "card.md", "no section on limits"
    ),
    "weights of another hash": (
        _edit("[select]", f'[source.onnx_sha256]\nbright = "{"0" * 64}"\n[select]'), "weights", "has the SHA-256"
    ),
    "no weights": (lambda folder: (folder / "1" / "model.onnx").unlink(), "weights", "no such file"),
    "another type": (
        lambda folder: write_crop(folder / "1" / "model.onnx", kinds=(TensorProto.FLOAT, TensorProto.FLOAT16)),
        "network bright", "is float16",
    ),
    "an opset too new": (
        lambda folder: write_crop(folder / "1" / "model.onnx", opset=999), "network bright", "opset 999"
    ),
    "a free axis": (
        lambda folder: write_crop(folder / "1" / "model.onnx", size=("N", 1, 24, 24, "wide")),
        "network bright", "axis 4 of the input 'input' is free (wide)",
    ),
    "a network that no runtime runs": (
        lambda folder: write_crop(folder / "1" / "model.onnx", answer=("N", 1, 16, 16, 16), opset=1),
        "run", "InvalidGraph",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG)
def test_each_mistake_has_its_line(mistake: str, tmp_path: Path) -> None:
    spoil, name, words = WRONG[mistake]
    folder = _folder(tmp_path)
    spoil(folder)
    wrong = [line for line in _lines(folder) if line.level == "WRONG"]
    assert [line.name for line in wrong] == [name], wrong
    assert words in wrong[0].words
    assert wrong[0].way_out


def _lungs_on_mr(folder: Path) -> None:
    """No voxel of an MR is air by its HU."""
    _edit('modality = "CT"', 'modality = "MR"')(folder)
    _edit("threshold = 0.5", 'threshold = 0.5\nwithin = { stage = "lungs" }')(folder)
    _edit("[[stages]]", '[[stages]]\nname = "lungs"\nrule = "lungs"\n[[stages]]')(folder)


DOUBTFUL: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "a licence in other letters": (_edit("Apache-2.0", "apache-2.0"), "licence", "'Apache-2.0'"),
    "a licence that forbids much": (_edit("Apache-2.0", "CC-BY-NC-4.0"), "licence", "perhaps not"),
    "a code outside its group": (
        _edit('["10200004", "SCT", "Liver"]', '["52988006", "SCT", "Lesion"]'), "classes.0.site", "no context group"
    ),
    "another config.pbtxt": (
        lambda folder: (folder / "config.pbtxt").write_text('name: "x"'), "bright/config.pbtxt", "name is x"
    ),
    "a modality without a phantom": (_edit('modality = "CT"', 'modality = "DX"'), "run", "modality DX"),
    "an organ that its phantom has not": (_lungs_on_mr, "run", "it takes no phantom"),
}  # fmt: skip


@pytest.mark.parametrize("doubt", DOUBTFUL)
def test_what_may_be_right_is_a_warning(doubt: str, tmp_path: Path) -> None:
    spoil, name, words = DOUBTFUL[doubt]
    folder = _folder(tmp_path)
    spoil(folder)
    line = _line(_lines(folder), name)
    assert (line.level, words in line.words) == ("warning", True), line
    assert line.way_out


def test_a_backend_that_is_away_is_a_line(tmp_path: Path) -> None:
    def away() -> Backend:
        raise BackendUnavailable(doing="opening", found="nobody there", rule="it is there", way_out="start it")

    lines = list(examine(_folder(tmp_path), models_directory=tmp_path, open_backend=away))
    assert _line(lines, "backend") == Line("WRONG", "backend", "nobody there; it is there", "start it")


def test_the_backend_is_closed_whatever_happens(tmp_path: Path) -> None:
    backend = BareBackend()
    folder = _folder(tmp_path)
    write_crop(folder / "1" / "model.onnx", opset=1)
    list(examine(folder, models_directory=tmp_path, open_backend=lambda: backend))
    assert backend.closed


def test_the_exit_code_is_0_only_if_nothing_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = _folder(tmp_path)
    assert validate(folder, models_directory=tmp_path, open_backend=BareBackend) == 0
    assert "the decision to use it is yours" in capsys.readouterr().out
    (folder / "card.md").unlink()
    assert validate(folder, models_directory=tmp_path, open_backend=BareBackend) == 1
    assert "It can't go live. To be mended: card.md." in capsys.readouterr().out


# --- The phantom that fits ------------------------------------------------------------------------------------------

FITTING = {
    "a CT of the small phantom": ("", ""),
    "an MR": ('modality = "CT"', 'modality = "MR"'),
    "coronal": ('orientation = "any"', 'orientation = "coronal"'),
    "sagittal": ('orientation = "any"', 'orientation = "sagittal"'),
    "a body part": ("slices = [4, 1000]", "slices = [4, 1000]\nbody_parts = ['KNEE']"),
    "words only": ("slices = [4, 1000]", r"slices = [4, 1000]" "\nwords = ['br(ai|ia)n']\nsilent_series = false"),
    "words that only silence meets": ("slices = [4, 1000]", "slices = [4, 1000]\nwords = ['zzz']"),
    "words against": ("slices = [4, 1000]", "slices = [4, 1000]\nwords_against = ['phantom|chest']"),
    "no contrast agent": ("slices = [4, 1000]", 'slices = [4, 1000]\ncontrast = "none"'),
    "a contrast agent": ("slices = [4, 1000]", 'slices = [4, 1000]\ncontrast = "required"'),
    "many thin slices": ("slices = [4, 1000]\nslice_spacing_mm = [0.5, 8.0]", "slices = [150, 200]\n"
                         "slice_spacing_mm = [0.5, 0.8]"),
    "few thick slices": ("slices = [4, 1000]\nslice_spacing_mm = [0.5, 8.0]", "slices = [2, 6]\n"
                         "slice_spacing_mm = [7.0, 9.0]"),
    "a chest": ("slices = [4, 1000]", "slices = [40, 1000]\nbody_parts = ['CHEST']"),
    "an abdomen": ("slices = [4, 1000]", "slices = [40, 1000]\nbody_parts = ['ABDOMEN']"),
}  # fmt: skip


def _spec(name: str) -> ModelSpec:
    old, new = FITTING[name]
    text = MODEL_TOML.format(name="bright", orientation="LPS").replace('orientation = "LPS"', "").replace(old, new)
    return ModelSpec.model_validate(tomllib.loads(text))


@pytest.mark.parametrize("name", FITTING)
def test_a_phantom_is_made_that_the_model_takes(name: str, tmp_path: Path) -> None:
    spec = _spec(name)
    write_fitting(spec, tmp_path)
    (study,) = read_folder(tmp_path)
    assert len(select(study, spec).series.instances) >= spec.select.slices[0]
    header = dcmread(next(tmp_path.iterdir()), stop_before_pixels=True)
    assert header.SOPClassUID.name == f"{spec.select.modality} Image Storage"


def test_where_none_can_be_made_it_says_so(tmp_path: Path) -> None:
    text = MODEL_TOML.format(name="bright", orientation="LPS")
    text = text.replace("slices = [4, 1000]", "slices = [4, 1000]\nwords = ['zzz']\nsilent_series = false")
    with pytest.raises(ConfigError, match="overread run FOLDER --model bright"):
        write_fitting(ModelSpec.model_validate(tomllib.loads(text)), tmp_path)


def test_the_installed_copy_is_read_as_the_original(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "elsewhere")
    install(tmp_path / "models", str(folder))
    assert read_spec(tmp_path / "models" / "bright") == read_spec(folder)
