"""How many calls go on at once, in all and of one caller, and how many may wait.

A call over a limit is refused at once, with the time after which to retry: waiting unasked would only hide from the
caller that the bridge is full. A queue, if one is set, is first in, first out.
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
    """The slots for calls in flight. `in_flight` counts the slots taken, `waiting` the calls that queue for one."""

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
        """Take a slot, to be returned by `leave`. Raises BridgeError (OVERLOADED) if there is none."""
        limit = self._per_caller_max
        if limit is None:
            await self._take()
            return
        if self._of_caller[caller] >= limit:
            raise _overload_error(f"too many calls in flight of one caller (calls_per_caller_max = {limit})")
        self._of_caller[caller] += 1
        try:
            await self._take()
        except BaseException:
            self._uncount(caller)
            raise

    def leave(self, caller: str) -> None:
        """Return the slot."""
        self._release()
        if self._per_caller_max is not None:
            self._uncount(caller)

    def _uncount(self, caller: str) -> None:
        self._of_caller[caller] -= 1
        if not self._of_caller[caller]:
            del self._of_caller[caller]

    async def _take(self) -> None:
        if self.in_flight < self._calls_max and not self._queue:
            self.in_flight += 1
            return
        if len(self._queue) >= self._queue_max:
            queue = f", queue_max = {self._queue_max}" if self._queue_max else ""
            raise _overload_error(f"too many calls in flight (calls_max = {self._calls_max}{queue})")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with contextlib.suppress(ValueError):  # `_release` has skipped it already
                    self._queue.remove(turn)
            else:
                self._release()  # the slot was handed over just as the caller left
            raise

    def _release(self) -> None:
        """Hand the slot to the first call that waits, else free it."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.in_flight -= 1


def _overload_error(message: str) -> BridgeError:
    return BridgeError(Code.RESOURCE_EXHAUSTED, details_pb2.ERROR_REASON_OVERLOADED, message, retry_after_ms=_RETRY_MS)
