"""However a call ends, it leaves nothing that only the garbage collector could free.

A full collection is rare, and what was alive at an earlier one waits for it: requests and connections stayed for hours.
Each test ends with one more call, which comes after what the others sent; what still runs is no garbage.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
import pytest

from tests.kit.client import Answer, Bridge, build_deadline, chat, scenario
from tests.kit.collector import collect_garbage
from tests.kit.waiting import eventually

CALLS = 5
OURS = ("bridge.core", "bridge.server", "bridge.upstream")
"""The client and the emulated gateway are in the same process."""
SCENARIOS = {
    "plain": ("OK", "OK"),
    "no_such_scenario": ("NOT_FOUND", "NOT_FOUND"),
    "error?status=500": ("INTERNAL", "INTERNAL"),
    "close": ("ABORTED", "ABORTED"),
    "reset?after=-1": ("ABORTED", "ABORTED"),
    "reset?after=3": ("ABORTED", "ABORTED"),
    "garbage": ("INTERNAL", "INTERNAL"),
    "error_event": ("INTERNAL", "INTERNAL"),
    "cut": ("INTERNAL", "ABORTED"),
    "no_finish": ("ABORTED", "ABORTED"),
    "rate_limited": ("RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED"),
}
"""How a unary call and a stream end."""


def get_code(answer: Answer) -> str:
    return answer.failure.code if answer.failure is not None else "OK"


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
@pytest.mark.parametrize(("name", "codes"), SCENARIOS.items(), ids=SCENARIOS)
async def test_call_that_ends_by_itself_leaves_no_garbage(bridge, name, codes, stream):
    async with expect_no_garbage(bridge):
        for _ in range(CALLS):
            assert get_code(await bridge.ask(scenario(name), stream=stream)) == codes[stream]


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize(
    ("request_", "options", "code"),
    [
        (chat(messages=[]), {}, "INVALID_ARGUMENT"),
        (chat(extra_json={"n": "{"}), {}, "INVALID_ARGUMENT"),
        (scenario("stall"), {"metadata": build_deadline(0.05)}, "DEADLINE_EXCEEDED"),
    ],
    ids=["no messages", "no JSON", "deadline"],
)
async def test_call_that_the_bridge_ends_leaves_no_garbage(bridge, request_, options, code, stream):
    async with expect_no_garbage(bridge):
        for _ in range(CALLS):
            assert get_code(await bridge.ask(request_, stream=stream, **options)) == code


async def test_connection_that_comes_and_goes_leaves_no_garbage(bridge):
    async with expect_no_garbage(bridge):
        for _ in range(CALLS):
            async with grpc.aio.insecure_channel(
                bridge.address, options=(("grpc.use_local_subchannel_pool", 1),)
            ) as own:
                assert (await Bridge(bridge.address, own).ask(chat())).failure is None
        await asyncio.sleep(0.1)  # nothing announces that the last one's end is seen; until then it is no garbage


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
async def test_call_that_its_caller_ends_leaves_no_garbage(bridge, emulator, stream):
    async with expect_no_garbage(bridge):
        for _ in range(2):  # the calls before the block
            await emulator.next_exchange()
        for _ in range(CALLS):
            call = asyncio.create_task(bridge.ask(scenario("stall"), stream=stream))
            exchange = await emulator.next_exchange()
            await eventually(lambda exchange=exchange: exchange.status == 200)
            await cancel(call)
            del call
            await exchange.wait_closed()


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
async def test_call_that_its_caller_ends_at_once_leaves_no_garbage(bridge, stream):
    async with expect_no_garbage(bridge):
        for _ in range(CALLS):
            call = asyncio.create_task(bridge.ask(scenario("stall"), stream=stream))
            await asyncio.sleep(0.005)  # it may be anywhere by then
            await cancel(call)
            del call


async def cancel(call: asyncio.Task[Answer]) -> None:
    call.cancel()
    with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
        await call
