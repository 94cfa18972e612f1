"""Requests that are refused as they come: answered at once, with no stream, event or check made for them.

That is what makes a refusal cheap. The connection stays as strict as ever: the header table has followed the block, the
body counts against the connection's window, and how the stream ended is remembered as of any other.

The body of a request mostly comes in the same read as its head. So the peer is told only at the end of a read to leave
out what has not come.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from bridge.server.h2 import frames
from bridge.server.h2.blocks import HeaderBlock
from bridge.server.h2.frames import ErrorCode
from bridge.server.h2.hpack import Header
from bridge.server.h2.sending import Sender
from bridge.server.h2.states import State
from bridge.server.h2.streams import Streams

__all__ = ["Refuse", "Refusing", "refuse_nothing"]

Refuse: TypeAlias = Callable[[bytes], bytes | None]
"""Returns the whole answer, a coded block, to a request for this path if it is refused; None if it is welcome."""


def refuse_nothing(_path: bytes) -> bytes | None:
    """Return None: each request is welcome."""
    return None


class Refusing:
    """The refusals of one connection."""

    def __init__(self, refuse: Refuse, sender: Sender, streams: Streams) -> None:
        self._refuse = refuse
        self._sender = sender
        self._streams = streams
        self._unfinished: set[int] = set()
        """Streams refused in the present read whose requests have not ended."""

    def take(self, block: HeaderBlock) -> bool:
        """Refuse the request with this head; return False if it is welcome."""
        answer = self._refuse(_find_path(block.headers)) if block.headers else None
        if answer is None:
            return False
        stream_id = block.stream_id
        self._sender.send_refusal(stream_id, answer)
        self._streams.refuse(stream_id, State.ENDED if block.is_end else State.ABANDONED)
        if not block.is_end:
            self._unfinished.add(stream_id)
        return True

    def take_data(self, stream_id: int, *, is_end: bool) -> bool:
        """Drop a part of the body; return False if it is none of a request that was refused in this read."""
        if stream_id not in self._unfinished:
            return False
        if is_end:
            self._unfinished.discard(stream_id)
            self._streams.set_fate(stream_id, State.ENDED)
        return True

    def forget(self, stream_id: int) -> None:
        """Say no more of a stream: it was reset."""
        self._unfinished.discard(stream_id)

    def end_read(self) -> None:
        """Tell the peer that it need not go on with requests that were refused and are not over."""
        if self._unfinished:
            for stream_id in self._unfinished:
                self._sender.write(frames.encode_reset(stream_id, ErrorCode.NO_ERROR))
            self._unfinished.clear()


def _find_path(headers: Sequence[Header]) -> bytes:
    for name, value in headers:
        if name == b":path":
            return value
    return b""
