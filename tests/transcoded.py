"""DICOM files in another transfer syntax, by GDCM; and damaged so that GDCM ends its process when it decodes them."""

from __future__ import annotations

from pathlib import Path

import gdcm
from pydicom import dcmread

JPEG_LOSSLESS = gdcm.TransferSyntax.JPEGLosslessProcess14_1
JPEG_LS = gdcm.TransferSyntax.JPEGLSLossless
JPEG_2000 = gdcm.TransferSyntax.JPEG2000Lossless


def transcode(path: Path, syntax: int) -> None:
    """Compress a file's pixels where it is."""
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(path))
    assert writer.Write()


def belie(path: Path, syntax: int) -> None:
    """Let a compressed file's header say of its frame what is not so, and what GDCM ends its process at."""
    dataset = dcmread(path)
    if syntax == JPEG_LOSSLESS:
        dataset.BitsAllocated = 32
    else:
        dataset.Rows += 8
    dataset.save_as(path)
