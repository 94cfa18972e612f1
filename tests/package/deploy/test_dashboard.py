"""The dashboard against a real scrape: every query has data, and none counts another job in.

Prometheus scrapes two bridges with calls under two jobs, since any service with OpenTelemetry's metrics has the same
names. Each has an engine of its own for the call port, so the queries have data with both.
"""

import json
import math
import re
import shutil
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kit.processes import find_free_port, find_program, run_program, start_program
from tests.package.deploy.checkout import BRIDGE, ENVIRONMENT, WAIT_S

ROOT = Path(__file__).parents[3]
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "ollm-bridge.json").read_text(encoding="utf-8"))
PROMETHEUS = find_program("prometheus")
MATCHERS = 'job=~"$job", namespace=~"$namespace", pod=~"$pod", instance=~"$instance"'
METRIC = re.compile(
    r"\b(?P<name>(?:ollm_bridge|rpc_server|gen_ai_(?:client|server)|http_client|process)_\w+)(?P<selector>\{[^}]*\})?"
)
QUERIES = {
    f"{panel['id']} {panel['title']} {target['refId']}": target["expr"]
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", [])
}
CALLS = (
    ("--no-stream",),
    (),
    ("--model", "scenario::error?status=500"),
    ("--model", "scenario::cut"),
    ("--model", "scenario::stall", "--timeout", "0.1"),
)
"""What has every kind of data: unary and streamed calls, tokens of each kind, failures of each party."""

needs_prometheus = pytest.mark.skipif(
    PROMETHEUS is None,
    reason="NOT CHECKED: the dashboard: there is no prometheus on this machine (Debian: the package prometheus)",
)


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_every_selector_has_the_variables(query):
    found = list(METRIC.finditer(re.sub(r"by \([^)]*\)", "by ()", query)))
    assert found
    for each in found:
        assert each["selector"] is not None
        assert each["selector"].startswith("{" + MATCHERS)


def test_all_of_a_job_is_the_jobs_that_there_are_and_all_of_the_others_is_anything():
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "namespace", "pod", "instance", "model"]
    assert "allValue" not in variables["job"]
    assert all(variables[name]["allValue"] == ".*" for name in ("namespace", "pod", "instance", "model"))
    assert variables["job"]["definition"] == "label_values(ollm_bridge_info, job)"


class Prometheus:
    """A running Prometheus."""

    def __init__(self, address: str) -> None:
        self._url = f"http://{address}/api/v1/query"

    def ask(self, query: str) -> dict[str, float]:
        """Return the values that are numbers, by their labels."""
        url = f"{self._url}?{urllib.parse.urlencode({'query': query})}"
        with urllib.request.urlopen(url, timeout=WAIT_S) as answer:
            result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        values = {json.dumps(each["metric"], sort_keys=True): float(each["value"][1]) for each in result}
        return {labels: value for labels, value in values.items() if not math.isnan(value)}

    def ask_panel(self, query: str, job: str, pod: str = ".*") -> dict[str, float]:
        variables = {"job": job, "namespace": ".*", "pod": pod, "instance": ".*", "model": ".*"}
        query = query.replace("$__rate_interval", "10m")
        return self.ask(re.sub(r"\$(\w+)", lambda found: variables[found[1]], query))


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    admins = {name: f"127.0.0.1:{find_free_port()}" for name in ("ollm-bridge", "other")}
    jobs = [
        {
            "job_name": name,
            "scrape_interval": "1s",
            "static_configs": [{"targets": [admin], "labels": {"namespace": "llm", "pod": f"{name}-1"}}],
        }
        for name, admin in admins.items()
    ]
    (folder / "prometheus.yml").write_text(yaml.safe_dump({"scrape_configs": jobs}), encoding="utf-8")
    port = find_free_port()
    with start("emulate", "--listen", "127.0.0.1:0", log=folder / "gateway.log") as gateway:
        upstream = f"http://{gateway.address}"
        with (
            serve(upstream, admins["ollm-bridge"], folder, "grpcio") as one,
            serve(upstream, admins["other"], folder, "native") as other,
        ):
            command = (
                PROMETHEUS,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
            )
            with start_program(*command, f"--web.listen-address=127.0.0.1:{port}", log=folder / "log", port=port):
                running = Prometheus(f"127.0.0.1:{port}")
                wait_for_data(running, one.address, other.address)
                yield running
    shutil.rmtree(folder / "data", ignore_errors=True)


def serve(upstream, admin, folder, engine):
    settings = {"OLLM_BRIDGE_ADMIN_LISTEN": admin, "OLLM_BRIDGE_SERVER__ENGINE": engine}
    call = ("serve", "--listen", "127.0.0.1:0", "--upstream", upstream)
    return start(*call, log=folder / f"{admin}.log", settings=settings)


def start(*arguments, log, settings=None):
    environment = ENVIRONMENT | (settings or {})
    environment.pop("OLLM_BRIDGE_LISTEN", None)
    return start_program(BRIDGE, *arguments, log=log, environment=environment)


def wait_for_data(prometheus: Prometheus, *addresses: str) -> None:
    """Make calls of every kind until each query of metrics that the bridge shows has data, of both jobs."""
    until = time.monotonic() + 2 * WAIT_S
    while True:
        for address in addresses:
            for words in CALLS:
                run_program(BRIDGE, "chat", "--address", address, *words, "hello", environment=ENVIRONMENT)
        wanted = list_queries(prometheus)
        missing = [
            name for name in wanted for job in ("ollm-bridge", "other") if not try_panel(prometheus, QUERIES[name], job)
        ]
        if not missing:
            return
        assert time.monotonic() < until, missing


def list_queries(prometheus: Prometheus) -> list[str]:
    """Return the queries whose metrics there are: some have no series yet, such as of certificates without TLS."""
    there = {json.loads(labels)["__name__"] for labels in try_panel(prometheus, '{job=~"$job"}', "ollm-bridge")}
    wanted = [name for name, query in QUERIES.items() if {each["name"] for each in METRIC.finditer(query)} <= there]
    return wanted if len(wanted) > 0.85 * len(QUERIES) else list(QUERIES)


def try_panel(prometheus: Prometheus, query: str, job: str) -> dict[str, float]:
    try:
        return prometheus.ask_panel(query, job)
    except OSError:  # it starts
        return {}


@needs_prometheus
@pytest.mark.timeout(300)
@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_query_counts_no_other_job_in(prometheus, query):
    assert prometheus.ask_panel(query, "none") == {}
    assert prometheus.ask_panel(query, "ollm-bridge", pod="other-1") == {}


@needs_prometheus
@pytest.mark.timeout(300)
def test_query_without_the_job_would_count_both(prometheus):
    query = f"sum(ollm_bridge_calls_max{{{MATCHERS}}})"
    (own,) = prometheus.ask_panel(query, "ollm-bridge").values()
    (both,) = prometheus.ask_panel(query, "ollm-bridge|other").values()
    assert (own, both) == (1000, 2000)
