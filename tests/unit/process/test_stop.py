"""Tests of bridge/process/stop.py: what ends the wait of a serving process."""

import asyncio
import os
import signal

import pytest

from bridge.process.stop import wait_for_stop


class Server:
    """A server that ends by itself once `ended` is set."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def wait_for_end(self) -> None:
        await self.ended.wait()


async def test_signal_ends_the_wait():
    waiting = asyncio.create_task(wait_for_stop(Server(), (signal.SIGUSR1,)))
    await asyncio.sleep(0)  # the handler is set in the task's first step
    os.kill(os.getpid(), signal.SIGUSR1)
    await waiting
    asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR1)


async def test_event_ends_the_wait():
    stop = asyncio.Event()
    waiting = asyncio.create_task(wait_for_stop(Server(), (), stop))
    await asyncio.sleep(0)
    assert not waiting.done()
    stop.set()
    await waiting


async def test_server_that_stops_by_itself_is_an_error():
    server = Server()
    server.ended.set()
    with pytest.raises(RuntimeError, match="the gRPC server stopped unexpectedly"):
        await wait_for_stop(server, ())
