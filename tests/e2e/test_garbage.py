"""However a call ends, it leaves nothing that only the garbage collector could free.

A full collection is rare, and what was alive at an earlier one waits for it: requests and connections stayed for hours.
Each test ends with one more call, which comes after what the others sent; what still runs is no garbage.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
import pytest

from tests.kit.client import Bridge, chat, scenario
from tests.kit.collector import collect_garbage

CALLS = 5
OURS = ("bridge.core", "bridge.server", "bridge.upstream")
"""The client and the emulated gateway are in the same process."""
SCENARIOS = [
    "plain",
    "unknown",
    "error?status=500",
    "close",
    "reset?after=-1",
    "reset?after=3",
    "garbage",
    "error_event",
    "cut",
    "no_finish",
    "rate_limited",
]


@contextlib.asynccontextmanager
async def expect_no_garbage(bridge: Bridge) -> AsyncIterator[None]:
    """Assert that a block leaves none, after a call of each method that has made what is made once."""
    for stream in (False, True):
        assert (await bridge.ask(chat(), stream=stream)).failure is None
    with collect_garbage(*OURS) as garbage:
        yield
        assert (await bridge.ask(chat())).failure is None
    assert garbage == {}


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize("name", SCENARIOS)
async def test_call_that_ends_by_itself_leaves_no_garbage(bridge, name, stream):
    async with expect_no_garbage(bridge):
        for _ in range(CALLS):
            await bridge.ask(scenario(name), stream=stream)


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize(
    ("request_", "options"),
    [(chat(messages=[]), {}), (chat(extra_json={"n": "{"}), {}), (scenario("stall"), {"timeout": 0.05})],
    ids=["no messages", "no JSON", "deadline"],
)
async def test_call_that_the_bridge_ends_leaves_no_garbage(bridge, request_, options, stream):
    async with expect_no_garbage(bridge):
        for _ in range(CALLS):
            assert (await bridge.ask(request_, stream=stream, **options)).failure is not None


async def test_connection_that_comes_and_goes_leaves_no_garbage(bridge):
    async with expect_no_garbage(bridge):
        for _ in range(CALLS):
            async with grpc.aio.insecure_channel(
                bridge.address, options=(("grpc.use_local_subchannel_pool", 1),)
            ) as own:
                assert (await Bridge(bridge.address, own).ask(chat())).failure is None
        await asyncio.sleep(0.1)  # it sees the end of the last one; nothing announces that


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize("after_s", [0.005, 0.05])
async def test_call_that_its_caller_ends_leaves_no_garbage(bridge, after_s, stream):
    async with expect_no_garbage(bridge):
        for _ in range(CALLS):
            call = asyncio.create_task(bridge.ask(scenario("stall"), stream=stream))
            await asyncio.sleep(after_s)
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                await call
            del call
