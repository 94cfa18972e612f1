"""The resources for a rate of chunks: cores, pods, connections, series, log. Arithmetic on costs and assumptions.

The costs are those of the benchmarks (docs/performance/); the number of series and the length of a log line come from
the bridge's own code.
"""

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from bridge.telemetry import CallRecord
from bridge.telemetry.logs import render_call
from bridge.telemetry.metrics import Metrics
from lab.report import Figure, Page, format_figure

__all__ = [
    "RATES",
    "Assumed",
    "Costs",
    "Needs",
    "calculate_needs",
    "count_log_line_bytes",
    "count_series",
    "render_costs",
    "render_plan",
]

RATES: Final = (10_000, 1_000_000, 100_000_000)
"""Chunks a second."""


_BRIDGE: Final = "(a) the bridge, its native engine"
_COSTS: Final[dict[str, tuple[str, str, str, str, str]]] = {
    # of a cost: the benchmark's part, case and figure, and what the page calls it, with its unit
    "call_us": ("cpu", "a unary call", "CPU µs", "CPU of a unary call, 32 at once", "µs"),
    "chunk_us": (
        "paced",
        "a chunk, 50 streams with one each 20 ms",
        "CPU µs",
        "CPU of a chunk, 50 streams of 50 chunks a second each",
        "µs",
    ),
    "chunk_alone_us": (
        "cpu",
        "a chunk, each on its own",
        "CPU µs",
        "CPU of a chunk, 20 streams of 50 chunks a second each",
        "µs",
    ),
    "idle_mb": ("memory", "a process", "idle MB", "memory of an idle worker", "MB"),
    "open_stream_kb": ("memory", "a process", "a stream open KB", "memory of an open stream, of 1,000", "KB"),
}


@dataclass(frozen=True)
class Costs:
    """Measured by the benchmarks; the units are in the names.

    `chunk_us` is of a core in use, `chunk_alone_us` of a nearly idle one.
    """

    call_us: float
    chunk_us: float
    chunk_alone_us: float
    idle_mb: float
    open_stream_kb: float

    @classmethod
    def read(cls) -> "Costs":
        """Return the medians of docs/performance/."""
        return cls(**{name: statistics.median(_read_figure(name)) for name in _COSTS})


def _read_figure(cost: str) -> Any:
    part, case, metric, *_ = _COSTS[cost]
    kept = Page("performance").read(part)
    of_bridge = (each for each in (kept.results if kept else ()) if (each.case, each.contender) == (case, _BRIDGE))
    found: list[Figure] = [each.figures[metric] for each in of_bridge if metric in each.figures]
    if not found:
        raise LookupError(f"no benchmark is kept of {case!r}, {metric}: run `make lab PART=bench ONLY={part}`")
    return found[0]


@dataclass(frozen=True)
class Assumed:
    """The assumptions of the plan. Yours will differ: change them and write the page again."""

    chunks_per_stream_s: float = 50.0
    """A model's speed."""
    chunks_per_stream: float = 500.0
    core_used: float = 0.6
    """Of a pod's core, so that a peak, another pod's failure and a rollout fit."""
    callers: int = 1000
    """Processes that call, each with a connection to every pod if it balances by itself."""
    models: int = 10
    scrape_s: float = 15.0
    ports_per_address: int = 64_512
    """Of one address to one destination, through NAT: the ports above 1023."""
    address_record_bytes: int = 16
    """Of an A record in a DNS answer, its name compressed."""


@dataclass(frozen=True)
class Needs:
    """The resources for a rate. A call is a stream; a pod is one worker on one core."""

    rate: float
    open_streams: float
    calls_per_s: float
    cores: float
    pods: int
    memory_mb: float
    nat_addresses: int
    connections_per_pod: int
    connections: int
    dns_answer_bytes: int
    series: int
    samples_per_s: float
    log_mb_per_s: float

    @property
    def streams_per_pod(self) -> float:
        """Streams open at once on a pod."""
        return self.open_streams / self.pods


def calculate_needs(rate: float, costs: Costs, assumed: Assumed) -> Needs:
    """Return the resources for this number of chunks a second."""
    open_streams = rate / assumed.chunks_per_stream_s
    calls_per_s = rate / assumed.chunks_per_stream
    cores = (calls_per_s * costs.call_us + rate * costs.chunk_us) / 1e6
    pods = math.ceil(cores / assumed.core_used)
    return Needs(
        rate=rate,
        open_streams=open_streams,
        calls_per_s=calls_per_s,
        cores=cores,
        pods=pods,
        memory_mb=costs.idle_mb + open_streams / pods * costs.open_stream_kb / 1000,
        nat_addresses=math.ceil(open_streams / assumed.ports_per_address),
        connections_per_pod=assumed.callers,
        connections=assumed.callers * pods,
        dns_answer_bytes=assumed.address_record_bytes * pods,
        series=count_series(assumed.models) * pods,
        samples_per_s=count_series(assumed.models) * pods / assumed.scrape_s,
        log_mb_per_s=count_log_line_bytes() * calls_per_s / 1e6,
    )


def count_series(models: int) -> int:
    """Return the number of series of a bridge that has served these models by both methods, with a few failures."""
    metrics = Metrics("0")
    for number in range(models):
        for record in _build_records(f"model-{number}"):
            metrics.start(record.method)
            metrics.add_chunks(record.method, [0.02])
            metrics.end(record)
    return sum(not line.startswith(b"#") for line in metrics.page().splitlines())


_FAILURES: Final = (
    ("RESOURCE_EXHAUSTED", "UPSTREAM_RATE_LIMITED", 429),
    ("UNAVAILABLE", "UPSTREAM_UNAVAILABLE", 503),
    ("ABORTED", "INCOMPLETE_COMPLETION", 200),
    ("DEADLINE_EXCEEDED", "", 200),
    ("CANCELLED", "", 200),
)


def _build_records(model: str) -> list[CallRecord]:
    good: Mapping[str, Any] = {
        "request_id": "9f0c1d0e-5a3b-4c2d-8e1f-7a6b5c4d3e2f",
        "peer": "ipv4:10.244.12.34:41234",
        "model": model,
        "duration_s": 10.123456,
        "upstream_s": 10.120123,
        "first_chunk_s": 0.412345,
        "prompt_tokens": 1200,
        "completion_tokens": 500,
        "request_bytes": 4800,
        "response_bytes": 22000,
        "translation_s": 0.004,
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    }
    ends = [("OK", "", 200), *_FAILURES]
    methods = {"CreateChatCompletion": 0, "StreamChatCompletion": 500}
    return [
        CallRecord(
            method=method,
            code=code,
            reason=reason,
            upstream_status=status,
            chunks=chunks,
            **good,
        )
        for method, chunks in methods.items()
        for code, reason, status in ends
    ]


def count_log_line_bytes() -> int:
    """Return the length of a stream's line in the log, its newline included."""
    return len(render_call(next(record for record in _build_records("near_qwen3_30b") if record.streamed)))


def render_costs() -> list[str]:
    """Return one row per cost: those of the benchmarks with the range of their rounds, and those that are counted."""
    kept = Page("performance").read("cpu")
    environment = kept.environment if kept else {}
    models = Assumed().models
    return [
        "| what | cost |",
        "|---|---|",
        *(f"| {what} | {format_figure(_read_figure(name))} {unit} |" for name, (*_, what, unit) in _COSTS.items()),
        f"| series of a pod at `/metrics`, with 1 model, with {models} | {count_series(1)}, {count_series(models)} |",
        f"| a stream's line in the log | {count_log_line_bytes()} bytes |",
        "",
        f"From [the benchmarks](performance.md), on {environment['machine']}; medians of the rounds, with their range.",
    ]


def render_plan() -> list[str]:
    """Return one column per rate."""
    columns = [calculate_needs(rate, Costs.read(), Assumed()) for rate in RATES]
    return [
        "| chunks a second | " + " | ".join(_format_number(each.rate) for each in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
        *(f"| {name} | " + " | ".join(show(each) for each in columns) + " |" for name, show in _PLAN.items()),
    ]


_PLAN: Final[dict[str, Callable[[Needs], str]]] = {
    "streams open at once": lambda each: _format_number(each.open_streams),
    "calls a second": lambda each: _format_number(each.calls_per_s),
    "cores, all used": lambda each: _format_number(each.cores),
    "**pods** of one core": lambda each: f"**{_format_number(each.pods)}**",
    "streams open on a pod": lambda each: _format_number(each.streams_per_pod),
    "memory of a pod's bridge": lambda each: f"{each.memory_mb:.0f} MB",
    "connections to the gateway": lambda each: _format_number(each.open_streams),
    "addresses of a NAT, if there is one": lambda each: _format_number(each.nat_addresses),
    "connections of callers, each to every pod": lambda each: _format_number(each.connections),
    "a DNS answer with every pod": lambda each: f"{_format_number(each.dns_answer_bytes)} bytes",
    "series": lambda each: _format_number(each.series),
    "samples a second": lambda each: _format_number(each.samples_per_s),
    "log": lambda each: f"{each.log_mb_per_s:.2g} MB/s, {each.log_mb_per_s * 0.0864:.2g} TB a day",
}


def _format_number(value: float) -> str:
    """Format a number with three digits."""
    if value >= 1e6:
        return f"{value / 1e6:.3g} million"
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"
