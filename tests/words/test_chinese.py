"""The Chinese README is the English one: as many parts, and the same commands, names, numbers and links in each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.support import REPOSITORY

PICTURES = {"deploy/page.png": "deploy/page-zh.png"}  # those with words in them


@dataclass
class Block:
    """A paragraph, a list's item, a picture, a table, or code (fenced, indented or drawn)."""

    kind: str
    lines: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join(line.strip() for line in self.lines)


@dataclass
class Section:
    """A heading and what stands under it, up to the next one."""

    level: int
    title: str
    blocks: list[Block] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Its words, without its code."""
        prose = (block.text for block in self.blocks if block.kind not in ("fenced", "indented", "drawn"))
        return "\n".join((self.title, *prose))

    @property
    def tables(self) -> list[list[list[str]]]:
        """Its tables, as rows of cells; the line under a table's head is one of them."""
        found = (block.lines for block in self.blocks if block.kind == "table")
        return [[re.split(r"(?<!\\)\|", line[1:-1]) for line in lines] for lines in found]


def _sections(text: str) -> Iterator[Section]:
    section, block = Section(0, ""), None
    for line in re.sub(r"<a id=.*?></a>|<!-- .*? -->", "", text).splitlines():
        if block and block.kind == "fenced":
            block.lines.append(line)
            block = None if line == "```" else block
        elif heading := re.match(r"(#+) (.*)", line):
            yield section
            section, block = Section(len(heading[1]), heading[2]), None
        elif not line.strip():
            block = None
        elif block and not re.match(r"- |\d+\. |```", line):
            block.lines.append(line)
            block.kind = "drawn" if block.kind == "indented" and "│" in line else block.kind
        else:
            section.blocks.append(block := Block(_kind(line), [line]))
    yield section


def _kind(line: str) -> str:
    kinds = {"```": "fenced", "    ": "indented", r"\|": "table", r"!\[": "picture", "- ": "item", r"\d+\. ": "item"}
    return next((kind for begin, kind in kinds.items() if re.match(begin, line)), "paragraph")


ENGLISH = (REPOSITORY / "README.md").read_text("utf-8")
CHINESE = (REPOSITORY / "README.zh.md").read_text("utf-8")
EN, ZH = list(_sections(ENGLISH)), list(_sections(CHINESE))
each_section = pytest.mark.parametrize(
    ("en", "zh"), [pytest.param(en, zh, id=en.title or "top") for en, zh in zip(EN, ZH, strict=False)]
)


def test_each_names_the_other_under_its_title() -> None:
    assert ENGLISH.split("\n\n")[:2] == ["# Overread", "English | [简体中文](README.zh.md)"]
    assert CHINESE.split("\n\n")[:2] == ["# Overread", "[English](README.md) | 简体中文"]


def test_the_headings_are_of_the_same_levels() -> None:
    assert [section.level for section in EN] == [section.level for section in ZH]


@each_section
def test_a_section_has_the_same_parts_in_the_same_order(en: Section, zh: Section) -> None:
    assert [block.kind for block in zh.blocks] == [block.kind for block in en.blocks]


@each_section
def test_code_and_commands_are_equal_up_to_their_comments(en: Section, zh: Section) -> None:
    assert _commands(zh) == _commands(en)


def _commands(section: Section) -> list[str]:
    lines = [line for block in section.blocks if block.kind in ("fenced", "indented") for line in block.lines]
    return [re.sub(r"(^|\s+)# ?.*", "", line) for line in lines]


def test_the_way_of_a_study_has_the_same_steps() -> None:
    assert len(_steps(EN)) > 8
    assert _steps(ZH) == _steps(EN)


def _steps(sections: list[Section]) -> list[str]:
    drawn = [line for section in sections for block in section.blocks if block.kind == "drawn" for line in block.lines]
    found = (re.match(r"(?: +PACS \S+)?[^A-Za-z]*([A-Za-z]+(?:, SR)?)  ", line) for line in drawn)
    return [step[1] for step in found if step]


@each_section
def test_a_section_names_the_same_code(en: Section, zh: Section) -> None:
    assert _code(zh.text) == _code(en.text)


def _code(text: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", text))


@each_section
def test_a_sections_tables_have_the_same_rows(en: Section, zh: Section) -> None:
    for english, chinese in zip(en.tables, zh.tables, strict=True):
        assert [len(row) for row in chinese] == [len(row) for row in english]
        for row, said in zip(english, chinese, strict=True):
            assert _code(said[0]) == _code(row[0])
            assert Counter(_numbers(" ".join(said))) == Counter(_numbers(" ".join(row))), row[0]


@each_section
def test_a_section_has_the_same_numbers(en: Section, zh: Section) -> None:
    assert set(_numbers(zh.text)) == set(_numbers(en.text))


def _numbers(text: str) -> list[str]:
    return re.findall(r"[0-9]+(?:[.,][0-9]+)*", text)


@each_section
def test_a_section_has_the_same_links_and_pictures(en: Section, zh: Section) -> None:
    assert Counter(_links(zh)) == Counter(PICTURES.get(link, link) for link in _links(en))


def _links(section: Section) -> list[str]:
    other = {"README.md", "README.zh.md"}
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", section.text) if link not in other]


@pytest.mark.parametrize("link", sorted({link for section in ZH for link in _links(section)}))
def test_every_link_leads_somewhere(link: str) -> None:
    path, _, anchor = link.partition("#")
    assert path or f'<a id="{anchor}"></a>\n#' in CHINESE, "a heading in Chinese has another anchor of its own"
    assert (REPOSITORY / path).exists()
