"""Tests. The package comes first: it keeps ONNX Runtime, which some of them import, from reporting to its maker."""

import service  # noqa: F401
