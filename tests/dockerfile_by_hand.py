"""Build and run the Dockerfile's images where there is no container engine: each step in a clean root, by chroot(2).

    python -m tests.dockerfile_by_hand --kind cpu --base DEBIAN_ROOT --into FOLDER

What an engine would do is done step by step: a stage is a folder that begins as a copy of its base, COPY takes what
.dockerignore lets through, RUN is ``sh -c`` in that root with nothing of this machine's environment. A base is a folder
that debootstrap(8) has made, in the place of the registry's image; it holds Python where that one does. Needs root.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
_VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")
# pip's index and proxies of this machine, which an engine would hand to the build as well.
_HANDED = re.compile(r"(PIP_(INDEX_URL|CERT|DEFAULT_TIMEOUT|EXTRA_INDEX_URL)|SSL_CERT_FILE|(https?|no)_proxy)", re.I)
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """A line of a Dockerfile, continuations joined."""

    name: str
    value: str
    line: int


@dataclass(frozen=True, kw_only=True)
class Image:
    """A stage that is built: its root, and how a container of it starts."""

    root: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[str, str] = field(default_factory=dict)  # of ARG, in RUN only
    user: str = "0:0"
    folder: str = "/"
    health: Sequence[str] = ()
    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()
    stop_signal: str = ""


def read(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile."""
    found, begun, since = [], "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or not line.strip():
            continue
        since = since or number
        begun += line.removesuffix("\\")
        if not line.endswith("\\"):
            name, _, value = begun.strip().partition(" ")
            found.append(Instruction(name=name.upper(), value=" ".join(value.split()), line=since))
            begun, since = "", 0
    return found


def is_ignored(path: str, patterns: Sequence[str]) -> bool:
    """Whether .dockerignore keeps a path back: the last pattern that fits it, or a folder that it is in, counts."""
    ignored = False
    parts = path.split("/")
    above = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    for pattern in patterns:
        wanted, rule = not pattern.startswith("!"), pattern.removeprefix("!")
        if any(_fits(folder, rule) for folder in above):
            ignored = wanted
    return ignored


def _fits(path: str, rule: str) -> bool:
    if rule.startswith("**/"):
        return any(_fits("/".join(path.split("/")[n:]), rule[3:]) for n in range(path.count("/") + 1))
    parts, rules = path.split("/"), rule.split("/")
    return len(parts) == len(rules) and all(fnmatch.fnmatchcase(*pair) for pair in zip(parts, rules, strict=True))


def context_files(context: Path) -> Iterator[str]:
    """Paths of the files that the builder gets."""
    patterns = [p for p in (context / ".dockerignore").read_text().split("\n") if p and not p.startswith("#")]
    for folder, folders, files in os.walk(context):
        here = Path(folder).relative_to(context)
        folders[:] = [name for name in folders if name not in (".git", ".venv", "node_modules")]
        for name in files:
            path = str(here / name)
            if not is_ignored(path, patterns):
                yield path


def expand(text: str, values: Mapping[str, str]) -> str:
    """The text with its variables filled in."""
    return _VARIABLE.sub(lambda found: values.get(found[1] or found[2], ""), text)


class Builder:
    """Builds stages into folders.

    Parameters
    ----------
    context
        The repository.
    base
        A clean root; it stands in for every image of a registry.
    into
        An empty folder; the stages become folders in it.
    arguments
        Of --build-arg.
    """

    def __init__(self, context: Path, base: Path, into: Path, arguments: Mapping[str, str]) -> None:
        self._context, self._base, self._into, self._given = context, base, into, dict(arguments)
        self._stages: dict[str, list[Instruction]] = {}
        self._bases: dict[str, str] = {}
        self._global: dict[str, str] = {}
        self._built: dict[str, Image] = {}
        stage = ""
        for step in read((context / "Dockerfile").read_text()):
            if step.name == "FROM":
                base_name, _, stage = expand(step.value, self._global).partition(" AS ")
                self._bases[stage], self._stages[stage] = base_name, []
            elif not stage:
                name, _, default = step.value.partition("=")
                self._global[name] = self._given.get(name, default)
            else:
                self._stages[stage].append(step)

    def build(self, stage: str) -> Image:
        """The stage, and before it those that it needs."""
        if stage not in self._built:
            root = self._into / stage
            under = self._bases[stage]
            made = self.build(under) if under in self._stages else Image(root=self._base, environment={"PATH": _PATH})
            subprocess.run(["cp", "--archive", "--reflink=auto", made.root, root], check=True)
            made = replace(made, root=root, arguments={})
            for step in self._stages[stage]:
                made = self._step(made, step)
            self._built[stage] = made
        return self._built[stage]

    def _step(self, made: Image, step: Instruction) -> Image:
        begun = time.monotonic()
        values = {**made.arguments, **made.environment}
        text = step.value if step.name in ("RUN", "CMD", "ENTRYPOINT", "HEALTHCHECK") else expand(step.value, values)
        match step.name:
            case "ARG":
                name, given, default = text.partition("=")
                if name in self._given or given:
                    made = replace(made, arguments={**made.arguments, name: self._given.get(name, default)})
            case "ENV":
                made = replace(made, environment={**made.environment, **dict(_pairs(text))})
            case "WORKDIR":
                made = replace(made, folder=text)
                made.root.joinpath(text.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "USER":
                made = replace(made, user=text)
            case "COPY":
                self._copy(made, text.split())
            case "RUN":
                _run_in(made, text)
            case "ENTRYPOINT":
                made = replace(made, entrypoint=json.loads(text))
            case "CMD":
                made = replace(made, command=json.loads(text))
            case "HEALTHCHECK":
                made = replace(made, health=json.loads(text.partition(" CMD ")[2]))
            case "STOPSIGNAL":
                made = replace(made, stop_signal=text)
            case "LABEL" | "EXPOSE":
                pass
            case _:
                raise ValueError(f"Dockerfile:{step.line}: {step.name} is not known here")
        print(f"{made.root.name:10} {time.monotonic() - begun:6.1f} s  {step.name} {step.value[:150]}", flush=True)
        return made

    def _copy(self, made: Image, words: list[str]) -> None:
        root = self._context
        files = None
        if words[0].startswith("--from="):
            root = self.build(words.pop(0).removeprefix("--from=")).root
        else:
            files = list(context_files(root))
        *sources, target = words
        there = made.root / (target if target.startswith("/") else f"{made.folder}/{target}").lstrip("/")
        for source in sources:
            if files is None:
                there.mkdir(parents=True, exist_ok=True)
                subprocess.run(["cp", "--archive", f"{root}/{source.lstrip('/')}/.", there], check=True)
                continue
            chosen = [path for path in files if path == source or path.startswith(f"{source}/")]
            if not chosen:
                raise ValueError(f"COPY {source}: the context has no such file")
            for path in chosen:
                inside = Path(path).name if path == source else str(Path(path).relative_to(source))
                place = there / inside if target.endswith("/") or path != source else there
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(root / path, place)


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for word in shlex.split(text):
        name, _, value = word.partition("=")
        yield name, value


def _run_in(made: Image, command: str) -> None:
    """One RUN: a shell in the root, as root, with the network and a private /proc and /dev."""
    handed = {name: value for name, value in os.environ.items() if _HANDED.fullmatch(name)}
    if "PIP_INDEX_URL" in made.arguments:
        handed["PIP_INDEX_URL"] = made.arguments["PIP_INDEX_URL"]
    set_up = mounts(made.root, {"/etc/resolv.conf": "/etc/resolv.conf", "/etc/ssl/certs": "/etc/ssl/certs"})
    inside = [*_clean({**handed, **made.arguments, **made.environment}), "sh", "-c", f"cd {made.folder} && {command}"]
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", set_up + _enter(made.root, inside)],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: RUN {command}")


def mounts(root: Path, binds: Mapping[str, str]) -> str:
    """Shell lines that mount what an engine mounts into a container, and some places of this machine."""
    lines = [
        f"mount --make-rprivate / && mount --bind {root} {root}",
        f"mount -t proc proc {root}/proc",
        f"mount -t tmpfs -o mode=0755 dev {root}/dev && mkdir {root}/dev/shm && chmod 1777 {root}/dev/shm",
        f"mount -t tmpfs -o mode=1777,size=2g tmp {root}/tmp",
    ]
    devices = ("null", "zero", "full", "random", "urandom")
    lines += [f"touch {root}/dev/{name} && mount --bind /dev/{name} {root}/dev/{name}" for name in devices]
    for here, there in binds.items():
        make = f"mkdir -p {root}{there}" if Path(here).is_dir() else f"install -D /dev/null {root}{there}"
        lines += [f"test -e {root}{there} || {make}", f"mount --rbind {here} {root}{there}"]
    return "\n".join(lines) + "\n"


def _enter(root: Path, command: Sequence[str]) -> str:
    return f"exec chroot {root} {shlex.join(command)}\n"


def _clean(environment: Mapping[str, str]) -> list[str]:
    return ["/usr/bin/env", "-i", *(f"{name}={value}" for name, value in environment.items())]


class Container(subprocess.Popen[bytes]):
    """A container's process, as ``docker run --read-only --cap-drop ALL --security-opt no-new-privileges`` starts it.

    It shares this machine's network, so that its ports can be reached.

    Parameters
    ----------
    binds
        Places in the container, by the file or folder of this machine that is mounted there.
    log
        File that gets what it prints.
    """

    def __init__(
        self,
        image: Image,
        command: Sequence[str],
        *,
        binds: Mapping[str, str],
        environment: Mapping[str, str] = {},
        log: Path,
    ) -> None:
        user, _, group = image.user.partition(":")
        drop = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs"]
        drop += ["--inh-caps=-all", "--bounding-set=-all"]
        inside = [*_clean({**image.environment, **environment}), *drop]
        inside += ["sh", "-c", f'cd {image.folder} && exec "$@"', "sh", *command]
        set_up = mounts(image.root, binds) + f"mount -o remount,bind,ro {image.root}\n"
        with log.open("ab") as file:
            super().__init__(
                ["unshare", "--mount", "--pid", "--fork", "sh", "-ec", set_up + _enter(image.root, inside)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )

    @property
    def first(self) -> int:
        """What is process 1 in the container; with it all others end."""
        return int(Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()[0])

    def send_signal(self, number: int) -> None:
        """Send a signal to the container's first process, as an engine does."""
        if self.poll() is None:
            os.kill(self.first, number)


def main() -> None:
    """Build the image of the command line, and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--base", type=Path, required=True, help="a root that debootstrap made")
    parser.add_argument("--into", type=Path, required=True, help="an empty folder for the stages")
    options = parser.parse_args()
    options.into.mkdir(parents=True)
    image = Builder(REPOSITORY, options.base, options.into, {"KIND": options.kind}).build("overread")
    size = subprocess.run(["du", "-sm", "--apparent-size", image.root], check=True, capture_output=True, text=True)
    base = subprocess.run(["du", "-sm", "--apparent-size", options.base], check=True, capture_output=True, text=True)
    print(f"{image.root}: {size.stdout.split()[0]} MB, of which the base has {base.stdout.split()[0]} MB")


if __name__ == "__main__":
    main()
