"""Tests of bridge/process/stop.py: what ends a serving process, and what its log says of that."""

import asyncio
import os
import signal

import pytest
from structlog.testing import capture_logs

from bridge.process.stop import serve_until_stopped
from bridge.settings import Settings

SETTINGS = Settings(drain_delay_s=1, drain_grace_s=7)


class Server:
    """A server that ends by itself once `ended` is set."""

    in_flight = 3
    interrupted = 2

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.steps: list[str] = []

    async def __aenter__(self):
        self.steps.append("entered")
        return self

    async def __aexit__(self, *_error):
        self.steps.append("left")

    async def wait_for_end(self) -> None:
        await self.ended.wait()


async def serve(server: Server, *signals: signal.Signals, stop: asyncio.Event | None = None) -> None:
    """Serve, once it has started: return what waits for its end."""
    started = asyncio.Event()
    serving = asyncio.create_task(serve_until_stopped(server, SETTINGS, started.set, signals, stop))
    await started.wait()
    return serving


async def test_signal_drains_and_the_log_says_so():
    server = Server()
    with capture_logs() as lines:
        serving = await serve(server, signal.SIGUSR1)
        assert (server.steps, serving.done()) == (["entered"], False)
        os.kill(os.getpid(), signal.SIGUSR1)
        await serving
    for number in (signal.SIGUSR1, signal.SIGHUP):
        asyncio.get_running_loop().remove_signal_handler(number)
    assert server.steps == ["entered", "left"]
    note = "a second signal ends the process at once"
    pid = os.getpid()
    assert lines == [
        {
            "event": "draining",
            "pid": pid,
            "in_flight": 3,
            "delay_s": 1,
            "grace_s": 7,
            "note": note,
            "log_level": "info",
        },
        {"event": "stopped", "pid": pid, "interrupted": 2, "log_level": "info"},
    ]


async def test_event_ends_it():
    stop = asyncio.Event()
    serving = await serve(Server(), stop=stop)
    assert not serving.done()
    stop.set()
    await serving
    asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)


async def test_server_that_stops_by_itself_is_an_error():
    server = Server()
    server.ended.set()
    with pytest.raises(RuntimeError, match="the gRPC server stopped unexpectedly"):
        await serve_until_stopped(server, SETTINGS, lambda: None, ())
    asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
