"""What is counted and timed of calls, and that the page's text is the one that dashboards know."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from bridge.telemetry import CallRecord
from bridge.telemetry.metric_table import ALERTED_REASONS, METRICS
from bridge.telemetry.metrics import Metrics
from bridge.telemetry.store import MODELS_MAX, Store
from tests.unit.telemetry.records import RECORD, UNARY, make_record

PAGE = Path(__file__).with_name("page.txt")
NEW = (
    *("ollm_bridge_log_lines_dropped", "ollm_bridge_snapshot_errors", "ollm_bridge_first_chunk"),
    *("ollm_bridge_cached_input_tokens", "ollm_bridge_reasoning_tokens", "ollm_bridge_files_unusable"),
    *("ollm_bridge_file_reload", "ollm_bridge_certificate", "ollm_bridge_calls_max", "ollm_bridge_calls_queued"),
    *("ollm_bridge_processes", "ollm_bridge_caller_connections", "ollm_bridge_worker_restarts", "ollm_bridge_loop_lag"),
    *("ollm_bridge_tls_handshake", "ollm_bridge_caller_connections_ended"),
)
"""Metrics that came after the page in page.txt, which prometheus_client's own metrics wrote."""


def count(*records: CallRecord) -> Metrics:
    metrics = Metrics("1.2.3")
    for each in records:
        metrics.start(each.method)
        metrics.end(each)
    return metrics


def read_samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Return what the page says, but for zeros: `{(name, label values by their names' order): value}`."""
    found = {}
    for family in text_string_to_metric_families(metrics.page().decode()):
        for sample in family.samples:
            if sample.value and not sample.name.endswith("_bucket") and not sample.name.startswith("process_"):
                found[sample.name, *(value for _, value in sorted(sample.labels.items()))] = sample.value
    return found


def test_page_is_the_text_that_prometheus_clients_own_metrics_wrote():
    metrics = Metrics("1.2.3", {"connections": lambda: 12})
    odd = 'a "quoted\\ name\n'
    failed = {"upstream_status": None, "upstream_s": None, "prompt_tokens": None, "completion_tokens": None}
    for record in (
        RECORD,
        make_record(**UNARY, model=odd, duration_s=1000.0, upstream_s=0.01),
        make_record(code="ABORTED", reason="INCOMPLETE_COMPLETION", translation_s=None, **failed),
    ):
        metrics.start(record.method)
        metrics.end(record)
    metrics.start("StreamChatCompletion")
    metrics.add_chunks("StreamChatCompletion", [0.001, 0.02, 0.021, 30.0])
    lines = metrics.page().decode().splitlines(keepends=True)
    kept = [line for line in lines if not line.removeprefix("# HELP ").removeprefix("# TYPE ").startswith(NEW)]
    kept = [line for line in kept if not (line.startswith("ollm_bridge_calls_total") and line.endswith(" 0.0\n"))]
    assert "".join(line for line in kept if "process_" not in line) == PAGE.read_text()


def test_figures_of_the_processes_are_on_the_page_with_workers_too():
    assert b"\nprocess_resident_memory_bytes " in Metrics("1").page()
    assert b"\nprocess_resident_memory_bytes " in Metrics("1", workers=Store).page()


def test_reasons_of_alerts_are_counted_from_0_on():
    page = Metrics("1").page().decode()
    for reason in ALERTED_REASONS:
        lines = [line for line in page.splitlines() if f'reason="{reason}"' in line]
        assert len(lines) == 2, reason
        assert all(line.endswith(" 0.0") and 'code=""' not in line for line in lines)
    assert Metrics("1").totals().reasons == {}


def test_lag_of_the_loop_is_counted():
    metrics = Metrics("1")
    metrics.add_lag(0.02)
    assert 'ollm_bridge_loop_lag_seconds_bucket{le="0.01"} 0.0' in metrics.page().decode()
    assert 'ollm_bridge_loop_lag_seconds_bucket{le="0.025"} 1.0' in metrics.page().decode()


def test_failures_of_many_reasons_are_one_histogram_a_code():
    metrics = count(*(make_record(code="INTERNAL", reason=f"REASON_{number}") for number in range(20)))
    page = metrics.page().decode()
    assert page.count("rpc_server_call_duration_seconds_count{") == 1
    assert 'error_type="INTERNAL"' in page


def test_whole_stream_is_counted_and_timed_in_each_of_its_metrics():
    metrics = count(RECORD._replace(first_chunk_s=0.3, cached_tokens=16, reasoning_tokens=7))
    metrics.add_chunks("StreamChatCompletion", [0.25])
    method, path = "StreamChatCompletion", "ollmbridge.v1.ChatCompletionService/StreamChatCompletion"
    assert read_samples(metrics) == {
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
        ("ollm_bridge_first_chunk_seconds_count", "echo"): 1,
        ("ollm_bridge_first_chunk_seconds_sum", "echo"): 0.3,
        ("ollm_bridge_cached_input_tokens_count", "echo"): 1,
        ("ollm_bridge_cached_input_tokens_sum", "echo"): 16,
        ("ollm_bridge_reasoning_tokens_count", "echo"): 1,
        ("ollm_bridge_reasoning_tokens_sum", "echo"): 7,
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
    found = read_samples(count(make_record(**UNARY, **reason, **nothing, translation_s=None)))
    assert found["ollm_bridge_calls_total", "UNAVAILABLE", "CreateChatCompletion", "UPSTREAM_UNREACHABLE"] == 1
    assert not any(name.startswith(("gen_ai", "http_client")) for name, *_ in found)
    assert not any("stream" in name or "translation" in name for name, *_ in found)


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ({}, "whole"),
        ({"code": "ABORTED", "reason": "INCOMPLETE_COMPLETION"}, "INCOMPLETE_COMPLETION"),
        ({"code": "CANCELLED"}, "CANCELLED"),
    ],
)
def test_ends_of_streams_are_told_apart(fields, end):
    assert read_samples(count(make_record(**fields)))["ollm_bridge_stream_ends_total", end] == 1


def test_in_flight_is_what_has_started_and_not_ended():
    metrics = count(RECORD)
    for _ in range(3):
        metrics.start("CreateChatCompletion")
    metrics.end(make_record(**UNARY))
    assert read_samples(metrics)["ollm_bridge_calls_in_flight", "CreateChatCompletion"] == 2
    assert metrics.totals().in_flight == 2


def test_connections_and_dropped_log_lines_are_read_when_the_page_is_made():
    figures = {"connections": 0, "dropped": 0}
    metrics = Metrics(
        "1", {"connections": lambda: figures["connections"], "log_lines_dropped": lambda: figures["dropped"]}
    )
    figures |= {"connections": 12, "dropped": 7}
    for _ in range(2):
        found = read_samples(metrics)
        assert found["ollm_bridge_upstream_connections",] == 12
        assert found["ollm_bridge_log_lines_dropped_total",] == 7
    assert metrics.totals().connections == 12


def test_totals_add_up_over_methods_and_models_and_leave_out_cancelled_calls():
    failed = {"code": "ABORTED", "reason": "INCOMPLETE_COMPLETION"}
    unary = make_record(**UNARY, model="other-model")
    totals = count(RECORD, unary, make_record(**failed), make_record(code="CANCELLED"), make_record(**failed)).totals()
    assert (totals.calls, totals.failed, totals.in_flight) == (5, 2, 0)
    assert totals.reasons == {"INCOMPLETE_COMPLETION": 2}
    assert (totals.tokens_in, totals.tokens_out) == (100, 55)
    assert totals.duration[float("inf")] == 5
    assert totals.duration[1.28] == 0
    assert totals.duration[2.56] == 5
    assert totals.first_chunk[0.5] == 4
    assert list(totals.first_chunk) == sorted(totals.first_chunk)


def test_totals_before_the_first_call_have_empty_histograms():
    totals = Metrics("1").totals()
    assert (totals.calls, totals.duration, totals.first_chunk) == (0, {}, {})


def test_page_shows_every_metric_of_the_table_and_no_other():
    metrics = count(RECORD)
    metrics.add_chunks("StreamChatCompletion", [0.1])
    families = text_string_to_metric_families(metrics.page().decode())
    found = {one.name: one.documentation for one in families if not one.name.startswith("process_")}
    assert found == {spec.name.removesuffix("_total"): spec.help for spec in METRICS.values()}


# Labels are bounded


def read_models(metrics: Metrics) -> set[str]:
    name = "gen_ai_server_request_duration_seconds_count"
    lines = [line for line in metrics.page().decode().split("\n") if line.startswith(name)]
    families = text_string_to_metric_families("\n".join(lines))
    return {sample.labels["gen_ai_request_model"] for family in families for sample in family.samples}


def test_models_beyond_the_limit_are_other():
    metrics = count(*(make_record(model=f"model-{number}") for number in range(MODELS_MAX + 20)))
    assert read_models(metrics) == {*(f"model-{number}" for number in range(MODELS_MAX)), "other"}
    metrics.end(make_record(model="model-7"))
    found = read_samples(metrics)
    assert found["gen_ai_server_request_duration_seconds_count", "chat", "model-7"] == 2
    assert found["gen_ai_server_request_duration_seconds_count", "chat", "other"] == 20


def test_model_that_the_upstream_has_not_answered_for_takes_no_place():
    refused = {"code": "NOT_FOUND", "reason": "UPSTREAM_NOT_FOUND", "upstream_status": 404}
    metrics = count(*(make_record(model=f"guess-{number}", **refused) for number in range(MODELS_MAX)), RECORD)
    assert read_models(metrics) == {"other", "echo"}


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_any_model_is_a_label_that_can_be_read_back(names):
    assert read_models(count(*(make_record(model=name) for name in names))) == {name or "other" for name in names}


def test_series_are_bounded_whatever_callers_send():
    refused = {"code": "NOT_FOUND", "reason": "UPSTREAM_NOT_FOUND"}
    metrics = Metrics("1")
    for number in range(3000):
        text = f"m-{number}"
        fields = {"request_id": text, "peer": text, "caller": text, "trace_id": text, "model": text}
        for each in (fields, fields | refused, fields | UNARY):
            metrics.start("StreamChatCompletion")
            metrics.end(make_record(**each))
    assert metrics.page().count(b"\n") < 120 * (MODELS_MAX + 1) + 500


def test_files_that_cannot_be_used_are_counted_when_the_page_is_made():
    metrics = Metrics("1", {"files_unusable": lambda: 2})
    assert b"\nollm_bridge_files_unusable 2.0\n" in metrics.page()
    assert metrics.totals().files_unusable == 2


def test_connections_that_were_ended_are_counted_by_reason():
    metrics = Metrics("1.2.3")
    for reason in ("rapid_reset", "header_bomb", "rapid_reset"):
        metrics.end_connection(reason)
    found = {key: value for key, value in read_samples(metrics).items() if "connections_ended_total" in key[0]}
    assert {key[1]: value for key, value in found.items()} == {"rapid_reset": 2, "header_bomb": 1}
