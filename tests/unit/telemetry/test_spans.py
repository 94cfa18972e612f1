"""The trace is continued to the upstream, and the spans hold what the record holds."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from bridge.settings import Settings
from bridge.telemetry import find_trace_id
from bridge.telemetry.spans import Tracer, upstream_attributes
from tests.unit.telemetry.records import RECORD, SPAN, TRACE, TRACEPARENT, make_record

KEY = "sk-" + "t" * 24


@pytest.fixture
def traced():
    """Return what makes `(tracer, end)`: `end` ends tracing and returns the spans by their kind."""
    tracers = []

    def start(**tracing):
        exporter = InMemorySpanExporter()
        upstream = {"base_url": "https://gateway.example"}
        tracer = Tracer(exporter, Settings(tracing=tracing, upstream=upstream), "1.2.3")
        tracers.append(tracer)

        def end():
            tracer.shutdown()
            return {span.kind: span for span in exporter.get_finished_spans()}

        return tracer, end

    yield start
    for tracer in tracers:
        tracer.shutdown()


def test_callers_trace_is_continued_and_the_upstream_is_the_clients_child(traced):
    tracer, end = traced()
    trace = tracer.start("StreamChatCompletion", [("traceparent", TRACEPARENT), ("tracestate", "a=1,b=2")])
    headers = dict(trace.upstream_headers())
    trace.add_first_chunk()
    trace.end(RECORD)
    spans = end()
    server, client = spans[SpanKind.SERVER], spans[SpanKind.CLIENT]
    assert trace.trace_id == TRACE
    assert f"{server.parent.span_id:016x}" == SPAN
    assert client.parent.span_id == server.context.span_id
    assert headers == {"traceparent": f"00-{TRACE}-{client.context.span_id:016x}-01", "tracestate": "a=1,b=2"}
    assert [event.name for event in server.events] == ["first_chunk", "end"]
    assert server.start_time <= client.start_time <= client.end_time <= server.end_time


def test_spans_hold_what_the_record_holds(traced):
    tracer, end = traced()
    trace = tracer.start("StreamChatCompletion", [])
    trace.upstream_headers()
    trace.end(make_record(code="ABORTED", reason="INCOMPLETE_STREAM", caller="team-a"))
    spans = end()
    server, client = spans[SpanKind.SERVER], spans[SpanKind.CLIENT]
    chat = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "ollm",
        "gen_ai.request.model": "echo",
        "gen_ai.request.stream": True,
        "gen_ai.response.time_to_first_chunk": 0.4,
        "gen_ai.usage.input_tokens": 20,
        "gen_ai.usage.output_tokens": 11,
        "http.response.status_code": 200,
        "error.type": "INCOMPLETE_STREAM",
    }
    assert client.name == "chat echo"
    assert dict(client.attributes) == chat | {"server.address": "gateway.example", "server.port": 443}
    assert client.status.status_code == StatusCode.ERROR
    assert server.name == "ollmbridge.v1.ChatCompletionService/StreamChatCompletion"
    assert dict(server.attributes) == chat | {
        "rpc.system.name": "grpc",
        "rpc.method": "ollmbridge.v1.ChatCompletionService/StreamChatCompletion",
        "rpc.response.status_code": "ABORTED",
        "network.peer.address": "ipv4:127.0.0.1:1",
        "ollm_bridge.reason": "INCOMPLETE_STREAM",
        "ollm_bridge.request_id": "r-1",
        "ollm_bridge.caller": "team-a",
        "ollm_bridge.request.bytes": 27,
        "ollm_bridge.response.bytes": 177,
        "ollm_bridge.chunks": 5,
        "ollm_bridge.translation_s": 0.0002,
    }
    assert server.resource.attributes["service.name"] == "ollm-bridge"
    assert server.resource.attributes["service.version"] == "1.2.3"


def test_successful_call_has_no_error(traced):
    tracer, end = traced()
    trace = tracer.start("StreamChatCompletion", [])
    trace.upstream_headers()
    trace.end(RECORD)
    for span in end().values():
        assert "error.type" not in span.attributes
        assert span.status.status_code == StatusCode.UNSET


@pytest.mark.parametrize(
    ("code", "server", "client"),
    [
        ("INTERNAL", StatusCode.ERROR, StatusCode.ERROR),
        ("UNAVAILABLE", StatusCode.ERROR, StatusCode.ERROR),
        ("NOT_FOUND", StatusCode.UNSET, StatusCode.ERROR),
        ("CANCELLED", StatusCode.UNSET, StatusCode.UNSET),
    ],
)
def test_status_is_an_error_if_the_code_blames_that_side(traced, code, server, client):
    tracer, end = traced()
    trace = tracer.start("CreateChatCompletion", [])
    trace.upstream_headers()
    trace.end(make_record(code=code))
    spans = end()
    assert spans[SpanKind.SERVER].status.status_code == server
    assert spans[SpanKind.CLIENT].status.status_code == client


def test_call_refused_by_the_bridge_has_no_clients_span(traced):
    tracer, end = traced()
    trace = tracer.start("CreateChatCompletion", [])
    trace.end(make_record(code="INVALID_ARGUMENT", reason="INVALID_REQUEST", upstream_status=None, upstream_s=None))
    assert end().keys() == {SpanKind.SERVER}


def test_without_a_callers_trace_one_starts_here(traced):
    tracer, end = traced()
    trace = tracer.start("CreateChatCompletion", [("tracestate", "a=1"), ("traceparent", "nonsense")])
    ((name, value),) = trace.upstream_headers()
    trace.end(RECORD)
    assert name == "traceparent"
    assert find_trace_id([(name, value)]) == trace.trace_id
    assert end()[SpanKind.SERVER].parent is None


@pytest.mark.parametrize(
    ("ratio", "flags", "sampled"),
    [(0.0, "01", True), (1.0, "00", False), (1.0, None, True), (0.0, None, False)],
    ids=["the caller samples", "the caller does not", "no caller's trace, all", "no caller's trace, none"],
)
def test_sampling_is_the_callers_else_the_ratio(traced, ratio, flags, sampled):
    tracer, end = traced(sample_ratio=ratio)
    metadata = [] if flags is None else [("traceparent", f"00-{TRACE}-{SPAN}-{flags}")]
    trace = tracer.start("CreateChatCompletion", metadata)
    ((_, value),) = trace.upstream_headers()
    trace.add_first_chunk()
    trace.end(RECORD)
    assert bool(int(value[-2:], 16) & 1) is sampled  # the next bit says that the id is random
    assert bool(end()) is sampled


def test_nothing_that_the_caller_put_into_metadata_gets_into_a_span(traced):
    tracer, end = traced()
    metadata = [
        ("authorization", f"Bearer {KEY}"),
        ("traceparent", TRACEPARENT),
        ("tracestate", f"vendor={KEY}"),
        ("baggage", f"key={KEY}"),
        ("x-bin", KEY.encode()),
    ]
    trace = tracer.start("StreamChatCompletion", metadata)
    trace.upstream_headers()
    trace.end(RECORD)
    for span in end().values():
        assert KEY not in span.to_json()
        assert KEY not in str(span.context)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["traceparent", "tracestate", "x"]), st.text() | st.binary())))
def test_any_metadata_starts_a_trace(metadata):
    tracer = Tracer(InMemorySpanExporter(), Settings(), "1")
    try:
        trace = tracer.start("CreateChatCompletion", metadata)
        assert find_trace_id(trace.upstream_headers()) == trace.trace_id
        trace.end(RECORD)
    finally:
        tracer.shutdown()


@pytest.mark.parametrize(
    ("base_url", "attributes"),
    [
        ("https://gateway.example", {"server.address": "gateway.example", "server.port": 443}),
        ("http://gateway.example", {"server.address": "gateway.example", "server.port": 80}),
        ("http://[::1]:8080", {"server.address": "::1", "server.port": 8080}),
        ("unix:/run/gateway.sock", {"server.address": "/run/gateway.sock"}),
    ],
)
def test_upstream_is_named_by_host_and_port_or_by_its_socket(base_url, attributes):
    assert upstream_attributes(base_url) == attributes
