"""A collector of spans by OTLP over gRPC, which keeps what it receives."""

import contextlib
from collections.abc import Iterator
from concurrent import futures

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

__all__ = ["Collector", "start_collector"]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """The collector. `url` is set while it runs."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []

    def Export(self, request, _context):
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    @property
    def spans(self) -> list[Span]:
        scopes = [scope for each in self.requests for one in each.resource_spans for scope in one.scope_spans]
        return [span for scope in scopes for span in scope.spans]


@contextlib.contextmanager
def start_collector() -> Iterator[Collector]:
    """Run a collector in a thread of its own, so that an exporter may hold the test's loop."""
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()
