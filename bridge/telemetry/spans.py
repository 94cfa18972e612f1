"""A call's spans, by OpenTelemetry's conventions: the server's for the whole call, the client's for the upstream part.

The names are those of the semantic conventions 1.44: gen_ai, rpc, network and server. The spans are not made by
OpenTelemetry's interceptor for grpc.aio, which breaks coroutine handlers. They hold what the CallRecord holds, and of
the completion its id, its model and its finish reasons, redacted; so no content and no key. The caller's `tracestate`
may hold anything: it is forwarded to the upstream, and is in no span.

This module imports OpenTelemetry, an optional extra; tracing.py imports it only if calls are traced.
"""

import time
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from google.protobuf.message import Message
from opentelemetry import trace as api
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from bridge.core.reasons import SERVICE_NAME
from bridge.core.redact import redact
from bridge.settings import Settings
from bridge.telemetry.record import CallRecord
from bridge.telemetry.trace_context import find_trace_id
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionResponse, StreamChatCompletionResponse

__all__ = ["CallTrace", "Tracer", "make_otlp_exporter", "peer_attributes", "upstream_attributes"]

_SPANS_WAITING_MAX: Final = 8192
"""Spans that wait for a slow or absent collector; more are dropped. A span is about 2 KB."""
_BATCH_SPANS: Final = 512
_BATCH_S: Final = 2.0
_SERVER_ERRORS: Final = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)
"""Codes that set a server span's status to error: https://opentelemetry.io/docs/specs/semconv/rpc/grpc/."""
_WORD_CHARS_MAX: Final = 200
_FINISH_REASONS_MAX: Final = 16
_COMPLETIONS: Final = (CreateChatCompletionResponse, StreamChatCompletionResponse)
_PROPAGATOR: Final = TraceContextTextMapPropagator()


def make_otlp_exporter(endpoint: str, *, timeout_s: float) -> SpanExporter:
    """Return an exporter by OTLP over gRPC: without TLS to `http://`, with TLS to `https://`."""
    return OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http:"), timeout=timeout_s)


class Tracer:
    """Starts traces. A thread of its own exports them."""

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
        self._upstream = upstream_attributes(settings.upstream.base_url)
        self._provider_name = settings.tracing.provider_name

    def start(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> "CallTrace":
        """Start the call's trace, or continue the caller's, sampled as the caller says."""
        metadata = list(metadata)
        parent, tracestate = Context(), ""
        if find_trace_id(metadata):
            texts = {key: value for key, value in metadata if isinstance(value, str)}
            parent = _PROPAGATOR.extract({"traceparent": texts["traceparent"]}, parent)
            received = texts.get("tracestate", "")
            tracestate = received if received.isascii() and received.isprintable() else ""
        name = f"{SERVICE_NAME}/{method}"
        span = self._tracer.start_span(name, parent, SpanKind.SERVER, {"rpc.system.name": "grpc", "rpc.method": name})
        return CallTrace(self._tracer, span, self._upstream, tracestate, self._provider_name)

    def shutdown(self) -> None:
        """Export the spans that wait, and end. Blocks as long as the exporter does."""
        self._provider.shutdown()


def upstream_attributes(base_url: str) -> dict[str, str | int]:
    """Return the attributes that name the upstream: host and port, or the path of a Unix socket."""
    url = urlsplit(base_url)
    if url.scheme == "unix":
        return {"server.address": url.path}
    return {"server.address": url.hostname or "", "server.port": url.port or (443 if url.scheme == "https" else 80)}


def peer_attributes(peer: str) -> dict[str, str | int]:
    """Return the attributes that name a peer: gRPC writes ipv4:HOST:PORT, ipv6:%5BHOST%5D:PORT or unix:PATH."""
    family, _, address = unquote(peer).partition(":")
    host, _, port = address.rpartition(":")
    if family not in {"ipv4", "ipv6"} or not port.isdecimal():
        return {"network.transport": "unix"} if family == "unix" else {"network.peer.address": peer}
    return {"network.type": family, "network.peer.address": host.strip("[]"), "network.peer.port": int(port)}


class CallTrace:
    """The spans of one call. No method waits or raises."""

    def __init__(
        self,
        tracer: api.Tracer,
        server: Span,
        upstream: Mapping[str, str | int],
        tracestate: str,
        provider_name: str = "ollm",
    ) -> None:
        self._tracer = tracer
        self._server = server
        self._client: Span | None = None
        self._sent_ns = 0
        self._upstream = upstream
        self._tracestate = tracestate
        self._is_recording = server.is_recording()
        self._chat: dict[str, Any] = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": provider_name}
        self._finish_reasons: dict[int, str] = {}

    @property
    def trace_id(self) -> str:
        """The trace's id, 32 hexadecimal digits."""
        return f"{self._server.get_span_context().trace_id:032x}"

    def upstream_headers(self) -> list[tuple[str, str]]:
        """Start the client's span, and return the headers that make the upstream its child.

        They are `traceparent`, and `tracestate` if any, and replace the caller's. Call this just before the request is
        sent: the client's span starts now.
        """
        if self._client is None:
            parent = api.set_span_in_context(self._server, Context())
            self._sent_ns = time.time_ns()
            self._client = self._tracer.start_span(
                "chat", parent, SpanKind.CLIENT, self._upstream, start_time=self._sent_ns
            )
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, api.set_span_in_context(self._client, Context()))
        if self._tracestate:
            carrier["tracestate"] = self._tracestate
        return list(carrier.items())

    def add_first_chunk(self) -> None:
        """Add an event for a stream's first chunk."""
        self._server.add_event("first_chunk")

    def add_completion(self, completion: Message) -> None:
        """Note what a completion, or a chunk of one, says of itself: id, model and finish reasons."""
        if not self._is_recording or not isinstance(completion, _COMPLETIONS):
            return
        if completion.id:
            self._chat.setdefault("gen_ai.response.id", _shorten(completion.id))
        if completion.model:
            self._chat.setdefault("gen_ai.response.model", _shorten(completion.model))
        for choice in completion.choices:
            if choice.finish_reason and len(self._finish_reasons) < _FINISH_REASONS_MAX:
                self._finish_reasons[choice.index] = _shorten(choice.finish_reason)

    def end(self, record: CallRecord) -> None:
        """End both spans, with what the record holds. Without this nothing is exported."""
        chat = self._chat | _attributes(record)
        if self._finish_reasons:
            chat["gen_ai.response.finish_reasons"] = [reason for _, reason in sorted(self._finish_reasons.items())]
        self._server.set_attributes(chat | _call_attributes(record))
        self._server.add_event(
            "end", {"rpc.response.status_code": record.code, "ollm_bridge.stream_end": record.stream_end}
        )
        if record.code in _SERVER_ERRORS:
            self._server.set_status(Status(StatusCode.ERROR, record.error))
        now_ns = time.time_ns()
        if self._client is not None:
            self._client.update_name(f"chat {record.model}".strip())
            self._client.set_attributes(chat)
            if record.code not in {"OK", "CANCELLED"}:
                self._client.set_status(Status(StatusCode.ERROR, record.error))
            end_ns = now_ns if record.upstream_s is None else self._sent_ns + round(record.upstream_s * 1e9)
            self._client.end(min(now_ns, end_ns))
        self._server.end(now_ns)


def _attributes(record: CallRecord) -> dict[str, Any]:
    """Return the attributes of both spans, less those that are not known."""
    attributes = {
        "gen_ai.request.model": record.model or None,
        "gen_ai.request.stream": record.streamed,
        "gen_ai.response.time_to_first_chunk": record.first_chunk_s,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
        "gen_ai.usage.cache_creation.input_tokens": record.cache_write_tokens,
        "gen_ai.usage.reasoning.output_tokens": record.reasoning_tokens,
        "http.response.status_code": record.upstream_status,
        "error.type": record.error or None,
    }
    return {name: value for name, value in attributes.items() if value is not None}


def _call_attributes(record: CallRecord) -> dict[str, Any]:
    """Return the attributes of the server's span alone."""
    attributes = {
        "rpc.response.status_code": record.code,
        **peer_attributes(record.peer),
        "ollm_bridge.reason": record.reason,
        "ollm_bridge.request_id": record.request_id,
        "ollm_bridge.caller": record.caller,
        "ollm_bridge.request.bytes": record.request_bytes,
        "ollm_bridge.response.bytes": record.response_bytes,
        "ollm_bridge.chunks": record.chunks if record.streamed else None,
        "ollm_bridge.translation_s": record.translation_s,
        "ollm_bridge.first_token_s": record.first_token_s,
        "ollm_bridge.detail": record.detail,
    }
    return {name: value for name, value in attributes.items() if value not in {None, ""}}


def _shorten(word: str) -> str:
    """Return a word of the gateway's, which may be anything, as a span may hold it."""
    return redact(word[:_WORD_CHARS_MAX])
