"""Which library does what with compressed pixels, where pydicom would have a choice.

GDCM ends its whole process where a check of its own fails: writing RLE it does so at every frame of 8 bits with an odd
number of pixels. So what this process writes, and reads again of its own, is left to others; what others wrote is
decoded in ``decoding.py``.
"""

from __future__ import annotations

from pydicom.pixels.decoders.base import JPEGLSLosslessDecoder
from pydicom.pixels.encoders.base import RLELosslessEncoder


def prefer_what_does_not_end_us() -> None:
    """Take GDCM out of this process's choice for the syntaxes of our own objects."""
    for codec in (RLELosslessEncoder, JPEGLSLosslessDecoder):
        codec.remove_plugin("gdcm")
