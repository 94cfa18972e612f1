"""The resources for a rate of chunks: cores, pods, connections, series, log. Arithmetic on costs.json and assumptions.

The costs are measured; the number of series and the length of a log line come from the bridge's own code.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bridge.telemetry import CallRecord
from bridge.telemetry.logs import render_call
from bridge.telemetry.metrics import Metrics

__all__ = ["COSTS", "RATES", "Assumed", "Costs", "Needs", "calculate_needs", "count_log_line_bytes", "count_series"]

COSTS: Final = Path(__file__).parent / "costs.json"
RATES: Final = (10_000, 1_000_000, 100_000_000)
"""Chunks a second."""


@dataclass(frozen=True)
class Costs:
    """Measured; the units are in the names.

    `chunk_us` is of a well-used core, `chunk_alone_us` of a nearly idle one.
    """

    call_us: float
    chunk_us: float
    chunk_alone_us: float
    idle_mib: float
    open_stream_kib: float

    @classmethod
    def read(cls) -> "Costs":
        """Return the costs of costs.json."""
        return cls(
            **{name: row["value"] for name, row in json.loads(COSTS.read_text(encoding="utf-8"))["costs"].items()}
        )


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
    memory_mib: float
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
        memory_mib=costs.idle_mib + open_streams / pods * costs.open_stream_kib / 1024,
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
    ("ABORTED", "INCOMPLETE_STREAM", 200),
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
