"""The command line: ``overread serve``, ``check``, ``demo`` and what else ``overread --help`` names."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from service import __version__, log
from service.errors import ServiceError

if TYPE_CHECKING:
    from service.types import Backend

_STATES = ("queued", "retrying", "sent", "confirmed", "unconfirmed", "refused", "dropped", "replaced")
_BESIDE = Path(__file__).resolve().parent.parent / "models"
MODELS = _BESIDE if _BESIDE.is_dir() else Path("models")  # beside the package in a clone, else where one stands


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns
    -------
    int
        The exit code: 0 if it did what it was asked for, 1 if not, 2 for a command line that can't be understood.
    """
    options = _parser().parse_args(arguments)
    log.set_up()
    try:
        return int(options.run(options))
    except ServiceError as exc:
        print("\n".join(f"{name.replace('_', ' ')}: {text}" for name, text in exc.parts().items()), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="overread",
        description="AI beside the PACS. Models are for research and demonstration, not for diagnosis.",
    )
    parser.add_argument("--version", action="version", version=f"overread {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="run the service in the foreground")
    serve.add_argument("--config", type=Path, required=True, metavar="FILE", help="the site's overread.toml")
    serve.set_defaults(run=_serve)

    check = commands.add_parser("check", help="try everything that a configuration names, and say what is wrong")
    check.add_argument("--config", type=Path, required=True, metavar="FILE", help="the site's overread.toml")
    check.add_argument("--json", action="store_true", help="print it as JSON")
    check.set_defaults(run=_check)

    database = commands.add_parser("database", help="see, or migrate, the tables; serve does that by itself")
    database.add_argument("action", choices=("show", "upgrade"))
    database.add_argument("--config", type=Path, required=True, metavar="FILE", help="the site's overread.toml")
    database.set_defaults(run=_database)

    run = commands.add_parser("run", help="analyse a folder of DICOM files, without any network")
    run.add_argument("folder", type=Path, metavar="FOLDER", help="searched for DICOM files, with its subfolders")
    run.add_argument("--out", type=Path, required=True, metavar="DIR", help="where objects and pictures go")
    run.add_argument("--model", action="append", default=[], metavar="NAME", help="only this one; may be repeated")
    run.add_argument("--models-directory", type=Path, default=MODELS, metavar="DIR", help="default: %(default)s")
    run.add_argument(
        "--profile", default="", metavar="TOML", help="""which objects, e.g. 'seg = "labelmap", ko = true'"""
    )
    run.set_defaults(run=_run)

    probe = commands.add_parser("probe", help="what a destination accepts, and the profile that suits it")
    probe.add_argument("name", metavar="NAME", help="of a destination in the configuration")
    probe.add_argument("--config", type=Path, required=True, metavar="FILE", help="the site's overread.toml")
    probe.add_argument("--send", action="store_true", help="send a phantom's images and results there, marked as such")
    probe.add_argument("--wado", default="", metavar="URL", help="of its DICOMweb service: read back what was sent")
    probe.set_defaults(run=_probe)

    demo = commands.add_parser("demo", help="the whole way on this machine: PACS, service, study, results, pictures")
    demo.add_argument("folder", type=Path, nargs="?", metavar="FOLDER", help="a study; default: a CT phantom")
    demo.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="default: %(default)s")
    demo.add_argument("--models-directory", type=Path, default=MODELS, metavar="DIR", help="default: %(default)s")
    demo.add_argument("--stay", action="store_true", help="leave PACS, service and page up until Ctrl-C")
    demo.set_defaults(run=_demo)

    config = commands.add_parser("config", help="what is set").add_subparsers(required=True, metavar="ACTION")
    show = config.add_parser("show", help="every setting as it counts, where it is from, and no secret")
    show.add_argument("--config", type=Path, required=True, metavar="FILE", help="the site's overread.toml")
    show.add_argument("--json", action="store_true", help="print it as JSON")
    show.set_defaults(run=_config_show)

    token = commands.add_parser("token", help="make a token for somebody who asks the HTTP side")
    token.add_argument("name", metavar="NAME", help="who it is, for the audit trail")
    token.add_argument("--role", choices=("viewer", "operator", "admin"), required=True)
    token.set_defaults(run=_token)

    _deliveries_parser(commands.add_parser("deliveries", help="what has not arrived and why; try it again, or drop it"))
    _models_parser(commands.add_parser("models", help="list, install, judge, measure or remove models"))
    return parser


def _number(text: str) -> int:
    number = int(text)
    if not 1 <= number < 2**31:
        raise ValueError("no number of a delivery")
    return number


def _deliveries_parser(deliveries: argparse.ArgumentParser) -> None:
    actions = deliveries.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="deliveries in the order in which they go; default: what has not arrived")
    listing.add_argument("--state", action="append", default=[], choices=_STATES, help="only these; may be repeated")
    listing.add_argument("--limit", type=_number, default=100, help="default: %(default)s")
    listing.add_argument("--json", action="store_true", help="print it as JSON")
    listing.set_defaults(run=_deliveries_list)
    retry = actions.add_parser("retry", help="try deliveries again, at once")
    retry.set_defaults(run=_deliveries_retry)
    drop = actions.add_parser("drop", help="decide that deliveries are not to be sent")
    drop.add_argument("--reason", default="", metavar="TEXT", help="why; no patient data")
    drop.set_defaults(run=_deliveries_drop)
    for action in (retry, drop):
        action.add_argument("numbers", type=_number, nargs="*", metavar="NUMBER")
    for action in (listing, retry, drop):
        action.add_argument("--config", type=Path, required=True, metavar="FILE", help="the site's overread.toml")
        action.add_argument("--destination", default="", metavar="NAME", help="of list: its own; else its refused")


def _models_parser(models: argparse.ArgumentParser) -> None:
    from service.imports.arguments import add_arguments

    actions = models.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="the models of the directory, and what is known of them")
    listing.add_argument("--service", default="", metavar="URL", help="ask this running service what is loaded")
    listing.add_argument("--json", action="store_true", help="print it as JSON")
    listing.set_defaults(run=_models_list)
    install = actions.add_parser("install", help="install models of the directory, or others from a folder or wheel")
    install.add_argument("names", nargs="*", metavar="NAME|FOLDER|WHEEL")
    install.add_argument("--missing", action="store_true", help="all of the directory that are not installed yet")
    install.add_argument("--replace", action="store_true", help="put them in the place of what is installed already")
    install.set_defaults(run=_models_install)
    importing = actions.add_parser("import", help="make a model folder of a MONAI bundle or an nnU-Net export")
    add_arguments(importing, models_directory=MODELS)
    importing.set_defaults(run=_models_import)
    remove = actions.add_parser(
        "remove", help="take a model's weights away, or its folder if nothing could remake them"
    )
    remove.add_argument("name", metavar="NAME")
    remove.set_defaults(run=_models_remove)
    validate = actions.add_parser("validate", help="judge a model folder, and run it once on a phantom")
    validate.add_argument("folder", metavar="FOLDER", help="or the name of a model in the models directory")
    validate.set_defaults(run=_models_validate)
    bench = actions.add_parser("bench", help="patches per second of each network, scheduled and alone")
    bench.add_argument("names", nargs="*", metavar="NAME", help="default: all that are installed")
    bench.add_argument(
        "--seconds", type=float, default=2.0, help="of each of about a dozen measurements; default: %(default)s"
    )
    bench.set_defaults(run=_models_bench)
    for action in (listing, install, remove, validate, bench):
        action.add_argument("--models-directory", type=Path, default=MODELS, metavar="DIR", help="default: %(default)s")
    for action in (validate, bench):
        action.add_argument("--config", type=Path, metavar="FILE", help="run on the backend that this file names")


# Each command imports what it needs when it runs: the receivers' processes import this module again.


def _serve(options: argparse.Namespace) -> int:
    from service.config import read_config
    from service.serve import serve

    serve(read_config(options.config))
    return 0


def _check(options: argparse.Namespace) -> int:
    from service.check import check

    return check(options.config, as_json=options.json)


def _database(options: argparse.Namespace) -> int:
    from service.config import read_config
    from service.migrate import show, upgrade

    store = read_config(options.config).store
    return show(store) if options.action == "show" else upgrade(store)


def _config_show(options: argparse.Namespace) -> int:
    from service.secrets import show

    return show(options.config, as_json=options.json)


def _token(options: argparse.Namespace) -> int:
    from service.secrets import make_token

    return make_token(options.name, options.role)


def _probe(options: argparse.Namespace) -> int:
    from service.probe import probe

    return probe(options.config, options.name, send=options.send, wado=options.wado)


def _deliveries_list(options: argparse.Namespace) -> int:
    from service.outbox import list_deliveries

    return list_deliveries(
        options.config,
        states=options.state,
        destination=options.destination,
        limit=options.limit,
        as_json=options.json,
    )


def _deliveries_retry(options: argparse.Namespace) -> int:
    from service.outbox import retry_deliveries

    return retry_deliveries(options.config, numbers=options.numbers, destination=options.destination)


def _deliveries_drop(options: argparse.Namespace) -> int:
    from service.outbox import drop_deliveries

    return drop_deliveries(
        options.config, numbers=options.numbers, destination=options.destination, reason=options.reason
    )


def _run(options: argparse.Namespace) -> int:
    from service.run import profile_from, run

    profile = profile_from(options.profile)
    return run(
        options.folder, options.out, names=options.model, models_directory=options.models_directory, profile=profile
    )


def _demo(options: argparse.Namespace) -> int:
    from service.demo.demo import demo

    return demo(options.folder, options.out, models_directory=options.models_directory, stay=options.stay)


def _models_list(options: argparse.Namespace) -> int:
    from service.listing import list_models

    return list_models(options.models_directory, service=options.service, as_json=options.json)


def _models_install(options: argparse.Namespace) -> int:
    from service.install import install
    from service.models import available, is_installed

    directory = options.models_directory
    names = list(options.names)
    if options.missing:
        names += [spec.name for spec in available(directory) if not is_installed(directory, spec)]
    for name in names:
        for path in install(directory, name, replace=options.replace):
            print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


def _models_import(options: argparse.Namespace) -> int:
    from service.imports.command import run

    return run(options)


def _models_remove(options: argparse.Namespace) -> int:
    from service.install import remove

    for path in remove(options.models_directory, options.name):
        print(f"removed {path}")
    return 0


def _models_validate(options: argparse.Namespace) -> int:
    from service.validate import validate

    directory = options.models_directory
    named = directory / options.folder
    folder = named if named.is_dir() and not Path(options.folder).is_dir() else Path(options.folder)
    return validate(folder, models_directory=directory, open_backend=lambda: _backend(options.config))


def _models_bench(options: argparse.Namespace) -> int:
    from service.bench import bench
    from service.models import installed

    models = installed(options.models_directory, options.names)
    return bench(models, _backend(options.config), seconds=options.seconds)


def _backend(file: Path | None) -> Backend:
    from service.backend import open_backend
    from service.config import Config, read_config

    config = read_config(file) if file else Config()
    return open_backend(config.analysis, config.triton)


if __name__ == "__main__":
    sys.exit(main())
