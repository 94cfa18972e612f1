"""Tests of bridge/server/drain.py: which calls a stop refuses, waits for and interrupts."""

import asyncio

import pytest

from bridge.core.errors import BridgeError
from bridge.server.drain import Drain
from bridge.upstream.call import UpstreamCall


class Call:
    """A call in flight as the drain knows it: it ends when it is interrupted."""

    def __init__(self, drain: Drain, *, was_sent: bool = False) -> None:
        self.upstream = UpstreamCall()
        self.upstream.sent_at = 1.0 if was_sent else None
        self.failure: BridgeError | None = None
        self._drain = drain
        drain.add(self)

    def interrupt(self, failure: BridgeError) -> None:
        self.failure = failure
        self._drain.remove(self)


async def test_new_call_is_refused_once_a_drain_runs():
    drain = Drain()
    assert not drain.is_draining
    await drain.run(0)
    assert drain.is_draining
    with pytest.raises(BridgeError, match="the bridge is shutting down; retry on another replica") as caught:
        await drain.refuse()
    assert (caught.value.code.name, caught.value.reason_name) == ("UNAVAILABLE", "DRAINING")


async def test_drain_waits_for_the_calls_in_flight():
    drain = Drain()
    calls = [Call(drain) for _ in range(3)]
    running = asyncio.create_task(drain.run(30))
    while drain.in_flight:
        assert not running.done()
        drain.remove(calls.pop())
        await asyncio.sleep(0)
    await running


@pytest.mark.parametrize(("was_sent", "code"), [(False, "UNAVAILABLE"), (True, "ABORTED")])
async def test_call_that_outlasts_the_grace_is_interrupted(was_sent, code):
    drain = Drain()
    call = Call(drain, was_sent=was_sent)
    await drain.run(0.01)
    assert (call.failure.code.name, call.failure.reason_name) == (code, "DRAINING")
    assert "drain_grace_s (0.01 s)" in call.failure.message
    assert drain.in_flight == 0


async def test_refusals_wait_while_they_are_delayed():
    drain = Drain()
    await drain.run(0)
    with drain.delay_refusals():
        refused = asyncio.create_task(drain.refuse())
        for _ in range(3):
            await asyncio.sleep(0)
        assert not refused.done()
    with pytest.raises(BridgeError):
        await refused
