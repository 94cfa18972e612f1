"""A call's spans, by OpenTelemetry's conventions: the server's for the whole call, the client's for the upstream part.

Written here and not by grpcio's interceptor, which breaks coroutine handlers. What they say is the CallRecord and no
more: never content, never a key. So the caller's `tracestate`, which may hold anything, goes to the upstream as it came
and not into a span.
"""

import time
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import urlsplit

from opentelemetry import trace as api
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from bridge.settings import Settings
from bridge.telemetry import CallRecord, Trace, Tracing, trace_id_of

__all__ = ["CallTrace", "Tracer", "otlp_exporter"]

_SERVICE: Final = "ollmbridge.v1.ChatCompletionService"
_SPANS_WAITING_MAX: Final = 8192
"""Spans kept for a collector that is slow or gone; more are dropped. A span is some 2 KB."""
_BATCH_SPANS: Final = 512
_BATCH_S: Final = 2.0
_EXPORT_TIMEOUT_S: Final = 5.0
_SERVER_FAULTS: Final = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)
"""Codes that make a server's span one of an error: https://opentelemetry.io/docs/specs/semconv/rpc/grpc/."""
_PROPAGATOR: Final = TraceContextTextMapPropagator()


def otlp_exporter(endpoint: str) -> SpanExporter:
    """Give what sends spans by OTLP over gRPC: in the clear to `http://`, by TLS to `https://`."""
    return OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http:"), timeout=_EXPORT_TIMEOUT_S)


class Tracer(Tracing):
    """Where traces are begun. A thread of its own sends them."""

    def __init__(self, exporter: SpanExporter, settings: Settings, version: str) -> None:
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.tracing.sample_ratio)),
            resource=Resource.create({"service.name": "ollm-bridge", "service.version": version}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                exporter,
                max_queue_size=_SPANS_WAITING_MAX,
                max_export_batch_size=_BATCH_SPANS,
                schedule_delay_millis=_BATCH_S * 1000,
            )
        )
        self._tracer = self._provider.get_tracer("ollm_bridge", version)
        upstream = urlsplit(settings.upstream.base_url)
        self._upstream = {
            "server.address": upstream.hostname or "",
            "server.port": upstream.port or (443 if upstream.scheme == "https" else 80),
        }

    def start(self, method: str, metadata: Iterable[tuple[str, str | bytes]], model: str = "") -> "CallTrace":
        """Begin the call's trace, or go on with the caller's, sampled as the caller says."""
        metadata = list(metadata)
        parent, tracestate = Context(), ""
        if trace_id_of(metadata):
            told = {key: value for key, value in metadata if isinstance(value, str)}
            parent = _PROPAGATOR.extract({"traceparent": told["traceparent"]}, parent)
            given = told.get("tracestate", "")
            tracestate = given if given.isascii() and given.isprintable() else ""
        span = self._tracer.start_span(
            f"{_SERVICE}/{method}",
            parent,
            SpanKind.SERVER,
            {"rpc.system.name": "grpc", "rpc.method": f"{_SERVICE}/{method}"},
        )
        return CallTrace(self._tracer, span, self._upstream, tracestate, model)

    def flush(self) -> None:
        """Send what waits. Blocks."""
        self._provider.force_flush()

    def shutdown(self) -> None:
        """Send what waits, and end. Blocks while the collector does."""
        self._provider.shutdown()


class CallTrace(Trace):
    """The spans of one call."""

    def __init__(self, tracer: api.Tracer, server: Span, upstream: dict[str, Any], tracestate: str, model: str) -> None:
        self._tracer = tracer
        self._server = server
        self._client: Span | None = None
        self._sent_ns = 0
        self._upstream = upstream
        self._tracestate = tracestate
        self._model = model

    @property
    def trace_id(self) -> str:
        """The id, 32 hexadecimal digits."""
        return f"{self._server.get_span_context().trace_id:032x}"

    def headers(self) -> list[tuple[str, str]]:
        """Begin the client's span, and give the headers that make the upstream its child."""
        within = api.set_span_in_context(self._server, Context())
        if self._client is None:
            self._sent_ns = time.time_ns()
            self._client = self._tracer.start_span(
                f"chat {self._model}".strip(), within, SpanKind.CLIENT, self._upstream, start_time=self._sent_ns
            )
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, api.set_span_in_context(self._client, Context()))
        if self._tracestate:
            carrier["tracestate"] = self._tracestate
        return list(carrier.items())

    def first_chunk(self) -> None:
        """Note the first chunk, as an event."""
        self._server.add_event("first_chunk")

    def end(self, record: CallRecord) -> None:
        """Say what the record says, and end both spans."""
        chat = _attributes(record)
        self._server.set_attributes(chat | _call_attributes(record))
        self._server.add_event(
            "end", {"rpc.response.status_code": record.code, "ollm_bridge.stream_end": record.stream_end}
        )
        if record.code in _SERVER_FAULTS:
            self._server.set_status(Status(StatusCode.ERROR, record.reason or record.code))
        now_ns = time.time_ns()
        if self._client is not None:
            self._client.update_name(f"chat {record.model}".strip())
            self._client.set_attributes(chat)
            if record.code not in {"OK", "CANCELLED"}:
                self._client.set_status(Status(StatusCode.ERROR, record.reason or record.code))
            took_ns = now_ns if record.upstream_s is None else self._sent_ns + round(record.upstream_s * 1e9)
            self._client.end(min(now_ns, took_ns))
        self._server.end(now_ns)


def _attributes(record: CallRecord) -> dict[str, Any]:
    """Give what both spans say, without what is not known."""
    told = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "ollm",
        "gen_ai.request.model": record.model or None,
        "gen_ai.request.stream": record.streamed,
        "gen_ai.response.time_to_first_chunk": record.first_chunk_s,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "http.response.status_code": record.upstream_status,
        "error.type": None if record.code == "OK" else record.reason or record.code,
    }
    return {name: value for name, value in told.items() if value is not None}


def _call_attributes(record: CallRecord) -> dict[str, Any]:
    told = {
        "rpc.response.status_code": record.code,
        "network.peer.address": record.peer,
        "ollm_bridge.reason": record.reason,
        "ollm_bridge.request_id": record.request_id,
        "ollm_bridge.caller": record.caller,
        "ollm_bridge.request.bytes": record.request_bytes,
        "ollm_bridge.response.bytes": record.response_bytes,
        "ollm_bridge.chunks": record.chunks if record.streamed else None,
        "ollm_bridge.translation_s": record.translation_s,
    }
    return {name: value for name, value in told.items() if value not in {None, ""}}
