"""METRICS, the table of every metric of the bridge: dashboards, alerts and docs go by it.

If OpenTelemetry has a name for a metric, it is used, written as Prometheus writes it; the rest begin with
`ollm_bridge_`. Values and the page are the business of others.
"""

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

__all__ = ["ALERTED_REASONS", "METRICS", "MODEL_LABELS", "MetricSpec"]


class MetricSpec(NamedTuple):
    """A metric: its name as Prometheus shows it, its help, and OpenTelemetry's name, "" if it has none.

    `total` says what the value of several processes together is.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    otel: str = ""
    total: Literal["sum", "min"] = "sum"


# fmt: off
_CALL_S: Final = (
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 655.36,
)
# fmt: on
_FIRST_S: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30)
_GAP_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48)
_TOKEN_S: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
_TOKENS: Final = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)
_LAG_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_TRANSLATION_S: Final = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25)
# If OpenTelemetry has a name for it, these are the boundaries that it recommends, extended to the longest call.

_GEN_AI_MODEL: Final = "gen_ai_request_model"
_MODEL: Final = "model"
MODEL_LABELS: Final = frozenset({_GEN_AI_MODEL, _MODEL})
"""Labels whose value is a model: OpenTelemetry's, and the one of the bridge's own metrics."""
_SETTING: Final = ("setting",)
_RPC: Final = ("rpc_system_name", "rpc_method", "rpc_response_status_code", "error_type")
_GEN_AI: Final = ("gen_ai_operation_name", _GEN_AI_MODEL)

METRICS: Final[Mapping[str, MetricSpec]] = {
    "calls": MetricSpec(
        "ollm_bridge_calls_total",
        "counter",
        "Calls that ended, by method, gRPC code and reason; the reason is empty for OK and if the caller ended it.",
        ("method", "code", "reason"),
    ),
    "in_flight": MetricSpec("ollm_bridge_calls_in_flight", "gauge", "Calls in flight.", ("method",)),
    "duration": MetricSpec(
        "rpc_server_call_duration_seconds",
        "histogram",
        "Time of a call, from its arrival at the bridge to its end.",
        _RPC,
        _CALL_S,
        "rpc.server.call.duration",
    ),
    "request_duration": MetricSpec(
        "gen_ai_server_request_duration_seconds",
        "histogram",
        "Time of a call that reached the upstream, by model.",
        _GEN_AI,
        _CALL_S,
        "gen_ai.server.request.duration",
    ),
    "first_token": MetricSpec(
        "gen_ai_server_time_to_first_token_seconds",
        "histogram",
        "Time from sending the request to the upstream to a stream's first chunk with text, reasoning or a tool call.",
        _GEN_AI,
        _FIRST_S,
        "gen_ai.server.time_to_first_token",
    ),
    "first_chunk": MetricSpec(
        "ollm_bridge_first_chunk_seconds",
        "histogram",
        "Time from sending the request to the upstream to a stream's first chunk of any kind.",
        (_MODEL,),
        _FIRST_S,
    ),
    "chunk_gap": MetricSpec(
        "gen_ai_client_operation_time_per_output_chunk_seconds",
        "histogram",
        "Time between two chunks that the bridge sends of a stream; it includes waits for a slow caller.",
        (_GEN_AI[0],),
        _GAP_S,
        "gen_ai.client.operation.time_per_output_chunk",
    ),
    "token_time": MetricSpec(
        "gen_ai_server_time_per_output_token_seconds",
        "histogram",
        "Mean time per token after the first, of a complete stream with usage.",
        _GEN_AI,
        _TOKEN_S,
        "gen_ai.server.time_per_output_token",
    ),
    "tokens": MetricSpec(
        "gen_ai_client_token_usage",
        "histogram",
        "Tokens of a call by the upstream's usage, by type: input or output.",
        (*_GEN_AI, "gen_ai_token_type"),
        _TOKENS,
        "gen_ai.client.token.usage",
    ),
    "cached_tokens": MetricSpec(
        "ollm_bridge_cached_input_tokens",
        "histogram",
        "Input tokens of a call that came from a cache, by the upstream's usage; they are some of the input.",
        (_MODEL,),
        _TOKENS,
    ),
    "reasoning_tokens": MetricSpec(
        "ollm_bridge_reasoning_tokens",
        "histogram",
        "Output tokens of a call that were reasoning, by the upstream's usage; they are some of the output.",
        (_MODEL,),
        _TOKENS,
    ),
    "chunks": MetricSpec("ollm_bridge_chunks_total", "counter", "Chunks of streams sent to callers."),
    "stream_ends": MetricSpec(
        "ollm_bridge_stream_ends_total",
        "counter",
        "Streams that ended, by end: whole, the reason, or CANCELLED or DEADLINE_EXCEEDED if the caller ended it.",
        ("end",),
    ),
    "upstream_duration": MetricSpec(
        "http_client_request_duration_seconds",
        "histogram",
        "Time of the upstream's part of a call, from sending the request to the body's end, by HTTP status.",
        ("http_request_method", "http_response_status_code"),
        _CALL_S,
        "http.client.request.duration",
    ),
    "connections": MetricSpec(
        "ollm_bridge_upstream_connections", "gauge", "Connections to the upstream, in use or kept."
    ),
    "translation": MetricSpec(
        "ollm_bridge_translation_seconds",
        "histogram",
        "Time a call spent between protobuf and JSON, all its chunks together.",
        ("method",),
        _TRANSLATION_S,
    ),
    "request_bytes": MetricSpec(
        "ollm_bridge_request_bytes_total", "counter", "Bytes of request messages, as protobuf.", ("method",)
    ),
    "response_bytes": MetricSpec(
        "ollm_bridge_response_bytes_total", "counter", "Bytes of response messages, as protobuf.", ("method",)
    ),
    "log_lines_dropped": MetricSpec(
        "ollm_bridge_log_lines_dropped_total",
        "counter",
        "Log lines that were dropped, because standard error was not read fast enough or could not be written.",
    ),
    "snapshot_errors": MetricSpec(
        "ollm_bridge_snapshot_errors_total",
        "counter",
        "Times that a worker could not write its metrics for the supervisor, such as on a full disk.",
    ),
    "files_unusable": MetricSpec(
        "ollm_bridge_files_unusable",
        "gauge",
        "Sets of files (tokens, a key, a certificate) that can't be reloaded at present; their last content counts.",
    ),
    "reloads": MetricSpec(
        "ollm_bridge_file_reloads_total",
        "counter",
        "Times that changed files were taken into use, by setting; files that belong together count as the first.",
        _SETTING,
    ),
    "reload_failures": MetricSpec(
        "ollm_bridge_file_reload_failures_total",
        "counter",
        "Changes of files that can't be used, by setting; files that belong together count as the first.",
        _SETTING,
    ),
    "certificate_expiry": MetricSpec(
        "ollm_bridge_certificate_expiry_timestamp_seconds",
        "gauge",
        "When the certificates in use end, seconds since 1970: the first of a chain, the last of several authorities.",
        _SETTING,
        total="min",
    ),
    "certificate_lifetime": MetricSpec(
        "ollm_bridge_certificate_lifetime_seconds",
        "gauge",
        "How long these certificates are good, from their beginning to their end.",
        _SETTING,
        total="min",
    ),
    "calls_max": MetricSpec(
        "ollm_bridge_calls_max", "gauge", "The limit of calls in flight (calls_max), of all workers."
    ),
    "queued": MetricSpec("ollm_bridge_calls_queued", "gauge", "Calls that wait for a slot (queue_max)."),
    "processes": MetricSpec(
        "ollm_bridge_processes",
        "gauge",
        "Processes that take calls, by state: serving, or why not: starting, draining, upstream_unreachable.",
        ("state",),
    ),
    "caller_connections": MetricSpec(
        "ollm_bridge_caller_connections", "gauge", "Open connections of callers to the call port. On Linux alone."
    ),
    "tls_handshakes": MetricSpec(
        "ollm_bridge_tls_handshakes_total",
        "counter",
        "TLS handshakes that callers began.",
    ),
    "tls_handshake_failures": MetricSpec(
        "ollm_bridge_tls_handshake_failures_total",
        "counter",
        "TLS handshakes of callers that failed, by OpenSSL's reason. The engine grpcio does not tell of them.",
        ("reason",),
    ),
    "misuses": MetricSpec(
        "ollm_bridge_caller_connections_ended_total",
        "counter",
        "Callers' connections that the native engine ended, by what the caller did: protocol_error, rapid_reset, ….",
        ("reason",),
    ),
    "worker_restarts": MetricSpec(
        "ollm_bridge_worker_restarts_total", "counter", "Workers that died and were replaced."
    ),
    "lag": MetricSpec(
        "ollm_bridge_loop_lag_seconds",
        "histogram",
        "How late the event loop ran a timer, measured every 20 ms while calls are in flight.",
        (),
        _LAG_S,
    ),
    "info": MetricSpec("ollm_bridge_info", "gauge", "1; the label says which version runs.", ("version",)),
}
"""Every metric of the bridge's own, by a short key. Beside them the page has the `process_` metrics (processes.py)."""

ALERTED_REASONS: Final = (
    "BRIDGE_FAULT",
    "CREDENTIALS_REJECTED",
    "INCOMPLETE_COMPLETION",
    "OVERLOADED",
    "QUEUE_TOO_LONG",
    "UPSTREAM_INTERNAL",
    "UPSTREAM_PROVIDER_FAILED",
    "UPSTREAM_PROVIDER_TIMEOUT",
    "UPSTREAM_RATE_LIMITED",
    "UPSTREAM_TIMEOUT",
    "UPSTREAM_UNAVAILABLE",
    "UPSTREAM_UNREACHABLE",
)
"""Reasons whose calls are counted from 0 on: of a counter that begins with 1 Prometheus sees no increase."""
