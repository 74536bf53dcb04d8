"""Small data sets, encoded, for the tests of what comes in."""

from __future__ import annotations

import struct
import zlib

from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence

from service.intake.encoding import Identity

IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED, JPEG = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.70"
IDENTITY = Identity(
    sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
    sop_instance_uid="1.2.3.4",
    study_instance_uid="1.2.3",
    series_instance_uid="1.2.3.5",
)


def data_set() -> Dataset:
    """A small CT image with sequences in it, nested, of both kinds of length."""
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = IDENTITY.sop_class_uid, IDENTITY.sop_instance_uid
    made.StudyInstanceUID, made.SeriesInstanceUID = IDENTITY.study_instance_uid, IDENTITY.series_instance_uid
    inner, outer = Dataset(), Dataset()
    inner.CodeValue, outer.SOPInstanceUID = "T-1", "9.9.9"  # a nested UID must not be taken for the instance's own
    outer.PurposeOfReferenceCodeSequence = Sequence([inner])
    made.SourceImageSequence = Sequence([outer, outer])
    made.ReferencedStudySequence = Sequence([outer])
    for sequence in (made["SourceImageSequence"], outer["PurposeOfReferenceCodeSequence"]):
        sequence.is_undefined_length = True
    outer.is_undefined_length_sequence_item = True
    made.Rows, made.Columns, made.BitsAllocated = 8, 8, 16
    made.add_new("PixelData", "OW", bytes(range(128)))
    return made


def encode(made: Dataset, syntax: str) -> bytes:
    """The data set's bytes in a transfer syntax."""
    if syntax == JPEG:
        fragments = b"".join(struct.pack("<HHL", 0xFFFE, 0xE000, n) + bytes(n) for n in (0, 40, 88))
        made.PixelData = fragments  # pydicom adds the delimiter
        made["PixelData"].VR, made["PixelData"].is_undefined_length = "OB", True
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = syntax == IMPLICIT, syntax != BIG
    write_dataset(buffer, made)
    plain = buffer.getvalue()
    if syntax == DEFLATED:
        engine = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        plain = engine.compress(plain) + engine.flush()
    return plain
