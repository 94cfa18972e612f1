"""A limit on the time of many calls, kept by one timer.

All calls have the same limit, so the call that started first is the first whose time is over: a dict in the order of
arrival, and a timer for its first entry, do what a timer for each call would do.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["TimeLimit"]

CallT = TypeVar("CallT")


class TimeLimit(Generic[CallT]):
    """`on_expiry` is called with each call that was started longer ago than `limit_s`, and not stopped since."""

    def __init__(self, limit_s: float, on_expiry: Callable[[CallT], None]) -> None:
        self.limit_s = limit_s
        self._on_expiry = on_expiry
        self._ends_at: dict[CallT, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Return how many calls are being timed."""
        return len(self._ends_at)

    def start(self, call: CallT) -> None:
        """Time a call from now on, until `stop`."""
        self._ends_at[call] = time.monotonic() + self.limit_s
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.limit_s, self._expire)

    def restart(self, call: CallT) -> None:
        """Time a call from now on, if it is being timed."""
        if self._ends_at.pop(call, None) is not None:  # an entry that stays has its old place in the order
            self.start(call)

    def stop(self, call: CallT) -> None:
        """Time a call no longer."""
        self._ends_at.pop(call, None)

    def _expire(self) -> None:
        self._timer = None
        now = time.monotonic()
        while self._ends_at:
            call, ends_at = next(iter(self._ends_at.items()))
            if ends_at > now:
                self._timer = asyncio.get_running_loop().call_later(ends_at - now, self._expire)
                return
            del self._ends_at[call]
            self._on_expiry(call)
