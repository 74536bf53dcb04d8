"""What a model folder says of itself: each wrong word is refused by file and key, and the real folders are right."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from service.errors import ConfigError
from service.spec import ModelSpec, Select, read_spec
from service.stage import Stage, Tensor
from tests.support import REPOSITORY
from tests.toys import MODEL_TOML

REAL = sorted(path.parent for path in (REPOSITORY / "models").glob("*/model.toml"))
WHOLE = MODEL_TOML.format(name="bright", orientation="LPS")
RULE_STAGE = '[[stages]]\nname = "body"\nrule = "body"\n'
INPUT = 'input = { name = "input", shape = [24, 24, 24] }'
OUTPUT = 'output = { name = "probability", shape = [16, 16, 16] }'
INTENSITY = "intensity = { clip = [-1000.0, 1000.0], offset = 1000.0, scale = 0.0005 }"
STAGE = WHOLE[WHOLE.index("[[stages]]") : WHOLE.index("[[classes]]")]
CLASS = WHOLE[WHOLE.index("[[classes]]") : WHOLE.index("[findings]")]
WHEEL = 'words = "made"\nwheel = "weights==1.0"'

# (the words that are replaced, by what, and the key that the error must name)
MISTAKES = {
    "a key that there is not": ('version = "1.0"', 'version = "1.0"\nurl = "x"', "url"),
    "a key misspelt in a section": ('modality = "CT"', 'modality = "CT"\nwrods = ["a"]', "select.wrods"),
    "a key misspelt in a stage": ("threshold = 0.5", "treshold = 0.5", "stages.0.treshold"),
    "a key misspelt in a tensor": (INPUT, INPUT.replace("shape", "size"), "stages.0.input.size"),
    "no title": ('title = "Bright balls"\n', "", "title"),
    "a title too long for its attribute": ('title = "Bright balls"', f'title = "{"x" * 65}"', "title"),
    "a name with capitals": ('name = "bright"', 'name = "Bright"', "name"),
    "a kind of map that there is not": ('licence = "Apache-2.0"', 'licence = "x"\ntask = "boxes"', "task"),
    "a wheel that is not pinned": ('words = "made by the tests"', 'words = "x"\nwheel = "weights"', "source.wheel"),
    "a wheel without its digest": ('words = "made by the tests"', WHEEL, "source"),
    "a digest without its wheel": (
        'words = "made by the tests"', f'words = "x"\nsha256 = "{"a" * 64}"', "source"
    ),
    "a digest that is none": ('words = "made by the tests"', f'{WHEEL}\nsha256 = "abc"', "source.sha256"),
    "a plane that there is not": ('orientation = "any"', 'orientation = "frontal"', "select.orientation"),
    "an axis twice": ('orientation = "LPS"', 'orientation = "LRS"', "stages.0"),
    "an axis too few": ('orientation = "LPS"', 'orientation = "LP"', "stages.0"),
    "letters that are no directions": ('orientation = "LPS"', 'orientation = "XYZ"', "stages.0"),
    "a rule that there is not": (STAGE, '[[stages]]\nname = "a"\nrule = "heart"\n' + STAGE, "stages.0.rule"),
    "a network without an input": (INPUT, "", "stages.0"),
    "a network without an output": (OUTPUT, "", "stages.0"),
    "a network without intensities": (INTENSITY, "", "stages.0"),
    "a channel beyond the last": ("threshold = 0.5", "threshold = 0.5\nchannel = 1", "stages.0"),
    "a threshold of one": ("threshold = 0.5", "threshold = 1.0", "stages.0.threshold"),
    "windows that never move": ("threshold = 0.5", "threshold = 0.5\noverlap = 1.0", "stages.0.overlap"),
    "an activation that there is not": (
        "threshold = 0.5", 'threshold = 0.5\nactivation = "relu"', "stages.0.activation"
    ),
    "a stage within a later one": (STAGE, STAGE + 'within = { stage = "late" }\n' + RULE_STAGE, "the file"),
    "a stage within itself": (STAGE, STAGE + 'within = { stage = "ball" }\n', "the file"),
    "a stage within none": (STAGE, STAGE + 'within = { stage = "lungs" }\n', "the file"),
    "two stages of one name": (STAGE, STAGE * 2, "the file"),
    "no stage": (STAGE, "stages = []\n", "stages"),
    "a rule at the end": (STAGE, STAGE + RULE_STAGE, "the file"),
    "a code in two parts": ('["52988006", "SCT", "Lesion"]', '["52988006", "SCT"]', "classes.0.finding"),
    "a compactness beyond a ball's": (
        "minimum_volume_ml = 0.1", "minimum_compactness = 1.1", "findings.minimum_compactness"
    ),
    "no finding kept": ("minimum_volume_ml = 0.1", "maximum_count = 0", "findings.maximum_count"),
    "a pattern that is none": ('modality = "CT"', 'modality = "CT"\nwords = ["("]', "select.words"),
    "a negative spacing": ("[2.5, 2.5, 2.5]", "[2.5, -2.5, 2.5]", "stages.0.spacing_mm"),
    "a spacing that is no number": ("[2.5, 2.5, 2.5]", "[2.5, nan, 2.5]", "stages.0.spacing_mm"),
    "a tensor without voxels": (OUTPUT, OUTPUT.replace("[16,", "[0,"), "stages.0.output.shape"),
    "an output greater than the input": (OUTPUT, OUTPUT.replace("16", "32"), "stages.0"),
    "an input with half a voxel too much": (OUTPUT, OUTPUT.replace("[16,", "[15,"), "stages.0"),
    "no class": (CLASS, "", "classes"),
    "a class beyond the output's channels": ("[[classes]]", "[[classes]]\nchannel = 1", "the file"),
    "two classes of one channel": (CLASS, CLASS * 2, "the file"),
    "a normal class in a segmentation": (CLASS, CLASS + "normal = true\n", "the file"),
    "a judgement in a segmentation": (CLASS, CLASS + '[judgement]\nlevel = "series"\n', "the file"),
    "a detection without boxes": ('licence = "Apache-2.0"', 'licence = "x"\ntask = "detection"', "the file"),
    "boxes in a segmentation": ("threshold = 0.5", 'threshold = 0.5\nboxes = "corners"', "the file"),
    "a classification with a map": (
        'licence = "Apache-2.0"', 'licence = "x"\ntask = "classification"\njudgement = {}', "the file"
    ),
    "two ways to clip": (INTENSITY, INTENSITY.replace("clip", "percentiles = [1, 99], clip"), "stages.0.intensity"),
    "percentiles beyond a hundred": (
        INTENSITY, INTENSITY.replace("clip = [-1000.0, 1000.0]", "percentiles = [1, 101]"), "stages.0.intensity"
    ),
    "means without deviations": (
        INTENSITY, INTENSITY.replace("clip", "channel_mean = [0.5], clip"), "stages.0.intensity"
    ),
    "a mean for no channel": (
        INTENSITY, INTENSITY.replace("clip", "channel_mean = [0.5, 0.4], channel_std = [1, 1], clip"), "stages.0"
    ),
    "neighbours of a volume": ("threshold = 0.5", 'threshold = 0.5\nchannels_hold = "neighbours"', "stages.0"),
    "an input of one axis": (INPUT, INPUT.replace("[24, 24, 24]", "[24]"), "stages.0"),
    "an input of four axes": (INPUT, INPUT.replace("[24, 24, 24]", "[24, 24, 24, 24]"), "stages.0.input.shape"),
    "a map of fewer axes than the image": (OUTPUT, OUTPUT.replace("[16, 16, 16]", "[16, 16]"), "stages.0"),
    "exclusive labels of one channel": ("threshold = 0.5", 'threshold = 0.5\nlabels = "exclusive"', "stages.0"),
    "a member of the ensemble with capitals": (
        "threshold = 0.5", 'threshold = 0.5\nensemble = ["Second"]', "stages.0.ensemble.0"
    ),
    "a digest of an ONNX file that is none": (
        'words = "made by the tests"', 'words = "x"\nonnx_sha256 = { bright = "abc" }', "source.onnx_sha256.bright"
    ),
    "intensities the wrong way round": ("[-1000.0, 1000.0]", "[1000.0, -1000.0]", "stages.0.intensity"),
}  # fmt: skip


def _folder(tmp_path: Path, text: str, name: str = "bright") -> Path:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "model.toml").write_text(text)
    return folder


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_by_file_and_key(mistake: str, tmp_path: Path) -> None:
    right, wrong, key = MISTAKES[mistake]
    assert right in WHOLE
    with pytest.raises(ConfigError) as caught:
        read_spec(_folder(tmp_path, WHOLE.replace(right, wrong, 1)))
    assert "bright/model.toml" in caught.value.doing
    assert re.search(rf"(^|; ){re.escape(key)}[.\w]*: ", caught.value.found), caught.value.found


def test_a_model_is_called_like_its_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'bright' in a folder called 'dark'"):
        read_spec(_folder(tmp_path, WHOLE, "dark"))


@pytest.mark.parametrize("content", [None, b"[", b'name = "\xff"'], ids=["none", "TOML", "UTF-8"])
def test_a_file_that_cannot_be_read_is_named(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "model.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"model\.toml"):
        read_spec(tmp_path)


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    spec = read_spec(_folder(tmp_path, WHOLE))
    assert list(spec.networks()) == ["bright"]
    assert spec.classes[0].category.value == "49755003"
    assert spec.stages[0].input == Tensor(name="input", channels=1, shape=(24, 24, 24))


def test_a_network_is_named_once_though_two_stages_run_it(tmp_path: Path) -> None:
    first = STAGE.replace('name = "ball"', 'name = "organ"\nnetwork = "organ"')
    again = STAGE.replace('name = "ball"', 'name = "again"\nnetwork = "organ"\nwithin = { stage = "organ" }')
    spec = read_spec(_folder(tmp_path, WHOLE.replace(STAGE, first + RULE_STAGE + again + STAGE)))
    assert list(spec.networks()) == ["organ", "bright"]


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "SPL", "FLA", "HPR", "IAL"])
def test_any_three_directions_make_an_orientation(orientation: str) -> None:
    assert Stage(name="body", rule="body", orientation=orientation).orientation == orientation


def test_every_key_is_described() -> None:
    def look(model: Any) -> None:
        for name, field in model.model_fields.items():
            nested = next((kind for kind in _models(field.annotation)), None)
            if nested:
                look(nested)
            else:
                assert field.description, f"{model.__name__}.{name}"

    look(ModelSpec)
    look(Select)


def _models(annotation: Any) -> list[Any]:
    kinds = [annotation, *getattr(annotation, "__args__", ())]
    return [kind for kind in kinds if hasattr(kind, "model_fields")]


# --- The real folders -----------------------------------------------------------------------------------------------


def test_there_are_real_models() -> None:
    assert {"ct-lung-nodule", "ct-liver-lesion", "mr-brain-tumor"} <= {folder.name for folder in REAL}


@pytest.mark.parametrize("folder", REAL, ids=lambda folder: folder.name)
def test_a_real_models_file_is_right(folder: Path) -> None:
    spec = read_spec(folder)
    assert spec.select.modality == spec.name.split("-")[0].upper()
    assert tomllib.loads((folder / "model.toml").read_text())["version"] == spec.version
