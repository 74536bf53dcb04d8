"""``overread models validate``: is a model folder right, does it run, and what is missing for it to go live.

A line for each thing, with the way out where it is not well. What no program can judge (whether the figures of the card
hold for a site's own patients) is said at the end.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from service import vocabulary
from service.analysis.schedule import Scheduler
from service.demo.fitting import write_fitting
from service.errors import ConfigError, ServiceError
from service.graph import hold
from service.models import model_of, network_file
from service.pipeline import analyse
from service.repository import differences
from service.run import read_folder
from service.show import console
from service.spec import ModelSpec, read_spec
from service.types import Backend, Model, Outcome

# What a card must tell, and the headings under which it is sought.
_CARD = {
    "intended use": r"intended|\buse\b|what it (is|does|finds)",
    "data": r"\bdata|train",
    "limits": r"limit|fail|caveat",
}
_LIVE = (
    "What is not judged here: whether its figures hold for your scanners and patients. Run it on your own cases beside "
    "your own reading first; the decision to use it is yours."
)


class Line(NamedTuple):
    """One thing that was looked at."""

    level: Literal["ok", "warning", "WRONG"]
    name: str
    words: str
    way_out: str = ""


def validate(folder: Path, *, models_directory: Path, open_backend: Callable[[], Backend]) -> int:
    """Judge a model folder, and print a line for each thing.

    Parameters
    ----------
    models_directory
        Where its further networks are sought that do not lie beside it, and where it belongs.
    open_backend
        Opens the backend on which it is tried.

    Returns
    -------
    int
        0 only if nothing is wrong; warnings do not count.
    """
    lines = []
    for line in examine(folder, models_directory=models_directory, open_backend=open_backend):
        lines.append(line)
        style = {"ok": "green", "warning": "yellow"}.get(line.level, "bold red")
        console.print(f"[{style}]{line.level:7}[/] {line.name}: ", end="", highlight=False, soft_wrap=True)
        console.print(line.words, markup=False, highlight=False, soft_wrap=True)
        if line.way_out:
            console.print(f"        way out: {line.way_out}", markup=False, highlight=False, soft_wrap=True)
    wrong = [line.name for line in lines if line.level == "WRONG"]
    doubtful = [line.name for line in lines if line.level == "warning"]
    if wrong:
        console.print(f"It can't go live. To be mended: {', '.join(wrong)}.", soft_wrap=True)
    if doubtful:
        console.print(f"To be looked at before it goes live: {', '.join(doubtful)}.", soft_wrap=True)
    if not wrong:
        console.print(_LIVE, soft_wrap=True)
    return int(bool(wrong))


def examine(folder: Path, *, models_directory: Path, open_backend: Callable[[], Backend]) -> Iterator[Line]:
    """What is to be said of a model folder, in the order in which it is looked at; see `validate`."""
    folder = folder.resolve()
    try:
        spec = read_spec(folder)
    except ServiceError as exc:
        yield _wrong("model.toml", exc)
        return
    yield Line("ok", "model.toml", f"{spec.name} {spec.version}: {spec.title} ({spec.task})")
    yield _licence(spec.licence)
    for number, known in enumerate(spec.classes):
        for role in vocabulary.GROUPS:
            verdict = vocabulary.judge(getattr(known, role), role)
            yield Line(verdict.level, f"classes.{number}.{role}", verdict.words, verdict.way_out)
    yield from _card(folder / "card.md")
    directories = (folder.parent, models_directory)
    try:
        model = model_of(spec, folder, *directories)
    except ServiceError as exc:
        yield _wrong("weights", exc)
        return
    yield _pinned(model)
    right = True
    for network in model.networks:
        try:
            opset = hold(network)
        except ServiceError as exc:
            right = False
            yield _wrong(f"network {network.name}", exc)
        else:
            yield Line("ok", f"network {network.name}", f"its tensors are those of model.toml, opset {opset}")
        yield _triton(spec, network.name, network.file.parent.parent / "config.pbtxt")
    if right:
        yield from _run(model, open_backend)
    if network_file(models_directory, spec.name).parent.parent.resolve() != folder:
        yield Line(
            "warning",
            "installed",
            f"it does not lie in the models directory {models_directory}",
            f"overread models install {folder}",
        )


def _licence(given: str) -> Line:
    name = "licence"
    try:
        proper = canonicalize_license_expression(given)
    except InvalidLicenseExpression:
        return Line(
            "WRONG",
            name,
            f"{given!r} is no SPDX licence expression",
            "write its SPDX identifier (spdx.org/licenses), or LicenseRef-... where it has none",
        )
    if proper != given:
        return Line("warning", name, f"{given!r} is spelled {proper!r}", f'licence = "{proper}"')
    if re.search(r"LicenseRef|-NC\b|-NC-|NonCommercial", given):
        return Line("warning", name, f"{given}: perhaps not for use at your site", "read it, and ask its owner")
    return Line("ok", name, given)


def _card(file: Path) -> Iterator[Line]:
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        yield Line("WRONG", "card.md", "it is missing, or not UTF-8", f"write it, with {', '.join(_CARD)}")
        return
    sections = re.split(r"^#+ ", text, flags=re.MULTILINE)[1:]
    said = [heading.lower() for heading, _, body in (section.partition("\n") for section in sections) if body.strip()]
    missing = [what for what, pattern in _CARD.items() if not any(re.search(pattern, heading) for heading in said)]
    if missing:
        yield Line(
            "WRONG",
            "card.md",
            f"it has no section on {', '.join(missing)}",
            "write them under headings of these names: people decide by them whether the model may be used",
        )
    else:
        yield Line("ok", "card.md", f"it tells {', '.join(_CARD)}")


def _pinned(model: Model) -> Line:
    unpinned = [network for network in model.networks if network.name not in model.spec.source.onnx_sha256]
    if not unpinned:
        return Line("ok", "weights", "every network is the one that model.toml pins")
    pins = " ".join(f'{network.name} = "{network.sha256}"' for network in unpinned)
    return Line(
        "warning", "weights", "other weights under this name would not be noticed", f"[source.onnx_sha256] {pins}"
    )


def _triton(spec: ModelSpec, network: str, file: Path) -> Line:
    name, stage = f"{network}/config.pbtxt", spec.networks()[network]
    if not file.is_file():
        return Line(
            "warning", name, "it is missing: only a Triton server needs it", "overread models install writes it"
        )
    assert stage.input  # a network stage has one
    found = differences(file.read_text("utf-8", errors="replace"), network, stage.input, stage.outputs)
    if found:
        return Line("warning", name, "; ".join(found), "make it say what model.toml says, or delete it")
    return Line("ok", name, "it says what model.toml says")


def _run(model: Model, open_backend: Callable[[], Backend]) -> Iterator[Line]:
    """Load it, and run it once on a phantom, through to the results and their proof."""
    spec = model.spec
    try:
        backend = open_backend()
    except ServiceError as exc:
        yield _wrong("backend", exc)
        return
    scheduler = Scheduler(backend)
    try:
        for network in model.networks:
            envelope = backend.load(network)
            yield Line(
                "ok",
                f"network {network.name}",
                f"it runs on {envelope.device}: {envelope.resident_bytes / 2**30:.2f} GiB loaded, "
                f"{envelope.batch_bytes[1] / 2**30:.2f} GiB and {envelope.batch_seconds[1]:.3f} s for a patch",
            )
        scheduler.add(model)
        yield _on_a_phantom(model, scheduler)
    except ServiceError as exc:
        yield _wrong("run", exc)
    except Exception as exc:  # what goes wrong in an unforeseen way is still a line, not the end
        yield Line("WRONG", "run", f"{type(exc).__name__} while {spec.name} ran", "tell those who make Overread")
    finally:
        scheduler.close()


def _on_a_phantom(model: Model, scheduler: Scheduler) -> Line:
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            write_fitting(model.spec, Path(scratch))
        except ConfigError as exc:
            return Line("warning", "run", f"{exc.found}: {exc.rule}", exc.way_out)
        (study,) = read_folder(Path(scratch))
        evidence = analyse(study, [model], scheduler, progress=_silent)
    (answer,) = evidence.answers
    seconds = time.perf_counter() - began
    if answer.outcome is Outcome.FAILED:
        return Line("WRONG", "run", f"on a phantom it failed: {answer.reason}", "see the log line model.failed")
    if answer.outcome is Outcome.UNSUITABLE:
        return Line(
            "warning",
            "run",
            f"it takes no phantom: {answer.reason}",
            f"run it on a real series of yours: overread run FOLDER --model {model.spec.name}",
        )
    made = " and ".join(dict.fromkeys(made.kind for made in answer.objects))
    count = len(answer.findings)
    counted = f"{count} finding{'s' * (count > 1)}" if count else "no finding"
    return Line("ok", "run", f"on a phantom: {counted}, {made} made and proved, {seconds:.1f} s")


def _silent(*, model: str, stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def _wrong(name: str, exc: ServiceError) -> Line:
    return Line("WRONG", name, f"{exc.found}; {exc.rule}", exc.way_out)
