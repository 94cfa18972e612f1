"""Turns for what takes long to decode: one in a turn of the event loop, so that small messages overtake a burst."""

import asyncio
from types import TracebackType
from typing import Final

from bridge.server.slots import Slots

__all__ = ["SMALL_BYTES_MAX", "Turns"]

SMALL_BYTES_MAX: Final = 2048
"""Of what is decoded at once, without a turn. More can be items enough for a tenth of a second."""


class Turns:
    """Held by `async with` while something is decoded. First come, first served."""

    def __init__(self) -> None:
        self._slots = Slots(1)

    async def __aenter__(self) -> None:
        await self._slots.take()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self._slots.release()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._slots.release()
