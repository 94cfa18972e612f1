"""Tests of bridge/server/time_limit.py: the calls whose time is over, in their order, and no others."""

import asyncio

from bridge.server.call import RpcCall
from bridge.server.time_limit import TimeLimit
from tests.kit.waiting import eventually
from tests.unit.server.fake_rpc import FakeRpc


def make_calls(count: int) -> list[RpcCall]:
    return [RpcCall(FakeRpc(b""), (), None) for _ in range(count)]


async def test_calls_expire_in_the_order_in_which_they_started():
    expired = []
    limit = TimeLimit(0.01, expired.append)
    calls = make_calls(3)
    for call in calls:
        limit.start(call)
        await asyncio.sleep(0.002)
    await eventually(lambda: len(expired) == 3)
    assert expired == calls
    assert len(limit) == 0


async def test_call_that_is_stopped_does_not_expire():
    expired = []
    limit = TimeLimit(0.01, expired.append)
    stopped, late = make_calls(2)
    limit.start(stopped)
    limit.start(late)
    limit.stop(stopped)
    limit.stop(stopped)
    await eventually(lambda: expired)
    assert expired == [late]


async def test_call_that_starts_again_has_its_whole_time():
    expired = []
    limit = TimeLimit(0.05, expired.append)
    first, second = make_calls(2)
    limit.start(first)
    limit.stop(first)
    limit.start(second)
    limit.start(first)
    await eventually(lambda: len(expired) == 2)
    assert expired == [second, first]


async def test_call_that_is_restarted_has_its_whole_time_and_comes_behind_the_others():
    expired = []
    limit = TimeLimit(0.05, expired.append)
    first, second = make_calls(2)
    limit.start(first)
    limit.start(second)
    limit.restart(first)
    await eventually(lambda: len(expired) == 2)
    assert expired == [second, first]


async def test_call_that_is_not_timed_is_not_restarted():
    limit = TimeLimit(3600, [].append)
    (call,) = make_calls(1)
    limit.restart(call)
    assert len(limit) == 0


async def test_limit_works_again_after_it_was_idle():
    expired = []
    limit = TimeLimit(0.01, expired.append)
    for call in make_calls(2):
        limit.start(call)
        await eventually(lambda call=call: expired[-1:] == [call])
