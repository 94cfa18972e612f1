"""Where a large text is decoded: in a thread, so that the other calls go on.

Parsers and protobuf hold the interpreter while they run, so a thread frees the loop between their steps alone: of
16 MiB each takes some 50 ms, and core bounds the number of values. A thread costs 0.1 ms, so small texts stay here.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final, TypeVar

__all__ = ["LARGE_BYTES", "LARGE_VALUES", "measure_text", "run_for_size"]

LARGE_BYTES: Final = 256 * 1024
"""A text above this size is decoded in a thread. One below it takes up to 15 ms."""
LARGE_VALUES: Final = 4096
"""So is JSON with more values, if it is json_format that decodes it: that takes up to 5 µs for each."""

_T = TypeVar("_T")


def measure_text(text: bytes) -> int:
    """Return the size of a text that may be JSON for json_format: its bytes, or more than LARGE_BYTES for many values.

    Each value of JSON stands behind a bracket or a comma. Those in strings count too: that costs a thread at most.
    """
    size = len(text)
    if LARGE_VALUES < size <= LARGE_BYTES and text.count(b",") + text.count(b"{") + text.count(b"[") > LARGE_VALUES:
        return LARGE_BYTES + 1
    return size


async def run_for_size(size: int, function: Callable[[], _T]) -> _T:
    """Return what a function returns, which decodes a text of this size.

    A thread can't be cancelled: a task that is cancelled meanwhile waits for its end, and holds until then what it has.
    """
    if size <= LARGE_BYTES:
        return function()
    thread = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        while not thread.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({thread})
        if not thread.cancelled():
            thread.exception()  # nobody else asks for it
        raise
    finally:
        del thread  # its exception has this frame, which has the text
