"""Tests of bridge/server/call_time.py: a call that waits too long for its caller is interrupted, and told why."""

from bridge.core.errors import Code
from bridge.server.call import RpcCall
from bridge.server.call_time import limit_write_time
from bridge.server.outcome import run_to_its_end
from bridge.settings import Settings
from tests.unit.server.fake_rpc import FakeRpc


async def test_caller_that_takes_nothing_ends_its_call_and_is_told_the_limit():
    rpc = FakeRpc(b"")
    rpc.writable.clear()
    call = RpcCall(rpc, (), None, limit_write_time(Settings(write_stall_timeout_s=0.01)))
    failure = await run_to_its_end(call, call.send(b"x"))
    assert failure is not None
    assert (failure.code, failure.reason_name) == (Code.DEADLINE_EXCEEDED, "UPSTREAM_TIMEOUT")
    assert failure.message == "the caller took nothing of the answer for 0.01 s (write_stall_timeout_s)"
