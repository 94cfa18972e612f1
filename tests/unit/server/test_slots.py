"""Tests of bridge/server/slots.py: slots are counted, handed on in order of arrival, and never lost."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from bridge.server.slots import Slots


async def test_slot_is_handed_to_the_first_that_waits():
    slots = Slots(1)
    await slots.take()
    order = []

    async def take(name: str) -> None:
        await slots.take()
        order.append(name)

    waiting = []
    for name in ("first", "second"):
        waiting.append(asyncio.create_task(take(name)))
        await asyncio.sleep(0)
    assert (slots.is_free, slots.waiting) == (False, 2)
    for task in waiting:
        slots.release()
        await task
    slots.release()
    assert order == ["first", "second"]
    assert (slots.is_free, slots.in_use, slots.waiting) == (True, 0, 0)


@given(st.lists(st.sampled_from(["take", "release", "cancel", "step"]), max_size=60))
def test_slots_are_never_lost_nor_made(steps):
    async def run() -> None:
        slots = Slots(2)
        tasks: list[asyncio.Task[None]] = []
        for step in steps:
            inside = [task for task in tasks if task.done()]
            outside = [task for task in tasks if not task.done()]
            if step == "take":
                tasks.append(asyncio.create_task(slots.take()))
            elif step == "release" and inside:
                tasks.remove(inside[0])
                if not inside[0].cancelled():
                    slots.release()
            elif step == "cancel" and outside:
                outside[0].cancel()
            else:
                await asyncio.sleep(0)
            assert 0 <= slots.in_use <= 2
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            if not task.cancelled():
                slots.release()
        assert (slots.in_use, slots.waiting) == (0, 0)

    asyncio.run(run())
