"""The time line of the status page: the metrics' totals, polled every few seconds and kept for ten minutes.

Rates, percentiles and histograms are differences between two polls, so the hot path counts and nothing more. What was
counted before the first poll is in the totals and in no rate.
"""

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

import structlog

from bridge.telemetry.metrics import Metrics, Totals

__all__ = ["POLL_PERIOD_S", "History", "compute_histogram", "compute_quantile", "keep_history"]

POLL_PERIOD_S: Final = 2.5
_POLLS_MAX: Final = 241  # ten minutes
_RATE_WINDOW_S: Final = 60.0
PARTIES: Final = ("caller", "gateway", "bridge")
_LOG: Final = structlog.get_logger("ollm_bridge")


class History:
    """The totals of the last ten minutes. `clock` returns monotonic seconds."""

    def __init__(self, metrics: Metrics, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._clock = clock
        self._started_at = clock()
        self._polls: deque[tuple[float, Totals]] = deque(maxlen=_POLLS_MAX)
        self._state_since = self._started_at

    async def poll(self) -> None:
        """Append the totals as they are now. Adding them up takes milliseconds, so a thread does it."""
        totals = await asyncio.to_thread(self._metrics.totals)
        now = self._clock()
        if self._polls and self._polls[-1][1].states != totals.states:
            self._state_since = now
        self._polls.append((now, totals))

    def summarize(self) -> dict[str, Any]:
        """Return rates a second, percentiles in seconds, and the time line and histograms to draw.

        There must have been a poll.
        """
        first_at, first = self._polls[0]
        now_at, now = self._polls[-1]
        minute_at, minute = next(poll for poll in self._polls if poll[0] >= now_at - _RATE_WINDOW_S)
        elapsed_s = max(now_at - minute_at, POLL_PERIOD_S)
        return {
            "uptime_s": self._clock() - self._started_at,
            "window_s": now_at - first_at,
            "in_flight": now.in_flight,
            "connections": now.connections,
            "files_unusable": now.files_unusable,
            "states": now.states,
            "state_s": self._clock() - self._state_since,
            "calls_max": now.calls_max,
            "queued": now.queued,
            "certificates": {name: list(times) for name, times in now.certificates.items()},
            "reloads": {name: list(counts) for name, counts in now.reloads.items()},
            "calls": now.calls - first.calls,
            "failed": now.failed - first.failed,
            "calls_total": now.calls,
            "calls_per_s": (now.calls - minute.calls) / elapsed_s,
            "tokens_in_per_s": (now.tokens_in - minute.tokens_in) / elapsed_s,
            "tokens_out_per_s": (now.tokens_out - minute.tokens_out) / elapsed_s,
            "duration": compute_histogram(first.duration, now.duration),
            "first_chunk": compute_histogram(first.first_chunk, now.first_chunk),
            "reasons": _subtract(now.reasons, first.reasons),
            "parties": _subtract(now.parties, first.parties),
            "line": [_step(before, after, now_at) for before, after in itertools.pairwise(self._polls)],
        }


@contextlib.asynccontextmanager
async def keep_history(metrics: Metrics, *, period_s: float = POLL_PERIOD_S) -> AsyncIterator[History]:
    """Poll while the block lasts. The history that the block gets has its first poll."""
    history = History(metrics)
    await history.poll()

    async def poll_forever() -> None:
        while True:
            await asyncio.sleep(period_s)
            try:
                await history.poll()
            except Exception as error:  # noqa: BLE001 - one point less on the line
                _LOG.warning("metrics could not be read", fault=type(error).__name__)

    task = asyncio.create_task(poll_forever())
    try:
        yield history
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _step(before: tuple[float, Totals], after: tuple[float, Totals], now_at: float) -> list[float]:
    """Return a point of the time line.

    That is: seconds before now (negative), seconds it covers, calls, in flight, and failures by PARTIES.
    """
    (before_at, old), (after_at, new) = before, after
    failed = [new.parties.get(party, 0) - old.parties.get(party, 0) for party in PARTIES]
    calls = new.calls - old.calls
    return [round(after_at - now_at, 1), round(after_at - before_at, 2), calls, new.in_flight, *failed]


def _subtract(now: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    return {key: count for key in now if (count := now[key] - before.get(key, 0)) > 0}


def compute_histogram(before: Mapping[float, int], now: Mapping[float, int]) -> dict[str, Any]:
    """Return what a histogram counted between two polls: `[upper bound, count]` a bucket, and two percentiles.

    `before` and `now` are cumulative counts by upper bound, as in the metrics. The last bucket has no bound (None), an
    empty histogram no percentiles.
    """
    bounds = sorted(now)
    cumulative = [max(0, now[bound] - before.get(bound, 0)) for bound in bounds]
    counts = [upper - lower for lower, upper in zip([0, *cumulative], cumulative, strict=False)]
    return {
        "buckets": [[None if bound == float("inf") else bound, n] for bound, n in zip(bounds, counts, strict=True)],
        "p50": compute_quantile(0.5, bounds, counts),
        "p95": compute_quantile(0.95, bounds, counts),
    }


def compute_quantile(share: float, bounds: list[float], counts: list[int]) -> float | None:
    """Return the value below which a share of the counts lies, with values spread evenly over each bucket.

    In the bucket without a bound it is that bucket's lower end; None if nothing was counted.
    """
    rank = share * sum(counts)
    lower = 0.0
    for bound, count in zip(bounds, counts, strict=True):
        if count and rank <= count:
            return lower if bound == float("inf") else lower + (bound - lower) * rank / count
        rank -= count
        lower = bound
    return None
