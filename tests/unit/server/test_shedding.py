"""Tests of bridge/server/shedding.py: calls are refused while timers are late, and at no other time."""

import asyncio
import time

from structlog.testing import capture_logs

from bridge.core.errors import Code
from bridge.server.rpc import Caller
from bridge.server.shedding import Shedding
from bridge.telemetry import Observer
from tests.kit.waiting import eventually

METHOD = "CreateChatCompletion"
LAG_MAX_MS = 20


class Refusals(Observer):
    def __init__(self) -> None:
        self.methods: list[str] = []
        self.callers: list[str | None] = []
        self.lags_s: list[float] = []

    def refuse(self, method, caller=None):
        self.methods.append(method)
        self.callers.append(caller)

    def add_lag(self, lag_s):
        self.lags_s.append(lag_s)


def create(observer: Observer | None = None, *, has_calls=lambda: True, log_s: float = 0.01) -> Shedding:
    return Shedding(LAG_MAX_MS, has_calls, [observer or Observer()], tick_s=0.001, log_s=log_s)


async def block(times: int) -> None:
    """Hold the loop longer than the limit, so many timers in a row."""
    for _ in range(times):
        time.sleep(3 * LAG_MAX_MS / 1000)  # noqa: ASYNC251 - what a busy loop does
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_call_is_refused_while_timers_are_late_and_counted():
    refusals = Refusals()
    shedding = create(refusals)
    shedding.watch()
    await block(3)
    status = shedding.refuse(METHOD)
    assert (status.code, status.message) == (Code.RESOURCE_EXHAUSTED, "the event loop is late (lag_max_ms = 20)")
    assert dict(status.trailers)["grpc-retry-pushback-ms"] == "1000"
    assert refusals.methods == [METHOD]
    assert max(refusals.lags_s) > LAG_MAX_MS / 1000
    assert shedding.lag_s > LAG_MAX_MS / 1000


async def test_one_late_timer_is_a_pause():
    shedding = create()
    shedding.watch()
    await asyncio.sleep(0)
    time.sleep(3 * LAG_MAX_MS / 1000)  # noqa: ASYNC251
    assert shedding.refuse(METHOD) is None


async def test_calls_are_welcome_again_once_timers_are_in_time():
    shedding = create()
    shedding.watch()
    await block(3)
    assert shedding.refuse(METHOD) is not None
    await eventually(lambda: shedding.refuse(METHOD) is None)


async def test_nothing_is_measured_without_calls():
    calls = [1]
    shedding = create(has_calls=lambda: bool(calls))
    await block(3)
    assert shedding.refuse(METHOD) is None
    shedding.watch()
    calls.clear()
    await asyncio.sleep(0.05)
    await block(3)
    assert shedding.refuse(METHOD) is None


async def test_refusals_are_logged_in_sum():
    shedding = create()
    with capture_logs() as lines:
        shedding.watch()
        await block(3)
        for _ in range(5):
            assert shedding.refuse(METHOD) is not None
        await eventually(lambda: lines)
    assert [(line["event"], line["count"]) for line in lines] == [("calls refused: the event loop is late", 5)]


async def test_call_without_a_slot_is_refused_before_it_is_looked_at_and_counted():
    refusals = Refusals()
    room = 2
    shedding = Shedding(
        LAG_MAX_MS, lambda: True, [refusals], is_full=lambda others: others >= room, full_message="full", log_s=0.01
    )
    with capture_logs() as lines:
        for arriving in (2, 3, 4):
            status = shedding.refuse(METHOD, arriving)
            assert (status.code, status.message) == (Code.RESOURCE_EXHAUSTED, "full")
        await eventually(lambda: lines)
    assert [(line["event"], line["count"]) for line in lines] == [("calls refused: all slots are taken", 3)]
    assert refusals.methods == [METHOD] * 3
    assert refusals.callers == [None] * 3
    assert shedding.refuse(METHOD, 1) is None


async def test_call_of_a_caller_with_too_many_is_refused_counted_as_theirs_and_logged_with_the_last_of_them():
    refusals = Refusals()
    full = {"name a", "peer ipv4:10.0.0.1"}
    shedding = Shedding(
        LAG_MAX_MS,
        lambda: True,
        [refusals],
        has_too_many=lambda bucket, arriving: bucket in full or arriving >= 2,
        too_many_message="too many",
        log_s=0.01,
    )
    with capture_logs() as lines:
        for caller in (Caller("a", "name a"), Caller("", "peer ipv4:10.0.0.1")):
            status = shedding.refuse_caller(METHOD, caller)
            assert (status.code, status.message) == (Code.RESOURCE_EXHAUSTED, "too many")
            assert dict(status.trailers)["grpc-retry-pushback-ms"] == "1000"
        await eventually(lambda: lines)
    assert [(line["event"], line["count"], line["last_caller"]) for line in lines] == [
        ("calls refused: their callers have too many in flight", 2, "peer ipv4:10.0.0.1")
    ]
    assert (refusals.methods, refusals.callers) == ([METHOD] * 2, ["a", ""])
    other = Caller("b", "name b")
    assert shedding.refuse_caller(METHOD, other, 1) is None
    assert shedding.refuse_caller(METHOD, other, 2) is not None
