"""Slots of which there are a fixed number, and a queue for them: first in, first out.

A slot is handed from the one that returns it to the first that waits, so none is lost when a waiter is cancelled and
none is made. Why a limit exists, and what is said when it is reached, is for those who use it.
"""

import asyncio
import contextlib
from collections import deque

__all__ = ["Slots"]


class Slots:
    """`in_use` counts the slots taken, `waiting` those that queue for one."""

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._queue: deque[asyncio.Future[None]] = deque()
        self.in_use = 0

    @property
    def waiting(self) -> int:
        """How many wait for a slot."""
        return len(self._queue)

    @property
    def is_free(self) -> bool:
        """Whether `take` would not wait."""
        return self.in_use < self._count_max and not self._queue

    async def take(self) -> None:
        """Take a slot, to be returned by `release`."""
        if self.is_free:
            self.in_use += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with contextlib.suppress(ValueError):  # `release` has skipped it already
                    self._queue.remove(turn)
            else:
                self.release()  # the slot was handed over just as the waiter was cancelled
            raise

    def release(self) -> None:
        """Hand the slot to the first that waits, else free it."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.in_use -= 1
