"""Waiting for a fact that nothing announces."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

__all__ = ["WAIT_S", "eventually"]

WAIT_S: Final = 30.0
"""How long a test waits for a fact before it fails: far beyond what a busy machine takes."""


async def eventually(fact: Callable[[], Any], timeout_s: float = WAIT_S) -> None:
    """Wait until a fact holds that nothing announces; the bound only guards against hanging."""
    async with asyncio.timeout(timeout_s):
        while not fact():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
