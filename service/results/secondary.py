"""The pictures as Secondary Captures, for viewers that show neither segmentations nor reports (PS3.3 A.8.1).

They carry no Pixel Spacing (0028,0030): the whole slice and its enlargement have two scales and the words none, and
whoever measured on the picture would be misled. A bar drawn on each part says its scale. Patient Orientation is empty
(Type 2C), or a viewer might turn the picture and mirror its words; Laterality is, for it is not ours to say. Whether a
face could be recognised in the slice (0028,0302) is not known.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

import highdicom as hd
import numpy as np
from PIL import Image
from pydicom import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pydicom.valuerep import DA, TM

from service import codes
from service.forms import Kind
from service.results import copied, identity
from service.results.identity import Making, Name, code
from service.results.keyobjects import key_slices, reference
from service.types import Conclusion, Finding, Picture, ResultObject, SourceVolume

_SOURCE_IMAGE = codes.Code("121322", "DCM", "Source image for image processing operation")  # CID 7202


def captures(
    making: Making,
    conclusion: Conclusion,
    source: SourceVolume | None,
    sheet: Picture,
    pictures: Sequence[Picture],
) -> tuple[ResultObject, ...]:
    """Write an answer's pictures as images of one series.

    Parameters
    ----------
    making
        Of what, by what and when.
    conclusion
        How the work ended, and what was found.
    source
        The analysed series; None where there was none.
    sheet
        The one that sums the answer up.
    pictures
        Those of findings.

    Returns
    -------
    tuple of ResultObject
        RGB of 8 bits, Explicit VR Little Endian. The sheet is part 1, a finding's picture the part behind its number.
    """
    by_number = {finding.number: finding for finding in conclusion.findings}
    return (
        _capture(making, conclusion, source, sheet, conclusion.findings),
        *(_capture(making, conclusion, source, it, [by_number[it.finding]]) for it in pictures),
    )


def _capture(
    making: Making, conclusion: Conclusion, source: SourceVolume | None, picture: Picture, shown: Sequence[Finding]
) -> ResultObject:
    header = copied.complete_header((source.ordered[0] if source else making.study.series[0].instances[0]).header)
    name = Name(kind=Kind.SC, outcome=conclusion.outcome, part=1 + picture.finding)
    made = hd.sc.SCImage.from_ref_dataset(
        ref_dataset=header,
        pixel_array=np.asarray(Image.open(io.BytesIO(picture.png)).convert("RGB")),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **identity.series_of_ours(making, source, name),
    )
    made.PatientOrientation = []
    made.Laterality = ""
    if not source:
        # highdicom looks up by the class where the patient's attributes are, and knows no private ones.
        header.SOPClassUID = CTImageStorage
    made.copy_patient_and_study_information(header)
    spec = making.model.spec
    what = "Summary" if not picture.finding else f"Key slice of {identity.label(shown[0])}"
    made.BurnedInAnnotation = "YES"
    made.ConversionType = "WSD"
    made.DateOfSecondaryCapture = DA(making.made_at.strftime("%Y%m%d"))
    made.TimeOfSecondaryCapture = TM(making.made_at.strftime("%H%M%S"))
    made.DerivationDescription = f"{what}, drawn from the findings of {spec.name} {spec.version}"
    made.ImageComments = f"{identity.DISCLAIMER}. {what}: {spec.title}"
    if source and shown:
        made.SourceImageSequence = list(_sources(shown, source))
    return identity.finish(made, making, source, header, name)


def _sources(shown: Iterable[Finding], source: SourceVolume) -> Iterable[Dataset]:
    """The images that a picture shows (PS3.3 C.12.4 General Reference Module)."""
    for index in key_slices(shown):
        item = reference(source.ordered[index])
        item.PurposeOfReferenceCodeSequence = [code(_SOURCE_IMAGE)]
        yield item
