"""A serving process from its start to its end: what ends it, and what its log says of that."""

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from bridge.process.signals import handle_reload, handle_stop
from bridge.server.server import Server
from bridge.settings import Settings

__all__ = ["log_drain", "serve_until_stopped"]

_LOG: Final = structlog.get_logger("ollm_bridge")


async def serve_until_stopped(
    server: Server,
    settings: Settings,
    on_started: Callable[[], None],
    signals: Sequence[signal.Signals],
    stop: asyncio.Event | None = None,
) -> None:
    """Serve until one of `signals` comes or `stop` is set, then drain. `on_started` is called once calls are taken.

    From the second signal on the process exits at once. Raises RuntimeError if the server stops by itself.
    """
    stopping = stop or asyncio.Event()
    async with server:
        handle_stop(signals, stopping)
        handle_reload()
        on_started()
        await _wait_for_stop(server, stopping)
        log_drain(settings, in_flight=server.in_flight)
    _LOG.info("stopped", pid=os.getpid(), interrupted=server.interrupted)


def log_drain(settings: Settings, **facts: int) -> None:
    """Log that the process stops, and how long that may take."""
    _LOG.info(
        "draining",
        pid=os.getpid(),
        **facts,
        delay_s=settings.drain_delay_s,
        grace_s=settings.drain_grace_s,
        note="a second signal ends the process at once",
    )


async def _wait_for_stop(server: Server, stopping: asyncio.Event) -> None:
    stopped = asyncio.create_task(stopping.wait())
    ended = asyncio.create_task(server.wait_for_end())
    await asyncio.wait({stopped, ended}, return_when=asyncio.FIRST_COMPLETED)
    ended.cancel()
    if not stopped.done():
        stopped.cancel()
        raise RuntimeError("the gRPC server stopped unexpectedly")
