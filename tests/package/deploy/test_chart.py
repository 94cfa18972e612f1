"""The Helm chart: its values and its objects, checked with schemas and with the rest of the project."""

import itertools
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python.chart import Chart, lint
from helm_python.errors import HelmError

from deploy.kubernetes.generate import CHART
from tests.package.deploy.objects import get_container, get_pod, get_settings, render, render_hooks
from tests.package.deploy.schemas import KUBERNETES, WITHOUT_SCHEMA, find_violations, is_builtin
from tests.package.deploy.tools import CRDS

ROOT = Path(__file__).parents[3]
SCALE_PAGE = ROOT / "docs" / "scale.md"
WARNING = 2

needs_crds = pytest.mark.skipif(not CRDS.exists(), reason="the CRDs could not be fetched: see above")

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "istio": {"mesh": "istio"},
    "linkerd": {"mesh": "linkerd"},
    "mutual TLS": {"tls": {"requireClientCertificate": True}},
    "callers' keys": {"apiKey": {"secretName": ""}},
    "fixed replicas": {"autoscaling": {"enabled": False}, "replicas": 7},
    "least": {
        "networkPolicy": {"enabled": False},
        "serviceMonitor": {"enabled": False},
        "prometheusRule": {"enabled": False},
        "test": {"enabled": False},
        "autoscaling": {"customMetric": False},
    },
    "Prometheus": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}, "interval": "30s"},
        "prometheusRule": {
            "enabled": True,
            "labels": {"release": "prometheus"},
            "runbooks": "https://docs.example/o.html",
        },
        "dashboard": {"enabled": True, "labels": {"dashboards": "yes"}, "annotations": {"folder": "LLM"}},
        "autoscaling": {"customMetric": True, "minReplicas": 2, "maxReplicas": 9, "callsInFlight": 40},
    },
    "KEDA": {
        "mesh": "linkerd",
        "autoscaling": {
            "cpuUtilization": 60,
            "keda": {"enabled": True, "prometheusAddress": "http://p.monitoring:9090"},
        },
    },
    "Gateway API": {
        "grpcRoute": {
            "enabled": True,
            "parentRefs": [{"name": "edge", "namespace": "gateways"}],
            "hostnames": ["llm.example"],
            "backendTls": {"hostname": "ollm-bridge.llm.svc", "caConfigMap": "ollm-bridge-ca"},
        },
    },
    "Istio that knows callers": {
        "mesh": "istio",
        "callerIdentity": True,
        "authorization": {
            "callers": [
                {"namespace": "search", "serviceAccount": "indexer"},
                {"namespace": "chat", "serviceAccount": "*"},
            ],
            "trustDomain": "prod.example",
        },
        "istio": {"retryOn": "connect-failure", "attempts": 1, "controlPlaneNamespace": "istio"},
    },
    "Linkerd that knows callers": {
        "mesh": "linkerd",
        "callerIdentity": True,
        "authorization": {"callers": [{"namespace": "search", "serviceAccount": "*"}]},
        "linkerd": {"controlPlaneNamespace": "mesh"},
    },
    "through a proxy, with traces": {
        "config": {
            "upstream": {"proxy": "http://proxy.corp.example:3128"},
            "tracing": {"endpoint": "http://collector.observability.svc:4317"},
            "tokens_file": "/run/tokens/tokens",
        },
        "extraEnv": [{"name": "OTEL_RESOURCE_ATTRIBUTES", "value": "deployment.environment.name=eu"}],
        "extraEnvFrom": [{"secretRef": {"name": "more"}}],
        "extraVolumes": [{"name": "tokens", "secret": {"secretName": "tokens", "defaultMode": 0o440}}],
        "extraVolumeMounts": [{"name": "tokens", "mountPath": "/run/tokens", "readOnly": True}],
        "networkPolicy": {
            "callers": [{"podSelector": {}}],
            "monitoring": [{"podSelector": {}}],
            "dns": [{"podSelector": {}}],
            "gateway": [{"podSelector": {}}],
            "proxy": [{"ipBlock": {"cidr": "10.9.0.0/16"}}],
            "tracing": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "observability"}}}],
            "extraEgress": [{"to": [{"ipBlock": {"cidr": "10.8.0.1/32"}}], "ports": [{"port": 9999}]}],
        },
    },
    "a gateway on a socket": {
        "mesh": "istio",
        "config": {"upstream": {"base_url": "unix:/run/gateway/socket"}},
        "extraVolumes": [{"name": "gateway", "hostPath": {"path": "/run/gateway"}}],
        "extraVolumeMounts": [{"name": "gateway", "mountPath": "/run/gateway"}],
    },
    "to the outside": {
        "service": {"type": "LoadBalancer", "annotations": {"example.com/scheme": "internal"}},
        "serviceAccount": {"annotations": {"example.com/role": "llm"}},
        "priorityClassName": "high",
        "tls": {"secretName": "public"},
        "apiKey": {"secretName": "gateway", "key": "token"},
        "image": {"tag": "1.2.3", "pullPolicy": "Always"},
        "resources": {"requests": {"cpu": "500m", "memory": "256Mi"}, "limits": {"memory": "2Gi"}},
        "podDisruptionBudget": {"maxUnavailable": "25%"},
        "test": {"serverName": "llm.example"},
    },
    "browsers": {"config": {"web_listen": "0.0.0.0:8081", "web_allowed_origins": ["https://app.example"]}},
    "browsers in Istio": {"mesh": "istio", "config": {"web_listen": "0.0.0.0:8081"}},
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
def test_owners_of_the_other_kinds_accept_each_object(values):
    others = {key: tree for key, tree in render(values).items() if not is_builtin(tree) and has_schema(tree)}
    assert {key: wrong for key, tree in others.items() if (wrong := find_violations(tree, ""))} == {}


def has_schema(tree: dict[str, Any]) -> bool:
    return tree["apiVersion"].partition("/")[0] not in WITHOUT_SCHEMA


WHOLE = {"config", "resources", "dashboard.labels"}
"""Values whose names are not the chart's."""


def list_leaves(tree: dict[str, Any], whole: Collection[str] = WHOLE, path: str = "") -> dict[str, Any]:
    """Return each value by its path; those in `whole` are one."""
    found = {}
    for name, value in tree.items():
        if isinstance(value, dict) and value and path + name not in whole:
            found |= list_leaves(value, whole, f"{path}{name}.")
        else:
            found[path + name] = value
    return found


def test_every_value_is_set_to_another_one_by_some_variant():
    with Chart.load(CHART) as chart:
        defaults = list_leaves(chart.values)
    others = {
        path
        for values in VARIANTS.values()
        for path, value in list_leaves(values, defaults).items()
        if value != defaults.get(path)
    }
    assert defaults.keys() - others == set()
    assert others - defaults.keys() == set()


SWITCHES = {
    "mesh": ["", "istio", "linkerd"],
    "apiKey": [{"secretName": "key"}, {"secretName": ""}],
    "tls": [{"requireClientCertificate": False}, {"requireClientCertificate": True}],
    "autoscaling": [
        {"enabled": False},
        {"customMetric": True},
        {"keda": {"enabled": True, "prometheusAddress": "http://p:9090"}},
    ],
    "networkPolicy": [{"enabled": True}, {"enabled": False}],
    "callerIdentity": [False, True],
    "authorization": [{}, {"callers": [{"namespace": "a", "serviceAccount": "b"}]}],
    "config": [
        {},
        {"tokens_file": "/t"},
        {"upstream": {"proxy": "socks5://p.example"}, "tracing": {"endpoint": "http://c:1"}},
    ],
    "test": [{"enabled": True}, {"enabled": False}],
}


def test_any_combination_of_the_switches_renders_objects_that_kubernetes_accepts():
    latest = KUBERNETES[-1]
    known: dict[str, list[str]] = {}
    count = 0
    with Chart.load(CHART) as chart:
        for choice in itertools.product(*SWITCHES.values()):
            values = dict(zip(SWITCHES, choice, strict=True))
            if not values["mesh"] and (values["callerIdentity"] or values["authorization"]):
                continue
            count += 1
            for path, text in chart.render(values, name="ollm-bridge").items():
                for document in text.split("\n---\n") if path.endswith(".yaml") else ():
                    if document not in known:
                        known[document] = check_document(document, latest)
                    assert known[document] == [], (values, path)
    assert count == 1296


def check_document(document: str, version: str) -> list[str]:
    tree = yaml.safe_load(document)
    if tree is None or not (is_builtin(tree) or (CRDS.exists() and has_schema(tree))):
        return []
    return find_violations(tree, version)


@each_variant
def test_kubernetes_accepts_the_test_of_the_installation(values):
    hooks = render_hooks(values)
    assert bool(hooks) == values.get("test", {}).get("enabled", True)
    assert [find_violations(tree, version) for tree in hooks.values() for version in KUBERNETES] == [[]] * len(
        hooks
    ) * len(KUBERNETES)


def test_plain_cluster_gets_objects_of_kubernetes_alone():
    objects = render({})
    assert all(is_builtin(tree) for tree in objects.values())
    metrics = objects["HorizontalPodAutoscaler", "ollm-bridge"]["spec"]["metrics"]
    assert [each["type"] for each in metrics] == ["ContainerResource"]


def test_keda_takes_the_place_of_the_autoscaler():
    kinds = {kind for kind, _ in render(VARIANTS["KEDA"])}
    assert "ScaledObject" in kinds
    assert "HorizontalPodAutoscaler" not in kinds
    off = {"enabled": False, "keda": VARIANTS["KEDA"]["autoscaling"]["keda"]}
    assert not {"ScaledObject", "HorizontalPodAutoscaler"} & {kind for kind, _ in render({"autoscaling": off})}


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
        (VARIANTS["Prometheus"], ("ServiceMonitor", "ollm-bridge"), ("spec", "endpoints", 0), "ports"),
        (VARIANTS["Prometheus"], ("PrometheusRule", "ollm-bridge"), ("spec", "groups", 0, "rules", 0), "anotations"),
        (VARIANTS["KEDA"], ("ScaledObject", "ollm-bridge"), ("spec",), "minReplicas"),
        (VARIANTS["Gateway API"], ("GRPCRoute", "ollm-bridge"), ("spec", "rules", 0), "backends"),
        (VARIANTS["Istio that knows callers"], ("AuthorizationPolicy", "ollm-bridge"), ("spec", "rules", 0), "source"),
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
        ({"config": {"upstream": {"proxy": "http://me:sesame@proxy.example"}}}, "proxy"),
        ({"config": {"mesh": {"identity_header": "l5d-client-id"}}}, "identity_header"),
        ({"serviceMonitor": {"enabled": "yes"}}, "enabled"),
        (
            {"authorization": {"callers": [{"namespace": "a", "serviceAccount": "b*"}], "mesh": "istio"}},
            "serviceAccount",
        ),
        ({"authorization": {"callers": [{"namespace": "a", "serviceAccount": "b"}]}}, "expected mesh beside it"),
        ({"callerIdentity": True}, "expected mesh beside it"),
        ({"autoscaling": {"keda": {"enabled": True}}}, "expected prometheusAddress"),
        ({"grpcRoute": {"enabled": True}}, "expected parentRefs"),
        ({"grpcRoute": {"backendTls": {"hostname": "a.example"}}}, "expected hostname and caConfigMap together"),
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
        value
        for part in (ours, ours.get("tls", {}), ours["upstream"])
        for name, value in part.items()
        if "_file" in name
    ]
    base_url = ours["upstream"]["base_url"]
    wanted += [base_url.removeprefix("unix:")] if base_url.startswith("unix:") else []
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
    settings = get_settings(values)
    web = {"web": int(_parse_port(settings["web_listen"]))} if "web_listen" in settings else {}
    assert ports == {
        "grpc": int(_parse_port(get_container(values)["args"][-1])),
        "admin": int(_parse_port(settings["admin_listen"])),
        **web,
    }
    for (kind, _), tree in objects.items():
        spec = tree.get("spec", {})
        if kind == "Service":
            assert spec["selector"].items() <= labels.items()
            assert [(each["targetPort"], each["port"]) for each in spec["ports"]] in [
                [("grpc", ports["grpc"]), *web.items()],
                [("grpc", ports["grpc"])],
                [("admin", ports["admin"])],
            ]
        if kind in {"PodDisruptionBudget", "PeerAuthentication"}:
            assert spec["selector"]["matchLabels"].items() <= labels.items()
        if kind == "NetworkPolicy":
            assert spec["podSelector"]["matchLabels"].items() <= labels.items()
            calls, admin, *tests = ({each["port"] for each in rule["ports"]} for rule in spec["ingress"])
            assert {ports["grpc"], *web.values()} <= calls
            assert ports["admin"] not in calls
            assert admin == {ports["admin"]}
            assert tests == [(calls | admin) - {*web.values()}] * len(render_hooks(values))
        if kind == "VirtualService":
            hosts = {name for kind, name in objects if kind == "Service"}
            assert set(spec["hosts"]) == hosts - {"ollm-bridge-admin"}
            assert spec["http"][0]["route"][0]["destination"] == {
                "host": "ollm-bridge",
                "port": {"number": ports["grpc"]},
            }


def _parse_port(address: str) -> str:
    return address.rpartition(":")[2]


EGRESS = {
    "plain": [("gateway", 443)],
    "everything": [("gateway", 8443)],
    "through a proxy, with traces": [("proxy", 3128), ("tracing", 4317)],
    "a gateway on a socket": [],
}


@pytest.mark.parametrize(("name", "expected"), EGRESS.items(), ids=EGRESS)
def test_policy_allows_dns_and_what_the_settings_name(name, expected):
    with Chart.load(CHART) as chart:
        peers = chart.values["networkPolicy"] | VARIANTS[name].get("networkPolicy", {})
    names, *others = render(VARIANTS[name])["NetworkPolicy", "ollm-bridge"]["spec"]["egress"]
    assert {(each["port"], each["protocol"]) for each in names["ports"]} == {(53, "UDP"), (53, "TCP")}
    wanted = [{"to": peers[name], "ports": [{"port": port}]} for name, port in expected]
    assert others[: len(wanted)] == wanted
    more = others[len(wanted) :]
    assert [rule for rule in more if "ports" in rule] == VARIANTS[name].get("networkPolicy", {}).get("extraEgress", [])


def test_istio_is_told_of_hosts_outside_of_the_cluster_alone():
    values = VARIANTS["through a proxy, with traces"] | {"mesh": "istio"}
    entries = {key[1]: tree["spec"] for key, tree in render(values).items() if key[0] == "ServiceEntry"}
    assert entries["ollm-bridge-proxy"]["hosts"] == ["proxy.corp.example"]
    assert entries["ollm-bridge-proxy"]["ports"] == [{"name": "tcp", "number": 3128, "protocol": "TCP"}]
    assert len(entries) == 1


# Callers in a mesh


@pytest.mark.parametrize(
    ("mesh", "header", "principals"),
    [
        (
            "istio",
            "x-forwarded-client-cert",
            [
                "prod.example/ns/search/sa/indexer",
                "prod.example/ns/chat/sa/*",
                "prod.example/ns/default/sa/ollm-bridge",
            ],
        ),
        (
            "linkerd",
            "l5d-client-id",
            [
                "*.search.serviceaccount.identity.mesh.cluster.local",
                "ollm-bridge.default.serviceaccount.identity.mesh.cluster.local",
            ],
        ),
    ],
)
def test_mesh_admits_the_listed_callers_and_names_them_to_the_bridge(mesh, header, principals):
    values = VARIANTS[f"{mesh.title()} that knows callers"]
    objects = render(values)
    if mesh == "istio":
        calls, admin = objects["AuthorizationPolicy", "ollm-bridge"]["spec"]["rules"]
        assert calls["from"][0]["source"]["principals"] == principals
        assert calls["to"][0]["operation"]["ports"] == ["50051"]
        assert admin == {"to": [{"operation": {"ports": ["9464"]}}]}
        proxy = yaml.safe_load(get_pod(values)["metadata"]["annotations"]["proxy.istio.io/config"])
        assert proxy["proxyHeaders"] == {"forwardedClientCert": "SANITIZE_SET"}
    else:
        policy = objects["AuthorizationPolicy", "ollm-bridge-grpc"]["spec"]
        assert objects[policy["targetRef"]["kind"], policy["targetRef"]["name"]]["spec"]["port"] == "grpc"
        (reference,) = policy["requiredAuthenticationRefs"]
        assert objects[reference["kind"], reference["name"]]["spec"]["identities"] == principals
    assert get_settings(values)["mesh"] == {"identity_header": header}
    assert "open" not in get_settings(values)
    environment = {each["name"]: each.get("value") for each in get_container(values)["env"]}
    assert json.loads(environment["OLLM_BRIDGE_MESH__PROXIES"]) == ["127.0.0.0/8", "::1", "$(POD_IP)"]


@pytest.mark.parametrize("mesh", ["istio", "linkerd"])
def test_web_port_admits_the_listed_callers_alone_too(mesh):
    objects = render(VARIANTS[f"{mesh.title()} that knows callers"] | {"config": {"web_listen": "0.0.0.0:8081"}})
    if mesh == "istio":
        calls, _ = objects["AuthorizationPolicy", "ollm-bridge"]["spec"]["rules"]
        assert calls["to"][0]["operation"]["ports"] == ["50051", "8081"]
        routes = objects["VirtualService", "ollm-bridge"]["spec"]["http"]
        ports = [(route["match"][0]["port"], route["route"][0]["destination"]["port"]["number"]) for route in routes]
        assert ports == [(50051, 50051), (8081, 8081)]
    else:
        servers = {key[1]: tree["spec"]["port"] for key, tree in objects.items() if key[0] == "Server"}
        assert servers == {"ollm-bridge-grpc": "grpc", "ollm-bridge-web": "web"}
        for name in servers:
            assert objects["AuthorizationPolicy", name]["spec"]["targetRef"]["name"] == name


def test_callers_are_not_named_unless_that_is_asked_for():
    for mesh in ("istio", "linkerd"):
        assert "mesh" not in get_settings({"mesh": mesh})
        assert not [key for key in render({"mesh": mesh}) if "Authorization" in key[0]]
        assert "proxyHeaders" not in get_pod({"mesh": mesh})["metadata"]["annotations"].get("proxy.istio.io/config", "")


def test_dashboard_is_that_of_the_project():
    objects = render(VARIANTS["Prometheus"])
    dashboard = objects["ConfigMap", "ollm-bridge-dashboard"]["data"]["ollm-bridge.json"]
    source = ROOT / "deploy" / "grafana" / "ollm-bridge.json"
    assert json.loads(dashboard) == json.loads(source.read_text(encoding="utf-8"))


def test_scraped_metrics_have_the_job_that_alerts_select():
    objects = render(VARIANTS["Prometheus"])
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
    metrics = render(VARIANTS["Prometheus"])["HorizontalPodAutoscaler", "ollm-bridge"]["spec"]["metrics"]
    (name,) = (each["pods"]["metric"]["name"] for each in metrics if each["type"] == "Pods")
    (container,) = (each["containerResource"]["container"] for each in metrics if each["type"] == "ContainerResource")
    assert container == get_container({})["name"]
    operations = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert f"| `{name}` | gauge |" in operations
    adapter = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "prometheus-adapter.yaml").read_text(encoding="utf-8"))
    (rule,) = adapter["rules"]["custom"]
    assert rule["name"]["as"] == name
    assert rule["seriesQuery"].startswith(f"{name}{{")


def read_cost(what: str) -> float:
    """Return the median of a row of the first table of docs/scale.md, in the unit of the row."""
    (found,) = re.findall(rf"^\| {re.escape(what)} \| ([\d.]+) ", SCALE_PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return float(found)


@pytest.mark.parametrize(
    ("config", "memory"),
    [
        ({}, "848Mi"),
        ({"server": {"engine": "grpcio"}}, "1161Mi"),
        ({"calls_max": 200}, "798Mi"),
        ({"calls_max": 200, "server": {"engine": "grpcio"}}, "954Mi"),
        ({"workers": 2}, "1696Mi"),
    ],
    ids=str,
)
def test_memory_limit_is_the_sum_that_the_settings_can_cost(config, memory):
    assert get_container({"config": config})["resources"]["limits"]["memory"] == memory
    operations = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| \*\*sum\*\* .*$", operations, re.MULTILINE)
    assert "the chart: 848 MiB" in row
    assert "(1161 MiB)" in row


def test_resources_and_the_autoscalers_target_follow_from_the_cost_of_a_call():
    idle_mb = read_cost("memory of an idle worker")
    open_stream_kb = read_cost("memory of an open stream, of 1,000")
    chunk_us = read_cost("CPU of a chunk, 50 streams of 50 chunks a second each")
    ours, requests = get_settings({}), get_container({})["resources"]["requests"]
    needed_mib = ours["workers"] * (idle_mb + ours["calls_max"] * open_stream_kb / 1000) * 1e6 / 2**20
    assert 1.2 * needed_mib <= int(requests["memory"].removesuffix("Mi")) <= 3 * needed_mib
    assert int(requests["cpu"]) == ours["workers"]
    (target,) = (
        int(each["pods"]["target"]["averageValue"])
        for each in render({"autoscaling": {"customMetric": True}})["HorizontalPodAutoscaler", "ollm-bridge"]["spec"][
            "metrics"
        ]
        if each["type"] == "Pods"
    )
    chunks_per_stream_s = 50  # as lab/scale/plan.py assumes
    assert 0.25 <= target * chunks_per_stream_s * chunk_us / 1e6 / ours["workers"] <= 0.7
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
