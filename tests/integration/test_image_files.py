"""The Dockerfile, what goes to its builder, and the locks: by a linter, and by the parser that runs them by hand."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests import dockerfile_by_hand as by_hand
from tests.support import REPOSITORY

STEPS = by_hand.read((REPOSITORY / "Dockerfile").read_text())
FINAL = STEPS[max(n for n, step in enumerate(STEPS) if step.name == "FROM") :]


def locked(name: str) -> dict[str, tuple[str, list[str]]]:
    """Version and hashes of each package of a lock."""
    text = (REPOSITORY / "deploy" / name).read_text().replace("\\\n", " ")
    found = re.findall(r"^([a-z0-9.-]+)==(\S+)((?: +--hash=sha256:[0-9a-f]{64})+)$", text, re.MULTILINE)
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(found) == len(lines), "a line is no package with hashes"
    return {package: (version, re.findall(r"sha256:\w+", hashes)) for package, version, hashes in found}


def value(name: str) -> str:
    """Of the only step of that name in the final stage."""
    (found,) = (step.value for step in FINAL if step.name == name)
    return found


def test_the_linter_finds_nothing() -> None:
    subprocess.run([str(Path(sys.executable).with_name("hadolint")), REPOSITORY / "Dockerfile"], check=True)


def test_the_image_starts_the_service_as_a_numbered_user_who_is_not_root() -> None:
    assert value("USER") == "10001:10001"
    assert json.loads(value("ENTRYPOINT")) == ["overread"]
    assert json.loads(value("CMD")) == ["serve", "--config", "/etc/overread/overread.toml"]
    assert value("STOPSIGNAL") == "SIGTERM"
    assert "ORT_DISABLE_TELEMETRY=1" in value("ENV")
    after = FINAL[[step.name for step in FINAL].index("USER") :]
    assert not [step for step in after if step.name in ("RUN", "COPY", "ADD")]


def test_bases_are_pinned() -> None:
    for step in STEPS[: [step.name for step in STEPS].index("FROM")]:
        name, _, default = step.value.partition("=")
        assert name == "KIND" or re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+-[\w.-]+", default)


def test_the_gpu_base_has_the_cuda_that_onnxruntime_is_built_for() -> None:
    from onnxruntime.capi import build_and_package_info as built

    (base,) = (step.value.partition("=")[2] for step in STEPS if step.value.startswith("GPU_BASE="))
    assert re.search(r":(\d+\.\d+)\.\d+-cudnn-runtime-", base)[1] == built.cuda_version  # type: ignore[index]


def test_the_lock_holds_each_pinned_dependency_and_nothing_older() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lock = locked("requirements.lock")
    for text in project["dependencies"]:
        pinned = Requirement(text)
        assert f"=={lock[pinned.name.lower()][0]}" == str(pinned.specifier), pinned.name
    assert len(lock) > len(project["dependencies"]), "what they need themselves is in it too"
    assert "setuptools" in locked("build.lock")


def test_the_lock_is_what_this_environment_was_tested_with() -> None:
    """Every package that the service needs, directly or not, at the version that is installed here."""
    from importlib.metadata import distribution

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lock = locked("requirements.lock")
    todo = [Requirement(text) for text in project["dependencies"]]
    seen: set[tuple[str, str]] = set()
    while todo:
        need = todo.pop()
        name = re.sub(r"[-_.]+", "-", need.name).lower()
        for extra in ("", *need.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                assert lock[name][0] == distribution(name).version, name
                inner = [Requirement(text) for text in distribution(name).requires or ()]
                todo += [it for it in inner if not it.marker or it.marker.evaluate({"extra": extra})]
    assert {name for name, _ in seen} == set(lock), "nothing needs it"


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("service/serve.py", True),
        ("pyproject.toml", True),
        ("deploy/requirements.lock", True),
        ("models/ct-liver-lesion/model.toml", True),
        ("models/ct-liver-lesion/1/model.onnx", False),
        ("deploy/compose/secrets/database_password", False),
        ("service/__pycache__/serve.cpython-311.pyc", False),
        ("models/.installing-x/model.toml", False),
        (".git/config", False),
        ("var/spool/1.dcm", False),
        ("tests/conftest.py", False),
    ],
)
def test_the_builder_gets_what_it_needs_and_no_more(path: str, kept: bool) -> None:
    patterns = [p for p in (REPOSITORY / ".dockerignore").read_text().split("\n") if p and not p.startswith("#")]
    assert by_hand.is_ignored(path, patterns) is not kept


def test_what_is_copied_is_in_the_context() -> None:
    files = set(by_hand.context_files(REPOSITORY))
    for step in STEPS:
        if step.name == "COPY" and not step.value.startswith("--from="):
            for source in step.value.split()[:-1]:
                assert any(path == source or path.startswith(f"{source}/") for path in files), source


def test_the_parser_reads_as_an_engine_does() -> None:
    text = "# a\nARG K=cpu\nFROM ${K} AS one\n# b\nRUN a \\\n    # c\n    && b\nENV A=1 \\\n    B=${A}2\n"
    steps = by_hand.read(text)
    assert [(step.name, step.value, step.line) for step in steps] == [
        ("ARG", "K=cpu", 2),
        ("FROM", "${K} AS one", 3),
        ("RUN", "a && b", 5),
        ("ENV", "A=1 B=${A}2", 8),
    ]
    values: dict[str, Any] = {"A": "x"}
    assert by_hand.expand("${A} $A ${C}", values) == "x x "
