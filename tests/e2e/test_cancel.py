"""Calls that are cancelled: the gateway's connection is closed, by the gateway's own record."""

import asyncio
import logging

import grpc
import pytest

from tests.kit.client import Bridge, chat, scenario
from tests.kit.waiting import WAIT_S, eventually
from tests.kit.windows import WINDOWS, start_call


@pytest.mark.parametrize("window", WINDOWS)
async def test_cancel_closes_the_upstream_connection(bridge, emulator, window):
    before = asyncio.all_tasks()
    call = await start_call(bridge, window)
    exchange = await emulator.next_exchange()
    await WINDOWS[window].wait(exchange)

    call.cancel()
    await exchange.wait_closed()
    assert not exchange.finished

    record = await bridge.records.next()
    assert (record.code, record.reason, record.fault) == ("CANCELLED", "", None)
    assert record.upstream_status == (200 if exchange.status else None)
    assert await call.code() is grpc.StatusCode.CANCELLED
    await eventually(lambda: not list_new_tasks(before))


def list_new_tasks(before: set[asyncio.Task]) -> list[str]:
    """Return the names of tasks that are new and not of the servers' own connections."""
    new = asyncio.all_tasks() - before - {asyncio.current_task()}
    names = [task.get_coro().__qualname__ for task in new]
    return [name for name in names if name != "_Connection.serve"]


async def test_loss_of_the_callers_connection_cancels_the_call(start_bridge, emulator):
    bridge = await start_bridge()
    async with grpc.aio.insecure_channel(bridge.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        other = Bridge(bridge.address, channel)
        call = other.stub.StreamChatCompletion(scenario("stall?after=2"))
        await call.read()
        exchange = await emulator.next_exchange()
    await exchange.wait_closed()
    assert (await bridge.records.next()).code == "CANCELLED"


@pytest.mark.parametrize("window", [name for name in WINDOWS if name != "blocked write"])
async def test_many_cancelled_calls_leave_the_pool_usable(start_bridge, emulator, window):
    bridge = await start_bridge(calls_max=3, upstream={"connect_timeout_s": 30})
    for _ in range(50):
        call = await start_call(bridge, window)
        exchange = await emulator.next_exchange()
        call.cancel()
        await exchange.wait_closed()
        assert (await bridge.records.next()).code == "CANCELLED"
    for _ in range(3):
        assert (await bridge.ask(chat())).failure is None


async def test_calls_cancelled_while_they_connect_leave_the_pool_usable(start_bridge, emulator):
    bridge = await start_bridge(calls_max=8, connections={"streams_max": 1000}, upstream={"connect_timeout_s": 30})
    for _ in range(25):
        calls = [bridge.stub.CreateChatCompletion(chat()) for _ in range(8)]
        await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    # A new call gets a slot when those that reached the bridge have ended.
    async with asyncio.timeout(WAIT_S):
        while (answer := await bridge.ask(chat())).failure is not None:
            assert answer.failure.reason == "OVERLOADED"
    assert all(record.code in {"CANCELLED", "OK", "RESOURCE_EXHAUSTED"} for record in bridge.records.all)


async def test_cancel_causes_no_warning_in_the_log(bridge, emulator, caplog):
    caplog.set_level(logging.DEBUG, logger="bridge")
    call = await start_call(bridge, "mid-stream")
    exchange = await emulator.next_exchange()
    call.cancel()
    await exchange.wait_closed()
    await bridge.records.next()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
