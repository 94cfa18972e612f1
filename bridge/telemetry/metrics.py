"""What is counted and timed, for Prometheus: a table of names, an Observer that fills them, a page that shows them.

Where OpenTelemetry has a name it is used, written as Prometheus writes it; the rest begins with `ollm_bridge_`. The
table is METRICS: docs, dashboards and alerts go by it.

Labels are bounded whatever callers send. Methods, codes and reasons are our own words. A model is the caller's word: it
gets a label of its own once the upstream has answered a call for it, up to MODELS_MAX of them; the rest are "other".

With several worker processes, prometheus_client keeps the values in files (its "multiprocess mode", chosen by
PROMETHEUS_MULTIPROC_DIR before its import); whoever is given the same directory as `shared` shows them summed. The
library writes them through a mapping, where a disk without room is no error but SIGBUS, the end of the process: so the
room is had before it is mapped, and labels that there is none for stay uncounted.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import fstat, pwrite
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client import values as prometheus_values
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

from bridge.telemetry import CallRecord, Observer

__all__ = ["CONTENT_TYPE", "METRICS", "MODELS_MAX", "Metrics", "Named", "Totals"]

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
MODELS_MAX: Final = 100
"""Models with a label of their own. Each costs about 90 series; a gateway has a few dozen models."""

_OTHER: Final = "other"
_SERVICE: Final = "ollmbridge.v1.ChatCompletionService"
_CHAT: Final = "chat"
_UNHURT: Final = frozenset({"OK", "CANCELLED"})
"""Codes of calls that nobody failed."""

_CALL_S: Final = (
    0.01,
    0.02,
    0.04,
    0.08,
    0.16,
    0.32,
    0.64,
    1.28,
    2.56,
    5.12,
    10.24,
    20.48,
    40.96,
    81.92,
    163.84,
    655.36,
)
_FIRST_S: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30)
_GAP_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48)
_TOKEN_S: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
_TOKENS: Final = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)
_TRANSLATION_S: Final = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25)
# Those of OpenTelemetry's names are the boundaries that it recommends, gone on with to the longest call.


class Named(NamedTuple):
    """A metric: its name as Prometheus shows it, what it says, and OpenTelemetry's name, "" where there is none."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    otel: str = ""


_RPC: Final = ("rpc_system_name", "rpc_method", "rpc_response_status_code", "error_type")
_GEN_AI: Final = ("gen_ai_operation_name", "gen_ai_request_model")

METRICS: Final[Mapping[str, Named]] = {
    "calls": Named(
        "ollm_bridge_calls_total",
        "counter",
        "Calls that ended, by method, gRPC code and reason; the reason is empty for OK and where the caller ended it.",
        ("method", "code", "reason"),
    ),
    "in_flight": Named("ollm_bridge_calls_in_flight", "gauge", "Calls going on now.", ("method",)),
    "duration": Named(
        "rpc_server_call_duration_seconds",
        "histogram",
        "Time of a call, from its arrival at the bridge to its end.",
        _RPC,
        _CALL_S,
        "rpc.server.call.duration",
    ),
    "request_duration": Named(
        "gen_ai_server_request_duration_seconds",
        "histogram",
        "Time of a call that reached the upstream, by model.",
        _GEN_AI,
        _CALL_S,
        "gen_ai.server.request.duration",
    ),
    "first_chunk": Named(
        "gen_ai_server_time_to_first_token_seconds",
        "histogram",
        "Time to a stream's first chunk, from the request's going out to the upstream.",
        _GEN_AI,
        _FIRST_S,
        "gen_ai.server.time_to_first_token",
    ),
    "chunk_gap": Named(
        "gen_ai_client_operation_time_per_output_chunk_seconds",
        "histogram",
        "Time between two chunks of a stream, as the bridge gives them on; a slow reader's waits are in it.",
        (_GEN_AI[0],),
        _GAP_S,
        "gen_ai.client.operation.time_per_output_chunk",
    ),
    "token_time": Named(
        "gen_ai_server_time_per_output_token_seconds",
        "histogram",
        "Mean time per token after the first chunk, of a whole stream whose usage was told.",
        _GEN_AI,
        _TOKEN_S,
        "gen_ai.server.time_per_output_token",
    ),
    "tokens": Named(
        "gen_ai_client_token_usage",
        "histogram",
        "Tokens of a call as the upstream's usage tells them, by type: input or output.",
        (*_GEN_AI, "gen_ai_token_type"),
        _TOKENS,
        "gen_ai.client.token.usage",
    ),
    "chunks": Named("ollm_bridge_chunks_total", "counter", "Chunks of streams given to callers."),
    "stream_ends": Named(
        "ollm_bridge_stream_ends_total",
        "counter",
        "Streams that ended, by how: whole, or the reason, or CANCELLED or DEADLINE_EXCEEDED by the caller.",
        ("end",),
    ),
    "upstream_duration": Named(
        "http_client_request_duration_seconds",
        "histogram",
        "Time of the upstream's part of a call, from sending the request to the body's end, by HTTP status.",
        ("http_request_method", "http_response_status_code"),
        _CALL_S,
        "http.client.request.duration",
    ),
    "connections": Named("ollm_bridge_upstream_connections", "gauge", "Connections to the upstream, in use or kept."),
    "translation": Named(
        "ollm_bridge_translation_seconds",
        "histogram",
        "Time a call spent between protobuf and JSON, all its chunks together.",
        ("method",),
        _TRANSLATION_S,
    ),
    "request_bytes": Named(
        "ollm_bridge_request_bytes_total", "counter", "Bytes of request messages, as protobuf.", ("method",)
    ),
    "response_bytes": Named(
        "ollm_bridge_response_bytes_total", "counter", "Bytes of response messages, as protobuf.", ("method",)
    ),
    "info": Named("ollm_bridge_info", "gauge", "1; the label says which version runs.", ("version",)),
}
"""Every metric of the bridge's own. In one process there are prometheus_client's `process_` ones too."""


@dataclass(frozen=True)
class Totals:
    """The metrics added up, for the page: counts since the start, gauges as they are.

    `duration` and `first_chunk` are cumulative counts by the bucket's upper bound, in seconds; the last is +Inf.
    """

    calls: int = 0
    failed: int = 0
    in_flight: int = 0
    connections: int = 0
    chunks: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    duration: Mapping[float, int] = field(default_factory=dict)
    first_chunk: Mapping[float, int] = field(default_factory=dict)


class Metrics(Observer):
    """An Observer that counts. `connections` gives the number of upstream connections; set it once there are any.

    `shared` is the directory of prometheus_client's multiprocess mode, where that is on. Without it, each instance
    counts for itself alone. Raises OSError where there is no room in it.
    """

    def __init__(self, version: str, *, shared: Path | None = None) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # a series more for each one, which says when it began
        self.connections: Callable[[], int] = _none
        self._shown = registry = CollectorRegistry()
        if shared is None:
            ProcessCollector(registry=registry)
        else:
            MultiProcessCollector(registry, path=str(shared))  # type: ignore[no-untyped-call]
            registry = CollectorRegistry()  # what this process counts is in its files already
        made = {key: _made(named, registry) for key, named in METRICS.items()}
        # A metric's `labels` looks a child up in three microseconds, a cache in a tenth of one; labels are bounded.
        of = {key: _labelled(metric) for key, metric in made.items() if METRICS[key].labels}
        self._calls, self._in_flight, self._duration = of["calls"], of["in_flight"], of["duration"]
        self._request_duration, self._first_chunk = of["request_duration"], of["first_chunk"]
        self._gap = of["chunk_gap"](_CHAT).observe
        self._token_time, self._tokens, self._translation = of["token_time"], of["tokens"], of["translation"]
        self._chunks, self._stream_ends, self._connections = made["chunks"], of["stream_ends"], made["connections"]
        self._upstream_duration = of["upstream_duration"]
        self._request_bytes, self._response_bytes = of["request_bytes"], of["response_bytes"]
        self._models: set[str] = set()
        self._summed = [self._shown] if shared else [made[key] for key in _SUMMED]
        of["info"](version).set(1)

    def began(self, method: str) -> None:
        """Count a call in flight."""
        self._in_flight(method).inc()

    def chunks(self, method: str, gaps_s: Sequence[float]) -> None:  # noqa: ARG002 - only streams have chunks
        """Time chunks after the first."""
        for gap_s in gaps_s:
            self._gap(gap_s)

    def ended(self, record: CallRecord) -> None:
        """Count a call that has ended."""
        method, code, reason = record.method, record.code, record.reason
        self._in_flight(method).dec()
        self._calls(method, code, reason).inc()
        error = "" if code == "OK" else reason or code
        self._duration("grpc", f"{_SERVICE}/{method}", code, error).observe(record.duration_s)
        self._request_bytes(method).inc(record.request_bytes)
        self._response_bytes(method).inc(record.response_bytes)
        if record.translation_s:
            self._translation(method).observe(record.translation_s)
        if record.streamed:
            self._chunks.inc(record.chunks)
            self._stream_ends(record.stream_end).inc()
        if record.upstream_s is not None:
            self._upstream_duration("POST", str(record.upstream_status or "")).observe(record.upstream_s)
            self._generated(record, self._model(record))
        self._connections.set(self.connections())

    def _generated(self, record: CallRecord, model: str) -> None:
        self._request_duration(_CHAT, model).observe(record.duration_s)
        if record.first_chunk_s is not None:
            self._first_chunk(_CHAT, model).observe(record.first_chunk_s)
        if record.prompt_tokens is not None:
            self._tokens(_CHAT, model, "input").observe(record.prompt_tokens)
        if record.completion_tokens is not None:
            self._tokens(_CHAT, model, "output").observe(record.completion_tokens)
        later = (record.completion_tokens or 0) - 1
        if record.code == "OK" and later > 0 and record.first_chunk_s is not None and record.upstream_s is not None:
            self._token_time(_CHAT, model).observe(max(0.0, record.upstream_s - record.first_chunk_s) / later)

    def _model(self, record: CallRecord) -> str:
        model = record.model
        if model in self._models:
            return model
        if record.upstream_status != 200 or not model or len(self._models) >= MODELS_MAX:
            return _OTHER
        self._models.add(model)
        return model

    def page(self) -> bytes:
        """Give the metrics in Prometheus' text format. Takes milliseconds: for a thread, not for the loop."""
        self._connections.set(self.connections())
        return generate_latest(self._shown)

    def totals(self) -> Totals:
        """Give the metrics added up. Takes milliseconds, as `page` does."""
        self._connections.set(self.connections())
        return _totals(family for source in self._summed for family in source.collect())


def _none() -> int:
    return 0


def _labelled(metric: Any) -> Callable[..., Any]:
    """Give what gives a metric's child by its labels, the same one each time; one that counts nothing, without room."""

    @functools.cache
    def child(*labels: str) -> Any:
        try:
            return metric.labels(*labels)
        except OSError:
            return _UNCOUNTED

    return child


class _Uncounted:
    """A child of a metric that counts nothing."""

    def _ignore(self, amount: float = 1) -> None:
        pass

    inc = dec = set = observe = _ignore


_UNCOUNTED: Final = _Uncounted()


class _Reserved(MmapedDict):
    """A shared file of prometheus_client's whose room is had before it is mapped. Raises OSError without any."""

    def __init__(self, filename: str) -> None:
        with open(filename, "ab") as file:  # noqa: PTH123
            _reserve(file.fileno(), _SHARED_BYTES)
        super().__init__(filename)  # type: ignore[no-untyped-call]

    def _init_value(self, key: str) -> None:
        bytes_ = self._capacity
        while self._used + len(key.encode()) + _VALUE_BYTES_MAX > bytes_:
            bytes_ *= 2
        _reserve(self._f.fileno(), bytes_)
        super()._init_value(key)  # type: ignore[no-untyped-call]


_SHARED_BYTES: Final = 65_536
"""Of a shared file at first; it doubles."""
_VALUE_BYTES_MAX: Final = 32
"""What a value takes beside its key: its length, a padding, two doubles."""


def _reserve(file: int, bytes_: int) -> None:
    """Make a file that long, by zeros that are written, so that the disk has given the room. Raises OSError."""
    length = fstat(file).st_size
    while length < bytes_:
        length += pwrite(file, bytes(bytes_ - length), length)


prometheus_values.MmapedDict = _Reserved  # type: ignore[assignment, attr-defined] # there is no other way to give it one


def _made(named: Named, registry: CollectorRegistry) -> Any:
    match named.kind:
        case "counter":
            return Counter(named.name, named.help, named.labels, registry=registry)
        case "gauge":  # of processes that are gone nothing is in flight
            mode: Literal["max", "livesum"] = "max" if named is METRICS["info"] else "livesum"
            return Gauge(named.name, named.help, named.labels, registry=registry, multiprocess_mode=mode)
        case "histogram":
            return Histogram(named.name, named.help, named.labels, registry=registry, buckets=named.buckets)


_SUMMED: Final = ("calls", "in_flight", "connections", "chunks", "tokens", "duration", "first_chunk")
_KEYS: Final = {named.name.removesuffix("_total"): key for key, named in METRICS.items()}


def _totals(families: Iterable[Metric]) -> Totals:
    numbers: dict[str, float] = dict.fromkeys(("calls", "failed", "in_flight", "connections", "chunks"), 0)
    tokens = {"input": 0.0, "output": 0.0}
    reasons: dict[str, int] = {}
    buckets: dict[str, dict[float, int]] = {"duration": {}, "first_chunk": {}}
    for family in families:
        key = _KEYS.get(family.name, "")
        for name, labels, value, *_ in family.samples:
            if key in buckets and name.endswith("_bucket"):
                bound = float(labels["le"])
                buckets[key][bound] = buckets[key].get(bound, 0) + int(value)
            elif key == "tokens" and name.endswith("_sum"):
                tokens[labels["gen_ai_token_type"]] += value
            elif key in numbers:
                numbers[key] += value
                if key == "calls" and labels["code"] not in _UNHURT:
                    numbers["failed"] += value
                    reason = labels["reason"] or labels["code"]
                    reasons[reason] = reasons.get(reason, 0) + int(value)
    return Totals(
        **{key: int(value) for key, value in numbers.items()},
        tokens_in=int(tokens["input"]),
        tokens_out=int(tokens["output"]),
        reasons=reasons,
        duration=dict(sorted(buckets["duration"].items())),
        first_chunk=dict(sorted(buckets["first_chunk"].items())),
    )
