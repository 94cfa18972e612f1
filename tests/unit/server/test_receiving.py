"""Tests of bridge/server/receiving.py: messages that arrive, that never arrive, and that are too many."""

import asyncio
import contextlib

import pytest

from bridge.core.errors import BridgeError
from bridge.server.call import RpcCall
from bridge.server.receiving import Receiving
from bridge.settings import Settings
from tests.kit.waiting import eventually
from tests.unit.server.fake_rpc import FakeRpc

MIB = 1024 * 1024


class SlowRpc(FakeRpc):
    """A call whose message, which is large or small, arrives when `arrived` is set."""

    def __init__(self, *, is_small: bool = False) -> None:
        super().__init__(b"late")
        self.is_small = is_small
        self.arrived = asyncio.Event()
        self.is_read = False

    async def receive(self, take_room=None):
        if not self.is_small:
            await take_room()
        self.is_read = True
        await self.arrived.wait()
        return self.message


def limit(*, slots: int = 1, slow_s: float = 3600, **settings) -> Receiving:
    return Receiving(Settings(request_bytes_max=MIB, receiving_bytes_max=slots * MIB, **settings), slow_s=slow_s)


class Reception:
    """One call that is being received, in a task of its own."""

    def __init__(self, receiving: Receiving, *, is_small: bool = False) -> None:
        self.rpc = SlowRpc(is_small=is_small)
        self.task = asyncio.create_task(self._run(receiving))

    async def _run(self, receiving: Receiving):
        call = RpcCall(self.rpc, (), None)
        try:
            return await receiving.receive(call)
        except asyncio.CancelledError:
            if call.interruption is None:
                raise
            return call.interruption

    async def leave(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


async def start(receiving: Receiving, count: int) -> list[Reception]:
    receptions = [Reception(receiving) for _ in range(count)]
    await asyncio.sleep(0)
    return receptions


async def test_message_that_arrives_is_returned():
    receiving = limit()
    (reception,) = await start(receiving, 1)
    assert receiving.in_progress == 1
    reception.rpc.arrived.set()
    assert await reception.task == b"late"
    assert receiving.in_progress == 0


async def test_message_that_does_not_arrive_in_time_ends_its_call_with_the_setting():
    (reception,) = await start(limit(receive_timeout_s=0.01), 1)
    failure = await reception.task
    assert (failure.code.name, failure.message) == (
        "DEADLINE_EXCEEDED",
        "the call's message did not arrive within receive_timeout_s (0.01 s)",
    )


async def test_messages_beyond_the_budget_are_not_read_and_wait_their_turn():
    receiving = limit(slots=2)
    receptions = await start(receiving, 3)
    assert [each.rpc.is_read for each in receptions] == [True, True, False]
    receptions[1].rpc.arrived.set()
    await eventually(lambda: receptions[2].rpc.is_read)
    for each in receptions:
        await each.leave()
    assert receiving.in_progress == 0


async def test_message_that_waits_for_its_turn_is_within_the_timeout_too():
    _, second = await start(limit(receive_timeout_s=0.01), 2)
    assert isinstance(await second.task, BridgeError)
    assert not second.rpc.is_read


@pytest.mark.parametrize("is_slow_first", [False, True], ids=["others wait first", "it is slow first"])
async def test_slow_message_gives_way_to_another(is_slow_first):
    receiving = limit(slow_s=0.01)
    (slow,) = await start(receiving, 1)
    if is_slow_first:
        await asyncio.sleep(0.05)
        assert not slow.task.done()
    (other,) = await start(receiving, 1)
    failure = await slow.task
    assert (failure.code.name, failure.reason_name) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert "receiving_bytes_max = 1048576" in failure.message
    await eventually(lambda: other.rpc.is_read)
    other.rpc.arrived.set()
    assert await other.task == b"late"
    assert receiving.in_progress == 0


async def test_small_message_waits_for_no_other_and_gives_way_to_none():
    receiving = limit(slow_s=0.001)
    small = Reception(receiving, is_small=True)
    (large,) = await start(receiving, 1)
    assert small.rpc.is_read
    assert receiving.in_progress == 1
    (other,) = await start(receiving, 1)
    assert isinstance(await large.task, BridgeError)
    small.rpc.arrived.set()
    assert await small.task == b"late"
    await eventually(lambda: other.rpc.is_read)
    await other.leave()
    assert receiving.in_progress == 0


async def test_slow_message_that_nobody_waits_for_is_received():
    receiving = limit(slow_s=0.001)
    (slow,) = await start(receiving, 1)
    await asyncio.sleep(0.02)
    slow.rpc.arrived.set()
    assert await slow.task == b"late"
