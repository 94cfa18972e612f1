"""One HTTP/2 connection from the server's side: a peer's bytes become events, answers become bytes.

`receive` takes bytes, cut anywhere, and returns what happened. Its user answers by `send_…`, `end` and `reset`, and
writes what `sender.take_output` returns. It holds each stream that it was told of until `release`: so the slots of a
connection count what is really going on, and a peer that resets its streams does not get more of them.

A rule that is broken ends a stream or the connection; so does what costs us more than the peer (`limits.py`). Then
`fault` says why, nothing more is received, and a GOAWAY is the last of the output.
"""

from typing import Final

from bridge.server.h2 import frames
from bridge.server.h2.control import GRACEFUL_PING
from bridge.server.h2.flow import WINDOW_MAX
from bridge.server.h2.frames import ErrorCode
from bridge.server.h2.limits import Limits
from bridge.server.h2.receiving import Receiver
from bridge.server.h2.refusing import Refuse, refuse_nothing
from bridge.server.h2.states import State
from bridge.server.h2.streams import Stream

__all__ = ["Connection"]

_MAX_CONCURRENT_STREAMS: Final = 0x3
_MAX_HEADER_LIST_SIZE: Final = 0x6


class Connection(Receiver):
    """The state of a connection. `now` is a clock's, any that is monotonic, in seconds; `refuse`: see `refusing.py`."""

    def __init__(self, limits: Limits, now: float, refuse: Refuse = refuse_nothing) -> None:
        super().__init__(limits, now, refuse)
        settings = {_MAX_CONCURRENT_STREAMS: limits.streams_max, _MAX_HEADER_LIST_SIZE: limits.list_bytes_max}
        self.sender.write(frames.encode_settings(settings))
        self.sender.write(frames.encode_window_update(0, self._window.open_to(limits.window_bytes)))

    @property
    def is_acknowledged(self) -> bool:
        """Whether the peer has taken our SETTINGS, and so our limits."""
        return self._control.is_acknowledged

    @property
    def is_going_away(self) -> bool:
        """Whether streams that the peer opens are ignored."""
        return self._is_going_away

    @property
    def is_finished(self) -> bool:
        """Whether the peer opens no more streams, and those that it opened have ended."""
        return self._is_going_away and not self.streams.live

    @property
    def held_bytes(self) -> int:
        """How many bytes are kept: of unfinished frames and header blocks, of answers, and of the output."""
        pending = sum(len(stream.pending) for stream in self.streams.live.values() if stream.pending is not None)
        return self._cutter.held + self._blocks.held + pending + self.sender.output_bytes

    def send_headers(self, stream: Stream, block: bytes) -> None:
        """Send the head of an answer, as a coded block."""
        if stream.is_live:
            self.sender.send_headers(stream, block, is_end=False)

    def send_message(self, stream: Stream, message: bytes) -> bool:
        """Send a gRPC message; return False if it has to wait: then `Drained` says when another may be sent."""
        return not stream.is_live or self.sender.send_message(stream, message)

    def send_data(self, stream: Stream, data: bytes, *, is_end: bool = False) -> bool:
        """Send a part of an answer's body, as above."""
        if not stream.is_live:
            return True
        is_sent = self.sender.send_data(stream, data, is_end=is_end)
        if is_sent and is_end:
            self._end(stream)
        return is_sent

    def end(self, stream: Stream, block: bytes) -> None:
        """End a stream with trailers, or with an answer that is a head alone. What waits of it is dropped."""
        if stream.is_live:
            self.sender.send_headers(stream, block, is_end=True)
            self._end(stream)

    def reset(self, stream: Stream, code: int) -> None:
        """End a stream without an answer."""
        if stream.is_live:
            self.sender.write(frames.encode_reset(stream.id, code))
            self.sender.drop(stream)
            self.streams.close(stream, State.ABANDONED)

    def release(self, stream: Stream) -> None:
        """Let go of a stream: its slot is free once it has ended too."""
        self.streams.release(stream)

    def open_window(self, stream: Stream, size: int) -> None:
        """Let the peer send so many bytes of a stream's body, if it could not already."""
        if stream.state is State.OPEN and (increment := stream.receive_window.open_to(size)):
            self.sender.write(frames.encode_window_update(stream.id, increment))

    def pause(self) -> None:
        """Send no more data: the transport is full."""
        self.sender.is_paused = True

    def resume(self) -> None:
        """Send again."""
        self.sender.is_paused = False
        self._control.count_as_read()
        self.send_more()

    def ping(self, payload: bytes) -> None:
        """Send a PING of eight bytes."""
        self._control.ping(payload)

    def prepare_to_go_away(self, message: str) -> None:
        """Ask the peer to open no more streams, and take those that it opens until it knows (RFC 9113, 6.8)."""
        if not self._is_going_away and self.fault is None:
            self._goaway_message = message
            self.sender.write(frames.encode_goaway(WINDOW_MAX, ErrorCode.NO_ERROR, message))
            self.ping(GRACEFUL_PING)

    def go_away(self) -> None:
        """Ignore streams that the peer opens from now on; it may repeat them elsewhere."""
        self._go_away()
