"""Tests of bridge/server/admission.py: slots are counted, handed on in order of arrival, and never lost."""

import asyncio

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


async def test_call_above_a_callers_limit_is_refused_and_others_are_not():
    admission = limit(calls_max=10, calls_per_caller_max=1)
    await admission.enter("a")
    assert (await refuse(admission)).message == "too many calls in flight of one caller (calls_per_caller_max = 1)"
    await admission.enter("b")


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
