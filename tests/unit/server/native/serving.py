"""An engine that serves two methods of a test's own, for the tests of bridge/server/native."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from bridge.core.status import GrpcStatus
from bridge.server.h2.limits import Limits
from bridge.server.native.engine import Engine
from bridge.server.rpc import Identify, Rpc, RpcMethod
from bridge.settings import Settings
from bridge.telemetry import Observer
from tests.kit.waiting import eventually

Handle = Callable[[Rpc], Awaitable[None]]
ONE, MANY = b"/test.Service/One", b"/test.Service/Many"


async def echo(rpc: Rpc) -> None:
    """Send each message back."""
    while (message := await rpc.receive()) is not None:
        await rpc.send(message)
        if rpc.method == "One":
            break
    rpc.end(0, "", ())


def make_sleeper(note_end: Callable[[Rpc], object]) -> Handle:
    """Return a handler that sleeps until its call is ended from outside, which `note_end` is told of."""

    async def sleep(rpc: Rpc) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            note_end(rpc)

    return sleep


class Misuses(Observer):
    def __init__(self) -> None:
        self.reasons: list[str] = []

    def end_connection(self, reason: str) -> None:
        self.reasons.append(reason)


class Served:
    """An engine, and what its observer heard."""

    def __init__(self, engine: Engine, misuses: list[str]) -> None:
        self.engine = engine
        self.address = engine.address
        self.misuses = misuses

    @property
    def calls(self) -> int:
        return sum(len(link.calls) for link in self.engine.shared.links)

    @property
    def slots(self) -> int:
        return sum(link.slots_in_use for link in self.engine.shared.links)

    async def wait_until_nothing_is_left(self, tasks: int) -> None:
        """Wait until no call, slot, byte or task is left of what callers did; connections may be."""
        await eventually(lambda: (self.calls, self.slots, self.engine.shared.unread_bytes) == (0, 0, 0))
        await eventually(lambda: sum(link.held_bytes for link in self.engine.shared.links) == 0)
        await eventually(lambda: len(asyncio.all_tasks()) <= tasks)


@contextlib.asynccontextmanager
async def serve(
    handle: Handle = echo,
    *,
    refuse: Callable[[str, int], GrpcStatus | None] | None = None,
    identify: Identify | None = None,
    limits: Limits | None = None,
    **settings: Any,
) -> AsyncIterator[Served]:
    """Serve while the block lasts."""
    methods = [
        RpcMethod("test.Service", "One", True, handle, refuse, identify=identify),
        RpcMethod("test.Service", "Many", False, handle, refuse, takes_many=True, identify=identify),
    ]
    misuses = Misuses()
    engine = Engine(Settings(**{"listen": "127.0.0.1:0"} | settings), methods, [misuses], limits=limits)
    await engine.start()
    try:
        yield Served(engine, misuses.reasons)
    finally:
        await engine.stop()
