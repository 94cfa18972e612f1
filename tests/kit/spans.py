"""A collector of spans by OTLP over gRPC, which keeps what it receives."""

import contextlib
import threading
from collections.abc import Iterator
from concurrent import futures

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

__all__ = ["Collector", "start_collector"]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """The collector. `url` is set while it runs. It answers after `held_s`, or once it is `released`."""

    def __init__(self, *, held_s: float = 0.0) -> None:
        self.url = ""
        self.released = threading.Event()
        self._held_s = held_s
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []

    def Export(self, request, _context):
        self.released.wait(self._held_s)
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    @property
    def spans(self) -> list[Span]:
        scopes = [scope for each in self.requests for one in each.resource_spans for scope in one.scope_spans]
        return [span for scope in scopes for span in scope.spans]


@contextlib.contextmanager
def start_collector(*, held_s: float = 0.0) -> Iterator[Collector]:
    """Run a collector in a thread of its own, so that an exporter may hold the test's loop."""
    collector = Collector(held_s=held_s)
    server = grpc.server(futures.ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()
