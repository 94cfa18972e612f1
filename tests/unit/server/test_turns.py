"""Tests of bridge/server/turns.py; test_boundary.py and test_asgi_rpc.py have a burst of each transport."""

import asyncio

from bridge.server.turns import Turns
from tests.kit.waiting import WAIT_S


async def test_turns_are_taken_one_in_a_turn_of_the_loop_in_their_order():
    turns, taken = Turns(), []

    async def take(number):
        async with turns:
            taken.append(number)

    tasks = [asyncio.create_task(take(number)) for number in range(3)]
    seen = []
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        seen.append(len(taken))
    assert taken == [0, 1, 2]
    assert {1, 2, 3} <= set(seen)


async def test_turn_of_one_that_is_cancelled_as_it_has_it_goes_to_the_next():
    turns = Turns()

    async def take():
        async with turns:
            return "decoded"

    first, second = asyncio.create_task(take()), asyncio.create_task(take())
    await asyncio.sleep(0)
    first.cancel()
    async with asyncio.timeout(WAIT_S):
        assert await second == "decoded"
    assert first.cancelled()
