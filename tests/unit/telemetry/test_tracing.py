"""Whether calls are traced, without and with the extra, and that the end is not held up by a collector."""

import sys
from concurrent import futures

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from bridge.settings import Settings, SettingsError
from bridge.telemetry.tracing import start_tracing
from tests.unit.telemetry.records import RECORD, TRACEPARENT


async def test_without_an_endpoint_there_is_no_tracing_and_no_need_of_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "bridge.telemetry.spans", None)
    async with start_tracing(Settings(), "1") as tracer:
        assert tracer is None


async def test_missing_extra_is_an_error_of_the_settings(monkeypatch):
    monkeypatch.setitem(sys.modules, "bridge.telemetry.spans", None)
    with pytest.raises(SettingsError, match=r"tracing.endpoint: .*ollm-bridge\[tracing\]"):
        async with start_tracing(Settings(tracing={"endpoint": "http://127.0.0.1:4317"}), "1"):
            pass


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """A collector that keeps what it receives."""

    def __init__(self) -> None:
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []

    def Export(self, request, _context):
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()


async def test_spans_reach_a_collector_by_otlp_before_the_end():
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    async with start_tracing(Settings(tracing={"endpoint": f"http://127.0.0.1:{port}"}), "1.2.3") as tracer:
        trace = tracer.start("StreamChatCompletion", [("traceparent", TRACEPARENT)])
        trace.upstream_headers()
        trace.end(RECORD)
    server.stop(None).wait()
    names = [span.name for each in collector.requests for one in each.resource_spans for scope in one.scope_spans for span in scope.spans]  # fmt: skip # noqa: E501
    assert sorted(names) == ["chat echo", "ollmbridge.v1.ChatCompletionService/StreamChatCompletion"]


async def test_collector_that_is_gone_does_not_hold_up_the_end():
    settings = Settings(tracing={"endpoint": "http://127.0.0.1:9"})
    async with start_tracing(settings, "1", export_timeout_s=0.1) as tracer:
        trace = tracer.start("CreateChatCompletion", [])
        trace.end(RECORD)
