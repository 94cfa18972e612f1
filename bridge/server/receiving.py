"""The messages that are being received: how many at once, and for how long.

A small message, up to 64 KiB, comes unasked, and needs nothing here but its time. A larger one may be as large as
request_bytes_max, so each counts as that much of receiving_bytes_max. A message beyond that waits, and is not read:
flow control then leaves it with its caller. An honest message arrives in milliseconds; one that takes longer than a
second keeps its place only as long as no other needs it. So callers who never finish their messages can hold up neither
memory nor small messages, and a large one for a second in each place.
"""

import functools
from typing import Final

from bridge.server.admission import overload_error
from bridge.server.call import RpcCall
from bridge.server.call_time import limit_time
from bridge.server.slots import Slots
from bridge.server.time_limit import TimeLimit
from bridge.settings import Settings

__all__ = ["Receiving"]

SLOW_S: Final = 1.0
"""How long a message may take before it gives way to others."""


class Receiving:
    """Receives messages, each within the limits. `slow_s`: see SLOW_S."""

    def __init__(self, settings: Settings, *, slow_s: float = SLOW_S) -> None:
        self._settings = settings
        self._slow_s = slow_s
        self._slots = Slots(max(1, settings.receiving_bytes_max // settings.request_bytes_max))
        limit_s = settings.receive_timeout_s
        message = f"the call's message did not arrive within receive_timeout_s ({limit_s:g} s)"
        self._time = limit_time(limit_s, message)
        self._patience = TimeLimit(slow_s, self._add_slow)
        self._slow: dict[RpcCall, None] = {}
        self._placed: set[RpcCall] = set()

    @property
    def in_progress(self) -> int:
        """How many messages that may be large are being received."""
        return self._slots.in_use

    async def receive(self, call: RpcCall) -> bytes | None:
        """Return a call's message, or None if its caller ended the call without one.

        A message that takes too long, or too long for others, interrupts its call. Raises RefusedByTransportError.
        """
        self._time.start(call)
        try:
            return await call.rpc.receive(functools.partial(self._take_room, call))
        finally:
            if call in self._placed:
                self._placed.discard(call)
                self._patience.stop(call)
                self._slow.pop(call, None)
                self._slots.release()
            self._time.stop(call)

    async def _take_room(self, call: RpcCall) -> None:
        if not self._slots.is_free and self._slow:
            self._give_way(next(iter(self._slow)))
        await self._slots.take()
        self._placed.add(call)
        self._patience.start(call)

    def _add_slow(self, call: RpcCall) -> None:
        if self._slots.waiting:
            self._give_way(call)
        else:
            self._slow[call] = None

    def _give_way(self, call: RpcCall) -> None:
        self._slow.pop(call, None)
        limit = f"receiving_bytes_max = {self._settings.receiving_bytes_max}"
        call.interrupt(
            overload_error(f"too many messages at once ({limit}): this one took longer than {self._slow_s:g} s")
        )
