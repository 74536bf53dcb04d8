"""Overread: AI beside the PACS. Studies in by C-STORE, proved DICOM SEG and SR back; see README.md."""

__version__ = "0.1.0"
