"""Overread: AI beside the PACS. Studies in by C-STORE, proved DICOM SEG and SR back; see README.md."""

import os

__version__ = "0.1.0"

# Nothing leaves the hospital: from 1.29 on ONNX Runtime's wheels gather events and send them to their maker, unless
# this stands in the environment before they are imported, by us or by a process of ours.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
