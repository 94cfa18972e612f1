"""The moments at which a call may be ended from outside."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from bridge.emulator import Exchange
from tests.conftest import Bridge, eventually, scenario


@dataclass(frozen=True)
class Window:
    """`scenario` holds a call there; `reached` waits until the upstream's side of it is; `reads` chunks come first."""

    scenario: str
    stream: bool
    reads: int
    reached: Callable[[Exchange], Awaitable[None]]


async def _at_once(_exchange: Exchange) -> None:
    pass


async def _headers_sent(exchange: Exchange) -> None:
    await eventually(lambda: exchange.status == 200)


async def _held_back(exchange: Exchange) -> None:
    sent = -1
    while sent != exchange.events_sent:
        sent = exchange.events_sent
        await asyncio.sleep(0.2)


WINDOWS = {
    "unary before the headers": Window("stall?headers=0", stream=False, reads=0, reached=_at_once),
    "unary within the body": Window("stall?after=2", stream=False, reads=0, reached=_headers_sent),
    "stream before the headers": Window("stall?headers=0", stream=True, reads=0, reached=_at_once),
    "stream before the first chunk": Window("stall?after=0", stream=True, reads=0, reached=_headers_sent),
    "mid-stream": Window("stall?after=2", stream=True, reads=2, reached=_headers_sent),
    "blocked write": Window("many?chunks=100000&bytes=1000", stream=True, reads=1, reached=_held_back),
}


async def in_flight(bridge: Bridge, window: str, **options: Any) -> Any:
    """Make a call and read what comes of it before the window."""
    where = WINDOWS[window]
    if not where.stream:
        return bridge.stub.CreateChatCompletion(scenario(where.scenario), **options)
    call = bridge.stub.StreamChatCompletion(scenario(where.scenario), **options)
    for _ in range(where.reads):
        await call.read()
    return call
