"""The calls in flight, and how they end when the server stops.

A drain refuses new calls, lets those in flight finish for a while, then interrupts the rest. Refusals can be delayed:
while the transport stops, the calls that it still hands over are refused only once its stop has begun.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import NoReturn

from bridge.core.errors import BridgeError, Code
from bridge.server.call import RpcCall
from ollmbridge.v1 import error_details_pb2 as details_pb2

__all__ = ["Drain"]


class Drain:
    """Knows the calls in flight and ends them.

    `refusals` counts the calls that came during the drain, `interrupted` those that outlasted it.
    """

    def __init__(self) -> None:
        self._calls: set[RpcCall] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self.refusals = 0
        self.interrupted = 0
        self._refusals_released = asyncio.Event()
        self._refusals_released.set()

    @property
    def is_draining(self) -> bool:
        """Whether new calls are to be refused."""
        return self._draining

    @property
    def in_flight(self) -> int:
        """How many calls are in flight."""
        return len(self._calls)

    def add(self, call: RpcCall) -> None:
        """Add a call, until `remove`."""
        self._calls.add(call)
        self._idle.clear()

    def remove(self, call: RpcCall) -> None:
        """Remove a call that is over."""
        self._calls.discard(call)
        if not self._calls:
            self._idle.set()

    async def refuse(self) -> NoReturn:
        """Refuse a call that came during the drain, once refusals are released."""
        self.refusals += 1
        await self._refusals_released.wait()
        message = "the bridge is shutting down; retry on another replica"
        raise BridgeError(Code.UNAVAILABLE, details_pb2.ERROR_REASON_DRAINING, message)

    @contextlib.contextmanager
    def delay_refusals(self) -> Iterator[None]:
        """While the block lasts, leave calls that come during the drain without an answer."""
        self._refusals_released.clear()
        try:
            yield
        finally:
            self._refusals_released.set()

    async def run(self, grace_s: float) -> None:
        """Refuse new calls, wait `grace_s` for those in flight, then interrupt the rest and wait for their end."""
        self._draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        self.interrupted = len(self._calls)
        for call in list(self._calls):
            call.interrupt(_interruption(call, grace_s))
        await self._idle.wait()


def _interruption(call: RpcCall, grace_s: float) -> BridgeError:
    """Return the failure of a call that outlasts the grace. Once sent upstream it may have run: never UNAVAILABLE."""
    code = Code.ABORTED if call.upstream.sent_at is not None else Code.UNAVAILABLE
    message = f"the call was ended by a shutdown: it was still running after drain_grace_s ({grace_s:g} s)"
    return BridgeError(code, details_pb2.ERROR_REASON_DRAINING, message)
