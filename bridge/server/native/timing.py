"""The timer of a connection's lifetime: one at a time, for whatever is due first (`lifetime.py`)."""

import asyncio
import math
import random
from collections.abc import Callable

from bridge.server.native.lifetime import Action, Lifetime
from bridge.settings import ConnectionSettings

__all__ = ["Timing"]


class Timing:
    """Calls `on_action` with what is due, from `start` to `stop`."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, settings: ConnectionSettings, on_action: Callable[[Action], None]
    ) -> None:
        self._loop = loop
        self._on_action = on_action
        self._timer: asyncio.TimerHandle | None = None
        self._is_stopped = False
        self.lifetime = Lifetime(settings, loop.time(), random.random())  # noqa: S311 - spreads ages

    def start(self) -> None:
        """Set the timer to what is due first, unless it comes before anyway."""
        at = self.lifetime.next_at
        if self._is_stopped or (self._timer is not None and self._timer.when() <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if at == math.inf else self._loop.call_at(at, self._check)

    def stop(self) -> None:
        """Set it no more, and let go of its user."""
        self._is_stopped = True
        self._on_action = _ignore
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        self._timer = None
        self._on_action(self.lifetime.check(self._loop.time()))
        self.start()


def _ignore(_action: Action) -> None:
    """Do nothing."""
