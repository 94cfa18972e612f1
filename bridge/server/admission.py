"""How many calls go on at once, in all and of one caller, and how many may wait.

A call over a limit is told so at once, with the time after which to come back: waiting unasked would only hide from the
caller that the bridge is full. A queue, where one is set, is first in, first out.
"""

import asyncio
import contextlib
from collections import Counter, deque
from typing import Final

from bridge.core.errors import BridgeError, Code
from bridge.settings import Settings
from ollmbridge.v1 import error_details_pb2 as details_pb2

__all__ = ["Admission"]

_RETRY_MS: Final = 1000


class Admission:
    """The slots for calls in flight. `in_flight` counts those taken, `waiting` those who queue for one."""

    def __init__(self, settings: Settings) -> None:
        self._calls_max = settings.calls_max
        self._per_caller_max = settings.calls_per_caller_max
        self._queue_max = settings.queue_max
        self._of_caller: Counter[str] = Counter()
        self._queue: deque[asyncio.Future[None]] = deque()
        self.in_flight = 0

    @property
    def waiting(self) -> int:
        """How many calls wait for a slot."""
        return len(self._queue)

    async def enter(self, caller: str) -> None:
        """Take a slot, to be left with `leave`. Raises BridgeError (OVERLOADED) where there is none to be had."""
        limit = self._per_caller_max
        if limit is not None and self._of_caller[caller] >= limit:
            raise _overloaded(f"expected at most {limit} calls in flight of one caller, found one more")
        self._of_caller[caller] += 1
        try:
            await self._take()
        except BaseException:
            self._forget(caller)
            raise

    def leave(self, caller: str) -> None:
        """Give the slot back."""
        self._leave()
        self._forget(caller)

    def _forget(self, caller: str) -> None:
        self._of_caller[caller] -= 1
        if not self._of_caller[caller]:
            del self._of_caller[caller]

    async def _take(self) -> None:
        if self.in_flight < self._calls_max and not self._queue:
            self.in_flight += 1
            return
        if len(self._queue) >= self._queue_max:
            waiting = f" and {self._queue_max} waiting" if self._queue_max else ""
            raise _overloaded(f"expected at most {self._calls_max} calls in flight{waiting}, found one more")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with contextlib.suppress(ValueError):  # a slot that came free meanwhile has passed it by
                    self._queue.remove(turn)
            else:
                self._leave()  # the slot was handed over just as the caller left
            raise

    def _leave(self) -> None:
        """Hand the slot to the first who waits, else free it."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.in_flight -= 1


def _overloaded(message: str) -> BridgeError:
    return BridgeError(Code.RESOURCE_EXHAUSTED, details_pb2.ERROR_REASON_OVERLOADED, message, retry_after_ms=_RETRY_MS)
