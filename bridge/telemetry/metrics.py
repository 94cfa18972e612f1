"""Counts and times calls for Prometheus: an Observer that fills a Store, and the page that shows it.

Labels are bounded whatever callers send. Methods, codes and reasons are our own words. A model is the caller's word: it
gets a label of its own once the upstream has answered a call for it, up to MODELS_MAX of them; the rest are "other".

Several worker processes count each for itself; the supervisor's Metrics shows their sum (snapshots.py).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final, TypeAlias, TypeVar

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from bridge.core.reasons import SERVICE_NAME, find_party, find_reason
from bridge.telemetry.metric_table import ALERTED_REASONS, METRICS
from bridge.telemetry.processes import Processes
from bridge.telemetry.record import NOT_FAILURES, CallRecord, Observer
from bridge.telemetry.store import Labels, ModelLabels, Store

__all__ = ["CONTENT_TYPE", "Metrics", "Reader", "Totals"]

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4

_CHAT: Final = "chat"
_NO_LABELS: Final = ()

Reader: TypeAlias = Callable[[], float | Mapping[Labels, float]]
"""Returns what a metric's value is at present, or its values by their labels'. Called in any thread, for each page."""


@dataclass(frozen=True)
class Totals:
    """The metrics added up, for the admin page: counts since the start, gauges as they are.

    `reasons` are failures by reason, `parties` by who has to act. `states` is how many processes are in each state.
    `certificates` says by setting when they end and how long they are good, `reloads` how often its files were taken
    into use and could not be. `duration` and `first_chunk` are cumulative counts by the bucket's upper bound, in
    seconds; the last is +Inf.
    """

    calls: int = 0
    failed: int = 0
    in_flight: int = 0
    connections: int = 0
    files_unusable: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    calls_max: int = 0
    queued: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    parties: Mapping[str, int] = field(default_factory=dict)
    states: Mapping[str, int] = field(default_factory=dict)
    certificates: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    reloads: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    duration: Mapping[float, int] = field(default_factory=dict)
    first_chunk: Mapping[float, int] = field(default_factory=dict)


class Metrics(Observer):
    """An Observer that counts.

    `readers` are asked for the metrics that others know, by their key in METRICS. `workers` returns the sum of the
    workers' values, if this process is their supervisor, and `pids` which processes they are.
    """

    def __init__(
        self,
        version: str,
        readers: Mapping[str, Reader] | None = None,
        *,
        workers: Callable[[], Store] | None = None,
        pids: Callable[[], Iterable[int]] = tuple,
    ) -> None:
        self._version = version
        self._readers = dict(readers or {})
        self._workers = workers
        self._models = ModelLabels()
        self._registry = CollectorRegistry()
        self._registry.register(Processes(pids))
        self._registry.register(_StoreCollector(self.read))
        self._store = Store()
        numbers, histograms = self._store.numbers, self._store.histograms
        self._calls, self._in_flight, self._chunks = numbers["calls"], numbers["in_flight"], numbers["chunks"]
        self._stream_ends, self._misuses = numbers["stream_ends"], numbers["misuses"]
        self._request_bytes, self._response_bytes = numbers["request_bytes"], numbers["response_bytes"]
        self._duration, self._upstream_duration = histograms["duration"], histograms["upstream_duration"]
        self._cached_tokens, self._reasoning_tokens = histograms["cached_tokens"], histograms["reasoning_tokens"]
        self._request_duration = histograms["request_duration"]
        self._first_chunk, self._first_token = histograms["first_chunk"], histograms["first_token"]
        self._token_time, self._tokens = histograms["token_time"], histograms["tokens"]
        self._translation = histograms["translation"]
        self._gap = histograms["chunk_gap"][_CHAT,]
        self._lag = histograms["lag"][_NO_LABELS]
        for method in _RPC_NAMES:
            for reason in ALERTED_REASONS:
                self._calls[method, _find_code(reason), reason] = 0

    def start(self, method: str) -> None:
        """Count a call in flight."""
        self._in_flight[method,] += 1

    def add_chunks(self, method: str, gaps_s: Sequence[float]) -> None:  # noqa: ARG002 - only streams have chunks
        """Time chunks after the first."""
        observe = self._gap.observe
        for gap_s in gaps_s:
            observe(gap_s)

    def refuse(self, method: str, caller: str | None = None) -> None:  # noqa: ARG002 - a label each would be too many
        """Count a call that was refused before it ran."""
        self._calls[method, "RESOURCE_EXHAUSTED", "OVERLOADED"] += 1

    def end_connection(self, reason: str) -> None:
        """Count a connection that was ended for what its caller did."""
        self._misuses[reason,] += 1

    def add_lag(self, lag_s: float) -> None:
        """Count how late a timer of the event loop was."""
        self._lag.observe(lag_s)

    def end(self, record: CallRecord) -> None:
        """Count a call that has ended."""
        method, code, reason, duration_s = record.method, record.code, record.reason, record.duration_s
        labels = (method,)
        self._in_flight[labels] -= 1
        self._calls[method, code, reason] += 1
        error = "" if code == "OK" else code  # as OpenTelemetry has it; a reason each would be a histogram each
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
        status, first_token_s = record.upstream_status, record.first_token_s
        self._upstream_duration["POST", str(status or "")].observe(upstream_s)
        model = self._models.find(record.model, add=status == 200)
        labels = (_CHAT, model)
        self._request_duration[labels].observe(record.duration_s)
        if record.first_chunk_s is not None:
            self._first_chunk[model,].observe(record.first_chunk_s)
        if first_token_s is not None:
            self._first_token[labels].observe(first_token_s)
        if record.prompt_tokens is not None:
            self._tokens[_CHAT, model, "input"].observe(record.prompt_tokens)
        if record.completion_tokens is not None:
            self._tokens[_CHAT, model, "output"].observe(record.completion_tokens)
            later_tokens = record.completion_tokens - 1
            if record.code == "OK" and later_tokens > 0 and first_token_s is not None:
                self._token_time[labels].observe(max(0.0, upstream_s - first_token_s) / later_tokens)
        if record.cached_tokens is not None:
            self._cached_tokens[model,].observe(record.cached_tokens)
        if record.reasoning_tokens is not None:
            self._reasoning_tokens[model,].observe(record.reasoning_tokens)

    def add_snapshot_error(self) -> None:
        """Count a snapshot that could not be written."""
        self._store.numbers["snapshot_errors"][_NO_LABELS] += 1

    def read(self) -> Store:
        """Return a copy of all values, those of the workers added. May run in another thread than the event loop's."""
        store = Store()
        if self._workers is not None:
            store.merge(self._workers())
        store.merge(self._store)
        for key, read in self._readers.items():
            values, numbers = read(), store.numbers[key]
            for labels, value in values.items() if isinstance(values, Mapping) else [(_NO_LABELS, values)]:
                numbers[labels] += value
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


def _find_code(reason: str) -> str:
    """Return the code of calls that end with a reason; "" if there is no one code."""
    row = find_reason(reason)
    return row.code.name if row is not None and row.code is not None else ""


def _sum_up(store: Store) -> Totals:
    numbers = store.numbers
    reasons: Counter[str] = Counter()
    parties: Counter[str] = Counter()
    for (_, code, reason), calls in numbers["calls"].items():
        if calls and code not in NOT_FAILURES:
            reasons[reason or code] += int(calls)
            parties[find_party(reason)] += int(calls)
    tokens = {"input": 0.0, "output": 0.0}
    for (*_, kind), histogram in store.histograms["tokens"].items():
        tokens[kind] += histogram.sum
    return Totals(
        calls=int(sum(numbers["calls"].values())),
        failed=sum(reasons.values()),
        in_flight=int(sum(numbers["in_flight"].values())),
        connections=int(numbers["connections"][_NO_LABELS]),
        files_unusable=int(numbers["files_unusable"][_NO_LABELS]),
        tokens_in=int(tokens["input"]),
        tokens_out=int(tokens["output"]),
        calls_max=int(numbers["calls_max"][_NO_LABELS]),
        queued=int(numbers["queued"][_NO_LABELS]),
        reasons=dict(reasons),
        parties=dict(parties),
        states={state: int(count) for (state,), count in numbers["processes"].items() if count},
        certificates=_pair_up(numbers["certificate_expiry"], numbers["certificate_lifetime"], float),
        reloads=_pair_up(numbers["reloads"], numbers["reload_failures"], int),
        duration=_cumulate(store, "duration"),
        first_chunk=_cumulate(store, "first_chunk"),
    )


_NumberT = TypeVar("_NumberT", int, float)


def _pair_up(
    first: Mapping[Labels, float], second: Mapping[Labels, float], kind: Callable[[float], _NumberT]
) -> dict[str, tuple[_NumberT, _NumberT]]:
    """Return the values of two metrics by the one label that they have."""
    return {name: (kind(value), kind(second.get((name,), 0))) for (name,), value in first.items()}


def _cumulate(store: Store, key: str) -> dict[float, int]:
    """Return a histogram's cumulative counts over all labels, by the bucket's upper bound; none without a value."""
    series = store.histograms[key].values()
    counts = [sum(each) for each in zip(*(histogram.counts for histogram in series), strict=True)]
    return dict(zip((*METRICS[key].buckets, float("inf")), accumulate(counts), strict=False))
