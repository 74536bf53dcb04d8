"""The Helm chart, rendered by Helm itself (its library) and judged by the schemas of Kubernetes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python as helm
import kubernetes_validate
import pytest
import yaml

from service.__main__ import _parser
from service.config import Config, read_config
from tests.support import REPOSITORY

CHART = REPOSITORY / "deploy" / "helm" / "overread"
KUBERNETES = ("1.30", "1.37")
_PEER = [{"podSelector": {"matchLabels": {"app": "it"}}}]
SITES: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "the example of its page": yaml.safe_load(
        re.findall(r"```yaml\n(.*?)```", (CHART / "README.md").read_text(), re.DOTALL)[0]
    ),
    "everything": {
        "image": {"digests": {"cpu": "sha256:" + "0" * 64, "gpu": "sha256:" + "1" * 64}, "pullSecrets": ["registry"]},
        "receiver": {"service": {"type": "NodePort", "nodePort": 31112}, "nodeSelector": {"zone": "dicom"}},
        "worker": {
            "gpus": 1,
            "runtimeClassName": "nvidia",
            "autoscaling": {"enabled": True},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        },
        "page": {"ingress": {"enabled": True, "host": "overread.hospital", "tlsSecret": "overread-tls"}},
        "network": {
            "pacs": ["10.1.0.0/16", "fd00::/8"],
            "page": _PEER,
            "prometheus": _PEER,
            "triton": {"peers": _PEER, "port": 8001},
            "more": [{"to": _PEER, "ports": [{"protocol": "TCP", "port": 6514}]}],
        },
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "spool": {"existingClaim": "spool"},
        "scheme": "HTTPS",
    },
    "without policies": {"network": {"enabled": False}},
}


def rendered(values: dict[str, Any], name: str = "overread") -> list[dict[str, Any]]:
    """The objects that Helm makes of the chart."""
    with helm.Chart.load(CHART) as chart:
        files = chart.render(values, name=name, namespace="hospital")
    texts = [text for path, text in files.items() if path.endswith(".yaml")]
    return [made for text in texts for made in yaml.safe_load_all(text) if made]


@pytest.fixture(params=SITES, ids=lambda title: title.replace(" ", "-"))
def objects(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What is made for a site."""
    return rendered(SITES[request.param])


def of(objects: list[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    """Those of some kinds."""
    return [made for made in objects if made["kind"] in kinds]


def pods(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The pod of each part."""
    return {
        made["metadata"]["labels"]["app.kubernetes.io/component"]: made["spec"]["template"]
        for made in of(objects, "Deployment", "StatefulSet")
    }


def test_helm_finds_nothing_to_complain_of() -> None:
    judged = helm.lint(CHART, strict=True)
    said = [message for message in judged["messages"] if message["error"] != "icon is recommended"]
    assert not said
    assert not judged["errors"]


@pytest.mark.parametrize("version", KUBERNETES)
def test_every_object_is_one_that_kubernetes_takes(objects: list[dict[str, Any]], version: str) -> None:
    for made in objects:
        if made["kind"] != "ServiceMonitor":  # of an operator
            kubernetes_validate.validate(made, version, strict=True)


def test_a_wrong_object_would_be_noticed() -> None:
    (account,) = of(rendered({}), "ServiceAccount")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**account, "automountServiceAccountTokens": False}, KUBERNETES[-1], strict=True)


def test_no_container_has_more_rights_than_it_needs(objects: list[dict[str, Any]]) -> None:
    assert set(pods(objects)) == {"receiver", "worker", "page"}
    for pod in pods(objects).values():
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert {k: v for k, v in pod["spec"]["securityContext"].items() if k.startswith("runAs")} == {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
        }
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in (*pod["spec"]["initContainers"], *pod["spec"]["containers"]):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
            assert re.fullmatch(r"[\w./-]+(:[\d.]+-(cpu|gpu)|@sha256:[0-9a-f]{64})", container["image"])
            writable = [m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")]
            assert sorted(writable) == ["/tmp", "/var/lib/overread"]


def test_each_pod_has_a_configuration_that_is_right_and_its_own_part(
    objects: list[dict[str, Any]], tmp_path: Path
) -> None:
    texts = {made["metadata"]["name"]: made["data"]["overread.toml"] for made in of(objects, "ConfigMap")}
    expected = {"receiver": "receive", "worker": "work", "page": "page"}
    for part, pod in pods(objects).items():
        (volume,) = (it["configMap"]["name"] for it in pod["spec"]["volumes"] if "configMap" in it)
        path = tmp_path / f"{part}.toml"
        path.write_text(texts[volume])
        config = read_config(path)
        assert config.process.parts == (expected[part],)
        _agree(config, pod)


def _agree(config: Config, pod: dict[str, Any]) -> None:
    """The configuration and the pod name the same ports and folders."""
    (container,) = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["http"] == config.api.port
    assert ports.get("dicom", config.intake.port) == config.intake.port
    assert config.api.host == config.intake.host == "0.0.0.0"
    mounts = [Path(mount["mountPath"]) for mount in container["volumeMounts"]]
    files = [config.store.directory, config.store.password_file, *(token.file for token in config.api.tokens)]
    for file in files:
        assert any(file and file.is_relative_to(mount) for mount in mounts), file
    assert config.store.database, "several processes share a database"


def test_each_command_is_one_of_ours(objects: list[dict[str, Any]]) -> None:
    for pod in pods(objects).values():
        for container in (*pod["spec"]["initContainers"], *pod["spec"]["containers"]):
            _parser().parse_args(container["args"])


def test_each_pod_is_asked_whether_it_lives_by_what_does_not_wait_for_others(objects: list[dict[str, Any]]) -> None:
    for pod in pods(objects).values():
        (container,) = pod["spec"]["containers"]
        paths = {probe: container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("liveness", "readiness", "startup")}
        assert paths == {"liveness": "/health/live", "readiness": "/health/ready", "startup": "/health/live"}


def test_each_selector_finds_pods(objects: list[dict[str, Any]]) -> None:
    labels = [pod["metadata"]["labels"] for pod in pods(objects).values()]
    selectors = list(_selectors(objects))
    assert len(selectors) >= 8
    for kind, selector in selectors:
        assert any(selector.items() <= pod.items() for pod in labels), (kind, selector)


def _selectors(objects: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, str]]]:
    for made in objects:
        spec = made.get("spec", {})
        if made["kind"] == "Service":
            yield made["kind"], spec["selector"]
        elif made["kind"] in ("Deployment", "StatefulSet", "PodDisruptionBudget"):
            yield made["kind"], spec["selector"]["matchLabels"]
        elif made["kind"] == "NetworkPolicy":
            yield made["kind"], spec["podSelector"]["matchLabels"]


def test_what_one_object_says_of_another_is_there(objects: list[dict[str, Any]]) -> None:
    there = {(made["kind"], made["metadata"]["name"]) for made in objects}
    for pod in pods(objects).values():
        assert ("ServiceAccount", pod["spec"]["serviceAccountName"]) in there
        for volume in pod["spec"]["volumes"]:
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            assert claim in (None, "spool") or ("PersistentVolumeClaim", claim) in there
    for worker in of(objects, "StatefulSet"):
        assert ("Service", worker["spec"]["serviceName"]) in there
    for scaler in of(objects, "HorizontalPodAutoscaler"):
        assert (scaler["spec"]["scaleTargetRef"]["kind"], scaler["spec"]["scaleTargetRef"]["name"]) in there
    for ingress in of(objects, "Ingress"):
        (path,) = ingress["spec"]["rules"][0]["http"]["paths"]
        assert ("Service", path["backend"]["service"]["name"]) in there
    ports = {p["name"] for pod in pods(objects).values() for c in pod["spec"]["containers"] for p in c["ports"]}
    assert all(port["targetPort"] in ports for made in of(objects, "Service") for port in made["spec"]["ports"])


def test_no_secret_is_made_or_written_down(objects: list[dict[str, Any]]) -> None:
    assert not of(objects, "Secret")
    for pod in pods(objects).values():
        for container in (*pod["spec"]["initContainers"], *pod["spec"]["containers"]):
            assert [variable["name"] for variable in container["env"]] == ["OVERREAD_NAME"]


def test_without_a_pacs_nobody_comes_in_and_with_one_nobody_else_does() -> None:
    closed = of(rendered({}), "NetworkPolicy")
    assert len(closed) == 1
    assert closed[0]["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in closed[0]["spec"]
    policies = of(rendered(SITES["everything"]), "NetworkPolicy")
    to_dicom = [
        rule for made in policies for rule in made["spec"].get("ingress", ()) if rule["ports"][0]["port"] == "dicom"
    ]
    assert [rule["from"] for rule in to_dicom] == [[{"ipBlock": {"cidr": c}} for c in ("10.1.0.0/16", "fd00::/8")]]
    # A rule without peers is a rule for everybody.
    for made in policies:
        for rule in (*made["spec"].get("ingress", ()), *made["spec"].get("egress", ())):
            assert rule.get("from") or rule.get("to")


def test_a_worker_with_a_gpu_gets_one_and_its_image() -> None:
    made = pods(rendered({"worker": {"gpus": 2}}))
    (worker,), (page,) = (made[part]["spec"]["containers"] for part in ("worker", "page"))
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert (worker["image"], page["image"]) == ("overread:0.1.0-gpu", "overread:0.1.0-cpu")


def test_the_autoscaler_asks_for_a_metric_that_the_rule_on_the_page_makes() -> None:
    (scaler,) = of(rendered(SITES["everything"]), "HorizontalPodAutoscaler")
    (workers,) = of(rendered(SITES["everything"]), "StatefulSet")
    assert "replicas" not in workers["spec"], "the chart and the autoscaler would both set it"
    (metric,) = (it["external"]["metric"]["name"] for it in scaler["spec"]["metrics"])
    rule = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", (CHART / "README.md").read_text(), re.DOTALL)[1])
    assert rule[0]["name"]["as"] == rule[0]["seriesQuery"] == metric


def test_two_releases_in_one_namespace_share_no_name() -> None:
    names = [{(made["kind"], made["metadata"]["name"]) for made in rendered({}, name)} for name in ("overread", "two")]
    assert not names[0] & names[1]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"worker": {"gpu": 1}}, "gpu"),
        ({"network": {"pacs": ["0.0.0.0/0"]}}, "pacs"),
        ({"network": {"pacs": ["10.1.2.3"]}}, "pacs"),
        ({"receiver": {"replicas": 0}}, "replicas"),
        ({"image": {"tag": "latest"}}, "tag"),
        ({"image": {"digests": {"cpu": "sha256:1", "gpu": ""}}}, "digests"),
        ({"secrets": [{"name": "one", "folder": "/var/lib/overread"}]}, "folder"),
        ({"config": '[process]\nparts = ["work"]\n'}, "process"),
        ({"page": {"ingress": {"enabled": True, "host": "a"}}}, "tlsSecret"),
    ],
)
def test_a_wrong_value_is_refused_and_named(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(helm.HelmError, match=named):
        rendered(wrong)
