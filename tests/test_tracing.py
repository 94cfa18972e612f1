"""Tests of bridge/telemetry/tracing.py and spans.py: the trace goes on to the upstream, and spans say what was."""

import sys
from concurrent import futures

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from bridge.settings import Settings, SettingsError
from bridge.telemetry import spans as spans_module
from bridge.telemetry import trace_id_of
from bridge.telemetry.spans import Tracer
from bridge.telemetry.tracing import tracing
from tests.test_metrics import RECORD, record

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"
KEY = "sk-" + "t" * 24


@pytest.fixture
def traced():
    """Give `(tracer, ended)`: the second ends tracing and gives the spans."""
    tracers = []

    def start(**settings):
        exporter = InMemorySpanExporter()
        upstream = {"base_url": "https://gateway.example"}
        tracer = Tracer(exporter, Settings(tracing=settings, upstream=upstream), "1.2.3")
        tracers.append(tracer)

        def ended():
            tracer.flush()
            return {span.kind: span for span in exporter.get_finished_spans()}

        return tracer, ended

    yield start
    for tracer in tracers:
        tracer.shutdown()


def test_callers_trace_goes_on_and_the_upstream_is_the_clients_child(traced):
    tracer, ended = traced()
    trace = tracer.start("StreamChatCompletion", [("traceparent", TRACEPARENT), ("tracestate", "a=1,b=2")])
    headers = dict(trace.headers())
    trace.first_chunk()
    trace.end(RECORD)
    spans = ended()
    server, client = spans[SpanKind.SERVER], spans[SpanKind.CLIENT]
    assert trace.trace_id == TRACE
    assert f"{server.parent.span_id:016x}" == SPAN
    assert client.parent.span_id == server.context.span_id
    assert headers == {"traceparent": f"00-{TRACE}-{client.context.span_id:016x}-01", "tracestate": "a=1,b=2"}
    assert [event.name for event in server.events] == ["first_chunk", "end"]
    assert server.start_time <= client.start_time <= client.end_time <= server.end_time


def test_spans_say_what_the_record_says(traced):
    tracer, ended = traced()
    trace = tracer.start("StreamChatCompletion", [])
    trace.headers()
    trace.end(record(code="ABORTED", reason="INCOMPLETE_STREAM", caller="team-a"))
    spans = ended()
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


def test_call_that_went_well_has_no_error(traced):
    tracer, ended = traced()
    trace = tracer.start("StreamChatCompletion", [])
    trace.headers()
    trace.end(RECORD)
    for span in ended().values():
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
def test_status_is_an_error_by_whose_fault_the_code_tells_of(traced, code, server, client):
    tracer, ended = traced()
    trace = tracer.start("CreateChatCompletion", [])
    trace.headers()
    trace.end(record(code=code))
    spans = ended()
    assert spans[SpanKind.SERVER].status.status_code == server
    assert spans[SpanKind.CLIENT].status.status_code == client


def test_call_refused_by_the_bridge_has_no_clients_span(traced):
    tracer, ended = traced()
    trace = tracer.start("CreateChatCompletion", [])
    trace.end(record(code="INVALID_ARGUMENT", reason="INVALID_REQUEST", upstream_status=None, upstream_s=None))
    assert ended().keys() == {SpanKind.SERVER}


def test_without_a_callers_trace_one_begins_here(traced):
    tracer, ended = traced()
    trace = tracer.start("CreateChatCompletion", [("tracestate", "a=1"), ("traceparent", "nonsense")])
    ((name, value),) = trace.headers()
    trace.end(RECORD)
    assert name == "traceparent"
    assert trace_id_of([(name, value)]) == trace.trace_id
    assert ended()[SpanKind.SERVER].parent is None


@pytest.mark.parametrize(
    ("ratio", "flags", "sampled"),
    [(0.0, "01", True), (1.0, "00", False), (1.0, None, True), (0.0, None, False)],
    ids=["the caller samples", "the caller does not", "nobody says, all", "nobody says, none"],
)
def test_sampling_is_the_callers_else_the_ratio(traced, ratio, flags, sampled):
    tracer, ended = traced(sample_ratio=ratio)
    metadata = [] if flags is None else [("traceparent", f"00-{TRACE}-{SPAN}-{flags}")]
    trace = tracer.start("CreateChatCompletion", metadata)
    ((_, value),) = trace.headers()
    trace.first_chunk()
    trace.end(RECORD)
    assert bool(int(value[-2:], 16) & 1) is sampled  # the next bit says that the id is random
    assert bool(ended()) is sampled


def test_nothing_that_the_caller_put_into_metadata_gets_into_a_span(traced):
    tracer, ended = traced()
    metadata = [
        ("authorization", f"Bearer {KEY}"),
        ("traceparent", TRACEPARENT),
        ("tracestate", f"vendor={KEY}"),
        ("baggage", f"key={KEY}"),
        ("x-bin", KEY.encode()),
    ]
    trace = tracer.start("StreamChatCompletion", metadata, "model")
    trace.headers()
    trace.end(RECORD)
    for span in ended().values():
        assert KEY not in span.to_json()
        assert KEY not in str(span.context)


# traceparent


@pytest.mark.parametrize(
    "value",
    [
        "",
        TRACE,
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01\n",
        f" 00-{TRACE}-{SPAN}-01",
    ],
)
def test_wrong_traceparent_is_none(value):
    assert trace_id_of([("traceparent", value)]) == ""


def test_trace_id_is_of_the_metadata_whatever_else_is_in_it():
    assert trace_id_of([("x", "y"), ("x-bin", b"\x00"), ("traceparent", TRACEPARENT)]) == TRACE
    assert trace_id_of([("traceparent", f"01-{TRACE}-{SPAN}-01-later-versions-may-say-more")]) == TRACE
    assert trace_id_of([("traceparent", TRACEPARENT.encode())]) == ""


@given(st.lists(st.tuples(st.sampled_from(["traceparent", "tracestate", "x"]), st.text() | st.binary())))
def test_any_metadata_begins_a_trace(metadata):
    tracer = Tracer(InMemorySpanExporter(), Settings(), "1")
    try:
        trace = tracer.start("CreateChatCompletion", metadata)
        assert trace_id_of(trace.headers()) == trace.trace_id
        trace.end(RECORD)
    finally:
        tracer.shutdown()


# On and off


async def test_without_an_endpoint_there_is_no_tracing_and_no_need_of_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "bridge.telemetry.spans", None)
    async with tracing(Settings(), "1") as tracer:
        assert tracer is None


async def test_missing_extra_is_a_fault_of_the_settings(monkeypatch):
    monkeypatch.setitem(sys.modules, "bridge.telemetry.spans", None)
    with pytest.raises(SettingsError, match=r"tracing.endpoint: expected the package's extra \(ollm-bridge\[tracing\]"):
        async with tracing(Settings(tracing={"endpoint": "http://127.0.0.1:4317"}), "1"):
            pass


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """A collector that keeps what it gets."""

    def __init__(self) -> None:
        self.got: list[trace_service_pb2.ExportTraceServiceRequest] = []

    def Export(self, request, _context):
        self.got.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()


async def test_spans_reach_a_collector_by_otlp_before_the_end():
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    async with tracing(Settings(tracing={"endpoint": f"http://127.0.0.1:{port}"}), "1.2.3") as tracer:
        trace = tracer.start("StreamChatCompletion", [("traceparent", TRACEPARENT)])
        trace.headers()
        trace.end(RECORD)
    server.stop(None).wait()
    names = [span.name for each in collector.got for one in each.resource_spans for scope in one.scope_spans for span in scope.spans]  # fmt: skip # noqa: E501
    assert sorted(names) == ["chat echo", "ollmbridge.v1.ChatCompletionService/StreamChatCompletion"]


async def test_collector_that_is_gone_does_not_hold_up_the_end(monkeypatch):
    monkeypatch.setattr("bridge.telemetry.tracing._LAST_SPANS_S", 0.1)
    monkeypatch.setattr(spans_module, "_EXPORT_TIMEOUT_S", 0.2)
    async with tracing(Settings(tracing={"endpoint": "http://127.0.0.1:9"}), "1") as tracer:
        trace = tracer.start("CreateChatCompletion", [])
        trace.end(RECORD)
