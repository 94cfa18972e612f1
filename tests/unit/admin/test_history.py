import asyncio
import math

import pytest
import structlog.testing
from hypothesis import given
from hypothesis import strategies as st

from bridge.admin.history import POLL_PERIOD_S, History, compute_histogram, compute_quantile, keep_history
from tests.kit.waiting import WAIT_S
from tests.unit.admin.samples import FAILURES, begin_call, count_call, make_metrics, make_record


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


async def poll(history: History, clock: Clock, after_s: float) -> dict:
    clock.now_s += after_s
    await history.poll()
    return history.summarize()


async def test_summary_has_the_calls_between_the_first_poll_and_the_last():
    metrics, clock = make_metrics(connections=7), Clock()
    count_call(metrics, make_record())
    history = History(metrics, clock=clock)
    await history.poll()
    for fields in [{}] * 12 + FAILURES:
        count_call(metrics, make_record(**fields))
    begin_call(metrics)
    summary = await poll(history, clock, 5)
    assert {name: summary[name] for name in ("uptime_s", "window_s", "in_flight", "connections")} == {
        "uptime_s": 5,
        "window_s": 5,
        "in_flight": 1,
        "connections": 7,
    }
    assert (summary["calls_total"], summary["calls"], summary["failed"]) == (21, 20, 7)
    assert summary["calls_per_s"] == 20 / 5
    assert summary["tokens_in_per_s"] == 19 * 120 / 5  # one did not reach the upstream
    assert summary["tokens_out_per_s"] == 19 * 80 / 5
    assert summary["reasons"] == {
        "UPSTREAM_UNREACHABLE": 1,
        "INCOMPLETE_COMPLETION": 2,
        "UPSTREAM_RATE_LIMITED": 1,
        "UPSTREAM_NOT_FOUND": 1,
        "DEADLINE_EXCEEDED": 1,
        "UPSTREAM_INTERNAL": 1,
    }
    assert 1.28 < summary["duration"]["p50"] < 2.56
    assert sum(count for _, count in summary["first_chunk"]["buckets"]) == 19
    assert summary["parties"] == {"caller": 3, "gateway": 4}
    assert summary["line"] == [[0, 5, 20, 1, 3, 4, 0]]


async def test_summary_of_one_poll_is_empty():
    history = History(make_metrics())
    await history.poll()
    summary = history.summarize()
    assert (summary["calls"], summary["calls_per_s"], summary["line"]) == (0, 0, [])
    assert (summary["duration"]["p50"], summary["reasons"]) == (None, {})


async def test_rates_are_of_the_last_minute():
    metrics, clock = make_metrics(), Clock()
    history = History(metrics, clock=clock)
    await history.poll()
    for _ in range(100):
        count_call(metrics, make_record())
    await poll(history, clock, 30)
    summary = {}
    for _ in range(6):
        count_call(metrics, make_record())
        summary = await poll(history, clock, 20)
    assert summary["calls"] == 106
    assert summary["calls_per_s"] == 3 / 60


async def test_time_line_has_at_most_ten_minutes():
    clock = Clock()
    history = History(make_metrics(), clock=clock)
    await history.poll()
    for _ in range(300):
        summary = await poll(history, clock, POLL_PERIOD_S)
    assert summary["window_s"] == 600
    assert len(summary["line"]) == 240


async def test_failed_poll_is_logged_and_the_next_one_goes_on(monkeypatch):
    metrics = make_metrics()
    totals, outcomes, done = metrics.totals, [None, OSError("sk-secret"), None], asyncio.Event()
    loop = asyncio.get_running_loop()

    def read():
        if outcomes and (outcome := outcomes.pop(0)):
            raise outcome
        if not outcomes:
            loop.call_soon_threadsafe(done.set)
        return totals()

    monkeypatch.setattr(metrics, "totals", read)
    with structlog.testing.capture_logs() as log:
        async with asyncio.timeout(WAIT_S), keep_history(metrics, period_s=0.001):
            await done.wait()
    assert {"event": "metrics could not be read", "fault": "OSError", "log_level": "warning"} in log
    assert "sk-secret" not in str(log)


@pytest.mark.parametrize(
    ("share", "counts", "value"),
    [(0.5, [0, 10, 0, 0], 1.5), (0.5, [10, 10, 0, 0], 1.0), (0.95, [0, 0, 0, 3], 4.0), (0.5, [0, 0, 0, 0], None)],
    ids=["within a bucket", "at a bound", "beyond the last bound", "of nothing"],
)
def test_quantile_is_interpolated_in_its_bucket(share, counts, value):
    assert compute_quantile(share, [1.0, 2.0, 4.0, math.inf], counts) == value


BOUNDS = [0.25, 1.0, 2.0, 4.0, math.inf]


@given(st.lists(st.floats(0, 8), min_size=1, max_size=50), st.floats(0.01, 0.99))
def test_quantile_of_any_values_is_in_the_bucket_of_the_value_that_it_is_for(values, share):
    counts = [
        sum(lower < value <= upper for value in values)
        for lower, upper in zip([-1.0, *BOUNDS[:-1]], BOUNDS, strict=True)
    ]
    exact = sorted(values)[math.ceil(share * len(values)) - 1]
    bucket = next(i for i, upper in enumerate(BOUNDS) if exact <= upper)
    lower = BOUNDS[bucket - 1] if bucket else 0.0
    upper = lower if BOUNDS[bucket] == math.inf else BOUNDS[bucket]
    assert lower - 1e-9 <= compute_quantile(share, BOUNDS, counts) <= upper + 1e-9


def test_histogram_has_what_was_counted_between_two_polls():
    histogram = compute_histogram({1.0: 2, math.inf: 3}, {1.0: 4, math.inf: 9})
    assert histogram["buckets"] == [[1.0, 2], [None, 4]]
