"""The command line of imports: ``overread models import monai-bundle | nnunet``."""

from __future__ import annotations

import argparse

from service.imports.monai import import_bundle
from service.imports.nnunet import import_nnunet
from service.imports.wishes import Wishes, parse_class


def run(options: argparse.Namespace) -> int:
    """Import one model, and say what was made and what is not as its makers have it."""
    wishes = Wishes(
        name=options.name,
        version=options.version,
        title=options.title,
        manufacturer=options.manufacturer,
        licence=options.licence,
        modality=options.modality,
        body_parts=tuple(options.body_part),
        words=tuple(options.word),
        orientation=options.orientation.upper(),
        classes=tuple(parse_class(text) for text in options.classes),
        ignored=frozenset(options.ignore),
        networks=tuple(options.onnx),
        configuration=options.configuration,
        replace=options.replace,
    )
    bring = {"monai-bundle": import_bundle, "nnunet": import_nnunet}[options.kind]
    made = bring(options.source, options.models_directory, wishes)
    print(f"{made.folder}: {made.spec.title}, version {made.spec.version}")
    print("Not as its makers have it (these stand in its card.md too):")
    for note in made.notes:
        print(f"  - {note}")
    print(f"Next: overread models validate {made.folder}; then try it on images whose answer is known.")
    return 0
