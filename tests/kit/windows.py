"""The states of a call in which it may be ended from outside."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from bridge.emulator import Exchange
from tests.kit.client import Bridge, scenario
from tests.kit.waiting import eventually


@dataclass(frozen=True)
class Window:
    """`scenario` holds a call in the state; `wait` returns when the gateway's side is in it, after `chunks` chunks."""

    scenario: str
    stream: bool
    chunks: int
    wait: Callable[[Exchange], Awaitable[object]]


async def _return_at_once(_exchange: Exchange) -> None:
    pass


async def _wait_for_headers(exchange: Exchange) -> None:
    await eventually(lambda: exchange.status == 200)


async def wait_for_backpressure(exchange: Exchange) -> int:
    """Wait until the gateway sends nothing more for a fifth of a second, and return how many events it has sent.

    Nothing announces that no buffer on the way has room. A slow machine may seem still earlier, when the caller has
    not read yet either: then the gateway has sent less, which no test takes for a fault.
    """
    sent = 0
    while not sent or sent != exchange.events_sent:
        sent = exchange.events_sent
        await asyncio.sleep(0.2)
    return sent


WINDOWS = {
    "unary before the headers": Window("stall?headers=0", stream=False, chunks=0, wait=_return_at_once),
    "unary within the body": Window("stall?after=2", stream=False, chunks=0, wait=_wait_for_headers),
    "stream before the headers": Window("stall?headers=0", stream=True, chunks=0, wait=_return_at_once),
    "stream before the first chunk": Window("stall?after=0", stream=True, chunks=0, wait=_wait_for_headers),
    "mid-stream": Window("stall?after=2", stream=True, chunks=2, wait=_wait_for_headers),
    "blocked write": Window("many?chunks=20000&bytes=10000", stream=True, chunks=1, wait=wait_for_backpressure),
}


async def start_call(bridge: Bridge, window: str, **options: Any) -> Any:
    """Make a call, and read the chunks that come before the window."""
    shape = WINDOWS[window]
    if not shape.stream:
        return bridge.stub.CreateChatCompletion(scenario(shape.scenario), **options)
    call = bridge.stub.StreamChatCompletion(scenario(shape.scenario), **options)
    for _ in range(shape.chunks):
        await call.read()
    return call
