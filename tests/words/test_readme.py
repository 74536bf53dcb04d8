"""What the README and the models' page say is so: tables, commands, settings, links."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from service.__main__ import _parser
from service.config import Config, read_config
from service.errors import ConfigError
from tests.support import REPOSITORY
from tests.words import tables

PAGES = {page: page.read_text("utf-8") for page in tables.PAGES}
TEXT = PAGES[REPOSITORY / "README.md"]
ALL = "\n".join(PAGES.values())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_tables_are_those_of_the_code(page: Path) -> None:
    assert tables.filled(PAGES[page]) == PAGES[page], "run: python -m tests.words.tables"


def test_each_table_stands_on_one_page() -> None:
    assert sorted(re.findall(r"<!-- table: (\w+) -->", ALL)) == sorted(tables.tables())


@pytest.mark.parametrize("line", sorted(set(re.findall(r"^ *(overread [^#\n]+)", ALL, re.MULTILINE))))
def test_every_command_shown_is_one(line: str) -> None:
    _parser().parse_args(shlex.split(line)[1:])


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`make (\w+)`", TEXT))))
def test_every_make_target_named_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)


LINKS = {(page, path) for page, text in PAGES.items() for path in re.findall(r"\]\(([^)#:\s]+)\)", text)}


@pytest.mark.parametrize(("page", "path"), sorted(LINKS))
def test_every_link_leads_somewhere(page: Path, path: str) -> None:
    assert (page.parent / path).exists()


def test_the_example_of_a_sites_file_holds_the_defaults(tmp_path: Path) -> None:
    example = read_config(REPOSITORY / "deploy" / "overread.toml")
    site = {"destinations": (), "sources": (), "analysis": None, "store": None}
    assert example.model_copy(update=site) == Config().model_copy(update={"analysis": None, "store": None})
    in_readme = re.search(r"```toml\n(\[intake\].*?)```", TEXT, re.DOTALL)
    assert in_readme
    (tmp_path / "overread.toml").write_text(in_readme[1])
    assert read_config(tmp_path / "overread.toml").destinations == example.destinations


def test_a_misspelt_example_would_be_noticed(tmp_path: Path) -> None:
    (tmp_path / "overread.toml").write_text("[intake]\nquiet_second = 3\n")
    with pytest.raises(ConfigError):
        read_config(tmp_path / "overread.toml")


def test_no_path_of_a_developers_machine_is_named() -> None:
    assert not re.search(r"(^|[\s\"'`(])/(work|root|tmp|home)/", ALL)
