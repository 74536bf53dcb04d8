"""The operations page of a running service, in a real Chromium: looked at, walked through by keyboard, attacked.

One service answers a study with the toy model, for a real Orthanc and for an archive that refuses everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydicom import config, dcmread
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import CTImageStorage, Verification  # type: ignore[attr-defined]

from service.requestor import steady
from service.run import read_folder
from tests.acceptance.conftest import Orthanc, Service
from tests.browser.browsed import Browsed
from tests.support import free_port
from tests.toys import bright_study, write_model

SCRIPT, IMAGE = "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>'
PAGES = ("/", "/studies/{study}", "/destinations", "/models")


@dataclass(kw_only=True)
class Archive:
    """Refuses what it is sent, until it is told otherwise."""

    port: int
    status: int = 0xA900

    def start(self) -> Any:
        ae = AE("ARCHIVE")
        ae.supported_contexts = AllStoragePresentationContexts
        ae.add_supported_context(Verification)
        return ae.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda _: self.status)]
        )


@dataclass(kw_only=True)
class Site:
    """What runs, with a browser before it."""

    service: Service
    archive: Archive
    browse: Browsed
    folder: Path
    study: str  # answered, with findings
    other: str  # its texts are an attack
    sent: list[Path]

    def send(self, folder: Path, calling: str) -> str:
        """Push a folder's images; the study's UID."""
        ae = AE(calling)
        ae.add_requested_context(CTImageStorage)
        association = ae.associate("127.0.0.1", self.service.dicom_port, ae_title="OVERREAD")
        assert association.is_established
        steady(association)
        for path in sorted(folder.iterdir()):
            assert association.send_c_store(dcmread(path)).Status == 0
        association.release()
        return read_folder(folder)[0].study_instance_uid

    def shot(self, name: str, *, full: bool = False) -> None:
        """Keep a picture of what is seen, for whoever wants to look."""
        self.browse("picture", file=str(self.folder / f"{name}.png"), full=full)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("page")
    write_model(folder / "models")
    service = Service(folder=folder, models=folder / "models")
    orthanc = Orthanc(folder=folder / "orthanc").knows(service)
    archive = Archive(port=free_port())
    server = archive.start()
    try:
        orthanc.start()
        service.add_destination("ORTHANC", orthanc.port)
        service.add_destination("ARCHIVE", archive.port, name="archive", more='confirm = "none"')
        service.start()
        bright_study(folder / "good")
        bright_study(folder / "evil", seed=1, SeriesDescription=SCRIPT, ProtocolName=IMAGE, StudyDescription=IMAGE)
        _add_a_series_of_a_strange_modality(folder / "evil")
        with Browsed(f"http://127.0.0.1:{service.http_port}", folder / "browser") as browse:
            made = Site(service=service, archive=archive, browse=browse, folder=folder, study="", other="", sent=[])
            made.study = made.send(folder / "good", "SENDER")
            made.other = made.send(folder / "evil", "<IMG SRC=X ON=Y>")  # sixteen characters, all allowed (PS3.5 6.2)
            for study in (made.study, made.other):
                service.wait_for_study(study, "undelivered")
            yield made
    finally:
        if service.process and service.process.poll() is None:
            service.stop()
        server.shutdown()
        orthanc.stop()


def _add_a_series_of_a_strange_modality(folder: Path) -> None:
    """One image whose Modality is an element of HTML: the reason why it is left out repeats it."""
    image = dcmread(sorted(folder.iterdir())[0])
    with pytest.warns(UserWarning, match="CS"):
        image.Modality = "<B ONCLICK=X>"
    image.SeriesInstanceUID += ".9"
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID + ".9"
    before, config.settings.writing_validation_mode = config.settings.writing_validation_mode, config.IGNORE
    try:
        image.save_as(folder / "strange.dcm")
    finally:
        config.settings.writing_validation_mode = before


def test_the_worklist_shows_each_study_and_keeps_itself_fresh(site: Site) -> None:
    browse = site.browse
    assert "Worklist" in browse("open", path="/")
    row = browse("text", selector=f'[id="s{site.study}"]')
    for said in (f"…{site.study[-10:]}", "undelivered", "SENDER", "bright", "findings", "1", "routine", "min ago"):
        assert said in row.replace(" s ago", " min ago"), (said, row)
    banner = browse("text", selector="#banner")
    assert "were refused for good by the destination archive" in banner
    assert "try again, or drop them" in banner
    site.shot("worklist")
    # Somebody types and has scrolled while something changes: neither is lost, and the change is seen.
    browse("size", width=1280, height=400)
    browse("value", selector="input[name=text]", value="1.2.3")
    browse("focus", selector="input[name=text]")
    scrolled = browse("scroll", to=120)
    browse("wait", selector="#studies", words="ago")
    assert browse("focused")["tag"] == "INPUT"
    assert browse("value", selector="input[name=text]") == "1.2.3"
    assert browse("scroll", to=scrolled) == scrolled
    browse("size", width=1280, height=900)


def test_what_changes_is_seen_without_a_reload(site: Site) -> None:
    browse = site.browse
    browse("open", path=f"/studies/{site.study}")
    browse("focus", selector="select[name=priority]")
    store = site.service.folder / "var" / "overread.sqlite"
    import sqlite3

    with sqlite3.connect(store, timeout=60) as database:
        database.execute("UPDATE studies SET source = 'CHANGED' WHERE study_uid = ?", (site.study,))
    browse("wait", selector="#state", words="CHANGED")
    assert browse("focused")["tag"] == "SELECT", "the focus stays where it was"


def test_a_studys_page_shows_its_findings(site: Site) -> None:
    browse = site.browse
    browse("open", path=f"/studies/{site.study}")
    pictures = browse("pictures")
    assert len(pictures) == 5
    for picture in pictures:
        assert min(picture["width"], picture["height"]) >= 100, picture
        assert picture["alt"].endswith("Lesion 1, Liver")
        wide, high = picture["shown"]
        assert wide > 100, picture
        assert high > 100, picture
    assert "Research use only, not for diagnosis" in browse("text", selector="main")
    site.shot("study", full=True)
    assert "window=bone" in browse("click", selector=".windows a:has-text('bone')")
    assert len([it for it in browse("pictures") if it["width"]]) == 5
    assert not browse("troubles")


def test_the_way_to_a_finding_by_keyboard_alone(site: Site) -> None:
    """From the worklist: Tab and Enter, and at every step it is seen where one is."""
    browse = site.browse
    browse("open", path="/")
    assert browse("press", key="Tab")["words"] == "Skip to the content"
    assert browse("focused")["seen"]
    browse("press", key="Enter")
    assert _tab_to(site, f"/studies/{site.study}")
    browse("press", key="Enter")
    browse("wait", selector="h1", words=site.study[-10:])
    assert _tab_to(site, "?finding=bright%2F1#pictures") or _tab_to(site, "?finding=bright/1#pictures")
    browse("press", key="Enter")
    assert _tab_to(site, "window=lung")
    browse("press", key="Enter")
    browse("wait", selector=".windows [aria-current]", words="lung")
    assert "window=lung" in browse("focused")["address"]
    assert not browse("troubles")


def _tab_to(site: Site, href: str) -> bool:
    """Press Tab until a link has the focus; each stop on the way has a ring around it."""
    for _ in range(80):
        at = site.browse("press", key="Tab")
        assert at["ring"] or at["tag"] in ("BODY", "MAIN"), at
        if href in at["href"]:
            return True
    return False


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_stands_in_anybodys_way(path: str, language: str, dark: bool, site: Site) -> None:
    """axe-core finds nothing serious, nothing is refused by the policy, nothing is asked elsewhere, no error."""
    browse = site.browse
    browse("scheme", dark=dark)
    browse("open", path=path.format(study=site.study) + f"?lang={language}")
    browse("pictures")
    assert not browse("axe")
    assert not browse("troubles")
    browse("scheme", dark=False)
    if language == "zh":
        site.shot(f"zh-{path.strip('/').partition('/')[0] or 'worklist'}", full=True)
        browse("open", path="/?lang=en")


@pytest.mark.parametrize("path", PAGES)
def test_it_fits_on_a_phone(path: str, site: Site) -> None:
    browse = site.browse
    browse("size", width=360, height=740)
    try:
        browse("open", path=path.format(study=site.study))
        browse("pictures")
        site.shot(f"phone-{path.strip('/').partition('/')[0] or 'worklist'}", full=True)
        found = browse("overflow")
        assert found["by"] <= 0, found
        assert not browse("axe")
    finally:
        browse("size", width=1280, height=900)


def test_texts_of_the_images_run_nothing(site: Site) -> None:
    """Descriptions, a Modality and a calling AE title that are HTML: shown as text, or not at all."""
    browse = site.browse
    for path in PAGES:
        browse("open", path=path.format(study=site.other))
        browse("pictures")
        assert not browse("troubles"), path
        assert browse("count", selector="main script, [onerror], [onclick], img[src=x], b[onclick]") == 0
    browse("open", path=f"/studies/{site.other}")
    assert "<B ONCLICK=X>" in browse("text", selector=".series"), "the attack came so far"
    assert "<IMG SRC=X ON=Y>" in browse("text", selector="#state")


def test_an_echo_and_the_refused_are_decided_by_buttons(site: Site) -> None:
    browse = site.browse
    browse("open", path="/destinations")
    browse("click", selector="#q-archive button:has-text('C-ECHO')")
    assert "archive answered in" in browse("text", selector="[role=status].done")
    browse("open", path=f"/studies/{site.study}")
    site.archive.status = 0x0000  # its administrator has mended it
    browse("click", selector="#deliveries tr:has-text('refused') button:has-text('Try again')")
    assert "Deliveries are tried again now: 1." in browse("text", selector=".done")
    browse("wait", selector="#deliveries tr:has-text('archive')", words="unconfirmed")
    browse("open", path="/destinations")
    browse("click", selector="#q-archive button:has-text('Try all refused again')")
    assert "done=retried" in browse("focused")["address"]
    browse("wait", selector="#refusals", words="None was refused.")
    browse("wait", selector="#banner", words="All is well.")


def test_without_a_script_everything_is_there(site: Site) -> None:
    """What a browser without JavaScript gets is the whole page, and a way to see it anew."""
    text = site.service.get("/")
    assert f"/studies/{site.study}" in text
    assert '<noscript><meta http-equiv="refresh"' in text
