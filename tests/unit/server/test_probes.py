"""Tests of bridge/server/probes.py: the check that has waited longest gives way, and no other."""

import asyncio

from bridge.core.errors import BridgeError
from bridge.server.call import RpcCall
from bridge.server.outcome import run_to_its_end
from bridge.server.probes import Probes
from tests.unit.server.fake_rpc import FakeRpc


class Check:
    """A check that waits for its caller."""

    def __init__(self, probes: Probes) -> None:
        self._probes = probes
        self.answer = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> BridgeError | None:
        call = RpcCall(FakeRpc(b""), (), None)
        return await run_to_its_end(call, self._wait(call))

    async def _wait(self, call: RpcCall) -> None:
        with self._probes.hold(call):
            await self.answer.wait()


async def start(probes: Probes, count: int) -> list[Check]:
    checks = [Check(probes) for _ in range(count)]
    await asyncio.sleep(0)
    return checks


async def test_check_that_has_waited_longest_gives_way_to_the_next():
    probes = Probes(2)
    checks = await start(probes, 4)
    for each in checks[:2]:
        failure = await each.task
        assert failure is not None
        assert failure.reason_name == "OVERLOADED"
        assert "calls_max = 2" in failure.message
    for each in checks[2:]:
        each.answer.set()
        assert await each.task is None


async def test_check_that_has_ended_makes_room():
    probes = Probes(1)
    for _ in range(3):
        (check,) = await start(probes, 1)
        check.answer.set()
        assert await check.task is None


async def test_checks_that_gave_way_hold_no_slot_of_others():
    probes = Probes(1)
    first, second = await start(probes, 2)
    await first.task
    (third,) = await start(probes, 1)
    assert await second.task is not None
    third.answer.set()
    assert await third.task is None
