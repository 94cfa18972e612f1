"""The Helm chart: its values and its objects, checked with schemas and with the rest of the project."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python.chart import Chart, lint
from helm_python.errors import HelmError

from deploy.kubernetes.generate import CHART, render_documents
from tests.deploy.schemas import KUBERNETES, find_violations, is_builtin
from tests.deploy.tools import CRDS

ROOT = Path(__file__).parent.parent.parent
COSTS = ROOT / "docs" / "scale" / "costs.json"
WARNING = 2

needs_crds = pytest.mark.skipif(not CRDS.exists(), reason="the CRDs could not be fetched: see above")

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "istio": {"mesh": "istio"},
    "linkerd": {"mesh": "linkerd"},
    "mutual TLS": {"tls": {"requireClientCertificate": True}},
    "callers' keys": {"apiKey": {"secretName": ""}},
    "fixed replicas": {"autoscaling": {"enabled": False}, "replicas": 7},
    "least": {"networkPolicy": {"enabled": False}, "serviceMonitor": {"enabled": False}},
    "Linkerd that retries": {"mesh": "linkerd", "linkerd": {"retryOn": "unavailable"}},
    "everything": {
        "mesh": "istio",
        "image": {"repository": "registry.example/ollm-bridge", "digest": f"sha256:{'0' * 64}"},
        "imagePullSecrets": [{"name": "registry"}],
        "config": {
            "workers": 4,
            "drain_delay_s": 7.5,
            "drain_grace_s": 3000,
            "upstream": {"base_url": "https://gateway.example:8443", "forward_metadata": ["x-team-id"]},
            "tags": {"fixed": {"team": 'a "quoted" one'}},
        },
        "listen": {"host": "[::]", "port": 8443},
        "serviceMonitor": {"labels": {"release": "prometheus"}},
        "podAnnotations": {"example.com/note": "1"},
        "podLabels": {"team": "search"},
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [{"key": "spot", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {}},
    },
}

each_variant = pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)


def render(values: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {key: yaml.safe_load(text) for key, text in render_documents(values).items()}


def get_pod(values: dict[str, Any]) -> dict[str, Any]:
    return render(values)["Deployment", "ollm-bridge"]["spec"]["template"]


def get_container(values: dict[str, Any]) -> dict[str, Any]:
    (container,) = get_pod(values)["spec"]["containers"]
    return container


def get_settings(values: dict[str, Any]) -> dict[str, Any]:
    return tomllib.loads(render(values)["ConfigMap", "ollm-bridge"]["data"]["bridge.toml"])


# Schemas


@each_variant
def test_helm_lint_has_no_warning(values):
    report = lint(CHART, values, strict=True)
    assert report["total_charts_linted"] == 1
    assert not report["errors"]
    assert [each for each in report["messages"] if each["severity"] >= WARNING] == []


@each_variant
def test_kubernetes_accepts_each_object(values):
    found = {
        (version, *key): wrong
        for key, tree in render(values).items()
        if is_builtin(tree)
        for version in KUBERNETES
        if (wrong := find_violations(tree, version))
    }
    assert found == {}


@needs_crds
@each_variant
def test_istio_and_prometheus_operator_accept_each_object(values):
    others = {key: tree for key, tree in render(values).items() if not is_builtin(tree)}
    assert {key: wrong for key, tree in others.items() if (wrong := find_violations(tree, ""))} == {}


def test_misspelt_field_of_kubernetes_is_found():
    deployment = render({})["Deployment", "ollm-bridge"]
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    container["readynessProbe"] = container.pop("readinessProbe")
    assert all("readynessProbe" in str(find_violations(deployment, version)) for version in KUBERNETES)


@needs_crds
@pytest.mark.parametrize(
    ("values", "key", "path", "name"),
    [
        ({"mesh": "istio"}, ("VirtualService", "ollm-bridge"), ("spec", "http", 0, "retries"), "retryon"),
        ({"mesh": "istio"}, ("DestinationRule", "ollm-bridge"), ("spec", "trafficPolicy"), "loadbalancer"),
        ({}, ("ServiceMonitor", "ollm-bridge"), ("spec", "endpoints", 0), "ports"),
    ],
)
def test_misspelt_field_of_others_is_found(values, key, path, name):
    tree = inner = render(values)[key]
    for part in path:
        inner = inner[part]
    inner[name] = "anything"
    assert any(name in fault for fault in find_violations(tree, ""))


@needs_crds
def test_annotations_and_labels_for_istio_are_ones_that_it_knows():
    words = {
        each["name"]
        for path in (CRDS / "annotations.yaml", CRDS / "labels.yaml")
        for group in yaml.safe_load(path.read_text(encoding="utf-8")).values()
        for each in group
    }
    metadata = get_pod({"mesh": "istio"})["metadata"]
    ours = {name for name in {**metadata["annotations"], **metadata["labels"]} if "istio.io/" in name}
    assert ours
    # The proxy's configuration has a schema of its own, and no entry in the lists.
    assert ours - words <= {"proxy.istio.io/config"}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"mesh": "consul"}, "mesh"),
        ({"replicaCount": 3}, "replicaCount"),
        ({"config": {"insecure": True}}, "insecure"),
        ({"config": {"listen": "127.0.0.1:1"}}, "listen"),
        ({"config": {"upstream": {"api_key": "sk-ollm-1"}}}, "api_key"),
        ({"image": {"digest": "latest"}}, "digest"),
        ({"config": {"workers": "auto"}}, "workers"),
    ],
)
def test_useless_and_harmful_values_are_refused(values, named):
    with Chart.load(CHART) as chart, pytest.raises(HelmError, match=named):
        chart.render(values, name="ollm-bridge")


# Values that belong together


def test_chart_is_of_this_version_and_so_is_the_image():
    version = re.search(r'^__version__ = "([^"]+)"', (ROOT / "bridge" / "__init__.py").read_text(), re.MULTILINE)
    assert version is not None
    with Chart.load(CHART) as chart:
        assert (chart.version, chart.metadata["appVersion"]) == (version[1], version[1])
    assert get_container({})["image"] == f"ollm-bridge:{version[1]}"
    assert get_container(VARIANTS["everything"])["image"].startswith("registry.example/ollm-bridge@sha256:")


@each_variant
def test_drain_ends_before_the_pod_is_killed(values):
    ours = get_settings(values)
    stop_s = 10  # the supervisor's own time, added to the settings of the drain
    period_s = get_pod(values)["spec"]["terminationGracePeriodSeconds"]
    assert period_s >= ours["drain_delay_s"] + ours["drain_grace_s"] + stop_s
    probe = get_container(values)["readinessProbe"]
    assert ours["drain_delay_s"] > probe["periodSeconds"]
    assert all(name not in get_container(values) for name in ("lifecycle",))  # the bridge delays by itself


@each_variant
def test_every_file_of_the_settings_is_mounted_and_every_mount_has_its_volume(values):
    container, spec = get_container(values), get_pod(values)["spec"]
    mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    assert set(mounts.values()) == {each["name"] for each in spec["volumes"]}
    ours = get_settings(values)
    wanted = [
        value for part in (ours.get("tls", {}), ours["upstream"]) for name, value in part.items() if "_file" in name
    ]
    wanted.append(container["args"][container["args"].index("--config") + 1])
    assert {str(Path(path).parent) for path in wanted} == set(mounts)
    for volume in spec["volumes"]:
        assert "secret" not in volume or volume["secret"]["defaultMode"] == 0o440


@each_variant
def test_pod_is_restricted(values):
    spec, container = get_pod(values)["spec"], get_container(values)
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "fsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["automountServiceAccountToken"] is False
    assert "hostNetwork" not in spec
    user = re.search(r"^USER (\S+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert user is not None
    assert user[1] == "{runAsUser}:{runAsGroup}".format(**spec["securityContext"])


@each_variant
def test_services_policies_and_budgets_find_the_pods_and_their_ports(values):
    objects = render(values)
    labels = get_pod(values)["metadata"]["labels"]
    ports = {each["name"]: each["containerPort"] for each in get_container(values)["ports"]}
    assert ports == {
        "grpc": int(_parse_port(get_container(values)["args"][-1])),
        "admin": int(_parse_port(get_settings(values)["admin_listen"])),
    }
    for (kind, _), tree in objects.items():
        spec = tree.get("spec", {})
        if kind == "Service":
            assert spec["selector"].items() <= labels.items()
            assert [(each["targetPort"], each["port"]) for each in spec["ports"]] in [
                [("grpc", ports["grpc"])],
                [("admin", ports["admin"])],
            ]
        if kind in {"PodDisruptionBudget", "PeerAuthentication"}:
            assert spec["selector"]["matchLabels"].items() <= labels.items()
        if kind == "NetworkPolicy":
            assert spec["podSelector"]["matchLabels"].items() <= labels.items()
            calls, admin = ({each["port"] for each in rule["ports"]} for rule in spec["ingress"])
            assert ports["grpc"] in calls
            assert ports["admin"] not in calls
            assert admin == {ports["admin"]}
        if kind == "VirtualService":
            hosts = {name for kind, name in objects if kind == "Service"}
            assert set(spec["hosts"]) == hosts - {"ollm-bridge-admin"}
            assert spec["http"][0]["route"][0]["destination"] == {
                "host": "ollm-bridge",
                "port": {"number": ports["grpc"]},
            }


def _parse_port(address: str) -> str:
    return address.rpartition(":")[2]


@each_variant
def test_policy_allows_dns_and_the_gateway(values):
    if (policy := render(values).get(("NetworkPolicy", "ollm-bridge"))) is None:
        assert values["networkPolicy"]["enabled"] is False
        return
    names, gateway, *_ = policy["spec"]["egress"]
    assert {(each["port"], each["protocol"]) for each in names["ports"]} == {(53, "UDP"), (53, "TCP")}
    url = get_settings(values)["upstream"]["base_url"]
    assert [each["port"] for each in gateway["ports"]] == [8443 if url.endswith(":8443") else 443]


def test_scraped_metrics_have_the_job_that_alerts_select():
    objects = render({})
    monitor = objects["ServiceMonitor", "ollm-bridge"]["spec"]
    selected = [
        tree["metadata"]["labels"]
        for (kind, _), tree in objects.items()
        if kind == "Service" and monitor["selector"]["matchLabels"].items() <= tree["metadata"]["labels"].items()
    ]
    assert len(selected) == 1
    alerts = (ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r'job="([^"]+)"', alerts)) == {selected[0][monitor["jobLabel"]]}


def test_autoscaler_uses_a_metric_of_the_bridge_and_the_adapter():
    metrics = render({})["HorizontalPodAutoscaler", "ollm-bridge"]["spec"]["metrics"]
    (name,) = (each["pods"]["metric"]["name"] for each in metrics if each["type"] == "Pods")
    (container,) = (each["containerResource"]["container"] for each in metrics if each["type"] == "ContainerResource")
    assert container == get_container({})["name"]
    operations = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert f"| `{name}` | gauge |" in operations
    adapter = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "prometheus-adapter.yaml").read_text(encoding="utf-8"))
    (rule,) = adapter["rules"]["custom"]
    assert rule["name"]["as"] == name
    assert rule["seriesQuery"].startswith(f"{name}{{")


def test_resources_and_the_autoscalers_target_follow_from_the_cost_of_a_call():
    costs = {name: row["value"] for name, row in json.loads(COSTS.read_text(encoding="utf-8"))["costs"].items()}
    ours, requests = get_settings({}), get_container({})["resources"]["requests"]
    needed_mib = ours["workers"] * (costs["idle_mib"] + ours["calls_max"] * costs["open_stream_kib"] / 1024)
    assert 1.2 * needed_mib <= int(requests["memory"].removesuffix("Mi")) <= 3 * needed_mib
    assert int(requests["cpu"]) == ours["workers"]
    (target,) = (
        int(each["pods"]["target"]["averageValue"])
        for each in render({})["HorizontalPodAutoscaler", "ollm-bridge"]["spec"]["metrics"]
        if each["type"] == "Pods"
    )
    chunks_per_stream_s = 50  # as docs/scale/plan.py assumes
    assert 0.25 <= target * chunks_per_stream_s * costs["chunk_us"] / 1e6 / ours["workers"] <= 0.7
    assert target < ours["calls_max"] / 2


# Retries and timeouts of a mesh


def test_istio_retries_only_calls_that_never_reached_a_bridge_and_ends_no_stream():
    objects = render({"mesh": "istio"})
    (route,) = objects["VirtualService", "ollm-bridge"]["spec"]["http"]
    assert route["timeout"] == "0s"
    assert set(route["retries"]) == {"attempts", "retryOn"}
    assert set(route["retries"]["retryOn"].split(",")) == {"connect-failure", "refused-stream"}
    policy = objects["DestinationRule", "ollm-bridge"]["spec"]["trafficPolicy"]
    assert policy["outlierDetection"]["consecutive5xxErrors"] == 0
    assert policy["outlierDetection"]["consecutiveGatewayErrors"] == 0
    assert policy["outlierDetection"]["splitExternalLocalOriginErrors"] is True


@pytest.mark.parametrize("mesh", ["istio", "linkerd"])
def test_calls_are_unencrypted_only_if_a_mesh_refuses_other_callers(mesh):
    assert get_settings({"mesh": mesh})["insecure"] is True
    assert "tls" not in get_settings({"mesh": mesh})
    objects, annotations = render({"mesh": mesh}), get_pod({"mesh": mesh})["metadata"]["annotations"]
    if mesh == "istio":
        assert objects["PeerAuthentication", "ollm-bridge"]["spec"]["mtls"]["mode"] == "STRICT"
        assert set(objects["PeerAuthentication", "ollm-bridge"]["spec"]["portLevelMtls"]) == {"9464"}
    else:
        assert annotations["config.linkerd.io/default-inbound-policy"] == "all-authenticated"
        assert annotations["config.linkerd.io/skip-inbound-ports"] == "9464"
    assert "insecure" not in get_settings({})
    assert get_settings({})["tls"]["cert_file"]


def test_linkerd_retries_nothing_by_default():
    assert "annotations" not in render({"mesh": "linkerd"})["Service", "ollm-bridge"]["metadata"]
    annotations = render(VARIANTS["Linkerd that retries"])["Service", "ollm-bridge"]["metadata"]["annotations"]
    assert annotations["retry.linkerd.io/grpc"] == "unavailable"
