"""What dicom-validator says of the objects that an analysis makes.

It reads the standard's own text (PS3.3 in DocBook), which it fetches from the standard's site and which no package
index carries; so it is given the tables of modules and attributes that highdicom brings along, and works by them.
It then finds attributes that are missing or empty though Type 1 or 2, attributes that no module of the IOD has, and
values that their VR does not allow, at every depth. What the tables lack it can't check: conditions (Type 1C and 2C,
but for those of the content items here), enumerated values, and which functional groups an IOD must have. dciodvfy
does (`test_validators`).
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from highdicom._standard_utils import get_iod_module_map, get_module_attribute_map, get_sop_class_iod_map
from pydicom import DataElement, Dataset, config, dcmread
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword

from service.analysis.schedule import Scheduler
from service.forms import Kind, SegForm, Wanted
from service.intake.study import group, read_instance
from service.models import model_of
from service.pipeline import analyse
from service.spec import read_spec
from service.types import Outcome
from tests import toys
from tests.bare import BareBackend
from tests.support import missing
from tests.unit.test_results_sr import items

Attributes = dict[str, Any]  # by tag, as dicom-validator writes it: name, type, items, cond; or what to include

CONTENT = "sr-document-content"
# Of a content item's attributes, those that belong to some value types only (PS3.3 C.17.3.2 and C.18).
OF_VALUE_TYPES = {
    "ConceptCodeSequence": ("CODE",),
    "ContinuityOfContent": ("CONTAINER",),
    "DateTime": ("DATETIME",),
    "Date": ("DATE",),
    "Time": ("TIME",),
    "GraphicData": ("SCOORD", "SCOORD3D"),
    "GraphicType": ("SCOORD", "SCOORD3D"),
    "MeasuredValueSequence": ("NUM",),
    "PersonName": ("PNAME",),
    "ReferencedFrameOfReferenceUID": ("SCOORD3D",),
    "ReferencedSOPSequence": ("IMAGE", "COMPOSITE", "WAVEFORM"),
    "TabulatedValuesSequence": ("TABLE",),
    "TemporalRangeType": ("TCOORD",),
    "TextValue": ("TEXT",),
    "UID": ("UIDREF",),
}
TOYS = (
    toys.write_model,
    toys.write_two_class_model,
    toys.write_heatmap_model,
    toys.write_detection_model,
    toys.write_classification_model,
)
FORMS = (
    SegForm(),
    SegForm(type="labelmap"),
    SegForm(type="labelmap", compression="jpeg-ls"),
    SegForm(type="labelmap", compression="rle"),
    SegForm(type="fractional"),
    SegForm(segments="class"),
    SegForm(omit_empty_frames=False),
)
GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")


@cache
def _tag(keyword: str) -> str:
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _module(name: str) -> Attributes:
    """The attributes of a module, nested as its sequences are."""
    module: Attributes = {}
    for row in get_module_attribute_map()[name]:
        if tag_for_keyword(row["keyword"]) is None:
            continue  # of a repeating group, 60xx: we write no overlays
        level = module
        for keyword in row["path"]:
            level = level[_tag(keyword)].setdefault("items", {})
        level[_tag(row["keyword"])] = {"name": row["keyword"], "type": row["type"]}
    return module


def _content_items(modules: dict[str, Attributes]) -> Attributes:
    """The content tree: what an item must have is a matter of its value type, and items lie within items."""
    root = modules[CONTENT]
    tree = root[_tag("ContentSequence")]
    within: Attributes = {**root, **tree["items"], _tag("ContentSequence"): tree}
    tree["items"] = {"include": [{"ref": "content items"}]}
    for keyword, types in OF_VALUE_TYPES.items():
        condition = {"type": "MN", "op": "=", "tag": _tag("ValueType"), "index": 0, "values": list(types)}
        for level in (root, within):
            level[_tag(keyword)] |= {"type": level[_tag(keyword)]["type"][0] + "C", "cond": condition}
    return within


def _functional_groups(modules: dict[str, Attributes]) -> dict[str, Attributes]:
    """By module: the macros of its functional groups, made modules of their own; any may be in either group."""
    macros = {}
    for name, module in list(modules.items()):
        groups = [module[_tag(keyword)] for keyword in GROUPS if _tag(keyword) in module]
        found: Attributes = {}
        for either in groups:
            found |= either.get("items", {})
            either["items"] = {"include": [{"ref": "FuncGroup"}]}
        modules |= {f"{name} {tag}": {tag: attribute} for tag, attribute in found.items()}
        macros[name] = {f"{name} {tag}": {"ref": f"{name} {tag}", "use": "U"} for tag in found}
        for tag in {_tag("FrameContentSequence")} & set(found):
            macros[name][f"{name} {tag}"]["use"] = "M"  # in every IOD that has frames with it
    return macros


def _tables(dicom_info: Any) -> Any:
    """The standard as dicom-validator wants it, of what highdicom knows."""
    modules = {name: _module(name) for name in get_module_attribute_map()}
    modules["content items"] = _content_items(modules)
    macros = _functional_groups(modules)
    iods = {}
    for sop_class, iod in get_sop_class_iod_map().items():
        parts = {part["key"]: {"ref": part["key"], "use": part["usage"]} for part in get_iod_module_map()[iod]}
        parts = {name: part for name, part in parts.items() if name in modules}  # a module or two lack their attributes
        groups = {name: macro for part in parts for name, macro in macros[part].items()}
        iods[sop_class] = {"title": iod, "modules": parts, "group_macros": groups}
    return dicom_info(dictionary={}, iods=iods, modules=modules)


Validate = Callable[[Dataset], list[str]]


@pytest.fixture(scope="module")
def validate() -> Validate:
    """Gives the errors of a data set, each as where and what."""
    try:
        info, handler, validator = (
            importlib.import_module(f"dicom_validator.validator.{name}")
            for name in ("dicom_info", "error_handler", "iod_validator")
        )
    except ImportError:
        missing("the Python package dicom-validator")
        raise
    tables = _tables(info.DicomInfo)

    def errors(dataset: Dataset) -> list[str]:
        result = validator.IODValidator(dataset, tables, error_handler=handler.NullValidationResultHandler()).validate()
        assert dataset.SOPClassUID in tables.iods
        return sorted(
            f"{where}: {_path(tag)} {error.code.name}"
            for where, found in result.module_errors.items()
            for tag, error in found.items()
        )

    return errors


def _path(tag: Any) -> str:
    return ".".join(keyword_for_tag(part) or str(part) for part in (*(tag.parents or ()), tag.tag))


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    """Objects of every kind and form, of a study by models of every task, and of one that fits none of them."""
    folder = tmp_path_factory.mktemp("objects")
    toys.bright_study(folder / "study")
    (study,) = group(read_instance(path) for path in (folder / "study").iterdir())
    (series,) = study.series
    few = replace(study, series=(replace(series, instances=series.instances[:3]),))
    folders = [write(folder / "models") for write in TOYS]
    models = [model_of(read_spec(it), it, folder / "models") for it in folders]
    scheduler = Scheduler(BareBackend())
    for model in models:
        scheduler.add(model)
    wanted = Wanted(forms=FORMS, captures=True, gsps=True, ko=True)
    found: dict[str, Dataset] = {}
    for name, asked in (("", study), ("few-", few)):
        for answer in analyse(asked, models, scheduler, progress=lambda **_: None, wanted=wanted).answers:
            assert answer.outcome is (Outcome.UNSUITABLE if name else Outcome.FINDINGS), answer.reason
            for number, made in enumerate(answer.objects):
                key = f"{name}{answer.model.name} {number} {made.kind} {made.form}"
                found[key] = dcmread(io.BytesIO(made.content))
    scheduler.close()
    return found


def test_it_finds_no_error(objects: dict[str, Dataset], validate: Validate) -> None:
    assert {name.split()[2] for name in objects} == set(Kind)
    found = {name: errors for name, made in objects.items() if (errors := validate(made))}
    assert found == {}


def _item(dataset: Dataset, *keywords: str) -> Dataset:
    """The last item of a sequence within sequences."""
    for keyword in keywords:
        dataset = dataset[keyword].value[-1]
    return dataset


def _drop(*keywords: str) -> Callable[[Dataset], None]:
    """Takes the last of these away; it stands in the others."""
    return lambda dataset: delattr(_item(dataset, *keywords[:-1]), keywords[-1])


def _set(value: str, *keywords: str) -> Callable[[Dataset], None]:
    def fault(dataset: Dataset) -> None:
        item, tag = _item(dataset, *keywords[:-1]), tag_for_keyword(keywords[-1])
        assert tag is not None
        item[tag] = DataElement(tag, dictionary_VR(tag), value, validation_mode=config.IGNORE)

    return fault


def _drop_from_item(concept: str, keyword: str) -> Callable[[Dataset], None]:
    return lambda report: delattr(next(items(report, concept)), keyword)


FRAMES, TREE = "PerFrameFunctionalGroupsSequence", "ContentSequence"


@pytest.mark.parametrize(
    ("kind", "fault", "error"),
    [
        ("SEG binary", _drop("SegmentationType"), "SegmentationType TagMissing"),
        ("SEG binary", _drop("PatientID"), "PatientID TagMissing"),
        ("SEG binary", _set("", "DeviceSerialNumber"), "DeviceSerialNumber TagEmpty"),
        ("SEG binary", _set("why", "TextValue"), "TextValue TagUnexpected"),
        ("SEG binary", _set("why", "SegmentSequence", "TextValue"), "SegmentSequence.TextValue TagUnexpected"),
        ("SEG binary", _set("1970-01-02", "PatientBirthDate"), "PatientBirthDate InvalidValue"),
        ("SEG binary", _drop("SegmentSequence", "SegmentLabel"), "SegmentSequence.SegmentLabel TagMissing"),
        (
            "SEG binary",
            _drop(FRAMES, "DerivationImageSequence", "SourceImageSequence", "ReferencedSOPInstanceUID"),
            f"{FRAMES}.DerivationImageSequence.SourceImageSequence.ReferencedSOPInstanceUID TagMissing",
        ),
        ("SEG labelmap", _drop("SegmentSequence", "SegmentNumber"), "SegmentSequence.SegmentNumber TagMissing"),
        ("SEG fractional", _drop("ContentLabel"), "ContentLabel TagMissing"),
        ("SR", _drop("CompletionFlag"), "CompletionFlag TagMissing"),
        ("SR", _drop(TREE, "RelationshipType"), f"{TREE}.RelationshipType TagMissing"),
        ("SR", _drop_from_item("121058", "ConceptCodeSequence"), f"{TREE}.ConceptCodeSequence TagMissing"),
        ("SR", _drop_from_item("112040", "UID"), f"{TREE}.{TREE}.{TREE}.UID TagMissing"),
        ("SC", _drop("ConversionType"), "ConversionType TagMissing"),
        ("PR", _drop("DisplayedAreaSelectionSequence"), "DisplayedAreaSelectionSequence TagMissing"),
        ("KO", _drop("ContinuityOfContent"), "ContinuityOfContent TagMissing"),
    ],
)
def test_it_finds_a_planted_fault(
    objects: dict[str, Dataset], validate: Validate, kind: str, fault: Callable[[Dataset], None], error: str
) -> None:
    broken = deepcopy(next(made for name, made in objects.items() if f" {kind}" in name))
    fault(broken)
    assert error in [it.split(": ")[1] for it in validate(broken)]
