"""The hospital in a box: its compose file by the compose specification, and its parts by each other."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.__main__ import _parser
from service.config import read_config
from tests.browser.site import _SOURCE
from tests.support import REPOSITORY, counterpart, free_port

DEPLOY = REPOSITORY / "deploy"
BOX = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = BOX["services"]
LASTING = sorted(set(SERVICES) - {"prepare"})
LINT = "{extends: default, rules: {line-length: {max: 120}, document-start: disable, braces: {max-spaces-inside: 1}, \
comments: {min-spaces-from-content: 1}}}"


def program(name: str) -> str:
    """A program of this environment."""
    return str(Path(sys.executable).with_name(name))


def test_it_is_a_compose_file() -> None:
    subprocess.run(
        [program("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml"],
        check=True,
        capture_output=True,
    )


@pytest.mark.parametrize("path", ["compose.yaml", "compose/prometheus.yml", "helm/overread/values.yaml"])
def test_the_yaml_is_tidy(path: str) -> None:
    subprocess.run([program("yamllint"), "--strict", "-d", LINT, DEPLOY / path], check=True)


@pytest.mark.parametrize("name", LASTING)
def test_a_service_has_no_more_rights_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert service["profiles"]
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in service.get("ports", ()))
    assert not set(service) & {"privileged", "network_mode", "pid", "devices"}


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_pinned(name: str) -> None:
    assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+[\w.-]*", SERVICES[name]["image"])


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_each_profile_is_whole(profile: str) -> None:
    there = {name: service for name, service in SERVICES.items() if profile in service["profiles"]}
    published = [port for service in there.values() for port in service.get("ports", ())]
    assert sorted(port.split(":")[1] for port in published) == sorted(
        ["11112", "3000", "3001", "4242", "8042", "8080", "9090"]
    )
    for service in there.values():
        assert set(service.get("depends_on", ())) <= set(there)
        for needed, how in service.get("depends_on", {}).items():
            assert (
                how["condition"] == "service_completed_successfully"
                or needed.startswith("overread")
                or ("healthcheck" in SERVICES[needed])
            )
        assert set(service.get("networks", ())) <= set(BOX["networks"])
        assert set(service.get("secrets", ())) <= set(BOX["secrets"])
    assert all(BOX["networks"][name].get("internal") for name in BOX["networks"] if name != "front")


def test_whoever_is_named_can_be_reached() -> None:
    """Names of machines in configurations are services or aliases on a network that both are on."""
    at: dict[str, set[str]] = {}
    for name, service in SERVICES.items():
        networks = service.get("networks", [])
        for network in networks:
            more = (networks[network] or {}).get("aliases", []) if isinstance(networks, dict) else []
            for known in (name, *more):
                at.setdefault(known, set()).add(network)
    for ours in ("overread", "overread-triton"):
        config = read_config(_configuration(ours))
        named = {destination.host for destination in config.destinations}
        named |= {source.query.host for source in config.sources if source.query}
        named |= {config.store.database.rpartition("@")[2].partition("/")[0]}
        if config.analysis.backend.startswith("triton"):
            named |= {config.analysis.backend.removeprefix("triton://").partition(":")[0]}
        for host in named:
            assert (at[host] & set(SERVICES[ours]["networks"])) - {"front"}, host
    pacs = json.loads((DEPLOY / "compose" / "orthanc.json").read_text())["DicomModalities"]["overread"]
    assert (at[pacs["Host"]] & set(SERVICES["orthanc"]["networks"])) - {"front"}
    (scraped,) = yaml.safe_load((DEPLOY / "compose" / "prometheus.yml").read_text())["scrape_configs"]
    assert scraped["static_configs"] == [{"targets": ["overread:8080"]}]
    assert scraped["job_name"] == "overread"
    assert (at["overread"] & set(SERVICES["prometheus"]["networks"])) - {"front"}
    assert (at["orthanc"] & set(SERVICES["ohif"]["networks"])) - {"front"}


def _configuration(service: str) -> Path:
    (source,) = (v["source"] for v in SERVICES[service]["volumes"] if isinstance(v, dict))
    return DEPLOY / str(source)


def test_the_two_configurations_differ_in_the_backend_only() -> None:
    ours, tritons = (read_config(_configuration(name)) for name in ("overread", "overread-triton"))
    assert tritons.analysis.backend == "triton://triton:8001"
    same = tritons.analysis.model_copy(update={"backend": "onnxruntime"})
    assert tritons.model_copy(update={"analysis": same}) == ours
    assert ours.store.password_file == Path("/run/secrets/database_password")
    assert [token.file for token in ours.api.tokens] == [Path("/run/secrets/overread_token")]
    assert ours.intake.calling_ae_titles == ("ORTHANC",)


def test_what_is_mounted_is_there_and_only_read() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", ()):
            if isinstance(volume, str):
                assert volume.partition(":")[0] in BOX["volumes"], (name, volume)
            else:
                assert volume["read_only"] is True
                assert (DEPLOY / volume["source"]).exists(), volume["source"]


def test_triton_is_told_what_the_readme_says_and_shares_its_memory() -> None:
    triton = SERVICES["triton"]
    assert triton["environment"] == {"NVIDIA_TF32_OVERRIDE": "0", "ORT_DISABLE_TELEMETRY": "1"}
    assert (triton["ipc"], triton["shm_size"]) == ("shareable", "4gb")
    assert SERVICES["overread-triton"]["ipc"] == "service:triton"
    assert triton["user"] == SERVICES["overread-triton"]["user"], "it opens what Overread makes for itself alone"
    assert "models:/models:ro" in triton["volumes"]


def test_no_secret_is_in_the_repository_or_in_an_environment() -> None:
    for name in BOX["secrets"]:
        path = f"deploy/compose/secrets/{name}"
        subprocess.run(["git", "check-ignore", "--quiet", path], cwd=REPOSITORY, check=True)
    for service in SERVICES.values():
        for variable in service.get("environment", {}):
            assert "PASSWORD" not in variable or variable.endswith("_FILE")


def test_the_secrets_are_made_once_and_closed(tmp_path: Path) -> None:
    shutil.copy(DEPLOY / "compose" / "secrets.sh", tmp_path)
    read = []
    for _ in range(2):
        subprocess.run(["sh", tmp_path / "secrets.sh"], check=True, capture_output=True)
        read.append({path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()})
    assert read[0] == read[1]
    assert set(read[0]) == set(BOX["secrets"])
    assert all(len(secret) >= 40 and "\n" not in secret for secret in read[0].values())
    assert len(set(read[0].values())) == 3
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700


def test_ohif_is_configured_as_the_one_that_the_tests_drive() -> None:
    script = "global.window = {}; require(process.argv[1]); console.log(JSON.stringify(window.config))"
    path = DEPLOY / "compose" / "ohif" / "app-config.js"
    done = subprocess.run([counterpart("node"), "-e", script, path], check=True, capture_output=True, text=True)
    config = json.loads(done.stdout)
    assert config["dataSources"] == [_SOURCE]
    tested = json.loads((REPOSITORY / "tests" / "browser" / "package.json").read_text())["dependencies"]["@ohif/app"]
    image = SERVICES["ohif"]["image"].partition(":v")[2]
    assert image.split(".")[:2] == tested.split(".")[:2]


def test_nginx_takes_its_configuration(tmp_path: Path) -> None:
    text = (DEPLOY / "compose" / "ohif" / "nginx.conf").read_text()
    text = text.replace("http://orthanc:8042", f"http://127.0.0.1:{free_port()}").replace("/tmp/", f"{tmp_path}/")
    (tmp_path / "nginx.conf").write_text(text)
    command = [counterpart("nginx"), "-t", "-e", f"{tmp_path}/error.log", "-c", f"{tmp_path}/nginx.conf"]
    subprocess.run(command, check=True, capture_output=True)


def test_prometheus_takes_its_configuration() -> None:
    check = [counterpart("promtool"), "check", "config", "--syntax-only", str(DEPLOY / "compose" / "prometheus.yml")]
    subprocess.run(check, check=True, capture_output=True)
    port = SERVICES["prometheus"]["ports"][0].rpartition(":")[2]
    assert SERVICES["grafana"]["environment"]["PROMETHEUS_URL"] == f"http://prometheus:{port}"


def test_the_service_starts_with_what_the_image_starts() -> None:
    for name in ("overread", "overread-triton"):
        assert "command" not in SERVICES[name]
        assert "entrypoint" not in SERVICES[name]
    _parser().parse_args(["serve", "--config", "/etc/overread/overread.toml"])
