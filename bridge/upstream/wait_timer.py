"""One timer for all the waits of a connection.

A timer for each wait would be its dearest part. So this one is left to run: when it fires it looks whether the wait of
that moment is overdue, and else is set anew for it.
"""

import asyncio
import math
from collections.abc import Callable

__all__ = ["WaitTimer"]


class WaitTimer:
    """Calls what a wait gives it if that is not over by its deadline, a moment of the loop's time; `math.inf` is none.

    Between waits it holds nothing of its owner: else both would stay until the collector comes to them.
    """

    __slots__ = ("_deadline", "_fires_at", "_handle", "_loop", "_on_timeout")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._on_timeout: Callable[[], None] | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._deadline = self._fires_at = math.inf

    def start(self, deadline: float, on_timeout: Callable[[], None]) -> None:
        """Begin a wait."""
        self._deadline = deadline
        self._on_timeout = on_timeout
        if deadline < self._fires_at:
            if self._handle is not None:
                self._handle.cancel()
            self._schedule(deadline)

    def pause(self) -> None:
        """End the wait; the timer runs on for the next one."""
        self._deadline = math.inf
        self._on_timeout = None

    def stop(self) -> None:
        """End the timer."""
        self.pause()
        self._fires_at = math.inf
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _schedule(self, fires_at: float) -> None:
        self._fires_at = fires_at
        self._handle = self._loop.call_at(fires_at, self._on_timer)

    def _on_timer(self) -> None:
        self._handle = None
        self._fires_at = math.inf
        if self._on_timeout is None or self._deadline == math.inf:
            return
        if self._loop.time() < self._deadline:
            self._schedule(self._deadline)
        else:
            self._on_timeout()
