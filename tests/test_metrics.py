"""Tests of bridge/telemetry/metrics.py and failures.py, and of the dashboard and the alerts that go by them."""

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from bridge.core.reasons import SERVICE_NAME
from bridge.telemetry import CallRecord, metrics
from bridge.telemetry.failures import _FILES_MAX, KEPT, Failures
from bridge.telemetry.metrics import METRICS, MODELS_MAX, Metrics
from tests.e2e.process import no_namespaces

ROOT = Path(__file__).parent.parent
RECORD = CallRecord(
    method="StreamChatCompletion",
    code="OK",
    reason="",
    model="echo",
    request_id="r-1",
    peer="ipv4:127.0.0.1:1",
    duration_s=1.5,
    upstream_status=200,
    upstream_s=1.4,
    first_chunk_s=0.4,
    chunks=5,
    prompt_tokens=20,
    completion_tokens=11,
    request_bytes=27,
    response_bytes=177,
    streamed=True,
    translation_s=0.0002,
)
UNARY = {"method": "CreateChatCompletion", "streamed": False, "first_chunk_s": None, "chunks": 0}


def record(**fields) -> CallRecord:
    return CallRecord(**RECORD._asdict() | fields)


def ended(*records: CallRecord) -> Metrics:
    counted = Metrics("1.2.3")
    for each in records:
        counted.began(each.method)
        counted.ended(each)
    return counted


def samples(counted: Metrics) -> dict[tuple[str, ...], float]:
    """Give what the page says, but for zeros: `{(name, label values by their names' order): value}`."""
    found = {}
    for family in text_string_to_metric_families(counted.page().decode()):
        for sample in family.samples:
            if sample.value and not sample.name.endswith("_bucket") and not sample.name.startswith("process_"):
                found[sample.name, *(value for _, value in sorted(sample.labels.items()))] = sample.value
    return found


def test_whole_stream_is_counted_and_timed_in_every_metric_that_is_its():
    counted = ended(RECORD)
    counted.chunks("StreamChatCompletion", [0.25])
    method, path = "StreamChatCompletion", "ollmbridge.v1.ChatCompletionService/StreamChatCompletion"
    assert samples(counted) == {
        ("ollm_bridge_calls_total", "OK", method, ""): 1,
        ("rpc_server_call_duration_seconds_count", "", path, "OK", "grpc"): 1,
        ("rpc_server_call_duration_seconds_sum", "", path, "OK", "grpc"): 1.5,
        ("gen_ai_server_request_duration_seconds_count", "chat", "echo"): 1,
        ("gen_ai_server_request_duration_seconds_sum", "chat", "echo"): 1.5,
        ("gen_ai_server_time_to_first_token_seconds_count", "chat", "echo"): 1,
        ("gen_ai_server_time_to_first_token_seconds_sum", "chat", "echo"): 0.4,
        ("gen_ai_server_time_per_output_token_seconds_count", "chat", "echo"): 1,
        ("gen_ai_server_time_per_output_token_seconds_sum", "chat", "echo"): pytest.approx(0.1),
        ("gen_ai_client_operation_time_per_output_chunk_seconds_count", "chat"): 1,
        ("gen_ai_client_operation_time_per_output_chunk_seconds_sum", "chat"): 0.25,
        ("gen_ai_client_token_usage_count", "chat", "echo", "input"): 1,
        ("gen_ai_client_token_usage_sum", "chat", "echo", "input"): 20,
        ("gen_ai_client_token_usage_count", "chat", "echo", "output"): 1,
        ("gen_ai_client_token_usage_sum", "chat", "echo", "output"): 11,
        ("http_client_request_duration_seconds_count", "POST", "200"): 1,
        ("http_client_request_duration_seconds_sum", "POST", "200"): 1.4,
        ("ollm_bridge_chunks_total",): 5,
        ("ollm_bridge_stream_ends_total", "whole"): 1,
        ("ollm_bridge_translation_seconds_count", method): 1,
        ("ollm_bridge_translation_seconds_sum", method): 0.0002,
        ("ollm_bridge_request_bytes_total", method): 27,
        ("ollm_bridge_response_bytes_total", method): 177,
        ("ollm_bridge_info", "1.2.3"): 1,
    }


def test_call_that_never_reached_the_upstream_has_no_times_of_it():
    reason = {"code": "UNAVAILABLE", "reason": "UPSTREAM_UNREACHABLE"}
    nothing = {"upstream_status": None, "upstream_s": None, "prompt_tokens": None, "completion_tokens": None}
    found = samples(ended(record(**UNARY, **reason, **nothing, translation_s=None)))
    assert found["ollm_bridge_calls_total", "UNAVAILABLE", "CreateChatCompletion", "UPSTREAM_UNREACHABLE"] == 1
    assert not any(name.startswith(("gen_ai", "http_client")) for name, *_ in found)
    assert not any("stream" in name or "translation" in name for name, *_ in found)


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ({}, "whole"),
        ({"code": "ABORTED", "reason": "INCOMPLETE_STREAM"}, "INCOMPLETE_STREAM"),
        ({"code": "CANCELLED"}, "CANCELLED"),
        ({"code": "DEADLINE_EXCEEDED"}, "DEADLINE_EXCEEDED"),
        ({"code": "DEADLINE_EXCEEDED", "reason": "UPSTREAM_TIMEOUT"}, "UPSTREAM_TIMEOUT"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_stream_ends_are_told_apart(fields, end):
    assert record(**fields).stream_end == end
    assert samples(ended(record(**fields)))["ollm_bridge_stream_ends_total", end] == 1


def test_in_flight_is_what_has_begun_and_not_ended():
    counted = ended(RECORD)
    for _ in range(3):
        counted.began("CreateChatCompletion")
    counted.ended(record(**UNARY))
    assert samples(counted)["ollm_bridge_calls_in_flight", "CreateChatCompletion"] == 2
    assert counted.totals().in_flight == 2


def test_connections_are_looked_at_when_shown():
    counted = ended(RECORD)
    counted.connections = lambda: 12
    assert samples(counted)["ollm_bridge_upstream_connections",] == 12
    assert counted.totals().connections == 12


def test_totals_add_up_over_methods_and_models_and_leave_out_who_cancelled():
    failed = {"code": "ABORTED", "reason": "INCOMPLETE_STREAM"}
    told = ended(
        RECORD, record(**UNARY, model="other-model"), record(**failed), record(code="CANCELLED"), record(**failed)
    ).totals()
    assert (told.calls, told.failed, told.in_flight) == (5, 2, 0)
    assert told.reasons == {"INCOMPLETE_STREAM": 2}
    assert (told.tokens_in, told.tokens_out, told.chunks) == (100, 55, 20)
    assert told.duration[float("inf")] == 5
    assert told.duration[1.28] == 0
    assert told.duration[2.56] == 5
    assert told.first_chunk[0.5] == 4
    assert list(told.first_chunk) == sorted(told.first_chunk)


# Labels are bounded


def models(counted: Metrics) -> set[str]:
    families = text_string_to_metric_families(counted.page().decode())
    return {each.labels["gen_ai_request_model"] for one in families for each in one.samples if "gen_ai_request_model" in each.labels}  # fmt: skip # noqa: E501


def test_models_beyond_the_limit_are_other():
    counted = ended(*(record(model=f"model-{number}") for number in range(MODELS_MAX + 20)))
    assert models(counted) == {*(f"model-{number}" for number in range(MODELS_MAX)), "other"}
    counted.ended(record(model="model-7"))
    found = samples(counted)
    assert found["gen_ai_server_request_duration_seconds_count", "chat", "model-7"] == 2
    assert found["gen_ai_server_request_duration_seconds_count", "chat", "other"] == 20


def test_model_that_the_upstream_has_not_answered_for_takes_no_place():
    refused = {"code": "NOT_FOUND", "reason": "UPSTREAM_NOT_FOUND", "upstream_status": 404}
    counted = ended(*(record(model=f"guess-{number}", **refused) for number in range(MODELS_MAX)), RECORD)
    assert models(counted) == {"other", "echo"}


@given(st.lists(st.text(), max_size=20))
def test_any_model_is_a_label_that_can_be_read_back(names):
    assert models(ended(*(record(model=name) for name in names))) == {name or "other" for name in names}


def test_series_are_bounded_whatever_callers_send():
    refused = {"code": "NOT_FOUND", "reason": "UPSTREAM_NOT_FOUND"}
    counted = Metrics("1")
    for number in range(3000):
        text = f"m-{number}"
        fields = {"request_id": text, "peer": text, "caller": text, "trace_id": text, "model": text}
        for each in (fields, fields | refused, fields | UNARY):
            counted.began("StreamChatCompletion")
            counted.ended(record(**each))
    assert counted.page().count(b"\n") < 100 * (MODELS_MAX + 1) + 500


# The table


def test_service_of_the_rpc_names_is_the_service():
    assert metrics._SERVICE == SERVICE_NAME


@pytest.mark.parametrize("key", METRICS)
def test_name_follows_prometheus_and_opentelemetry(key):
    name, kind, text, labels, buckets, otel = METRICS[key]
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


def test_page_shows_every_metric_of_the_table_and_no_other():
    counted = ended(RECORD)
    counted.chunks("StreamChatCompletion", [0.1])
    families = text_string_to_metric_families(counted.page().decode())
    found = {one.name: one.documentation for one in families if not one.name.startswith("process_")}
    assert found == {named.name.removesuffix("_total"): named.help for named in METRICS.values()}


def exposed() -> set[str]:
    """Give every name that a query may use."""
    suffixes = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    return {named.name + suffix for named in METRICS.values() for suffix in suffixes[named.kind]}


def queried(text: str) -> set[str]:
    return set(re.findall(r"\b(?:ollm_bridge|rpc_server|gen_ai_(?:client|server)|http_client)_\w+", text))


LABELS = {label for named in METRICS.values() for label in named.labels} | {"le", "job", "instance", "quantile"}


def labelled(text: str) -> set[str]:
    """Give the labels that a query names."""
    names = set(re.findall(r"[{,]\s*(\w+)\s*[=!]~?", text))
    for group in re.findall(r"by \(([^)]*)\)", text):
        names |= {name.strip() for name in group.split(",")}
    return names


def panels(dashboard: dict) -> list[dict]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


DASHBOARD = ROOT / "deploy" / "grafana" / "ollm-bridge.json"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yaml"


def test_dashboard_asks_only_for_metrics_and_labels_that_there_are():
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in panels(dashboard) for target in panel["targets"]]
    queries += [variable["query"]["query"] for variable in dashboard["templating"]["list"] if "query" in variable and
                isinstance(variable["query"], dict)]  # fmt: skip
    assert len(queries) > 20
    for query in queries:
        assert queried(query), query
        assert queried(query) <= exposed(), query
        assert labelled(query) <= LABELS, query
        assert query.count("(") == query.count(")")


def test_dashboard_is_one_that_grafana_takes():
    dashboard = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    rows = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
    assert len(rows) >= 7
    for panel in panels(dashboard):
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


def test_every_metric_of_the_table_is_on_the_dashboard():
    on_it = queried(DASHBOARD.read_text())
    for named in METRICS.values():
        assert any(name.startswith(named.name) for name in on_it), named.name


def test_alerts_ask_only_for_metrics_reasons_and_labels_that_there_are():
    text = ALERTS.read_text()
    rules = re.split(r"\n\s+- alert: ", text)[1:]
    assert len(rules) >= 7
    for rule in rules:
        name = rule.splitlines()[0]
        assert re.fullmatch(r"OllmBridge\w+", name)
        assert queried(rule), name
        assert queried(rule) <= exposed(), name
        expression = re.search(r"expr: (.*?)\n\s+(?:for|labels):", rule, re.DOTALL)[1]
        assert labelled(expression) <= LABELS, name
        for key in ("severity:", "summary:", "description:"):
            assert key in rule, name
    reasons = (ROOT / "protos" / "ollmbridge" / "v1" / "error_details.proto").read_text()
    for reason in re.findall(r'reason="(\w+)"', text):
        assert f"ERROR_REASON_{reason} " in reasons


# Several processes

WORKER = """
import sys
from pathlib import Path
from bridge.telemetry.failures import Failures
from bridge.telemetry.metrics import Metrics
from tests.test_metrics import RECORD, record
counted, failures = Metrics("1.2.3", shared=Path(sys.argv[1])), Failures(shared=Path(sys.argv[1]), name=sys.argv[2])
counted.connections = lambda: 3
for each in (RECORD, record(code="INTERNAL", reason="BRIDGE_FAULT", request_id=sys.argv[2])):
    counted.began(each.method)
    counted.chunks(each.method, [0.1])
    counted.ended(each)
    failures.ended(each)
counted.began("CreateChatCompletion")
print("counted", flush=True)
sys.stdin.read()
"""


async def test_workers_metrics_and_failures_are_one_page(tmp_path):
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": f"{ROOT}:{ROOT / 'generated'}"}
    workers = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", WORKER, str(tmp_path), name),
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for name in ("one", "two")
    ]
    for worker in workers:
        assert await worker.stdout.readline() == b"counted\n"
    counted, failures = Metrics("1.2.3", shared=tmp_path), Failures(shared=tmp_path)
    found = samples(counted)
    assert found["ollm_bridge_calls_total", "OK", "StreamChatCompletion", ""] == 2
    assert found["ollm_bridge_calls_in_flight", "CreateChatCompletion"] == 2
    assert found["ollm_bridge_upstream_connections",] == 6
    assert found["ollm_bridge_info", "1.2.3"] == 1
    assert found["gen_ai_client_operation_time_per_output_chunk_seconds_count", "chat"] == 4
    told = counted.totals()
    assert (told.calls, told.failed, told.in_flight, told.duration[float("inf")]) == (4, 2, 2, 4)
    assert {failure.request_id for failure in failures.last()} == {"one", "two"}
    for worker in workers:
        worker.stdin.close()
        assert await worker.wait() == 0


SMALL_DISK = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=320k tmpfs "$1" && exec "$2" -c "$3" "$1"', "sh"]
ON_FULL_DISK = """
import contextlib, sys, tracemalloc
from pathlib import Path
from bridge.telemetry.metrics import Metrics
from tests.test_metrics import RECORD, record, samples

disk = Path(sys.argv[1])
counted = Metrics("1.2.3", shared=disk)
counted.ended(RECORD)
with (disk / "others").open("wb", 0) as file, contextlib.suppress(OSError):
    while True:
        file.write(bytes(512))
new = [record(model=f"model-{number}", code=f"CODE-{number}") for number in range(90)]
for each in new:
    counted.ended(each)
tracemalloc.start()
for each in new * 20:
    counted.ended(each)
assert tracemalloc.get_traced_memory()[0] < 10_000
counted.ended(RECORD)
found = samples(counted)
assert found["ollm_bridge_calls_total", "OK", "StreamChatCompletion", ""] == 2
assert found["ollm_bridge_chunks_total",] == 5 * (2 + 21 * len(new))
"""


def test_disk_that_has_filled_up_costs_new_labels_alone(tmp_path):
    """Who writes through a mapping what the disk has no room for is ended by SIGBUS."""
    if why := no_namespaces():
        pytest.skip(why)
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": f"{ROOT}:{ROOT / 'generated'}"}
    command = [*SMALL_DISK, str(tmp_path), sys.executable, ON_FULL_DISK]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# Failures


def test_last_failures_are_kept_the_newest_first():
    failures = Failures()
    for number in range(KEPT + 5):
        failures.ended(record(code="INTERNAL", reason="UPSTREAM_INTERNAL", request_id=str(number)))
        failures.ended(RECORD)
        failures.ended(record(code="CANCELLED"))
    assert [failure.request_id for failure in failures.last()] == [str(n) for n in range(KEPT + 4, 4, -1)]
    assert failures.last()[0].duration_s == 1.5


def test_file_of_failures_is_bounded_and_read_by_another(tmp_path, monkeypatch):
    monkeypatch.setattr("bridge.telemetry.failures._FILE_BYTES_MAX", 40_000)
    failures, other = Failures(shared=tmp_path, name="1"), Failures(shared=tmp_path)
    sizes = []
    for number in range(500):
        failures.ended(record(code="INTERNAL", reason="UPSTREAM_INTERNAL", request_id=str(number)))
        sizes.append(sum(path.stat().st_size for path in tmp_path.iterdir()))
    assert max(sizes) <= 40_000
    assert [failure.request_id for failure in other.last()] == [str(n) for n in range(499, 499 - KEPT, -1)]
    failures.close()


def test_half_a_line_and_foreign_lines_are_passed_over(tmp_path):
    failures = Failures(shared=tmp_path, name="1")
    failures.ended(record(code="INTERNAL"))
    failures.close()
    (path,) = tmp_path.iterdir()
    line = path.read_bytes()
    path.write_bytes(b'{"other": 1}\nno json\n[1]\n' + line + line[:20])
    assert len(Failures(shared=tmp_path).last()) == 1


def test_files_of_processes_that_are_gone_do_not_pile_up(tmp_path):
    for number in range(_FILES_MAX + 10):
        failures = Failures(shared=tmp_path, name=str(number))
        failures.ended(record(code="INTERNAL", request_id=str(number)))
        failures.close()
    assert len(list(tmp_path.iterdir())) == _FILES_MAX
    assert Failures(shared=tmp_path).last()[0].request_id == str(_FILES_MAX + 9)
