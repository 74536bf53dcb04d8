"""What an operator says of a model's classes is read with care: it stands in every report."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from service.codes import Code
from service.imports.arguments import add_arguments
from service.imports.command import run
from service.imports.refusal import CannotImport
from service.imports.wishes import parse_class
from service.spec import read_spec
from tests.bundles import CLASS, write_bundle


def test_a_class_has_a_channel_and_two_or_three_codes() -> None:
    found = parse_class("2=52988006,SCT,Lesion@10200004,SCT,Liver")
    assert (found.channel, found.finding, found.site) == (
        2,
        Code("52988006", "SCT", "Lesion"),
        Code("10200004", "SCT", "Liver"),
    )
    organ = parse_class("1=78961009,SCT,Spleen@78961009,SCT,Spleen@91723000,SCT,Anatomical Structure")
    assert organ.category == Code("91723000", "SCT", "Anatomical Structure")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "52988006,SCT,Lesion@10200004,SCT,Liver",
        "one=52988006,SCT,Lesion@10200004,SCT,Liver",
        "1=52988006,SCT,Lesion",
        "1=52988006,Lesion@10200004,SCT,Liver",
        "1=52988007,SCT,Lesion@10200004,SCT,Liver",  # its check digit is wrong
        "1=52988006,SCT,Kidney@10200004,SCT,Liver",  # it means another thing
        "1=52988006,SCT,@10200004,SCT,Liver",
    ],
)
def test_another_form_or_a_code_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(CannotImport) as refusal:
        parse_class(text)
    assert all(refusal.value.parts().values())


def test_the_command_imports_and_says_what_is_done_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser, models_directory=tmp_path / "models")
    bundle = write_bundle(tmp_path / "ball_ct")
    options = ["monai-bundle", str(bundle), "--class", CLASS, "--body-part", "ABDOMEN", "--licence", "MIT"]
    assert run(parser.parse_args(options)) == 0
    assert read_spec(tmp_path / "models" / "ball-ct").licence == "MIT"
    printed = capsys.readouterr().out
    assert "Windows: MONAI steps" in printed
    assert "overread models validate" in printed
