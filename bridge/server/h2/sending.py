"""The sending half of a connection: frames out, within the peer's windows and what the transport takes.

What does not fit is kept at its stream, at most one piece each, and goes out in turns of a frame as windows open: a
stream that has sent a frame queues behind the others. Streams whose own windows are closed wait aside, so a window that
opens costs as much as can be sent. Frames that need no window (headers, resets, answers to PING) are written at once.
"""

from collections import OrderedDict
from typing import Final

from bridge.server.h2 import frames
from bridge.server.h2.flow import INITIAL, SendWindow
from bridge.server.h2.frames import FRAME_BYTES_MAX
from bridge.server.h2.streams import Stream

__all__ = ["Sender"]

_OUTPUT_BYTES_MAX: Final = 64 * 1024
"""Of DATA that waits for `take_output`: beyond it a stream waits as for a window."""
_CUT_BYTES: Final = 1024
_MESSAGE_HEAD_BYTES: Final = 5
_TABLE_SIZE_0: Final = b"\x20"


class Sender:
    """`window` is the connection's, `initial_window` that of new streams; `is_paused`: the transport takes no more."""

    def __init__(self) -> None:
        self.window = SendWindow()
        self.initial_window = INITIAL
        self.is_paused = False
        self.output_bytes = 0
        self._whole_frames = 0
        self._cut_bytes = 0
        self._output: list[bytes] = []
        self._queue: OrderedDict[Stream, None] = OrderedDict()
        """Streams that wait for the connection's window or for the transport. Empty frames, which need no window, are
        its first."""
        self._aside: dict[Stream, None] = {}
        """Streams that wait for their own windows."""
        self._block_prefix = b""

    @property
    def blocked(self) -> int:
        """How many streams wait for a window or for the transport."""
        return len(self._queue) + len(self._aside)

    @property
    def data_frames(self) -> int:
        """How many DATA frames were sent. Those that end nothing count by KiB, for a window may cut them to a byte."""
        return self._whole_frames + self._cut_bytes // _CUT_BYTES

    def write(self, data: bytes) -> None:
        """Write frames that need no window."""
        self._output.append(data)
        self.output_bytes += len(data)

    def take_output(self) -> bytes:
        """Return what there is to write, and forget it."""
        if not self._output:
            return b""
        data = self._output[0] if len(self._output) == 1 else b"".join(self._output)
        self._output.clear()
        self.output_bytes = 0
        return data

    def shrink_table(self) -> None:
        """Tell the peer in the next header block that no table is used: it has made its table smaller."""
        self._block_prefix = _TABLE_SIZE_0

    def send_headers(self, stream: Stream, block: bytes, *, is_end: bool) -> None:
        """Write a header block."""
        stream.has_headers = True
        self.write(self._encode_headers(stream.id, block, is_end=is_end))

    def send_refusal(self, stream_id: int, block: bytes) -> None:
        """Write the whole answer to a request of which no stream is made."""
        self.write(self._encode_headers(stream_id, block, is_end=True))

    def send_message(self, stream: Stream, message: bytes) -> bool:
        """Send a gRPC message; return False if a part of it has to wait. There must be none that waits already."""
        size = len(message) + _MESSAGE_HEAD_BYTES
        if (
            size <= stream.send_window.size
            and size <= self.window.size
            and size <= FRAME_BYTES_MAX
            and not self.is_paused
            and self.output_bytes < _OUTPUT_BYTES_MAX
        ):
            stream.send_window.size -= size
            self.window.size -= size
            self._whole_frames += 1
            self.write(frames.encode_message(stream.id, message))
            return True
        return self.send_data(stream, b"\0" + len(message).to_bytes(4) + message)

    def send_data(self, stream: Stream, data: bytes, *, is_end: bool = False) -> bool:
        """Send data; return False if a part of it has to wait. There must be none that waits already."""
        stream.pending = memoryview(data)
        stream.ends_after_pending = is_end
        if self._send_frames(stream):
            return True
        self._wait(stream)
        if not data:
            self._queue.move_to_end(stream, last=False)
        return False

    def send_blocked(self) -> list[Stream]:
        """Send more of what waits, in turns of a frame; return the streams of which something was sent."""
        moved: dict[Stream, None] = {}
        while self._queue:
            stream = next(iter(self._queue))
            if self._send_frame(stream):
                moved[stream] = None
            elif _has_window(stream):
                break
            del self._queue[stream]
            if stream.pending is not None:
                self._wait(stream)
        return list(moved)

    def widen(self, stream: Stream, increment: int) -> bool:
        """Widen a stream's window, or narrow it; return False if it is now larger than the rules allow."""
        is_allowed = stream.send_window.widen(increment)
        if stream in self._aside and _has_window(stream):
            del self._aside[stream]
            self._queue[stream] = None
        return is_allowed

    def drop(self, stream: Stream) -> None:
        """Forget what waits of a stream."""
        stream.pending = None
        self._queue.pop(stream, None)
        self._aside.pop(stream, None)

    def _wait(self, stream: Stream) -> None:
        """Let a stream wait for its next turn, or for its window."""
        if _has_window(stream):
            self._queue[stream] = None
        else:
            self._aside[stream] = None

    def _encode_headers(self, stream_id: int, block: bytes, *, is_end: bool) -> bytes:
        if self._block_prefix:
            block, self._block_prefix = self._block_prefix + block, b""
        return frames.encode_headers_frames(stream_id, block, is_end=is_end)

    def _send_frames(self, stream: Stream) -> bool:
        """Send all that waits of a stream; return False if there is no room for some of it."""
        while stream.pending is not None:
            if not self._send_frame(stream):
                return False
        return True

    def _send_frame(self, stream: Stream) -> bool:
        """Send the next frame of what waits; return False if there is no room for it."""
        data = stream.pending
        if data is None or self.is_paused or self.output_bytes >= _OUTPUT_BYTES_MAX:
            return False
        size = max(0, min(len(data), stream.send_window.size, self.window.size, FRAME_BYTES_MAX))
        if size == 0 < len(data):
            return False
        stream.send_window.size -= size
        self.window.size -= size
        rest = data[size:]
        if len(rest):
            stream.pending = rest
            self._cut_bytes += size
        else:
            stream.pending = None
            self._whole_frames += 1
        is_end = stream.ends_after_pending and stream.pending is None
        self.write(frames.encode_data(stream.id, data[:size], is_end=is_end))
        return True


def _has_window(stream: Stream) -> bool:
    """Return whether a stream's window lets more of what waits be sent."""
    return stream.send_window.size > 0 or not stream.pending
