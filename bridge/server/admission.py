"""How many calls go on at once, in all and of one caller, and how many may wait.

A call over a limit is refused at once, with the time after which to retry: waiting unasked would only hide from the
caller that the bridge is full. A queue, if one is set, is first in, first out; a call whose turn will come only after
its deadline is refused at once, so that its caller can go elsewhere while there is time. A call is admitted before its
message is read, so that a message costs nothing until its call has a slot.
"""

import math
import time
from collections import Counter
from typing import Final

from bridge.core.errors import BridgeError, Code
from bridge.server.pace import Pace
from bridge.server.slots import Slots
from bridge.settings import Settings
from ollmbridge.v1 import error_details_pb2 as details_pb2

__all__ = ["Admission", "overload_error"]

_RETRY_MS: Final = 1000


class Admission:
    """The slots for calls in flight. `in_flight` counts the slots taken, `waiting` the calls that queue for one.

    `full_message` is the message of a refusal if there is no slot for any call, `too_many_message` if there is none for
    calls of one caller.
    """

    def __init__(self, settings: Settings) -> None:
        self._calls_max = settings.calls_max
        self._per_caller_max = settings.calls_per_caller_max
        self._queue_max = settings.queue_max
        self._of_caller: Counter[str] = Counter()
        self._slots = Slots(settings.calls_max)
        self._pace = Pace()
        queue = f", queue_max = {self._queue_max}" if self._queue_max else ""
        self.full_message = f"too many calls in flight (calls_max = {self._calls_max}{queue})"
        limit = f"calls_per_caller_max = {self._per_caller_max}"
        self.too_many_message = f"too many calls in flight of one caller ({limit})"

    def is_full(self, arriving: int = 0) -> bool:
        """Return whether any call would be refused, whoever makes it, if so many others enter before it."""
        slots = self._slots
        return slots.in_use + slots.waiting + arriving >= self._calls_max + self._queue_max

    def has_too_many(self, caller: str, arriving: int = 0) -> bool:
        """Return whether a call of this caller would be refused if so many others of theirs enter before it."""
        return self._of_caller.get(caller, 0) + arriving >= self._per_caller_max

    @property
    def in_flight(self) -> int:
        """How many calls have a slot."""
        return self._slots.in_use

    @property
    def waiting(self) -> int:
        """How many calls wait for a slot."""
        return self._slots.waiting

    async def enter(self, caller: str, deadline_at: float = math.inf) -> None:
        """Take a slot, to be returned by `leave`.

        Raises BridgeError if there is none (OVERLOADED), or, as far as the queue's pace tells, none before the deadline
        (QUEUE_TOO_LONG), a monotonic time.
        """
        if self.has_too_many(caller):
            raise overload_error(self.too_many_message)
        if self.is_full():
            raise overload_error(self.full_message)
        if not self._slots.is_free:
            self._check_deadline(deadline_at)
        self._of_caller[caller] += 1
        try:
            await self._slots.take()
        except BaseException:
            self._uncount(caller)
            raise

    def leave(self, caller: str) -> None:
        """Return the slot."""
        if self._slots.waiting:
            self._pace.add_turn()
        self._slots.release()
        if not self._slots.waiting:
            self._pace.forget()
        self._uncount(caller)

    def _check_deadline(self, deadline_at: float) -> None:
        """Raise BridgeError if a call that arrives now would not have its turn before its deadline."""
        waiting = self._slots.waiting
        wait_s = self._pace.estimate_wait_s(waiting + 1)
        left_s = deadline_at - time.monotonic()
        if wait_s > left_s:
            message = (
                f"the call would start after its deadline: it has {max(0.0, left_s):.1f} s left, and {waiting} calls "
                f"wait before it, for about {wait_s:.1f} s (calls_max = {self._calls_max})"
            )
            reason = details_pb2.ERROR_REASON_QUEUE_TOO_LONG
            raise BridgeError(Code.RESOURCE_EXHAUSTED, reason, message, retry_after_ms=_RETRY_MS)

    def _uncount(self, caller: str) -> None:
        self._of_caller[caller] -= 1
        if not self._of_caller[caller]:
            del self._of_caller[caller]


def overload_error(message: str) -> BridgeError:
    """Return the error of a call that the bridge has no room for; nothing was sent, and it may be repeated soon."""
    return BridgeError(Code.RESOURCE_EXHAUSTED, details_pb2.ERROR_REASON_OVERLOADED, message, retry_after_ms=_RETRY_MS)
