"""Counts and times calls for Prometheus: an Observer that fills a Store, and the page that shows it.

Labels are bounded whatever callers send. Methods, codes and reasons are our own words. A model is the caller's word: it
gets a label of its own once the upstream has answered a call for it, up to MODELS_MAX of them; the rest are "other".

Several worker processes count each for itself; the supervisor's Metrics shows their sum (snapshots.py).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from bridge.core.reasons import SERVICE_NAME
from bridge.telemetry.metric_table import METRICS
from bridge.telemetry.record import NOT_FAILURES, CallRecord, Observer
from bridge.telemetry.store import ModelLabels, Store

__all__ = ["CONTENT_TYPE", "Metrics", "Totals"]

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4

_CHAT: Final = "chat"
_NO_LABELS: Final = ()


@dataclass(frozen=True)
class Totals:
    """The metrics added up, for the admin page: counts since the start, gauges as they are.

    `duration` and `first_chunk` are cumulative counts by the bucket's upper bound, in seconds; the last is +Inf.
    """

    calls: int = 0
    failed: int = 0
    in_flight: int = 0
    connections: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    duration: Mapping[float, int] = field(default_factory=dict)
    first_chunk: Mapping[float, int] = field(default_factory=dict)


class Metrics(Observer):
    """An Observer that counts.

    `connections` returns the number of upstream connections, `dropped_log_lines` that of lines that the log dropped.
    `workers` returns the sum of the workers' values, if this process is their supervisor; it then shows no
    `process_` metrics, since one process is not the bridge.
    """

    def __init__(
        self,
        version: str,
        *,
        connections: Callable[[], int] = lambda: 0,
        dropped_log_lines: Callable[[], int] = lambda: 0,
        workers: Callable[[], Store] | None = None,
    ) -> None:
        self._version = version
        self._connections = connections
        self._dropped_log_lines = dropped_log_lines
        self._workers = workers
        self._models = ModelLabels()
        self._registry = CollectorRegistry()
        if workers is None:
            ProcessCollector(registry=self._registry)
        self._registry.register(_StoreCollector(self.read))
        self._store = Store()
        numbers, histograms = self._store.numbers, self._store.histograms
        self._calls, self._in_flight, self._chunks = numbers["calls"], numbers["in_flight"], numbers["chunks"]
        self._stream_ends = numbers["stream_ends"]
        self._request_bytes, self._response_bytes = numbers["request_bytes"], numbers["response_bytes"]
        self._duration, self._upstream_duration = histograms["duration"], histograms["upstream_duration"]
        self._request_duration, self._first_chunk = histograms["request_duration"], histograms["first_chunk"]
        self._token_time, self._tokens = histograms["token_time"], histograms["tokens"]
        self._translation = histograms["translation"]
        self._gap = histograms["chunk_gap"][_CHAT,]

    def start(self, method: str) -> None:
        """Count a call in flight."""
        self._in_flight[method,] += 1

    def add_chunks(self, method: str, gaps_s: Sequence[float]) -> None:  # noqa: ARG002 - only streams have chunks
        """Time chunks after the first."""
        observe = self._gap.observe
        for gap_s in gaps_s:
            observe(gap_s)

    def end(self, record: CallRecord) -> None:
        """Count a call that has ended."""
        method, code, reason, duration_s = record.method, record.code, record.reason, record.duration_s
        labels = (method,)
        self._in_flight[labels] -= 1
        self._calls[method, code, reason] += 1
        error = record.error
        self._duration["grpc", _RPC_NAMES[method], code, error].observe(duration_s)
        self._request_bytes[labels] += record.request_bytes
        self._response_bytes[labels] += record.response_bytes
        if record.translation_s:
            self._translation[labels].observe(record.translation_s)
        if record.streamed:
            self._chunks[_NO_LABELS] += record.chunks
            self._stream_ends[record.stream_end,] += 1
        if record.upstream_s is not None:
            self._end_upstream(record, record.upstream_s)

    def _end_upstream(self, record: CallRecord, upstream_s: float) -> None:
        """Count the upstream's part of a call."""
        status, first_chunk_s = record.upstream_status, record.first_chunk_s
        self._upstream_duration["POST", str(status or "")].observe(upstream_s)
        model = self._models.find(record.model, add=status == 200)
        labels = (_CHAT, model)
        self._request_duration[labels].observe(record.duration_s)
        if first_chunk_s is not None:
            self._first_chunk[labels].observe(first_chunk_s)
        if record.prompt_tokens is not None:
            self._tokens[_CHAT, model, "input"].observe(record.prompt_tokens)
        if record.completion_tokens is not None:
            self._tokens[_CHAT, model, "output"].observe(record.completion_tokens)
            later_tokens = record.completion_tokens - 1
            if record.code == "OK" and later_tokens > 0 and first_chunk_s is not None:
                self._token_time[labels].observe(max(0.0, upstream_s - first_chunk_s) / later_tokens)

    def add_snapshot_error(self) -> None:
        """Count a snapshot that could not be written."""
        self._store.numbers["snapshot_errors"][_NO_LABELS] += 1

    def read(self) -> Store:
        """Return a copy of all values, those of the workers added. May run in another thread than the event loop's."""
        store = Store()
        if self._workers is not None:
            store.merge(self._workers())
        store.merge(self._store)
        store.numbers["connections"][_NO_LABELS] += self._connections()
        store.numbers["log_lines_dropped"][_NO_LABELS] += self._dropped_log_lines()
        store.numbers["info"][self._version,] = 1
        return store

    def page(self) -> bytes:
        """Return the metrics in Prometheus' text format. Takes milliseconds: call it in a thread, not on the loop."""
        return generate_latest(self._registry)

    def totals(self) -> Totals:
        """Return the metrics added up. Takes milliseconds, as `page` does."""
        return _sum_up(self.read())


_RPC_NAMES: Final = {method: f"{SERVICE_NAME}/{method}" for method in ("CreateChatCompletion", "StreamChatCompletion")}


class _StoreCollector(Collector):
    """The values for prometheus_client, read anew for each page."""

    def __init__(self, read: Callable[[], Store]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        return self._read().collect()


def _sum_up(store: Store) -> Totals:
    numbers = store.numbers
    reasons: dict[str, int] = {}
    for (_, code, reason), calls in numbers["calls"].items():
        if code not in NOT_FAILURES:
            reasons[reason or code] = reasons.get(reason or code, 0) + int(calls)
    tokens = {"input": 0.0, "output": 0.0}
    for (*_, kind), histogram in store.histograms["tokens"].items():
        tokens[kind] += histogram.sum
    return Totals(
        calls=int(sum(numbers["calls"].values())),
        failed=sum(reasons.values()),
        in_flight=int(sum(numbers["in_flight"].values())),
        connections=int(numbers["connections"][_NO_LABELS]),
        tokens_in=int(tokens["input"]),
        tokens_out=int(tokens["output"]),
        reasons=reasons,
        duration=_cumulate(store, "duration"),
        first_chunk=_cumulate(store, "first_chunk"),
    )


def _cumulate(store: Store, key: str) -> dict[float, int]:
    """Return a histogram's cumulative counts over all labels, by the bucket's upper bound; none without a value."""
    series = store.histograms[key].values()
    counts = [sum(each) for each in zip(*(histogram.counts for histogram in series), strict=True)]
    return dict(zip((*METRICS[key].buckets, float("inf")), accumulate(counts), strict=False))
