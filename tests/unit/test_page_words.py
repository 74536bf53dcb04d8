"""The page in two languages: everything that is said is in the catalogue, and nothing else is."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from typing import Any

import pytest
from jinja2 import Environment, nodes

from service import codes
from service.analysis.select import NoSeriesFits, select
from service.api import queues
from service.api.page import banner, pictures, rendered, routes
from service.api.page.words import LANGUAGES, Words, catalogue, language_of, matching, split
from service.config import Config
from service.deliveries import said as of_delivery
from service.intake.complete import Known, Looked, Next, Stack, judge
from service.intake.counted import Count, CountedSeries
from service.results.identity import DISCLAIMER
from service.results.planes import WINDOWS
from service.retention import why_kept
from service.settings.intake import Query, Source
from service.types import Completeness, DeliveryState, Outcome, Priority, Step, StudyState
from tests.phantoms import CORONAL, OBLIQUE, SAGITTAL
from tests.support import REPOSITORY
from tests.unit import test_select as of_series

PAGE = REPOSITORY / "service" / "api" / "page"
TEMPLATES = sorted((PAGE / "templates").glob("*.html"))
LATIN = re.compile(r"[A-Za-z]{2,}")
PLACE = re.compile(r"\{\w+\}")
# What stays as it is in Chinese too: names, abbreviations of the standard, settings, commands.
NAMES = {
    "zh",
    *(
        "UID",
        "Study",
        "Instance",
        "MiB",
        "GiB",
        "Overread",
        "ECHO",
        "GPU",
        "Triton",
        "CT",
        "MR",
        "SEG",
        "SR",
        "mm",
        "ml",
    ),
    *(
        "overread",
        "check",
        "retention",
        "sources",
        "days",
        "engine",
        "receiver",
        "died",
        "health",
        "ready",
        "ms",
        "confirm",
        "Success",
        "none",
    ),
}


@cache
def said_by_templates() -> set[str]:
    """The sentences that templates hand to `t`."""
    found = set()
    for path in TEMPLATES:
        for call in Environment().parse(path.read_text("utf-8")).find_all(nodes.Call):
            if isinstance(call.node, nodes.Name) and call.node.name == "t" and isinstance(call.args[0], nodes.Const):
                found.add(call.args[0].value)
    return found


def said_by_code() -> Iterator[str]:
    """The sentences that the page's code hands to `t`."""
    everything = banner.Facts(
        parts=dict.fromkeys((*banner._PARTS, "another"), "away"),
        queues=[{"name": "a", "states": {"refused": 1}, "line": "pausing"}],
        in_vain=1,
        silent=["a"],
    )
    loading = banner.Facts(parts={"models": "models: they are being loaded"})
    for notice in (*banner.notices(everything), *banner.notices(loading)):
        yield from (notice.found, notice.way_out)
    yield from (banner.WELL, routes.NO_UID, routes.NOT_NOW)
    yield from rendered.DONE.values()
    yield from (*WINDOWS, pictures.AUTO)
    yield from ("{n} s", "{n} min", "{n} h", "{n} d")


def test_every_sentence_of_the_page_is_in_the_catalogue_and_no_other() -> None:
    assert len(said_by_templates()) > 80
    assert said_by_templates() | set(said_by_code()) == set(catalogue().page)


def test_the_sign_in_page_has_its_words() -> None:
    """It belongs to the doors, and is said in the page's languages by `rendered.say`."""
    found = set()
    for path in (PAGE.parent / "pages").glob("*.html"):
        found |= set(re.findall(r"t\('([^']+)'\)", path.read_text("utf-8")))
    if found:  # where there is such a page
        found |= set(re.findall(r'problem="([^"]+)"', (PAGE.parent / "signin.py").read_text("utf-8")))
        assert found == set(catalogue().signin)


class _Text(HTMLParser):
    """Collects what a reader would see."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def handle_data(self, data: str) -> None:
        self.seen.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen += [value or "" for name, value in attrs if name in ("alt", "title", "aria-label", "placeholder")]


def test_nothing_is_written_in_a_template_that_is_not_in_the_catalogue() -> None:
    for path in TEMPLATES:
        parser = _Text()
        text = re.sub(r"\{% macro to\(.*?endmacro %\}", "", path.read_text("utf-8"))  # makes an address
        parser.feed(re.sub(r"\{[{%#].*?[}%#]\}", "", text, flags=re.DOTALL))
        assert not set(LATIN.findall(" ".join(parser.seen))) - NAMES, path.name


@pytest.mark.parametrize("part", ["page", "said", "signin"])
def test_a_translation_has_the_places_of_its_sentence_and_no_english(part: str) -> None:
    for english, chinese in getattr(catalogue(), part).items():
        assert sorted(PLACE.findall(english)) == sorted(PLACE.findall(chinese)), english
        assert not set(LATIN.findall(PLACE.sub("", chinese))) - NAMES, chinese
        assert PLACE.sub("", english) != PLACE.sub("", chinese) or not LATIN.search(PLACE.sub("", english)), english


def sentences_of_completeness() -> Iterator[str]:
    """What `judge` says of every mixture of what may be known."""
    asked = Source(ae_title="A", query=Query(ae_title="A", host="h", port=104), quiet_seconds=30, limit_seconds=300)
    silent = Source(ae_title="A", quiet_seconds=30, limit_seconds=300)
    sets = Source(**{**dict(asked), "modalities": ("CT",)})
    ct, mr = "1.2.3", "1.2.4"
    one = CountedSeries(series_instance_uid=ct, modality="CT", instances=5)
    counts = [
        None,
        Count(),
        Count(study_instances=5, study_series=1),
        Count(study_instances=5, study_series=3),
        Count(study_series=2),
        Count(series=(one,), study_instances=5),
        Count(series=(replace(one, instances=None),)),
        Count(series=(replace(one, instances=None, modality=""),), study_instances=9),
        Count(series=(replace(one, instances=3),)),
        Count(series=(replace(one, instances=0),)),
        Count(series=(one, CountedSeries(series_instance_uid=mr, modality="MR", instances=None))),
        Count(series=(one,), study_series=4),
        Count(series=(CountedSeries(series_instance_uid=mr, modality="MR", instances=2),)),
        Count(series=(one, CountedSeries(series_instance_uid=mr, modality="", instances=2))),
        Count(series=(*tuple(replace(one, series_instance_uid=f"1.{n}") for n in range(3, 20)), one)),
    ]
    stack = Stack(series_instance_uid=ct, modality="CT", instances=3)
    looks = [
        None,
        Looked(stacks=(stack,)),
        Looked(stacks=(replace(stack, missing=2),), gone=1),
        Looked(stacks=(replace(stack, expected=9), replace(stack, duplicates=2)), unreadable=1),
        Looked(stacks=(replace(stack, duplicates=2),), unreadable=1),
    ]
    for source, count, held, looked, quiet, fresh, asking, asks, problem in itertools.product(
        (asked, silent, sets),
        counts,
        ({ct: 5}, {ct: 3}, {ct: 5, mr: 1}, {}),
        looks,
        (0.05, 10.0, 60.0, 999.0),
        (True, False),
        (True, False),
        (0, 3),
        ("", "no answer"),
    ):
        known = Known(
            quiet_for=quiet, held=held, count=count, is_fresh=fresh and count is not None, looked=looked, asks=asks,
            is_asking=asking, was_asked=fresh, problem=problem, gone=int(asks > 0), since_asked=0.1,
        )  # fmt: skip
        verdict = judge(known, source)
        yield verdict.reason
        if verdict.next is Next.START:
            yield f"{verdict.completeness}: {verdict.reason}"  # as the time line says it
    yield "its source counts fewer than are here, so its count may still grow (series 1.2.4: 1 here, none there)"


def sentences_of_queues() -> Iterator[str]:
    line = {"line": "pausing", "failures": 3, "next_try_in_seconds": 4.5, "reason": "refused. Way out: start it"}
    for states, each in itertools.product(({}, {"queued": 2, "retrying": 1, "sent": 3, "refused": 4}), ({}, line)):
        yield queues._explained(states, each)


NARROW: tuple[dict[str, Any], ...] = ({}, {"slices": [90, 99]}, {"slice_spacing_mm": [9.0, 9.5]})


def sentences_of_selection() -> Iterator[str]:
    """What is said of series, from `select` itself and the headers of its own tests."""
    made = [
        {},
        {"Modality": "MR"},
        {"Manufacturer": "Overread", "ManufacturerModelName": "Overread"},
        {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        {"ImageType": ["DERIVED", "PRIMARY"]},
        {"Rows": None},
        {"StudyDescription": "bone"},
        {"BodyPartExamined": "FOOT"},
        {"BodyPartExamined": None},
        {"BodyPartExamined": None, "StudyDescription": None},
        {"ContrastBolusAgent": None},
        {"ImageOrientationPatient": CORONAL},
        {"ImageOrientationPatient": SAGITTAL},
        {"ImageOrientationPatient": OBLIQUE},
    ]
    rules: list[dict[str, Any]] = [
        {**of_series.RULES, "contrast": contrast, "silent_series": False, **more}
        for contrast, more in itertools.product(("any", "required", "none", "preferred"), NARROW)
    ]
    for attributes, rule in itertools.product(made, rules):
        several = [of_series._series(uid, **attributes) for uid in ("1.2.1", "1.2.9")]
        try:
            chosen = select(of_series._study(*several), of_series._spec(**rule))
            yield chosen.why
            excluded = chosen.excluded
        except NoSeriesFits as exc:
            excluded = exc.excluded
        yield from (each.reason for each in excluded)


NOTHING_OR_IMAGES_GONE: tuple[dict[str, Any], ...] = ({}, {"sources_at": None})


def sentences_of_retention() -> Iterator[str]:
    """What is kept, and for how long."""
    done: dict[str, Any] = {
        "state": "done",
        "done_at": 0.0,
        "sources_at": 0.0,
        "evidence_gone_at": None,
        "records_gone_at": None,
    }
    waits = [{"destination": "pacs", "state": "refused"}]
    for gone, state, now, deliveries in itertools.product(
        NOTHING_OR_IMAGES_GONE, ("done", "analysing"), (1.0, 4e7), ([], waits)
    ):
        yield why_kept(done | gone | {"state": state, "deliveries": deliveries}, Config(), now=now)


ELSEWHERE = [  # what other modules put together only when much has happened: what stands there, what it makes
    ("receiving processes run", "1 of 2 receiving processes run"),
    ("it does not look for studies", "it does not look for studies"),
    ("does not answer", "triton does not answer"),
    (
        "are kept free: new instances are refused",
        "1.0 GiB free, 2 are kept free: new instances are refused",
    ),
    ("they are being loaded", "models: they are being loaded"),
    ("files can't be read, or were removed", "2 of 3 files can't be read, or were removed"),
    ("the destination has committed to it",) * 2,
    ("the destination finds it",) * 2,
    ("sent; by its settings nobody asks whether it is there",) * 2,
    ("stored; asked to commit to it, for at most", "stored; asked to commit to it, for at most 900 s"),
    ("no commitment came in time; it is asked for again",) * 2,
    ("stored with Success, and not to be found there yet",) * 2,
    ("stored with Success, and not to be found there; it is sent again",) * 2,
    ("C-ECHO is answered: the connection is well", "status 1. C-ECHO is answered: the connection is well"),
    ("C-ECHO fails too: ", "status 1. C-ECHO fails too: no connection, or no answer"),
    ("no connection, or no answer",) * 2,
    ("start it, or correct host and port; results wait and are sent again",) * 2,
    ("ask its vendor why it refuses this object",) * 2,
    ("make room there",) * 2,
]


def sentences_of_the_rest() -> Iterator[str]:
    text = "".join(path.read_text("utf-8") for path in (REPOSITORY / "service").rglob("*.py"))
    for part, sentence in ELSEWHERE:
        assert part in text, part
        yield sentence


class _Row:
    kind, model, destination = "SEG", "ct-x", "pacs"


def sentences() -> Iterator[str]:
    """Everything that the service says and the page shows in both languages."""
    yield from sentences_of_completeness()
    yield from sentences_of_queues()
    yield from sentences_of_selection()
    yield from sentences_of_the_rest()
    yield from sentences_of_retention()
    for values in (StudyState, Step, Outcome, DeliveryState, Completeness):
        yield from values
    yield from (priority.name.lower() for priority in Priority)
    yield from (*rendered.SHAPES, *banner._PARTS)
    yield from ("viewer", "operator", "admin", DISCLAIMER, "it is tried again")
    yield from (code.meaning for code in codes.CAUSES.values())
    for status in (codes.SUCCEEDED, codes.PARTIALLY_SUCCEEDED, codes.FAILED, codes.NOT_ATTEMPTED):
        yield status.meaning
    for summary in (
        codes.ALL_ALGORITHMS_WITH_FINDINGS, codes.ALL_ALGORITHMS_NO_FINDINGS, codes.NO_ALGORITHM_SUCCEEDED,
        codes.NOT_ALL_WITH_FINDINGS, codes.NOT_ALL_NO_FINDINGS,
    ):  # fmt: skip
        yield summary.meaning
    yield from (codes.LEFT.meaning, codes.RIGHT.meaning)
    yield from (f"ct-x: {outcome}" for outcome in Outcome)
    for why in ("", "dropped by an operator"):
        yield of_delivery(_Row(), why)  # type: ignore[arg-type]
    yield from ("it was just received, or the models are still being loaded", "from 1", "by 1")


OTHERS = {
    "status",
    "ct",
    "pacs",
    "no",
    "answer",
    "refused",
    "start",
    "it",
    "triton",
    "FOOT",
    "CHEST",
    "LUNG",
}  # of these tests


def words_left(sentence: str) -> set[str]:
    return set(LATIN.findall(Words("zh").said(sentence))) - NAMES - OTHERS


def test_what_the_service_says_is_said_in_chinese() -> None:
    for sentence in set(sentences()):
        assert not words_left(sentence), (sentence, Words("zh").said(sentence))


def keys_of(sentence: str, depth: int = 4) -> Iterator[str]:
    """The keys of the catalogue with which a sentence is said."""
    whole = matching(sentence)
    for part in [sentence] if whole and "; " in whole[0] else split(sentence):
        found = matching(part)
        if found and depth:
            yield found[0]
            for value in found[2].values():
                yield from keys_of(value, depth - 1)


def test_nothing_of_the_service_is_in_the_catalogue_that_nobody_says() -> None:
    said = {key for sentence in set(sentences()) for key in keys_of(sentence)}
    models = {
        meaning
        for toml in (REPOSITORY / "models").glob("*/model.toml")
        for meaning in re.findall(r'"([^"]*)"\]', toml.read_text("utf-8"))
    }
    assert set(catalogue().said) - said - models == set()


def test_what_is_not_known_stays_as_it_is() -> None:
    words = Words("zh")
    assert words.said("something quite new") == "something quite new"
    assert words.said("something new; nothing waits").startswith("something new")
    assert Words("en").said("nothing waits") == "nothing waits"
    assert words.said("x" * 5000) == "x" * 5000
    assert split("a (b; c); d") == ["a (b; c)", "d"]


def test_a_finding_of_each_installed_model_has_its_name() -> None:
    for toml in (REPOSITORY / "models").glob("*/model.toml"):
        text = toml.read_text("utf-8")
        for meaning in re.findall(r'^(?:finding|site) = \["[^"]*", "[^"]*", "([^"]*)"\]', text, re.MULTILINE):
            assert matching(meaning) or meaning == "Normal", meaning


@pytest.mark.parametrize(
    ("wanted", "kept", "accepted", "language"),
    [
        ("zh", "en", "en", "zh"),
        ("", "zh", "en", "zh"),
        ("<script>", "", "zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("", "", "en-GB,zh;q=0.9", "en"),
        ("", "", "de,zh;q=0.3,en;q=0.2", "zh"),
        ("", "", "fr;q=x,de", "en"),
        ("", "", "", "en"),
    ],
)
def test_the_language_is_asked_for_chosen_or_the_browsers(wanted: str, kept: str, accepted: str, language: str) -> None:
    assert language_of(wanted, kept, accepted) == language
    assert language in LANGUAGES


def test_ages_are_one_number() -> None:
    words = Words("en")
    assert [words.age(it) for it in (-5, 5, 125, 7300, 200_000)] == ["0 s", "5 s", "2 min", "2 h", "2 d"]
