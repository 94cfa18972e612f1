"""Tests of bridge/server/outcome.py: how a call's run becomes OK, a failure, or the caller's own end."""

import asyncio
import gc
import weakref

import pytest

from bridge.core.errors import BridgeError, Code
from bridge.server.call import RpcCall
from bridge.server.outcome import run_to_its_end
from bridge.server.rpc import ClientDisconnectedError, RefusedByTransportError
from ollmbridge.v1 import error_details_pb2 as details_pb2
from tests.unit.server.fake_rpc import FakeRpc

FAILURE = BridgeError(Code.ABORTED, details_pb2.ERROR_REASON_UPSTREAM_CONFLICT, "no")


def make_call() -> RpcCall:
    return RpcCall(FakeRpc(b""), (), None)


async def fail_with(error: BaseException) -> None:
    raise error


async def succeed() -> None:
    pass


async def test_run_that_returns_is_ok():
    assert await run_to_its_end(make_call(), succeed()) is None


async def test_bridge_error_is_the_failure_as_it_is():
    assert await run_to_its_end(make_call(), fail_with(FAILURE)) is FAILURE


async def test_any_other_error_is_a_fault_without_its_text():
    error = ValueError("sesame")
    failure = await run_to_its_end(make_call(), fail_with(error))
    assert (failure.reason_name, failure.__cause__) == ("BRIDGE_FAULT", error)
    assert "sesame" not in str(failure)


@pytest.mark.parametrize("error", [ClientDisconnectedError(), asyncio.CancelledError()], ids=["left", "cancelled"])
async def test_end_by_the_caller_is_raised(error):
    async def run() -> None:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError):
            task.cancel()
            await asyncio.sleep(0)
        raise error

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(run_to_its_end(make_call(), run()))


async def test_interruption_is_the_failure():
    async def run() -> BridgeError | None:
        call = make_call()

        async def interrupt() -> None:
            call.interrupt(FAILURE)
            await asyncio.Event().wait()

        return await run_to_its_end(call, interrupt())

    assert await asyncio.create_task(run()) is FAILURE


async def test_refusal_by_the_transport_is_raised():
    with pytest.raises(RefusedByTransportError):
        await run_to_its_end(make_call(), fail_with(RefusedByTransportError()))


async def test_end_by_the_caller_holds_nothing_of_the_call():
    """Only a full collection would find it, and those are rare."""
    call = make_call()
    left = weakref.ref(call)

    async def wait() -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(run_to_its_end(call, wait()))
    del call
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    gc.disable()
    try:
        del task
        assert left() is None
    finally:
        gc.enable()
