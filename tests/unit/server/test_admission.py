"""Tests of bridge/server/admission.py: slots are counted, handed on in order of arrival, and never lost."""

import asyncio
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.errors import BridgeError
from bridge.server.admission import Admission
from bridge.settings import Settings


def limit(**settings: int) -> Admission:
    return Admission(Settings(**settings))


async def refuse(admission: Admission, caller: str = "a") -> BridgeError:
    with pytest.raises(BridgeError) as caught:
        await admission.enter(caller)
    assert (caught.value.code.name, caught.value.reason_name) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert caught.value.retry_after_ms == 1000
    return caught.value


async def test_call_above_the_limit_is_refused_with_the_setting():
    admission = limit(calls_max=2)
    await admission.enter("a")
    await admission.enter("b")
    assert (await refuse(admission)).message == "too many calls in flight (calls_max = 2)"
    admission.leave("a")
    await admission.enter("c")


async def test_admission_is_full_if_it_would_refuse_anybody():
    admission = limit(calls_max=1, queue_max=1)
    assert not admission.is_full()
    assert not admission.is_full(1)
    assert admission.is_full(2)  # that enter before it
    await admission.enter("a")
    assert not admission.is_full()  # there is a place in the queue
    assert admission.is_full(1)
    waiting = asyncio.create_task(admission.enter("b"))
    await asyncio.sleep(0)
    assert admission.is_full()
    assert (await refuse(admission, "c")).message == admission.full_message
    admission.leave("a")
    await waiting
    assert not admission.is_full()


async def test_call_above_a_callers_limit_is_refused_and_others_are_not():
    admission = limit(calls_max=10, calls_per_caller_max=1)
    await admission.enter("a")
    assert (await refuse(admission)).message == "too many calls in flight of one caller (calls_per_caller_max = 1)"
    await admission.enter("b")


async def test_caller_has_too_many_calls_if_one_more_would_be_refused():
    admission = limit(calls_max=10, calls_per_caller_max=3)
    await admission.enter("a")
    assert [admission.has_too_many("a", arriving) for arriving in (0, 1, 2)] == [False, False, True]
    assert [admission.has_too_many("b", arriving) for arriving in (2, 3)] == [False, True]
    await admission.enter("a")
    await admission.enter("a")
    assert admission.has_too_many("a")
    assert not admission.has_too_many("a", -1)  # of one that is about to leave
    assert (await refuse(admission)).message == admission.too_many_message
    admission.leave("a")
    assert not admission.has_too_many("a")


async def test_queue_is_first_in_first_out_and_bounded():
    admission = limit(calls_max=1, queue_max=2)
    await admission.enter("a")
    entered = []

    async def enter(name: str) -> None:
        await admission.enter(name)
        entered.append(name)

    waiting = []
    for name in ("b", "c"):
        waiting.append(asyncio.create_task(enter(name)))
        await asyncio.sleep(0)
    assert admission.waiting == 2
    assert "queue_max = 2" in (await refuse(admission)).message
    admission.leave("a")
    await waiting[0]
    assert entered == ["b"]
    admission.leave("b")
    await waiting[1]
    admission.leave("c")
    assert (admission.in_flight, admission.waiting) == (0, 0)


async def fill_queue(turn_s: float, waiting: int = 3) -> Admission:
    """Return an admission of one slot, whose queue has moved on so often that its pace is known."""
    admission = limit(calls_max=1, queue_max=100)
    await admission.enter("a")
    tasks = [asyncio.create_task(admission.enter("a")) for _ in range(20 + waiting)]
    await asyncio.sleep(0)
    for task in tasks[:20]:
        await asyncio.sleep(turn_s)
        admission.leave("a")
        await task
    assert admission.waiting == waiting
    return admission


async def test_call_that_would_start_after_its_deadline_is_refused_at_once():
    admission = await fill_queue(turn_s=0.05)
    with pytest.raises(BridgeError) as caught:
        await admission.enter("a", time.monotonic() + 0.1)
    assert (caught.value.code.name, caught.value.reason_name) == ("RESOURCE_EXHAUSTED", "QUEUE_TOO_LONG")
    assert caught.value.retry_after_ms == 1000
    assert "it has 0.1 s left, and 3 calls wait before it, for about " in caught.value.message
    assert admission.waiting == 3


async def test_call_with_time_enough_or_without_a_deadline_waits():
    admission = await fill_queue(turn_s=0.01)
    waiting = [asyncio.create_task(admission.enter("a", at)) for at in (time.monotonic() + 3600, math.inf)]
    await asyncio.sleep(0)
    assert admission.waiting == 5
    for task in waiting:
        task.cancel()


async def test_deadline_counts_for_nothing_while_a_slot_is_free():
    admission = limit(calls_max=2, queue_max=1)
    await admission.enter("a", time.monotonic() - 1)
    await admission.enter("a", time.monotonic() + 0.001)


async def test_call_without_time_left_does_not_queue():
    admission = limit(calls_max=1, queue_max=1)
    await admission.enter("a")
    with pytest.raises(BridgeError, match=r"it has 0\.0 s left"):
        await admission.enter("a", time.monotonic() - 1)


@given(st.lists(st.sampled_from(["enter", "leave", "cancel", "step"]), max_size=60))
def test_slots_are_never_lost_nor_made(steps):
    async def run() -> None:
        admission = limit(calls_max=2, queue_max=3, calls_per_caller_max=4)
        tasks: list[asyncio.Task[None]] = []
        for step in steps:
            inside = [task for task in tasks if task.done()]
            outside = [task for task in tasks if not task.done()]
            if step == "enter":
                tasks.append(asyncio.create_task(admission.enter("a")))
            elif step == "leave" and inside:
                tasks.remove(inside[0])
                if not inside[0].cancelled() and inside[0].exception() is None:
                    admission.leave("a")
            elif step == "cancel" and outside:
                outside[0].cancel()
            else:
                await asyncio.sleep(0)
            assert 0 <= admission.in_flight <= 2
            assert admission.waiting <= 3
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            if not task.cancelled() and task.exception() is None:
                admission.leave("a")
        assert (admission.in_flight, admission.waiting) == (0, 0)

    asyncio.run(run())
