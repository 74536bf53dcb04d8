"""deploy/airgap.md, done as it says: fetched here, carried into a place without any network, installed there.

Minutes of downloads, so only with ``OVERREAD_FULL=1``; the place is a network namespace of its own (needs root). What
takes a container engine is left out.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from service.models import available
from tests.support import REPOSITORY, counterpart

PAGE = (REPOSITORY / "deploy" / "airgap.md").read_text("utf-8")
FULL = pytest.mark.skipif(os.environ.get("OVERREAD_FULL") != "1", reason="minutes of downloads: OVERREAD_FULL=1")


def blocks(heading: str) -> list[str]:
    """The commands under a heading."""
    text = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


FETCH, IMAGES, SUMS = blocks("Outside")
CHECK, SERVICE, BY_HAND, CONTAINERS = blocks("Inside")


@pytest.mark.parametrize("commands", [FETCH, IMAGES, SUMS, CHECK, SERVICE, BY_HAND, CONTAINERS])
def test_the_commands_are_ones_of_a_shell_and_name_what_is_there(commands: str) -> None:
    subprocess.run(["sh", "-n"], input=commands, text=True, check=True)
    for path in re.findall(r"(?:overread/)?(deploy/[\w./-]+\w)", commands):
        assert (REPOSITORY / path).exists(), path


def test_every_image_of_the_box_is_carried_and_none_twice() -> None:
    (pattern,) = re.findall(r"\$\((sed -n .* deploy/compose\.yaml)\)", IMAGES)
    found = subprocess.run(["sh", "-c", pattern], check=True, capture_output=True, text=True, cwd=REPOSITORY).stdout
    every = set(re.findall(r"^ *image: (\S+)", (REPOSITORY / "deploy" / "compose.yaml").read_text(), re.MULTILINE))
    assert set(found.split()) == {image for image in every if not image.startswith("overread:")}
    assert len(found.split()) == len(set(found.split()))


@FULL
def test_what_is_carried_in_is_all_that_is_needed(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("a network namespace needs root")
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    subprocess.run(["git", "clone", "--quiet", REPOSITORY, outside], check=True)
    inside.mkdir()
    here = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for commands in (FETCH, SUMS):
        subprocess.run(["sh", "-ec", commands], cwd=outside, env=here, check=True)
    (outside / "carried").rename(inside / "carried")

    clean = ["env", "-i", f"PATH={here['PATH']}", f"HOME={inside}", "PIP_CONFIG_FILE=/dev/null"]
    alone = [counterpart("unshare"), "--net", *clean]
    devices = subprocess.run([*alone, "cat", "/proc/net/dev"], check=True, capture_output=True, text=True).stdout
    assert re.findall(r"(\S+):", devices) == ["lo"]
    subprocess.run([*alone, "sh", "-ec", CHECK + BY_HAND], cwd=inside, check=True)
    program, models = (str(inside / path) for path in ("venv/bin/overread", "overread/models"))
    listing = [program, "models", "list", "--models-directory", models, "--json"]
    said = json.loads(subprocess.run([*alone, *listing], check=True, capture_output=True, cwd=inside).stdout)
    assert {model["name"]: (model["installed"], model["broken"]) for model in said} == {
        spec.name: (True, "") for spec in available(REPOSITORY / "models")
    }
    file = next((inside / "carried" / "wheels").glob("pydicom-*.whl"))
    file.write_bytes(file.read_bytes() + b"x")
    assert subprocess.run([*alone, "sh", "-ec", CHECK], cwd=inside, capture_output=True).returncode
