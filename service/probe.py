"""``overread probe``: what a destination accepts, what becomes of a specimen there, and the profile that suits it."""

from __future__ import annotations

import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from pydicom import dcmread
from rich.table import Table

from service.codes import uid_name
from service.config import read_config
from service.demo.specimen import PATIENT_ID, make_specimen
from service.errors import ConfigError, DeliveryError
from service.forms import Profile
from service.results import deliver, presence
from service.results.choice import preview, proposed
from service.results.negotiate import RESULTS, can_be_queried, commits, is_verified, negotiate
from service.settings.destinations import Destination
from service.show import console
from service.types import ResultObject

Pair = tuple[str, str]


def probe(path: Path, name: str, *, send: bool, wado: str) -> int:
    """Probe a destination of a configuration.

    Parameters
    ----------
    send
        Whether to send a phantom's images and results, marked as such; they stay there until somebody deletes them.
    wado
        Base URL of its DICOMweb service, to read back by WADO-RS (PS3.18 section 10.4) what was sent; empty: none.

    Returns
    -------
    int
        0 if results can get there in some form.

    Raises
    ------
    ConfigError
        If there is no such destination.
    """
    config = read_config(path)
    destination = config.destination(name)
    if destination is None:
        raise ConfigError(
            doing=f"looking for the destination {name} in {path}",
            found=f"these: {', '.join(known.name for known in config.destinations) or 'none'}",
            rule="a destination is named as in [[destinations]] name",
            way_out="name one of them, or add it to the file",
        )
    ours = config.intake.ae_title
    try:
        accepted = negotiate(destination, our_ae_title=ours)
        if is_verified(accepted):
            deliver.echo(destination, our_ae_title=ours)
        else:
            console.print("It accepts no C-ECHO (Verification), which a DICOM application should.", soft_wrap=True)
    except DeliveryError as exc:
        console.print(f"{destination.name}: {deliver.explain(exc)}", markup=False, soft_wrap=True)
        return 1
    became: dict[Pair, str] = {}
    if send:
        became = _send_specimen(destination, accepted, our_ae_title=ours, wado=wado)
    works = {pair for pair in accepted if not became.get(pair, "").startswith("refused")}
    console.print(_table(destination, accepted, became))
    console.print(_about_receipts(accepted), soft_wrap=True)
    return _propose(destination, works)


def _table(destination: Destination, accepted: frozenset[Pair], became: dict[Pair, str]) -> Table:
    table = Table(title=f"What {destination.name} ({destination.ae_title}) accepts", title_style="bold")
    for column in ("result", "transfer syntax", "accepted", *(["specimen"] if became else [])):
        table.add_column(column)
    for pair in RESULTS:
        words = [uid_name(pair[0]), uid_name(pair[1]), "yes" if pair in accepted else "no"]
        table.add_row(*words, *([became.get(pair, "not sent")] if became else []))
    return table


def _about_receipts(accepted: frozenset[Pair]) -> str:
    if commits(accepted):
        return "It offers storage commitment: results are confirmed by that, if it knows our AE title and address."
    if can_be_queried(accepted):
        return "It can be asked what it has (C-FIND): results are confirmed by that."
    return (
        "It offers neither storage commitment nor C-FIND: allow one of them, name its qido_url, "
        'or set confirm = "none".'
    )


def _propose(destination: Destination, works: set[Pair]) -> int:
    """Say what it would get with the present profile, and which profile suits it."""

    def accepts(sop_class: str, syntax: str) -> bool:
        return (sop_class, syntax) in works

    now = preview(destination.profile, accepts)
    kinds = ", ".join(dict.fromkeys(made.kind for made in now.objects)) or "nothing"
    console.print(
        f"With its present profile it gets {kinds}{''.join(f'; {remark}' for remark in now.remarks)}.", soft_wrap=True
    )
    best = proposed(accepts)
    gets_any = bool(preview(best, accepts).objects)
    if gets_any:
        console.print("Proposed, for this destination:", soft_wrap=True)
        console.print(f"profile = {as_toml(best)}", markup=False, highlight=False, soft_wrap=True)
    else:
        console.print("It accepts none of the results: allow one of these SOP classes there.", soft_wrap=True)
    return int(not gets_any)


def as_toml(profile: Profile) -> str:
    """A profile as an inline table; what is usual, but for the first three, is left out."""
    usual = Profile().model_dump()
    shown = {
        key: value
        for key, value in profile.model_dump().items()
        if key in ("seg", "sr", "capture") or value != usual[key]
    }
    return "{ " + ", ".join(f"{key} = {_toml(value)}" for key, value in shown.items()) + " }"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def _send_specimen(
    destination: Destination, accepted: frozenset[Pair], *, our_ae_title: str, wado: str
) -> dict[Pair, str]:
    """Send a phantom's images and results, look whether they are there, and read them back where that is possible."""
    became: dict[Pair, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        images, results = make_specimen(folder / "images")
        study_uid = str(dcmread(images[0], stop_before_pixels=True).StudyInstanceUID)
        console.print(
            f"Sending a phantom (PatientID {PATIENT_ID}, study {study_uid}): delete it there.", soft_wrap=True
        )
        refused = _send_images(images, destination, our_ae_title=our_ae_title)
        if refused:
            console.print(
                f"Its images are not taken ({refused}): viewers will have nothing to show results on.", soft_wrap=True
            )
        for number, made in enumerate(results):
            pair = (made.sop_class_uid, made.transfer_syntax_uid)
            if pair in accepted:
                path = folder / f"{number}.dcm"
                path.write_bytes(made.content)
                said = _send_one(made, path, study_uid, destination, accepted, our_ae_title=our_ae_title, wado=wado)
                if not became.get(pair, "").startswith("refused"):
                    became[pair] = said
    return became


def _send_images(images: Sequence[Path], destination: Destination, *, our_ae_title: str) -> str:
    """Why the images are not taken; empty if they are."""
    try:
        for path in images:
            header = dcmread(path, stop_before_pixels=True)
            deliver.send(path, str(header.SOPClassUID), destination, our_ae_title=our_ae_title)
    except DeliveryError as exc:
        return exc.found
    return ""


def _send_one(
    made: ResultObject,
    path: Path,
    study_uid: str,
    destination: Destination,
    accepted: frozenset[Pair],
    *,
    our_ae_title: str,
    wado: str,
) -> str:
    """What became of one result, in words."""
    try:
        remark = deliver.send(path, made.sop_class_uid, destination, our_ae_title=our_ae_title)
    except DeliveryError as exc:
        return f"refused: {exc.found}"
    words = [f"stored, {remark}" if remark else "stored"]
    if can_be_queried(accepted):
        words.append(_found(made, study_uid, destination, our_ae_title=our_ae_title))
    if wado:
        words.append(_read_back(made, study_uid, wado))
    return ", ".join(words)


def _found(made: ResultObject, study_uid: str, destination: Destination, *, our_ae_title: str) -> str:
    wanted = presence.Reference(
        study_instance_uid=study_uid,
        series_instance_uid=made.series_instance_uid,
        sop_instance_uid=made.sop_instance_uid,
    )
    how = "QIDO-RS" if destination.qido_url else "C-FIND"
    try:
        there = presence.is_present(wanted, destination, our_ae_title=our_ae_title)
    except DeliveryError as exc:
        return f"can't be asked for ({exc.found})"
    return f"found by {how}" if there else f"NOT found by {how}"


def _read_back(made: ResultObject, study_uid: str, wado: str) -> str:
    """Whether WADO-RS gives the object back with the same data set."""
    url = f"{wado.rstrip('/')}/studies/{study_uid}/series/{made.series_instance_uid}/instances/{made.sop_instance_uid}"
    accept = f'multipart/related; type="application/dicom"; transfer-syntax={made.transfer_syntax_uid}'
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept}), timeout=30) as reply:
            body: bytes = reply.read()
    except (urllib.error.URLError, OSError) as exc:
        return f"NOT read back by WADO-RS ({type(exc).__name__})"
    wanted = made.content[made.content.index(b"DICM") :]
    data_set = wanted[_meta_length(wanted) :]
    return "read back by WADO-RS" if data_set in body else "read back by WADO-RS, changed"


def _meta_length(after_prefix: bytes) -> int:
    """Length of "DICM" and the file meta group that follows it (PS3.10 section 7.1)."""
    return 4 + 12 + int.from_bytes(after_prefix[12:16], "little")
