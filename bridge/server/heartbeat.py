"""Empty messages on a silent stream, for callers behind a proxy that ends what is idle.

Such a proxy counts HTTP/2 data alone: pings do not reset its clock (`docs/operations.md` lists some). So a caller asks
for a heartbeat by metadata, or a setting sends it to all. An empty message has no choices, which a caller must expect.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Final, Self

from bridge.core.errors import BridgeError, Code
from bridge.core.headers import Metadata, find_first
from bridge.server.rpc import ClientDisconnectedError
from ollmbridge.v1 import error_details_pb2 as details_pb2

__all__ = ["HEARTBEAT_KEY", "Heartbeat", "read_period_s"]

HEARTBEAT_KEY: Final = "ollmbridge-heartbeat-s"
"""Of a caller's metadata: the seconds without a message after which it wants an empty one; 0 is never."""
_PERIOD_MIN_S: Final = 1.0
"""What a caller may ask for at least, so that heartbeats stay cheap."""
_PERIOD_MAX_S: Final = 3600.0


def read_period_s(metadata: Metadata, default_s: float) -> float:
    """Return the seconds without a message after which a caller gets an empty one, 0 if never.

    Raises BridgeError (INVALID_METADATA) if the caller asks for no number of seconds.
    """
    text = find_first(metadata, HEARTBEAT_KEY)
    if not text:
        return default_s
    try:
        period_s = float(text)
    except ValueError:
        period_s = -1.0
    if period_s == 0 or _PERIOD_MIN_S <= period_s <= _PERIOD_MAX_S:
        return period_s
    message = f"expected 0, or {_PERIOD_MIN_S:g} to {_PERIOD_MAX_S:g} seconds, in {HEARTBEAT_KEY}, found something else"
    raise BridgeError(Code.INVALID_ARGUMENT, details_pb2.ERROR_REASON_INVALID_METADATA, message)


class Heartbeat:
    """Calls `beat` whenever nothing was sent for `period_s`. An async context manager around the sending.

    What is sent besides is sent inside `hold`, so that no beat comes between.
    """

    def __init__(self, period_s: float, beat: Callable[[], Awaitable[None]]) -> None:
        self._period_s = period_s
        self._beat = beat
        self._lock = asyncio.Lock()
        self._sent_at = time.monotonic()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                await self._lock.acquire()  # a beat that waits for its reader is before the end
        finally:  # the caller may reset the call meanwhile
            self._task.cancel()
            await asyncio.wait({self._task})
        fault = None if self._task.cancelled() else self._task.exception()
        if error is None and fault is not None and not isinstance(fault, ClientDisconnectedError):
            raise fault

    @contextlib.asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Send no heartbeat inside the block, and count the time from its end."""
        async with self._lock:
            yield
            self._sent_at = time.monotonic()

    async def _run(self) -> None:
        while True:
            left_s = self._sent_at + self._period_s - time.monotonic()
            if left_s > 0:
                await asyncio.sleep(left_s)
                continue
            async with self._lock:
                if time.monotonic() >= self._sent_at + self._period_s:
                    await self._beat()
                    self._sent_at = time.monotonic()
