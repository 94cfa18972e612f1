"""When a serving process stops: on a signal, when its supervisor is gone, or because its server ended by itself."""

import asyncio
import signal
from collections.abc import Sequence
from os import _exit as exit_at_once
from typing import Final

from bridge.server.server import Server

__all__ = ["wait_for_stop"]

_SECOND_SIGNAL_EXIT: Final = 1


async def wait_for_stop(server: Server, signals: Sequence[signal.Signals], stop: asyncio.Event | None = None) -> None:
    """Wait until one of `signals` comes or `stop` is set. From the second signal on the process exits at once.

    Raises RuntimeError if the server stops by itself.
    """
    stopping = stop or asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stopping.is_set():
            exit_at_once(_SECOND_SIGNAL_EXIT)
        stopping.set()

    for number in signals:
        loop.add_signal_handler(number, on_signal)
    stopped = asyncio.create_task(stopping.wait())
    ended = asyncio.create_task(server.wait_for_end())
    await asyncio.wait({stopped, ended}, return_when=asyncio.FIRST_COMPLETED)
    ended.cancel()
    if not stopped.done():
        stopped.cancel()
        raise RuntimeError("the gRPC server stopped unexpectedly")
