"""An Enhanced image, whose slices are frames of one instance, is analysed and answered like single images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, LegacyConvertedEnhancedCTImageStorage, RLELossless

from service.analysis.select import select
from service.analysis.volume import read_volume
from service.errors import UnsuitableGeometry
from service.forms import OUTLINES, SegForm
from service.intake.study import group, read_instance
from service.results import sr
from service.results.proof import prove
from service.results.reading import items
from service.spec import Select
from tests import phantoms
from tests.phantoms import Phantom
from tests.unit.test_results_identity import conclusion_of, read, report_of, segmented_of


def enhanced(folder: Path, phantom: Phantom, *, syntax: str = ExplicitVRLittleEndian) -> Phantom:
    """The phantom as one multi-frame image, its frames in the order of arrival, read as the service would."""
    single = [dcmread(instance.path) for instance in phantom.source.series.instances]
    made = hd.legacy.LegacyConvertedEnhancedCTImage(
        single,
        series_instance_uid="2.25.7",
        series_number=7,
        sop_instance_uid="2.25.77",
        instance_number=1,
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    if syntax != ExplicitVRLittleEndian:
        made.compress(syntax, generate_instance_uid=False)
    path = folder / "enhanced.dcm"
    made.save_as(path, enforce_file_format=True)
    (study,) = group([read_instance(path)])
    spec = phantom.making.model.spec.model_copy(
        update={"select": Select(modality="CT", orientation="any", slices=(2, 100))}
    )
    chosen = select(study, spec)
    source = read_volume(chosen.series)
    findings = tuple(
        phantoms.finding_of(source, mask, lesion.number)
        for lesion, mask in ((lesion, _mask(phantom, index)) for index, lesion in enumerate(phantom.lesions))
    )
    making = replace(phantom.making, study=study)
    return Phantom(source=source, findings=findings, making=making)


def _mask(phantom: Phantom, index: int) -> np.ndarray:
    mask = np.zeros(phantom.source.volume.spatial_shape, bool)
    lesion = phantom.lesions[index]
    mask[lesion.box] = lesion.mask
    return mask


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
@pytest.mark.parametrize("orientation", [phantoms.AXIAL, phantoms.OBLIQUE], ids=["axial", "oblique"])
def test_frames_become_the_volume_that_images_become(
    tmp_path: Path, orientation: tuple[float, ...], syntax: str
) -> None:
    phantom = phantoms.make(tmp_path / "single", orientation=orientation)
    source = enhanced(tmp_path, phantom, syntax=syntax).source
    assert (source.volume.array == phantom.source.volume.array).all()
    assert source.volume.affine == pytest.approx(phantom.source.volume.affine, abs=1e-6)
    assert {instance.sop_instance_uid for instance in source.ordered} == {"2.25.77"}
    # The order of arrival was the reverse of the positions', and frames are numbered by it.
    assert sorted(instance.frame or 0 for instance in source.ordered) == list(range(1, len(source.ordered) + 1))


@pytest.mark.parametrize("form", [SegForm(), SegForm(type="labelmap"), SegForm(type="fractional")], ids=lambda f: f.key)
def test_results_refer_to_frames_and_prove(tmp_path: Path, form: SegForm) -> None:
    phantom = enhanced(tmp_path, phantoms.make(tmp_path / "single"))
    segmented = segmented_of(phantom, form)
    report = report_of(phantom, segmented, form.key)
    outlines = sr.report(phantom.making, conclusion_of(phantom), source=phantom.source, form=OUTLINES)
    prove(phantom.making, conclusion_of(phantom), phantom.source, [segmented[0].object, report, outlines])
    segmentation = read(segmented[0].object)
    place = {float(it.header.ImagePositionPatient[2]): it.frame for it in phantom.source.ordered}
    for frame in segmentation.PerFrameFunctionalGroupsSequence:
        (image,) = frame.DerivationImageSequence[0].SourceImageSequence
        assert image.ReferencedSOPClassUID == LegacyConvertedEnhancedCTImageStorage
        assert image.ReferencedFrameNumber == place[float(frame.PlanePositionSequence[0].ImagePositionPatient[2])]
    (series,) = segmentation.ReferencedSeriesSequence
    assert [image.ReferencedSOPInstanceUID for image in series.ReferencedInstanceSequence] == ["2.25.77"]
    for region in items(read(report), "111030"):
        (image,) = region.ContentSequence[0].ReferencedSOPSequence
        assert image.ReferencedSOPClassUID == LegacyConvertedEnhancedCTImageStorage
        assert image.ReferencedFrameNumber in place.values()


def test_frames_that_do_not_say_where_they_lie_are_named(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path)
    first = phantom.source.series.instances[0]
    first.header.NumberOfFrames = 3
    with pytest.raises(UnsuitableGeometry, match="do not say where each frame lies"):
        read_volume(replace(phantom.source.series, instances=(first,)))
