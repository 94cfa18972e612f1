"""What signals ask of a process, and what its log says of that: stop, stop at once, look at the files now."""

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from os import _exit as exit_at_once
from typing import Final

import structlog

from bridge.reload import reload_now

__all__ = ["handle_reload", "handle_stop"]

SECOND_SIGNAL_EXIT: Final = 1
_LAST_LINE_S: Final = 0.05
"""How long the log's thread has for its last line."""
_LOG: Final = structlog.get_logger("ollm_bridge")


def handle_stop(signals: Sequence[signal.Signals], stopping: asyncio.Event) -> None:
    """Set `stopping` at the first of these signals; from the second on the process exits at once."""

    def on_signal() -> None:
        if stopping.is_set():
            _LOG.warning("stopped at once by a second signal: calls in flight are cut")
            time.sleep(_LAST_LINE_S)
            exit_at_once(SECOND_SIGNAL_EXIT)
        stopping.set()

    for number in signals:
        asyncio.get_running_loop().add_signal_handler(number, on_signal)


def handle_reload(reload: Callable[[], None] = reload_now) -> None:
    """Look at all files at once when SIGHUP comes, in a thread; without this it would end the process."""
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        _LOG.info("looking at the files now: SIGHUP")
        loop.run_in_executor(None, reload)

    loop.add_signal_handler(signal.SIGHUP, on_signal)
