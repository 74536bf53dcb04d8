"""In which forms results leave: the kinds of objects, the forms of a segmentation, and a destination's profile.

A site says per destination what it wants (`Profile`); the analysis makes what any of them wants or may need in its
place (`Wanted`); and for each destination the delivery chooses among what was made (``results/choice.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Self

from pydantic import Field, model_validator
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, RLELossless, SegmentationStorage

from service.codes import LABEL_MAP_SEGMENTATION_STORAGE
from service.files import Frozen


class Kind(StrEnum):
    """What a result object is; the value is the Modality (0008,0060) it is known by, or the usual short name."""

    SEG = "SEG"  # Segmentation or Label Map Segmentation
    SR = "SR"  # Comprehensive 3D SR
    SC = "SC"  # Secondary Capture: a picture with everything burned in
    PR = "PR"  # Grayscale Softcopy Presentation State: outlines and words over the source images
    KO = "KO"  # Key Object Selection: which source images to look at


@dataclass(frozen=True, slots=True, kw_only=True)
class SegForm:
    """One way to write the same lesions as Segmentation objects."""

    type: Literal["binary", "labelmap", "fractional"] = "binary"
    segments: Literal["finding", "class"] = "finding"  # what a segment is
    compression: Literal["none", "rle", "jpeg-ls"] = "none"
    omit_empty_frames: bool = True
    maximum_frames: int = 400  # of an object; more become several objects

    @property
    def sop_class_uid(self) -> str:
        """The class of its objects."""
        return LABEL_MAP_SEGMENTATION_STORAGE if self.type == "labelmap" else str(SegmentationStorage)

    @property
    def transfer_syntax_uid(self) -> str:
        """How its objects are encoded."""
        syntaxes = {"none": ExplicitVRLittleEndian, "rle": RLELossless, "jpeg-ls": JPEGLSLossless}
        return str(syntaxes[self.compression])

    @property
    def key(self) -> str:
        """Its name in file names, UIDs and messages; what is usual is not said."""
        parts: list[str] = [self.type]
        if self.compression != "none":
            parts.append(self.compression)
        if self.segments != "finding":
            parts.append(f"by-{self.segments}")
        if not self.omit_empty_frames:
            parts.append("all-frames")
        if self.maximum_frames != 400:
            parts.append(f"{self.maximum_frames}-frames")
        return "-".join(parts)


OUTLINES = "outlines"  # the form of a report that refers to no segmentation: its lesions are drawn, slice by slice


class Profile(Frozen):
    """What a destination gets. What it then does not accept is replaced by the next best, and that is said."""

    seg: Literal["binary", "labelmap", "fractional", "none"] = Field(
        default="binary",
        description="Segmentations: BINARY, LABELMAP (in its place BINARY, where it is not accepted), FRACTIONAL "
        "(likewise), or none.",
    )
    segments: Literal["finding", "class"] = Field(
        default="finding",
        description="What a segment is: a finding, or all findings of a class together (the report then draws "
        "outlines, since no segment is what it measures).",
    )
    compression: Literal["none", "rle", "jpeg-ls"] = Field(
        default="none", description="Of label maps; fractional ones know rle too. Binary ones are never compressed."
    )
    omit_empty_frames: bool = Field(
        default=True,
        description="Whether slices without a finding are left out; some viewers want a frame for every slice.",
    )
    maximum_frames: int = Field(
        default=400,
        ge=1,
        description="Most frames of one Segmentation; more are split over several objects, never within a finding.",
    )
    sr: bool = Field(default=True, description="Reports (Comprehensive 3D SR).")
    capture: Literal["none", "summary", "findings"] = Field(
        default="none",
        description="Secondary Capture pictures: none, one that sums up each answer, or one of each finding beside it.",
    )
    gsps: bool = Field(
        default=False, description="Grayscale Softcopy Presentation State: outlines and words over the source images."
    )
    ko: bool = Field(default=False, description="Key Object Selection of the source images that show the findings.")
    negative_reports: Literal["all", "analysed", "none"] = Field(
        default="all",
        description="Which answers go there that have no finding: all; those of images that were looked at; or none. "
        "All are kept and shown by the API.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.compression != "none" and self.seg not in ("labelmap", "fractional"):
            raise ValueError(f'seg = "{self.seg}" is not compressed: compression belongs to label maps')
        if self.seg == "fractional" and self.compression == "jpeg-ls":
            raise ValueError('seg = "fractional" knows compression = "rle" or "none"')
        return self

    @property
    def forms(self) -> tuple[SegForm, ...]:
        """The forms of a segmentation that will do, the one asked for first."""
        if self.seg == "none":
            return ()
        asked = SegForm(
            type=self.seg,
            segments=self.segments,
            compression=self.compression,
            omit_empty_frames=self.omit_empty_frames,
            maximum_frames=self.maximum_frames,
        )
        binary = SegForm(
            segments=self.segments, omit_empty_frames=self.omit_empty_frames, maximum_frames=self.maximum_frames
        )
        return (asked,) if asked == binary else (asked, binary)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is made of an answer: all that some destination gets, or may get in place of what it does not accept."""

    forms: tuple[SegForm, ...] = (SegForm(),)
    captures: bool = False  # of each finding; the one that sums up is always made, for it is what everybody can show
    gsps: bool = False
    ko: bool = False

    @classmethod
    def by(cls, profiles: Iterable[Profile]) -> Wanted:
        """What these destinations want; without any, what the default profile wants."""
        every = tuple(profiles) or (Profile(),)
        forms = {form.key: form for profile in every for form in profile.forms}
        return cls(
            forms=tuple(forms[key] for key in sorted(forms)),
            captures=any(profile.capture == "findings" for profile in every),
            gsps=any(profile.gsps for profile in every),
            ko=any(profile.ko for profile in every),
        )
