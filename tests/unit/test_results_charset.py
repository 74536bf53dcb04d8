"""Names in every character set come through into the results, byte by byte; what can't be read is said, not guessed."""

# ruff: noqa: RUF001 - letters that look like others are what this is about

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from pydicom import Dataset, config, dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.tag import Tag

from service.analysis.frames import frames_of
from service.analysis.select import select
from service.forms import Kind, Wanted
from service.results import charset, copied, objects, proof
from service.results.charset import Declared, Unreadable
from service.results.reading import Fault
from tests import phantoms
from tests.phantoms import Phantom
from tests.unit.test_results_identity import conclusion_of, objects_of

pytestmark = pytest.mark.filterwarnings(  # of pydicom and highdicom, about names that are as they should be here
    "ignore:In(valid|correct) value",
    "ignore:Unknown encoding",
    "ignore:Failed to",
    "ignore:Value '",
    "ignore:The string",
)


class Name(NamedTuple):
    """A name as some scanner writes it."""

    terms: str  # Specific Character Set as it stands in the file
    raw: bytes
    text: str  # what it means


# The examples of PS3.5 H.3, I.2, J.1, J.2 and K.3, and names in the other sets.
STANDARD = {
    "kanji": Name(
        r"\ISO 2022 IR 87",
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
        "Yamada^Tarou=山田^太郎=やまだ^たろう",
    ),
    "katakana and kanji": Name(
        r"ISO 2022 IR 13\ISO 2022 IR 87",
        b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J=\x1b$B$d$^$@\x1b(J^\x1b$B$?$m$&\x1b(J",
        "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
    ),
    "hangul": Name(
        r"\ISO 2022 IR 149",
        b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
        "Hong^Gildong=洪^吉洞=홍^길동",
    ),
    "UTF-8": Name("ISO_IR 192", "Wang^XiaoDong=王^小東".encode(), "Wang^XiaoDong=王^小東"),
    "GB18030": Name("GB18030", b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab", "Wang^XiaoDong=王^小东"),
    "GBK": Name("GBK", b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab", "Wang^XiaoDong=王^小东"),
    "GB 2312": Name(
        r"\ISO 2022 IR 58",
        b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab=",
        "Zhang^XiaoDong=张^小东=",
    ),
    "Arabic": Name("ISO_IR 127", b"\xe2\xc8\xc7\xe6\xea^\xe4\xe6\xd2\xc7\xd1", "قباني^لنزار"),
    "Cyrillic": Name("ISO_IR 144", b"\xbb\xee\xdace\xdc\xd1yp\xd3", "Люкceмбypг"),
    "Greek": Name("ISO_IR 126", b"\xc4\xe9\xef\xed\xf5\xf3\xe9\xef\xf2", "Διονυσιος"),
    "Hebrew": Name("ISO_IR 138", b"\xf9\xf8\xe5\xef^\xe3\xe1\xe5\xf8\xe4", "שרון^דבורה"),
    "Thai": Name("ISO_IR 166", b"\xb9\xd2\xc1^\xaa\xd7\xe8\xcd", "นาม^ชื่อ"),
    "Latin-1": Name("ISO_IR 100", b"Buc^J\xe9r\xf4me", "Buc^Jérôme"),
    "Latin-2": Name("ISO_IR 101", b"Wa\xb3\xeasa^Lech", "Wałęsa^Lech"),
    "Latin-3": Name("ISO_IR 109", b"\xc6apelo^\xdei", "Ĉapelo^Ŝi"),
    "Latin-4": Name("ISO_IR 110", b"\xc0boli\xf1\xb9^J", "Āboliņš^J"),
    "Latin-5": Name("ISO_IR 148", b"\xc7avu\xfeo\xf0lu^\xdd", "Çavuşoğlu^İ"),
    "Latin-9": Name("ISO_IR 203", b"\xbcuvre^\xa4", "Œuvre^€"),
}
# What pydicom reads wrongly, or writes otherwise than it stood.
TRAPS = {
    "bytes like delimiters": Name(
        r"\ISO 2022 IR 87",
        b"Hatsu^A=\x1b$B=i\x1b(B^\x1b$B=i$^\x1b(B",
        "Hatsu^A=初^初ま",
    ),
    "kanji that end with romaji": Name(
        r"\ISO 2022 IR 87",
        b"Yamada^Tarou=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J",
        "Yamada^Tarou=山田^太郎",
    ),
    "signs that Latin-1 has too": Name(r"\ISO 2022 IR 87", b"Yamada^A=\x1b$B!_!k\x1b(B", "Yamada^A=×°"),
    "kanji alone": Name("ISO 2022 IR 87", b"Yamada^A=\x1b$B;3ED\x1b(B^", "Yamada^A=山田^"),
    "two kinds of kanji": Name(
        r"ISO 2022 IR 6\ISO 2022 IR 87\ISO 2022 IR 159",
        b"Mori^Ogai=\x1b$B?9\x1b(B^\x1b$(Dl?\x1b$B30\x1b(B=\x1b$B$b$j\x1b(B^\x1b$B$*\x1b(B",
        "Mori^Ogai=森^鷗外=もり^お",
    ),
    "katakana alone": Name("ISO_IR 13", b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3 A", "ﾔﾏﾀﾞ^ﾀﾛｳ A"),
    "hangul alone": Name("ISO 2022 IR 149", b"Hong^A=\xfb\xf3^\xd1\xce", "Hong^A=洪^吉"),
    "a byte like a backslash": Name("GBK", b"Zhang^A=\xd5\x5c", "Zhang^A=誠"),
    "four bytes": Name("GB18030", "Wang^A=㐀^𠮷".encode("gb18030"), "Wang^A=㐀^𠮷"),
    "escape to Latin-1": Name(r"\ISO 2022 IR 100", b"Buc^\x1b-AJ\xe9r\xf4me", "Buc^Jérôme"),
    "Latin-1 and Cyrillic": Name(
        r"ISO 2022 IR 100\ISO 2022 IR 144", b"J\xe9r^A=\x1b-L\xbb\xee^\x1b-A\xe9", "Jér^A=Лю^é"
    ),
    "another spelling": Name("ISO-IR 100", b"Buc^J\xe9r\xf4me", "Buc^Jérôme"),
    "spelled as Python does": Name("UTF-8", b"Buc^J\xc3\xa9", "Buc^Jé"),
    "UTF-8 with extensions": Name(r"ISO_IR 192\ISO 2022 IR 87", b"Buc^J\xc3\xa9", "Buc^Jé"),
    "another, with extensions": Name(r"iso_ir 100\ISO2022IR87", b"J\xe9^A=\x1b$B;3ED\x1b(B", "Jé^A=山田"),
}
READABLE = STANDARD | TRAPS
SPELLED = {
    "another spelling": "ISO_IR 100",
    "spelled as Python does": "ISO_IR 192",
    "UTF-8 with extensions": "ISO_IR 192",
    "another, with extensions": r"ISO_IR 100\ISO 2022 IR 87",
}
# Copied as they are, and not understood.
BROKEN = {
    "Latin-1 without a set": ("", b"Buc^J\xe9r\xf4me"),
    "GBK without a set": ("", b"Wang^A=\xcd\xf5^\xd0\xa1\xb6\xab"),
    "kanji without a set": ("", b"Yamada^A=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B"),
    "Latin-1 as UTF-8": ("ISO_IR 192", b"Buc^J\xe9r\xf4me"),
    "UTF-8 cut off": ("ISO_IR 192", b"Buc^J\xc3"),
    "GB18030 cut off": ("GB18030", b"Wang^A=\xcd\xf5^\xd0\xa1\xb6"),
    "Windows' own": ("ISO_IR 100", b"Buc^J\x93\x80"),
    "no Arabic letter": ("ISO_IR 127", b"\xe2\xff^\xa1"),
    "half a kanji": (r"\ISO 2022 IR 87", b"Yamada^A=\x1b$B;3E"),
    "an undeclared escape": (r"\ISO 2022 IR 87", b"Hong^A=\x1b$)C\xfb\xf3"),
    "an escape that a delimiter ends": (r"\ISO 2022 IR 149", b"Hong^A=\x1b$)C\xfb\xf3^\xd1\xce"),
    "no escape": (r"\ISO 2022 IR 149", b"Hong^A=\xfb\xf3^\xd1\xce"),
    "an escape in a single set": ("ISO_IR 100", b"Buc^\x1b-AJ\xe9"),
}
UNKNOWN = ["ISO_IR 999", "WHATEVER", r"ISO_IR 100\ISO_IR 192", r"\ISO 2022 IR 999"]
COPIED = ("PatientName", "ReferringPhysicianName", "StudyDescription", "PatientComments", "OtherPatientNames")
TWICE = "OtherPatientNames"
WORDS, GIVEN_WAY = "Größe 大きさ", "Gro?e ???"


def text_of(keyword: str, raw: bytes) -> DataElement:
    """An element that is written with just these bytes."""
    return DataElement(Tag(keyword), dictionary_VR(keyword), raw, validation_mode=config.IGNORE)


def in_set(terms: str, raw: bytes) -> Callable[[Dataset, int], None]:
    """Write names and texts of all VRs in a character set."""

    def edit(dataset: Dataset, _: int) -> None:
        if terms:
            dataset[Tag("SpecificCharacterSet")] = text_of("SpecificCharacterSet", terms.encode("latin-1"))
        for keyword in COPIED:
            dataset[Tag(keyword)] = text_of(keyword, written(keyword, raw))

    return edit


def written(keyword: str, raw: bytes) -> bytes:
    """The value of an attribute that has this one, or two such."""
    return raw + b"\\" + raw if keyword == TWICE else raw


def bytes_of(dataset: Dataset, keyword: str) -> bytes:
    """The bytes of a text as they stand in the file."""
    found = dataset.get_item(keyword)
    assert isinstance(found, RawDataElement)
    assert found.value is not None
    return found.value.rstrip(b"\0 ")


def objects_with(phantom: Phantom, title: str) -> list[Dataset]:
    """The phantom's objects, read and proved to be their patient's, by a model of this title: words of ours in each."""
    objects = objects_of(replace(phantom, making=phantoms.with_spec(phantom.making, title=title)))
    known = {made.sop_instance_uid for made in objects} | {one.sop_instance_uid for one in phantom.source.ordered}
    datasets = [dcmread(io.BytesIO(made.content)) for made in objects]
    for dataset, made in zip(datasets, objects, strict=True):
        proof._prove_identity(dataset, made, phantom.source.ordered[0].header, known)
        assert dataset.SeriesDescription in (f"{title} (research)", f"{GIVEN_WAY} (research)")
    return [dcmread(io.BytesIO(made.content)) for made in objects]  # of which nothing is decoded yet


@pytest.mark.parametrize("case", READABLE)
def test_names_come_through_byte_by_byte(tmp_path: Path, case: str) -> None:
    name = READABLE[case]
    phantom = phantoms.make(tmp_path, edit=in_set(name.terms, name.raw), lesions=1)
    for dataset in objects_with(phantom, "Size"):
        for keyword in COPIED:
            assert bytes_of(dataset, keyword) == written(keyword, name.raw), keyword
            assert charset.said(dataset, keyword) == written(keyword, name.text.encode()).decode()
        terms = dataset.SpecificCharacterSet
        assert (terms if isinstance(terms, str) else "\\".join(terms)) == SPELLED.get(case, name.terms)


@pytest.mark.parametrize("case", READABLE)
def test_words_of_ours_that_are_not_ascii_make_it_utf_8(tmp_path: Path, case: str) -> None:
    name = READABLE[case]
    phantom = phantoms.make(tmp_path, edit=in_set(name.terms, name.raw), lesions=1)
    for dataset in objects_with(phantom, WORDS):
        for keyword in COPIED:
            assert bytes_of(dataset, keyword) == written(keyword, name.text.encode()), keyword
        assert dataset.SpecificCharacterSet == "ISO_IR 192"
        assert str(dataset.PatientName) == name.text.rstrip("=")  # and so says pydicom, which is another reader
        assert dataset.SeriesDescription == f"{WORDS} (research)"


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("title", ["Size", WORDS])
def test_what_can_not_be_read_is_copied_and_not_replaced(tmp_path: Path, case: str, title: str) -> None:
    terms, raw = BROKEN[case]
    phantom = phantoms.make(tmp_path, edit=in_set(terms, raw), lesions=1)
    for dataset in objects_with(phantom, title):
        for keyword in COPIED:
            assert bytes_of(dataset, keyword) == written(keyword, raw), keyword
        assert dataset.get("SpecificCharacterSet", "") == (terms.split("\\") if "\\" in terms else terms)
        kept = title if title.isascii() or terms == "ISO_IR 192" else GIVEN_WAY
        assert dataset.SeriesDescription == f"{kept} (research)"
    assert charset.unreadable(phantom.source.ordered[0].header) == ""


@pytest.mark.parametrize("case", ["kanji", "hangul", "GB18030", "GB 2312", "Arabic", "GBK without a set"])
@pytest.mark.parametrize("title", ["Size", WORDS])
def test_every_kind_of_object_has_the_name(tmp_path: Path, case: str, title: str) -> None:
    """Also those into which highdicom copies by value, or a few attributes only; and all are proved."""
    broken = case in BROKEN
    terms, raw = BROKEN[case] if broken else STANDARD[case][:2]
    phantom = phantoms.make(tmp_path, edit=in_set(terms, raw), lesions=1)
    making = phantoms.with_spec(phantom.making, title=title)
    source, conclusion = phantom.source, conclusion_of(phantom)
    pictures = objects.pictures_of(making, conclusion, source)
    made = objects.objects_of(making, conclusion, source, Wanted(captures=True, gsps=True, ko=True), pictures)
    assert {one.kind for one in made} == set(Kind)
    proof.prove(making, conclusion, source, made, pictures)
    for one in made:
        dataset = dcmread(io.BytesIO(one.content))
        for keyword in COPIED[:3]:
            as_it_was = broken or title.isascii()
            assert bytes_of(dataset, keyword) == (raw if as_it_was else STANDARD[case].text.encode()), (
                one.kind,
                keyword,
            )


def test_the_headers_stay_as_they_were_read(tmp_path: Path) -> None:
    """So that every model's objects have the same bytes, whichever is written first."""
    name = TRAPS["signs that Latin-1 has too"]
    phantom = phantoms.make(tmp_path, edit=in_set(name.terms, name.raw), lesions=1)
    header = phantom.source.ordered[0].header
    first = [made.content for made in objects_of(phantom)]
    charset.unreadable(header)
    for keyword in COPIED:
        assert isinstance(header.get_item(keyword), RawDataElement), keyword
        charset.said(header, keyword)
    assert [made.content for made in objects_of(phantom)] == first


def test_choosing_a_series_leaves_its_texts_as_they_were_read(tmp_path: Path) -> None:
    name = STANDARD["GB 2312"]
    phantom = phantoms.make(tmp_path, edit=in_set(name.terms, name.raw), lesions=1)
    wanted = {"preferred_words": ("小东",), "words": ("小东",), "slices": (1, 1000)}
    rules = phantom.making.model.spec.select.model_copy(update=wanted)
    chosen = select(phantom.making.study, phantom.making.model.spec.model_copy(update={"select": rules}))
    for instance in chosen.series.instances:
        assert bytes_of(instance.header, "StudyDescription") == name.raw


def test_the_frames_of_an_image_have_its_texts_as_they_were_read(tmp_path: Path) -> None:
    name = STANDARD["GB 2312"]

    def edit(dataset: Dataset, index: int) -> None:
        in_set(name.terms, name.raw)(dataset, index)
        dataset.NumberOfFrames = 2
        dataset.PerFrameFunctionalGroupsSequence = [Dataset(), Dataset()]

    for frame in frames_of(phantoms.make(tmp_path, edit=edit, lesions=1).source.ordered[0]):
        for keyword in COPIED:
            assert bytes_of(frame.header, keyword) == written(keyword, name.raw)
            assert charset.said(frame.header, keyword) == written(keyword, name.text.encode()).decode()


@pytest.mark.parametrize("case", ["kanji", "hangul", "GB18030", "Arabic", "Latin-1", "signs that Latin-1 has too"])
def test_a_header_that_somebody_decoded_gives_the_same_text(tmp_path: Path, case: str) -> None:
    name = READABLE[case]
    phantom = phantoms.make(tmp_path, edit=in_set(name.terms, name.raw), lesions=1)
    assert str(phantom.source.ordered[0].header.PatientName) == name.text
    for dataset in objects_with(phantom, "Size"):
        assert charset.said(dataset, "PatientName") == name.text
        # Where pydicom lost the bytes, UTF-8 holds the text.
        assert charset.declared(dataset).spelled == ("ISO_IR 192" if case in TRAPS else name.terms)


# --- Items of sequences ---------------------------------------------------------------------------------------------


def _with_items(dataset: Dataset, _: int) -> None:
    dataset.SpecificCharacterSet = "GB18030"
    dataset.PatientName = "Wang^A"
    dataset[Tag("ReferringPhysicianIdentificationSequence")] = DataElement(
        Tag("ReferringPhysicianIdentificationSequence"), "SQ", [_person("", "医院".encode("gb18030"))]
    )
    dataset[Tag("OtherPatientIDsSequence")] = DataElement(
        Tag("OtherPatientIDsSequence"), "SQ", [_person("ISO_IR 100", "Hôpital".encode("latin-1"))]
    )


def _person(terms: str, raw: bytes) -> Dataset:
    item = Dataset()
    if terms:
        item.SpecificCharacterSet = terms
    item[Tag("InstitutionName")] = text_of("InstitutionName", raw)
    item.PatientID = "P-2"
    return item


@pytest.mark.parametrize("title", ["Size", WORDS])
@pytest.mark.parametrize("decoded", [False, True])
def test_items_are_in_the_set_of_the_object_or_their_own(tmp_path: Path, title: str, decoded: bool) -> None:
    phantom = phantoms.make(tmp_path, edit=_with_items, lesions=1)
    header = phantom.source.ordered[0].header
    if decoded:
        assert header.ReferringPhysicianIdentificationSequence[0].InstitutionName == "医院"
    for dataset in objects_with(phantom, title):
        (physician,) = dataset.ReferringPhysicianIdentificationSequence
        (patient,) = dataset.OtherPatientIDsSequence
        utf_8 = title != "Size"
        assert dataset.SpecificCharacterSet == ("ISO_IR 192" if utf_8 else "GB18030")
        assert bytes_of(physician, "InstitutionName") == "医院".encode("utf-8" if utf_8 else "gb18030")
        assert bytes_of(patient, "InstitutionName") == "Hôpital".encode("utf-8" if utf_8 else "latin-1")
        assert patient.get("SpecificCharacterSet") == (None if utf_8 else "ISO_IR 100")
        assert (physician.InstitutionName, patient.InstitutionName) == ("医院", "Hôpital")
    assert header.OtherPatientIDsSequence[0].SpecificCharacterSet == "ISO_IR 100"


# --- Sets that nobody knows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", UNKNOWN)
def test_a_name_in_an_unknown_set_is_not_guessed(tmp_path: Path, terms: str) -> None:
    phantom = phantoms.make(tmp_path, edit=in_set(terms, b"Buc^J\xe9r"), lesions=1)
    header = phantom.source.ordered[0].header
    assert charset.unreadable(header) == (
        f"the Specific Character Set '{terms}' is none that PS3.3 C.12.1.1.2 knows, "
        "and the patient's name is written in it"
    )
    copy = copied.complete_header(header)
    assert "SpecificCharacterSet" not in copy
    assert (copy.PatientName, copy.ReferringPhysicianName, copy.get("StudyDescription")) == ("", "", None)
    assert (copy.PatientID, copy.AccessionNumber) == ("P-0001", "A-77")
    for title in ("Size", WORDS):  # so is the report of the answer that it is unsuitable
        for dataset in objects_with(phantom, title):
            assert dataset.get("SpecificCharacterSet") == (None if title.isascii() else "ISO_IR 192")
            assert dataset["PatientName"].is_empty


@pytest.mark.parametrize("terms", UNKNOWN)
def test_ascii_keeps_its_meaning_in_an_unknown_set(tmp_path: Path, terms: str) -> None:
    phantom = phantoms.make(tmp_path, edit=in_set(terms, b"Buc^Jerome"), lesions=1)
    assert charset.unreadable(phantom.source.ordered[0].header) == ""
    for dataset in objects_with(phantom, "Size"):
        assert "SpecificCharacterSet" not in dataset
        assert (str(dataset.PatientName), dataset.StudyDescription) == ("Buc^Jerome", "Buc^Jerome")


def test_an_escape_sequence_in_an_unknown_set_is_not_ascii(tmp_path: Path) -> None:
    phantom = phantoms.make(tmp_path, edit=in_set("ISO_IR 999", b"Yamada=\x1b$B;3ED\x1b(B"))
    assert charset.unreadable(phantom.source.ordered[0].header)


@pytest.mark.parametrize(
    ("keyword", "words"), [("AccessionNumber", "the accession number"), ("PatientID", "the patient's ID")]
)
def test_the_reason_names_what_can_not_be_read_and_not_its_value(tmp_path: Path, keyword: str, words: str) -> None:
    def edit(dataset: Dataset, _: int) -> None:
        dataset.SpecificCharacterSet = "WHATEVER"
        dataset[Tag(keyword)] = text_of(keyword, b"Geheim\xe9")

    reason = charset.unreadable(phantoms.make(tmp_path, edit=edit).source.ordered[0].header)
    assert reason.endswith(f"and {words} is written in it")
    assert "Geheim" not in reason


def test_a_description_that_can_not_be_read_is_left_out_and_no_reason(tmp_path: Path) -> None:
    def edit(dataset: Dataset, _: int) -> None:
        dataset.SpecificCharacterSet = "WHATEVER"
        dataset[Tag("StudyDescription")] = text_of("StudyDescription", b"Geheim\xe9")

    phantom = phantoms.make(tmp_path, edit=edit)
    assert charset.unreadable(phantom.source.ordered[0].header) == ""
    for dataset in objects_with(phantom, "Size"):
        assert "StudyDescription" not in dataset
        assert str(dataset.PatientName) == "Phantom^Test"


# --- The proof ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["Arabic", "GBK without a set"])
def test_the_proof_sees_a_single_wrong_byte_of_a_name(tmp_path: Path, case: str) -> None:
    name = STANDARD.get(case)
    terms, raw = name[:2] if name else BROKEN[case]
    phantom = phantoms.make(tmp_path, edit=in_set(terms, raw), lesions=1)
    header = phantom.source.ordered[0].header
    for made in objects_of(phantom):
        known = {made.sop_instance_uid, *(one.sop_instance_uid for one in phantom.source.ordered)}
        at = made.content.index(raw, made.content.index(b"\x10\0\x10\0PN")) + len(raw) - 1
        wrong = made.content[:at] + bytes([raw[-1] - 1]) + made.content[at + 1 :]
        with pytest.raises(Fault, match="another PatientName"):
            proof._prove_identity(dcmread(io.BytesIO(wrong)), made, header, known)


# --- The parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spelled", "terms"),
    [
        ("", ()),
        ("\\", ()),
        ("ISO_IR 6", ()),
        ("ISO 2022 IR 6", ()),
        ("ISO IR 100", ("ISO_IR 100",)),
        ("ISO_IR_100", ("ISO_IR 100",)),
        ("ISO_IR 100\0", ("ISO_IR 100",)),
        ("iso-ir 192", ("ISO_IR 192",)),
        ("gb18030", ("GB18030",)),
        ("ISO_2022_IR_87", ("ISO 2022 IR 87",)),
        (r"\ISO-2022-IR-149", ("", "ISO 2022 IR 149")),
        ("ISO_IR 6\\ISO 2022 IR 87\\", ("", "ISO 2022 IR 87")),
        (r"GB18030\ISO 2022 IR 58", ("GB18030",)),
    ],
)
def test_terms_are_spelled_rightly(spelled: str, terms: tuple[str, ...]) -> None:
    header = Dataset()
    header[Tag("SpecificCharacterSet")] = text_of("SpecificCharacterSet", spelled.encode())
    found = charset.declared(header)
    assert (found.terms, found.known) == (terms, True)


@pytest.mark.parametrize(
    "spelled",
    [*UNKNOWN, "ISO_IR 14", "ISO_IR 87", "ISO_IR 100\xe9", "ISO-2022-JP", "latin-1", "hex", "GB18030 2000", "?"],
)
def test_terms_that_are_none_are_not_known(spelled: str) -> None:
    header, tag = Dataset(), Tag("SpecificCharacterSet")
    header[tag] = RawDataElement(tag, "CS", len(spelled), spelled.encode("latin-1"), 0, False, True)
    assert not charset.declared(header).known


@pytest.mark.parametrize("case", READABLE)
def test_a_value_of_each_set_is_understood(case: str) -> None:
    name = READABLE[case]
    header = Dataset()
    header[Tag("SpecificCharacterSet")] = text_of("SpecificCharacterSet", name.terms.encode())
    assert charset.decode(name.raw, charset.declared(header), "PN") == name.text


def test_a_line_begins_in_the_first_set_and_so_does_a_value() -> None:
    sets = Declared(terms=("", "ISO 2022 IR 149"))
    again = b"\x1b$)C\xc8\xab\r\n\x1b$)C\xb1\xe6"
    assert charset.decode(again, sets, "LT") == "홍\r\n길"
    for raw, vr in ((b"\x1b$)C\xc8\xab\r\n\xb1\xe6", "LT"), (b"\x1b$)C\xc8\xab\\\xb1\xe6", "LO")):
        assert charset.decode(raw, sets, vr) is None
    assert charset.decode(b"\x1b$)C\xc8\xab\\\xb1\xe6", sets, "LT") == "홍\\길"  # where it delimits nothing


def _kept(raw: bytes | None, *, readable: bool = True) -> charset.Kept:
    kept = charset.Kept(Tag("PatientName"), "PN", "A")
    kept.raw, kept.text = raw, "A" if readable else None
    return kept


@pytest.mark.parametrize(
    ("terms", "copied", "ascii_words", "answer"),
    [
        ((), [], True, ((), False)),
        ((), [], False, (("ISO_IR 192",), False)),
        ((), [_kept(b"\xe9", readable=False)], True, ((), False)),
        ((), [_kept(b"\xe9", readable=False)], False, ((), True)),
        (("GB18030",), [_kept(b"A")], True, (("GB18030",), False)),
        (("GB18030",), [_kept(b"A")], False, (("ISO_IR 192",), False)),
        (("GB18030",), [_kept(b"A"), _kept(b"\xe9", readable=False)], False, (("GB18030",), True)),
        (("ISO_IR 192",), [_kept(b"\xe9", readable=False)], False, (("ISO_IR 192",), False)),
        (("GB18030",), [_kept(None)], True, (("ISO_IR 192",), False)),
    ],
)
def test_the_set_that_is_written(
    terms: tuple[str, ...], copied: list[charset.Kept], ascii_words: bool, answer: tuple[tuple[str, ...], bool]
) -> None:
    assert charset.writing_set(Declared(terms=terms), copied, words_are_ascii=ascii_words) == answer


def test_texts_that_no_set_holds_are_not_written() -> None:
    copied = [_kept(None), _kept(b"\xe9", readable=False)]
    with pytest.raises(Unreadable):
        charset.writing_set(Declared(terms=("GB18030",)), copied, words_are_ascii=True)
