"""Ctrl-C in a command that runs on an event loop."""

import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar, cast

__all__ = ["run_interruptibly"]

_T = TypeVar("_T")


def run_interruptibly(main: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine on a loop of its own, and return its result. An interrupt cancels it, as KeyboardInterrupt.

    With asyncio.run alone, one that comes as the loop begins to wait, or to another thread, is not seen before
    something else happens: a command would go on as long as a stream stalls.
    """
    try:
        return asyncio.run(_cancel_at_interrupt(main))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


async def _cancel_at_interrupt(main: Coroutine[Any, Any, _T]) -> _T:
    loop, task = asyncio.get_running_loop(), cast("asyncio.Task[_T]", asyncio.current_task())
    with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # only in the main thread, and on Unix
        loop.add_signal_handler(signal.SIGINT, task.cancel)
    return await main
