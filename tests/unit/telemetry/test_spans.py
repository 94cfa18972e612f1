"""The trace is continued to the upstream, and the spans hold what the record holds."""

import pytest
from google.protobuf.empty_pb2 import Empty
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from bridge.settings import Settings
from bridge.telemetry import find_trace_id
from bridge.telemetry.spans import Tracer, peer_attributes, upstream_attributes
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionResponse, StreamChatCompletionResponse
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
    trace.end(
        make_record(
            code="ABORTED",
            reason="INCOMPLETE_COMPLETION",
            caller="team-a",
            cached_tokens=16,
            cache_write_tokens=3,
            reasoning_tokens=7,
            detail="it ended",
        )
    )
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
        "gen_ai.usage.cache_read.input_tokens": 16,
        "gen_ai.usage.cache_creation.input_tokens": 3,
        "gen_ai.usage.reasoning.output_tokens": 7,
        "http.response.status_code": 200,
        "error.type": "INCOMPLETE_COMPLETION",
    }
    assert client.name == "chat echo"
    assert dict(client.attributes) == chat | {"server.address": "gateway.example", "server.port": 443}
    assert client.status.status_code == StatusCode.ERROR
    assert server.name == "ollmbridge.v1.ChatCompletionService/StreamChatCompletion"
    assert dict(server.attributes) == chat | {
        "rpc.system.name": "grpc",
        "rpc.method": "ollmbridge.v1.ChatCompletionService/StreamChatCompletion",
        "rpc.response.status_code": "ABORTED",
        "ollm_bridge.first_token_s": 0.4,
        "network.type": "ipv4",
        "network.peer.address": "127.0.0.1",
        "network.peer.port": 1,
        "ollm_bridge.detail": "it ended",
        "ollm_bridge.reason": "INCOMPLETE_COMPLETION",
        "ollm_bridge.request_id": "r-1",
        "ollm_bridge.caller": "team-a",
        "ollm_bridge.request.bytes": 27,
        "ollm_bridge.response.bytes": 177,
        "ollm_bridge.chunks": 5,
        "ollm_bridge.translation_s": 0.0002,
    }
    assert server.resource.attributes["service.name"] == "ollm-bridge"
    assert server.resource.attributes["service.version"] == "1.2.3"


def test_spans_hold_what_the_completion_says_of_itself(traced):
    tracer, end = traced(provider_name="openai")
    trace = tracer.start("StreamChatCompletion", [])
    trace.upstream_headers()
    chunks = [
        StreamChatCompletionResponse(id="c-1", model="gpt-5-2026"),
        StreamChatCompletionResponse(id="c-2", model="other", choices=[{"index": 1, "finish_reason": "length"}]),
        StreamChatCompletionResponse(choices=[{"index": 0, "finish_reason": "stop"}]),
    ]
    for chunk in chunks:
        trace.add_completion(chunk)
    trace.end(RECORD)
    spans = end()
    assert spans.keys() == {SpanKind.SERVER, SpanKind.CLIENT}
    for span in spans.values():
        assert span.attributes["gen_ai.provider.name"] == "openai"
        assert span.attributes["gen_ai.response.id"] == "c-1"
        assert span.attributes["gen_ai.response.model"] == "gpt-5-2026"
        assert span.attributes["gen_ai.response.finish_reasons"] == ("stop", "length")


def test_words_of_the_gateway_are_redacted_and_bounded(traced):
    tracer, end = traced()
    trace = tracer.start("CreateChatCompletion", [])
    choices = [{"index": number, "finish_reason": f"{KEY} {'x' * 500}"} for number in range(100)]
    trace.add_completion(CreateChatCompletionResponse(id=KEY, model=f"model-{KEY}", choices=choices))
    trace.add_completion(Empty())
    trace.end(RECORD)
    (span,) = end().values()
    assert KEY not in span.to_json()
    reasons = span.attributes["gen_ai.response.finish_reasons"]
    assert len(reasons) == 16
    assert all(len(reason) <= 220 for reason in reasons)


PEERS = {
    "ipv4:10.0.0.7:41234": {"network.type": "ipv4", "network.peer.address": "10.0.0.7", "network.peer.port": 41234},
    "ipv6:%5B2001:db8::1%5D:443": {
        "network.type": "ipv6",
        "network.peer.address": "2001:db8::1",
        "network.peer.port": 443,
    },
    "ipv6:[::1]:9": {"network.type": "ipv6", "network.peer.address": "::1", "network.peer.port": 9},
    "unix:": {"network.transport": "unix"},
    "unix:/run/a:7": {"network.transport": "unix"},
    "of another kind": {"network.peer.address": "of another kind"},
}


@pytest.mark.parametrize(("peer", "attributes"), PEERS.items(), ids=PEERS)
def test_address_and_port_of_a_peer_are_apart(peer, attributes):
    assert peer_attributes(peer) == attributes


def test_successful_call_has_no_error(traced):
    tracer, end = traced()
    trace = tracer.start("StreamChatCompletion", [])
    trace.upstream_headers()
    trace.end(RECORD)
    spans = end()
    assert spans.keys() == {SpanKind.SERVER, SpanKind.CLIENT}
    for span in spans.values():
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
    spans = end()
    assert spans.keys() == {SpanKind.SERVER, SpanKind.CLIENT}
    for span in spans.values():
        assert KEY not in span.to_json()
        assert KEY not in str(span.context)


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
