"""Which models are installed, under which identity; and that a broken one hurts no other."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest

from service import models
from service.errors import ConfigError, ContractBroken
from service.types import Network
from tests.toys import write_model


def _uninstalled(folder: Path, name: str) -> Path:
    made = write_model(folder, name)
    (made / "1" / "model.onnx").unlink()
    return made


def _edit(folder: Path, old: str, new: str) -> None:
    text = (folder / "model.toml").read_text()
    assert old in text
    (folder / "model.toml").write_text(text.replace(old, new))


def _pin(folder: Path, network: str, digest: str) -> None:
    _edit(folder, "[select]", f'[source.onnx_sha256]\n{network} = "{digest}"\n[select]')


def _second_stage(folder: Path, network: str) -> None:
    """Let a model run another network of the same tensors before its own."""
    text = (folder / "model.toml").read_text()
    stage = text[text.index("[[stages]]") : text.index("[[classes]]")]
    organ = stage.replace('name = "ball"', f'name = "organ"\nnetwork = "{network}"')
    (folder / "model.toml").write_text(text.replace(stage, organ + stage))


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
    _second_stage(folder, "organ")
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


def test_the_identity_of_weights_is_derived_as_ever(tmp_path: Path) -> None:
    _second_stage(write_model(tmp_path, "a"), "organ")
    write_model(tmp_path, "organ")
    (model,) = models.installed(tmp_path, ["a"])
    files = [models.network_file(tmp_path, network) for network in ("organ", "a")]
    digests = [hashlib.sha256(file.read_bytes()).digest() for file in files]
    assert model.weights_sha256 == hashlib.sha256(b"".join(digests)).hexdigest()


def test_a_model_brings_its_networks_in_order(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "a")
    _second_stage(folder, "organ")
    write_model(tmp_path, "organ")
    (model,) = models.installed(tmp_path, ["a"])
    stage = model.spec.stages[1]
    file = folder / "1" / "model.onnx"
    assert [network.name for network in model.networks] == ["organ", "a"]
    assert stage.input
    assert model.networks[1] == Network(
        name="a",
        file=file,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        input=stage.input,
        outputs=stage.outputs,
        half_precision=False,
    )


# --- Broken ones ----------------------------------------------------------------------------------------------------


def test_weights_with_another_hash_are_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "a")
    right = hashlib.sha256((folder / "1" / "model.onnx").read_bytes()).hexdigest()
    _pin(folder, "a", right)
    assert models.installed(tmp_path, ["a"])
    (folder / "1" / "model.onnx").write_bytes(b"other weights")
    with pytest.raises(ConfigError, match=right) as caught:
        models.installed(tmp_path, ["a"])
    assert hashlib.sha256(b"other weights").hexdigest() in caught.value.found
    assert "do not use these weights" in caught.value.way_out


def _three(directory: Path) -> None:
    """A good model, one whose model.toml is wrong, one with other weights than it pins."""
    write_model(directory, "good")
    _edit(write_model(directory, "misspelt"), "threshold", "treshold")
    _pin(write_model(directory, "swapped"), "swapped", "0" * 64)


def test_a_broken_folder_is_told_and_the_others_run(tmp_path: Path) -> None:
    _three(tmp_path)
    found, broken = models.survey(tmp_path)
    assert [model.spec.name for model in found] == ["good"]
    assert sorted(broken) == ["misspelt", "swapped"]
    assert "treshold" in broken["misspelt"].found
    assert "0" * 64 in broken["swapped"].rule


def test_what_is_not_named_is_not_surveyed(tmp_path: Path) -> None:
    _three(tmp_path)
    _uninstalled(tmp_path, "later")
    found, broken = models.survey(tmp_path, ["good", "swapped", "later", "nowhere"])
    assert [model.spec.name for model in found] == ["good"]
    assert sorted(broken) == ["later", "nowhere", "swapped"]
    assert "overread models install later" in broken["later"].way_out


def test_a_broken_folder_is_logged_and_left_out_unless_it_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _three(tmp_path)
    with caplog.at_level(logging.WARNING, "overread"):
        assert [model.spec.name for model in models.installed(tmp_path)] == ["good"]
    logged = [record.fields["model"] for record in caplog.records if record.message == "model.broken"]  # type: ignore[attr-defined]
    assert sorted(logged) == ["misspelt", "swapped"]
    for name in ("misspelt", "swapped"):
        with pytest.raises(ConfigError):
            models.installed(tmp_path, ["good", name])


def test_where_all_are_broken_one_of_them_says_why(tmp_path: Path) -> None:
    _edit(write_model(tmp_path, "misspelt"), "threshold", "treshold")
    with pytest.raises(ConfigError, match="treshold"):
        models.installed(tmp_path)


def test_an_installation_on_its_way_is_no_model(tmp_path: Path) -> None:
    write_model(tmp_path, "a")
    write_model(tmp_path / "x", "b").rename(tmp_path / ".b")
    found, broken = models.survey(tmp_path)
    assert ([model.spec.name for model in found], broken) == (["a"], {})


def test_of_two_descriptions_of_a_shared_network_the_file_says_which_is_wrong(tmp_path: Path) -> None:
    for name in ("a", "b"):
        folder = write_model(tmp_path, name)
        _second_stage(folder, "organ")
    write_model(tmp_path, "organ")
    text = (tmp_path / "b" / "model.toml").read_text()
    (tmp_path / "b" / "model.toml").write_text(text.replace("24, 24, 24", "32, 32, 32", 1))
    found, broken = models.survey(tmp_path, ["a", "b"])
    assert [model.spec.name for model in found] == ["a"]
    assert isinstance(broken["b"], ContractBroken)


def test_a_shared_network_is_halved_only_if_all_its_models_allow_it(tmp_path: Path) -> None:
    for name in ("a", "b"):
        folder = write_model(tmp_path, name)
        _second_stage(folder, "organ")
        _edit(folder, "[source]", "half_precision = true\n[source]")
    write_model(tmp_path, "organ")
    found, _ = models.survey(tmp_path, ["a", "b"])
    assert all(network.half_precision for model in found for network in model.networks)
    _edit(tmp_path / "b", "half_precision = true\n", "")
    found, _ = models.survey(tmp_path, ["a", "b"])
    halved = {network.name for network in found[0].networks if network.half_precision}
    assert halved == {"a"}
