"""A model's folder or zip file is opened without writing anything elsewhere."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest

from service.imports.refusal import CannotImport
from service.imports.source import opened, read_json

MARKER = "configs/metadata.json"


def _zip(file: Path, *entries: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return file


def _link(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


def test_the_model_is_found_in_the_folder_inside_it_or_inside_the_zip(tmp_path: Path) -> None:
    inner = tmp_path / "outer" / "spleen"
    (inner / "configs").mkdir(parents=True)
    (inner / MARKER).write_text('{"version": "1"}')
    for source in (inner, tmp_path / "outer"):
        with opened(source, MARKER) as found:
            assert (found.folder, found.name) == (inner, "spleen")
    nested = _zip(tmp_path / "any.zip", (f"spleen/{MARKER}", b'{"version": "2"}'), ("spleen/models/model.pt", b"x"))
    with opened(nested, MARKER) as found:
        assert found.name == "spleen"
        assert read_json(found.folder / MARKER, MARKER) == {"version": "2"}
        assert not (found.folder / "models" / "model.pt").exists()  # large, and read by nobody
        scratch = found.folder
    assert not scratch.exists()
    with opened(_zip(tmp_path / "flat.zip", (MARKER, b"{}")), MARKER) as found:
        assert found.name == "flat"


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ("../evil.json", "leads out"),
        ("spleen/../../evil.json", "leads out"),
        ("/evil.json", "leads out"),
        ("C:/evil.json", "leads out"),
        ("spleen\\..\\evil.json", "leads out"),
        (_link("spleen/configs/inference.json"), "is a link"),
        (f"spleen/{MARKER}", "is there twice"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_that_leads_out_of_the_archive_refuses_all_of_it(
    entry: str | zipfile.ZipInfo, found: str, tmp_path: Path
) -> None:
    file = _zip(tmp_path / "bad.zip", (f"spleen/{MARKER}", b"{}"), (entry, b"{}"))
    with pytest.raises(CannotImport) as refusal, opened(file, MARKER):
        pass
    assert found in refusal.value.found
    assert {path.name for path in tmp_path.rglob("*")} == {"bad.zip"}


def test_a_small_zip_of_a_huge_file_is_not_unpacked(tmp_path: Path) -> None:
    file = _zip(tmp_path / "bomb.zip", (f"a/{MARKER}", b"{}"), ("a/huge.json", bytes((64 << 20) + 1)))
    assert file.stat().st_size < 1 << 20
    with pytest.raises(CannotImport, match="unpacks to 67108865 bytes"), opened(file, MARKER):
        pass


@pytest.mark.parametrize("kind", ["nothing", "no zip", "no marker", "two models"])
def test_what_is_no_model_is_refused_with_a_way_out(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "model.zip"
    if kind == "no zip":
        file.write_bytes(b"not a zip")
    elif kind == "no marker":
        _zip(file, ("a/other.json", b"{}"))
    elif kind == "two models":
        _zip(file, (f"a/{MARKER}", b"{}"), (f"b/{MARKER}", b"{}"))
    with pytest.raises(CannotImport) as refusal, opened(file, MARKER):
        pass
    assert all(refusal.value.parts().values())


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_holds_no_json_object_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "metadata.json").write_bytes(content)
    with pytest.raises(CannotImport, match=MARKER):
        read_json(tmp_path / "metadata.json", MARKER)
