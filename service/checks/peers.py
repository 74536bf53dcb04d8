"""The peers: each destination answers and accepts what results need, each source can be asked."""

from __future__ import annotations

from pydicom.uid import generate_uid

from service.checks.types import Checks
from service.config import Config
from service.errors import ConfigError
from service.intake import sources
from service.results.choice import everything, preview
from service.results.deliver import echo
from service.results.negotiate import negotiate, no_receipt
from service.results.presence import Reference, is_present
from service.settings.destinations import Destination
from service.settings.intake import Source


def checks(config: Config) -> Checks:
    """Those of who gets results, and of who sends studies."""
    if not config.destinations:
        yield "destinations", lambda: "none: results are kept here and shown by the API, and sent nowhere"
    for destination in config.destinations:
        yield f"destination {destination.name}", lambda d=destination: _answers(d, config)  # type: ignore[misc]
    for source in config.sources:
        yield f"source {source.ae_title}", lambda s=source: _can_be_asked(s, config)  # type: ignore[misc]


def _answers(destination: Destination, config: Config) -> str:
    echo(destination, our_ae_title=config.intake.ae_title)
    accepted = negotiate(destination, our_ae_title=config.intake.ae_title)
    ideal = preview(destination.profile, everything)
    actual = preview(destination.profile, lambda *pair: pair in accepted)
    remarks = [*actual.remarks]
    lacking = no_receipt(destination, accepted)
    if lacking:
        remarks.append(lacking)
    if lacking or (ideal.objects and not actual.objects):
        raise ConfigError(
            doing=f"asking {destination.name} what it accepts",
            found="; ".join(remarks),
            rule="results go in the forms of its profile or the next best ones, and are confirmed as `confirm` says",
            way_out=f"allow these there, or see overread probe {destination.name}; or change `confirm`",
        )
    if destination.qido_url and destination.confirm != "none":
        study, series, sop = (str(generate_uid(prefix=None)) for _ in range(3))  # what nobody has
        nothing = Reference(study_instance_uid=study, series_instance_uid=series, sop_instance_uid=sop)
        is_present(nothing, destination, our_ae_title=config.intake.ae_title)
    kinds = ", ".join(dict.fromkeys(made.kind for made in actual.objects)) or "no results, as its profile says"
    said = f"{destination.ae_title} at {destination.host}:{destination.port} answers and gets {kinds}"
    return "; ".join([said, *remarks])


def _can_be_asked(source: Source, config: Config) -> str:
    """Ask a source about a study that it does not have."""
    if not source.query and not source.qido_url:
        return "only the clock tells when a study of it is whole: neither query nor qido_url is set"
    sources.ask(generate_uid(prefix=None), source, our_ae_title=config.intake.ae_title)
    return "it can be asked how much of a study there is"
