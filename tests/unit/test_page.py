"""The pages: who sees and decides what, what is escaped, what is written down, and what is not kept any more."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from service import audit, evidence
from service.analysis.schedule import Scheduler
from service.api.app import create_app
from service.api.doors import Caller
from service.api.page import rendered, routes
from service.api.seen import Seen
from service.config import Config
from service.intake.study import read_instance
from service.models import installed
from service.pipeline import analyse
from service.run import read_folder
from service.settings.destinations import Destination
from service.settings.store import StoreSection
from service.store import Store
from service.tables import database_url
from service.types import Delivery, DeliveryState, Step
from tests.bare import BareBackend
from tests.snapshots import snapshot
from tests.toys import bright_study, write_classification_model, write_detection_model, write_model

SCRIPT, BOLD = "<script>alert(1)</script>", "<b>A</b>"
OURS = {"Origin": "http://127.0.0.1:8080", "Host": "127.0.0.1:8080"}


@dataclasses.dataclass(kw_only=True)
class Made:
    """A service that has answered one study; nothing runs."""

    client: TestClient
    store: Store
    folder: Path
    study: str
    numbers: list[int]
    parts: dict[str, str]
    accessed: list[dict[str, str]]

    def get(self, path: str, **headers: str) -> str:
        answer = self.client.get(path, headers=headers)
        assert answer.status_code == 200, (path, answer.text)
        return str(answer.text)

    def post(self, path: str, **fields: Any) -> Any:
        return self.client.post(path, data=fields, headers=OURS, follow_redirects=False)


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A study with the ball, and what models of three tasks say of it."""
    folder = tmp_path_factory.mktemp("answered")
    bright_study(folder / "study")
    for write in (write_model, write_detection_model, write_classification_model):
        write(folder / "models")
    models = installed(folder / "models")
    scheduler = Scheduler(BareBackend())
    for model in models:
        scheduler.add(model)
    try:
        (study,) = read_folder(folder / "study")
        return folder, analyse(study, models, scheduler, progress=lambda **_: None)
    finally:
        scheduler.close()


@pytest.fixture
def made(tmp_path: Path, answered: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    source, found = answered
    store = Store(database_url(tmp_path, ""))
    store.create_tables()
    study = found.study_instance_uid
    shutil.copytree(source / "study", tmp_path / "spool" / study)
    for path in sorted((tmp_path / "spool" / study).iterdir()):
        header = read_instance(path)
        store.keep_instance(
            study_uid=study,
            series_uid=str(header.header.SeriesInstanceUID),
            sop_uid=header.sop_instance_uid,
            class_uid=header.sop_class_uid,
            sha256="0" * 64,
            path=path,
            now=time.time(),
            source=BOLD,
        )
    (receiving,) = store.receiving()
    assert store.begin_analysis(study, 0, last_at=receiving.last_at, judged="its source knows <i>all</i>")
    frozen = evidence.freeze(tmp_path, found, 0)
    bodies = {body["model"]: (body["outcome"], body) for body in evidence.frozen_answers(frozen)}
    bodies["bright"][1]["notes"].append(SCRIPT)
    deliveries = [
        Delivery(
            delivery_id=0, study_instance_uid=study, destination="pacs", model=answer.model.name, kind=made.kind,
            sop_class_uid=made.sop_class_uid, series_instance_uid=made.series_instance_uid,
            sop_instance_uid=made.sop_instance_uid, path=frozen / evidence.object_name(answer, made),
            state=DeliveryState.QUEUED, attempts=0, reason="", queued_at=time.time(),
        )
        for answer in found.answers for made in answer.objects if made.kind in ("SEG", "SR")
    ]  # fmt: skip
    assert store.save_answers(study, 0, answers=bodies, deliveries=deliveries)
    numbers = [row["delivery_id"] for row in store.deliveries()]
    store.note_delivery(numbers[0], DeliveryState.REFUSED, reason=f'refused "><img src=x onerror={SCRIPT}>', tried=True)
    parts = dict.fromkeys(("database", "disk"), "")
    peer = Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=9, timeout_seconds=1)
    seen = Seen(
        config=Config(store=StoreSection(directory=tmp_path), destinations=(peer,)),
        store=store,
        readiness=lambda: dict(parts),
        progress=lambda _: {},
        waiting=lambda _: None,
        lines=dict,
        snapshot=snapshot,
        networks=lambda: [{"name": "bright", "version": "1.0", "broken": "", "networks": []}],
    )
    accessed: list[dict[str, str]] = []
    monkeypatch.setattr(audit, "accessed", lambda **fields: accessed.append(fields))
    with TestClient(create_app(seen), base_url="http://127.0.0.1:8080", raise_server_exceptions=False) as client:
        yield Made(
            client=client, store=store, folder=tmp_path, study=study, numbers=numbers, parts=parts, accessed=accessed
        )
    store.close()


class _Elements(HTMLParser):
    """The elements of a page, with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


PAGES = ("/", "/studies/{study}", "/models", "/destinations")


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_page_is_small_strict_and_escaped(path: str, language: str, made: Made) -> None:
    """Nothing inline, nothing from elsewhere, nothing that came from outside as an element."""
    text = made.get(path.format(study=made.study) + f"?lang={language}")
    assert len(text.encode()) < 60_000
    assert f'<html lang="{language}">' in text
    assert "{" not in re.sub(r"<script.*?</script>", "", text), "a place that nothing was put into"
    for tag, attributes in _Elements(text).found:
        assert tag not in ("style", "b" if attributes.get("onerror") else "i", "iframe", "object"), tag
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)
        for name in ("src", "href", "action"):
            assert (attributes.get(name) or "/").startswith(("/", "?", "#")), (tag, attributes)
        assert tag != "script" or attributes == {"src": "/static/page.js", "defer": None}
    scripts = sum(len(made.client.get(f"/static/{name}").content) for name in ("page.js", "page.css"))
    assert scripts < 20_000


@pytest.mark.parametrize(("language", "words"), [("en", "There is no such page"), ("zh", "没有这个页面")])
def test_an_address_that_is_none_is_a_page_for_a_person(language: str, words: str, made: Made) -> None:
    answer = made.client.get("/patients?name=Quill", headers={"Accept": "text/html", "Accept-Language": language})
    assert (answer.status_code, answer.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert words in answer.text
    assert '<a href="/">' in answer.text
    assert "{" not in answer.text


def test_what_a_button_could_not_do_is_said_on_a_page_in_four_parts(made: Made) -> None:
    answer = made.client.post("/deliveries/retry", headers=OURS | {"Accept": "text/html"})
    assert (answer.status_code, answer.headers["content-type"]) == (422, "text/html; charset=utf-8")
    for said in ("That did not work", "neither deliveries nor a destination", "what a page asks for", "go back"):
        assert said in answer.text


@pytest.mark.parametrize("path", ["/patients", "/api/v1/studies/9.9", "/health/nothing", "/static/nothing"])
def test_a_program_gets_a_problem_that_it_can_read(path: str, made: Made) -> None:
    answer = made.client.get(path, headers={"Accept": "text/html" if path != "/patients" else "*/*"})
    assert answer.status_code in (404, 422)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["way_out"]


def test_models_that_are_being_loaded_are_not_broken(made: Made) -> None:
    made.parts["models"] = "models: they are being loaded"
    assert "loading" in _badges(made.get("/models"))
    assert "broken" not in _badges(made.get("/models"))
    made.parts["models"] = "bright: no such file"
    assert "broken" in _badges(made.get("/models"))


def _badges(text: str) -> list[str]:
    return re.findall(r'<span class="badge \w+"><span [^>]*>.</span> ([^<]+)</span>', text)


def test_what_came_from_outside_is_shown_as_text(made: Made) -> None:
    text = made.get(f"/studies/{made.study}")
    for shown in (SCRIPT, BOLD, "<i>all</i>", '"><img src=x onerror='):
        assert shown not in text
    for escaped in ("&lt;script&gt;alert(1)", "&lt;b&gt;A&lt;/b&gt;", "&#34;&gt;&lt;img"):
        assert escaped in text
    assert "&lt;b&gt;A&lt;/b&gt;" in made.get("/")
    assert "&#34;&gt;&lt;img" in made.get("/destinations")


def test_no_name_of_a_patient_is_on_any_page(made: Made) -> None:
    header = read_instance(next((made.folder / "spool" / made.study).iterdir())).header
    for path in PAGES:
        text = made.get(path.format(study=made.study))
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber"):
            assert not header.get(keyword) or str(header[keyword].value) not in text, keyword


def test_the_worklist_filters_and_pages(made: Made) -> None:
    row = f'href="/studies/{made.study}"'
    assert row in made.get("/")
    for query, is_there in (
        ("state=undelivered", False), ("state=delivering", True), ("model=bright", True), ("model=other", False),
        (f"text={made.study}", True), ("text=1.2.3", False), ("state=<script>", True), ("page=2", False),
    ):  # fmt: skip
        assert (row in made.get(f"/?{query}")) is is_there, query
    refused = made.get("/?text=<script>alert(1)</script>")
    assert routes.NO_UID in refused
    assert "<script>alert" not in refused
    assert made.client.get("/?page=0").status_code == 422


def test_a_study_that_nobody_knows_is_a_page_too(made: Made) -> None:
    for path in ("/studies/1.2.3", "/studies/..%2f..%2fetc", "/studies/%3Cscript%3E"):
        answer = made.client.get(path)
        assert answer.status_code == 404
        assert "<script>" not in answer.text.replace("<script src", "")
    assert "worklist" in made.client.get("/studies/1.2.3").text


def test_a_studys_page_says_all_that_is_known(made: Made) -> None:
    text = made.get(f"/studies/{made.study}")
    for said in (
        "Research use only, not for diagnosis", "All algorithms succeeded", "It looks for: Lesion (Liver).",
        "11.41 ml", "29.3 \N{MULTIPLICATION SIGN} 29.3 mm", "99 %", "11.41 ml", "first instance", "answered",
        "axial, 20 slices", "Try again", "Drop", "Send the results once more",
    ):  # fmt: skip
        assert said in text, said
    assert f"/api/v1/studies/{made.study}/files/bright.SEG.binary.dcm" in text
    for file in re.findall(rf'/api/v1/studies/{made.study}/files/[^"]+', text):
        assert made.client.get(file).status_code == 200


@pytest.mark.parametrize("model", ["bright", "boxes", "slices"])
def test_each_finding_has_its_pictures(model: str, made: Made) -> None:
    text = made.get(f"/studies/{made.study}?finding={model}/1&window=lung")
    pictures = re.findall(r'<img src="([^"]+)"', text)
    assert len(pictures) == 5
    for address in pictures:
        assert f"/{model}/1/" in address
        answer = made.client.get(address)
        assert answer.headers["content-type"] == "image/png"
        assert max(Image.open(io.BytesIO(answer.content)).size) >= 400


def test_a_window_changes_the_picture_and_no_number_is_taken(made: Made) -> None:
    address = f"/studies/{made.study}/pictures/bright/1/whole.png?window="
    assert made.client.get(address + "lung").content != made.client.get(address + "bone").content
    for wrong in ("40,400", "..", "lung&number=1/../2"):
        assert made.client.get(address + wrong).status_code == 422 or "lung" in wrong
    for path in ("bright/9/whole", "nobody/1/whole", "bright/x/whole", "bright/1/other", "bright/-1/axial"):
        assert made.client.get(f"/studies/{made.study}/pictures/{path}.png").status_code in (404, 422)


def test_the_frozen_picture_is_shown_where_the_images_are_gone(made: Made) -> None:
    with made.store._engine.begin() as tx:
        from service.tables import STUDIES

        tx.execute(STUDIES.update().values(sources_at=None))
    shutil.rmtree(made.folder / "spool")
    text = made.get(f"/studies/{made.study}?finding=bright/1")
    assert "no longer kept, so this is the picture that was frozen" in text
    assert f'<img src="/api/v1/studies/{made.study}/files/bright-1.png"' in text
    answer = made.client.get(f"/studies/{made.study}/pictures/bright/1/whole.png")
    assert answer.status_code == 404
    assert "no longer kept" in answer.json()["detail"]


def test_a_damaged_report_costs_nothing_else(made: Made) -> None:
    for path in (made.folder / "evidence" / made.study / "0").glob("*.SR*"):
        path.write_bytes(b"no DICOM")
    text = made.get(f"/studies/{made.study}")
    assert "11.41 ml" in text
    assert "All algorithms succeeded" not in text


def test_a_view_is_one_line_of_the_audit_trail(made: Made) -> None:
    for _ in range(3):
        made.get(f"/studies/{made.study}")
        made.client.get(f"/studies/{made.study}/pictures/bright/1/whole.png")
    assert [(it["study_uid"], it.get("action", "R")) for it in made.accessed] == [(made.study, "R")]


def test_an_operator_decides_and_it_is_written_down(made: Made) -> None:
    number, study = made.numbers[0], made.study
    answer = made.post("/deliveries/retry", number=number, study_uid=study)
    assert answer.status_code == 303
    assert answer.headers["location"] == f"/studies/{study}?done=retried&count=1"
    assert made.store.delivery(number).state is DeliveryState.RETRYING
    assert "tried again now: 1." in made.get(answer.headers["location"])
    assert made.post("/deliveries/drop", number=number).headers["location"].startswith("/destinations?done=dropped")
    assert made.store.delivery(number).state is DeliveryState.DROPPED
    assert "done=nothing" in made.post("/deliveries/drop", number=number).headers["location"]
    assert made.post(f"/studies/{study}/urgency", priority=0).status_code == 303
    assert (made.store.study(study) or {})["priority"] == 0
    made.store.note_delivery(made.numbers[1], DeliveryState.CONFIRMED)
    assert "done=resent" in made.post(f"/studies/{study}/resend").headers["location"]
    assert "done=rerun" in made.post(f"/studies/{study}/rerun").headers["location"]
    assert "done=cancelled" in made.post(f"/studies/{study}/cancel").headers["location"]
    steps = [it["step"] for it in made.store.steps(study)]
    assert {Step.RESENT, Step.DROPPED, Step.RERUN, Step.CANCELLED, Step.URGENCY} <= set(steps)
    assert [it.get("action") for it in made.accessed].count("U") == 6


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/deliveries/retry", {}),
        ("/deliveries/retry", {"number": 1, "destination": "pacs"}),
        ("/deliveries/retry", {"number": 10**20}),
        ("/deliveries/other", {"number": 1}),
        ("/studies/{study}/urgency", {"priority": 7}),
        ("/studies/x/rerun", {}),
        ("/destinations", {"kind": "destination", "name": "nobody"}),
        ("/destinations", {"kind": "other", "name": "pacs"}),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(path: str, fields: dict[str, Any], made: Made) -> None:
    answer = made.post(path.format(study=made.study), **fields)
    assert answer.status_code in (404, 422)
    assert answer.json()["way_out"]


def test_a_page_of_another_site_decides_nothing(made: Made) -> None:
    answer = made.client.post(
        "/deliveries/drop", data={"number": made.numbers[0]}, headers={"Origin": "http://evil.example"}
    )
    assert answer.status_code == 403
    assert made.store.delivery(made.numbers[0]).state is DeliveryState.REFUSED


def test_an_echo_says_in_words_what_is_wrong(made: Made) -> None:
    text = made.post("/destinations", kind="destination", name="pacs").text
    assert "pacs does not answer:" in text


def test_a_viewer_has_no_buttons(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    original = rendered.page

    def as_viewer(template: str, request: Any, caller: Caller, *rest: Any, **more: Any) -> Any:
        return original(template, request, dataclasses.replace(caller, role="viewer", name="v"), *rest, **more)

    assert 'method="post"' in made.get("/destinations")
    monkeypatch.setattr(routes, "page", as_viewer)
    for path in PAGES:
        text = made.get(path.format(study=made.study))
        forms = re.findall(r'<form method="post" action="([^"]+)"', text)
        assert forms == ["/signout"], path


def test_the_banner_is_there_even_without_a_database(made: Made) -> None:
    made.parts["database"] = "OperationalError"
    for table in ("deliveries", "studies"):
        with made.store._engine.begin() as tx:
            tx.exec_driver_sql(f"ALTER TABLE {table} RENAME TO gone_{table}")
    answer = made.client.get("/")
    assert answer.status_code == 503
    assert "The database does not answer (OperationalError)" in answer.text
    assert routes.NOT_NOW.replace("'", "&#39;") in answer.text
    assert json.dumps(made.parts)
    assert "The database does not answer" in made.get("/models")


def test_the_language_is_kept_in_a_cookie(made: Made) -> None:
    assert "Worklist" in made.get("/")
    assert "检查列表" in made.get("/", **{"Accept-Language": "zh-CN,zh;q=0.9"})
    answer = made.client.get("/?lang=zh")
    assert "httponly" in answer.headers["set-cookie"].lower()
    assert "检查列表" in made.get("/")
    assert "Worklist" in made.get("/?lang=en")
    assert 'href="?state=done&amp;lang=zh"' in made.get("/?state=done&lang=en")
