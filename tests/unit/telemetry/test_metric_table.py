"""The table of metrics: its names follow the rules, and the dashboard and the alerts use no others."""

import json
import re
from pathlib import Path

import pytest

from bridge.core.reasons import find_party, list_reasons
from bridge.telemetry.metric_table import ALERTED_REASONS, METRICS

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("key", METRICS)
def test_name_follows_prometheus_and_opentelemetry(key):
    name, kind, text, labels, buckets, otel, _ = METRICS[key]
    assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
    assert (kind == "counter") == name.endswith("_total")
    assert bool(buckets) == (kind == "histogram")
    assert list(buckets) == sorted(set(buckets))
    assert text.endswith(".")
    if otel:
        assert name.removesuffix("_seconds") == otel.replace(".", "_")
    else:
        assert name.startswith("ollm_bridge_")
        assert all("_" not in label for label in labels)


def list_exposed_names() -> set[str]:
    """Return every name that a query may use."""
    suffixes = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    return {spec.name + suffix for spec in METRICS.values() for suffix in suffixes[spec.kind]}


def find_metrics(text: str) -> set[str]:
    return set(re.findall(r"\b(?:ollm_bridge|rpc_server|gen_ai_(?:client|server)|http_client)_\w+", text))


LABELS = {label for spec in METRICS.values() for label in spec.labels} | {
    "le",
    "job",
    "namespace",
    "pod",
    "instance",
    "quantile",
}


def find_labels(text: str) -> set[str]:
    """Return the labels that a query names."""
    names = set(re.findall(r"[{,]\s*(\w+)\s*[=!]~?", text))
    for group in re.findall(r"by \(([^)]*)\)", text):
        names |= {name.strip() for name in group.split(",")}
    return names


def list_panels(dashboard: dict) -> list[dict]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


DASHBOARD = ROOT / "deploy" / "grafana" / "ollm-bridge.json"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yaml"


def test_dashboard_queries_only_metrics_and_labels_that_exist():
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in list_panels(dashboard) for target in panel["targets"]]
    queries += [variable["query"]["query"] for variable in dashboard["templating"]["list"] if "query" in variable and
                isinstance(variable["query"], dict)]  # fmt: skip
    assert len(queries) > 20
    for query in queries:
        assert find_metrics(query) or "process_" in query, query
        assert find_metrics(query) <= list_exposed_names(), query
        assert find_labels(query) <= LABELS, query
        assert query.count("(") == query.count(")")


def test_dashboard_is_valid_for_grafana():
    dashboard = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    rows = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
    assert len(rows) >= 7
    for panel in list_panels(dashboard):
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["description"]
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        refs = [target["refId"] for target in panel["targets"]]
        assert len(refs) == len(set(refs))
    taken = [
        (x, y)
        for panel in dashboard["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(taken) == len(set(taken)), "panels lie over each other"
    assert "http://" not in DASHBOARD.read_text().replace("http://json-schema", "")


def test_dashboard_says_who_has_to_act_as_the_table_of_reasons_does():
    (panel,) = [panel for panel in list_panels(json.loads(DASHBOARD.read_text())) if "has to act" in panel["title"]]
    for target in panel["targets"]:
        (reasons,) = re.findall(r'reason=~"([^"]+)"', target["expr"])
        party = target["legendFormat"].removeprefix("the ")
        assert set(reasons.split("|")) == {each for each in list_reasons() if find_party(each) == party}


def test_every_metric_of_the_table_is_on_the_dashboard():
    on_it = find_metrics(DASHBOARD.read_text())
    for spec in METRICS.values():
        assert any(name.startswith(spec.name) for name in on_it), spec.name


def test_alerts_query_only_metrics_reasons_and_labels_that_exist():
    text = ALERTS.read_text()
    rules = re.split(r"\n\s+- alert: ", text)[1:]
    assert len(rules) >= 7
    for rule in rules:
        name = rule.splitlines()[0]
        assert re.fullmatch(r"OllmBridge\w+", name)
        assert find_metrics(rule) or "up{" in rule or "process_" in rule, name
        assert find_metrics(rule) <= list_exposed_names(), name
        expression = re.search(r"expr: (.*?)\n\s+(?:for|labels):", rule, re.DOTALL)[1]
        assert find_labels(expression) <= LABELS, name
        for key in ("severity:", "summary:", "description:"):
            assert key in rule, name
    reasons = (ROOT / "protos" / "ollmbridge" / "v1" / "error_details.proto").read_text()
    named = {each for group in re.findall(r'reason=~?"([\w|]+)"', text) for each in group.split("|")}
    assert len(named) >= 6
    for reason in named:
        assert f"ERROR_REASON_{reason} " in reasons
        assert reason in ALERTED_REASONS, "counted from 0 on, or its first increase is not seen"
