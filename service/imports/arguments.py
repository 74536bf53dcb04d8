"""The options of ``overread models import``; apart, so that the command line is known without what it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

_KINDS = {
    "monai-bundle": "a MONAI bundle: its folder, or its zip file",
    "nnunet": "an nnU-Net v2 export with its folds as ONNX files: its folder, or a zip file",
}


def add_arguments(importing: argparse.ArgumentParser, *, models_directory: Path) -> None:
    """Give the parser of ``models import`` its kinds and their options."""
    kinds = importing.add_subparsers(required=True, metavar="KIND", dest="kind")
    for kind, words in _KINDS.items():
        parser = kinds.add_parser(kind, help=words)
        _add(parser, models_directory)


def _add(parser: argparse.ArgumentParser, models_directory: Path) -> None:
    parser.add_argument("source", type=Path, metavar="FOLDER|ZIP")
    parser.add_argument(
        "--class",
        dest="classes",
        action="append",
        default=[],
        metavar='"1=52988006,SCT,Lesion@10200004,SCT,Liver"',
        help="what an output channel means: its code and the code of its site (and, where it is no abnormality, @ and "
        "that of its category); for each channel that is reported",
    )
    parser.add_argument(
        "--ignore", action="append", type=int, default=[], metavar="CHANNEL", help="a channel that is not reported"
    )
    parser.add_argument(
        "--body-part", action="append", default=[], metavar="NAME", help="accepted BodyPartExamined; may be repeated"
    )
    parser.add_argument(
        "--word",
        action="append",
        default=[],
        metavar="REGEX",
        help="words in descriptions that stand for the body part",
    )
    parser.add_argument("--modality", default="", metavar="CS", help="where the model's files do not say it")
    parser.add_argument("--licence", default="", metavar="SPDX", help="of the weights")
    parser.add_argument(
        "--orientation",
        default="",
        metavar="LPS",
        help="where the axes of the training images grow, in the files' own order, if the model's files do not say it",
    )
    parser.add_argument("--name", default="", help="of the model folder; default: the model's own")
    parser.add_argument("--version", default="", help="of the model; default: as its files say")
    parser.add_argument("--title", default="", help="SeriesDescription of its results; default: as its files say")
    parser.add_argument("--manufacturer", default="", metavar="WHO", help="who made it; default: as its files say")
    parser.add_argument(
        "--onnx",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="the network, if it is not where such models have it; several are an ensemble",
    )
    parser.add_argument("--configuration", default="", metavar="NAME", help="of an nnU-Net: 3d_fullres, ...")
    parser.add_argument("--replace", action="store_true", help="put it in the place of what is installed already")
    parser.add_argument("--models-directory", type=Path, default=models_directory, metavar="DIR")
