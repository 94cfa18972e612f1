"""The frames that concern the connection: SETTINGS, PING, GOAWAY; and what of such frames a peer may cost us."""

from typing import Final

from bridge.server.h2 import frames
from bridge.server.h2.flow import WINDOW_MAX
from bridge.server.h2.frames import ErrorCode, Http2Error
from bridge.server.h2.limits import Budget, Limits
from bridge.server.h2.sending import Sender
from bridge.server.h2.streams import Streams

__all__ = ["GRACEFUL_PING", "Control"]

GRACEFUL_PING: Final = b"draining"
"""The PING behind a GOAWAY: when it is acknowledged, the peer knows that it must open no more streams. It is sent once
more then: streams that the peer had opened before, but not sent yet, come before the second acknowledgement.
"""
_TABLE_BYTES: Final = 4096
_HEADER_TABLE_SIZE, _ENABLE_PUSH, _INITIAL_WINDOW_SIZE, _MAX_FRAME_SIZE = 0x1, 0x2, 0x4, 0x5
_DUE_EACH: Final = 4
"""Frames due for each stream, and for each DATA frame sent: two WINDOW_UPDATEs; the PING of a client that estimates its
bandwidth, or the RST_STREAM of a stream that has ended; one to spare.
"""
_STREAMS_PER_FRAME: Final = 8
"""As many streams' windows change for the cost of a frame that carries nothing."""


class Control:
    """Takes those frames. `is_acknowledged`: the peer has taken our SETTINGS; `is_told`: it knows of a GOAWAY."""

    def __init__(self, limits: Limits, sender: Sender, streams: Streams, now: float) -> None:
        self._limits = limits
        self._sender = sender
        self._streams = streams
        self._frames = Budget(limits.control_burst, limits.control_per_s, now)
        self._resets = Budget(limits.reset_burst, limits.reset_per_s, now)
        self._due_frames = 0
        self._pings_unanswered = 0
        self._unread_bytes = 0
        self.now = now
        self.is_acknowledged = False
        self.is_told = False
        self._is_asked_twice = False

    def spend_frame(self, count: int = 1) -> None:
        """Count a frame that carries nothing, or one that costs as much as this many of them. Raises Http2Error."""
        if not self._frames.spend(self.now, count):
            raise _calm("too many frames that carry nothing", "control_flood")

    def spend_reset(self) -> None:
        """Count a stream that was reset before its whole answer was sent. Raises Http2Error."""
        if not self._resets.spend(self.now):
            raise _calm("too many streams that are reset", "rapid_reset")

    def spend_due_frame(self) -> None:
        """Count a frame that is due for what was sent, as one that carries nothing if too many come.

        Raises Http2Error.
        """
        self._due_frames += 1
        if self._due_frames > _DUE_EACH * (self._sender.data_frames + self._streams.opened):
            self.spend_frame()

    def ping(self, payload: bytes) -> None:
        """Send a PING of eight bytes."""
        self._pings_unanswered += 1
        self._sender.write(frames.encode_frame(frames.PING, 0, 0, payload))

    def take_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Take a SETTINGS frame. Raises Http2Error."""
        if stream_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & frames.ACK:
            if payload:
                raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "an acknowledgement with settings")
            if self.is_acknowledged:
                self.spend_frame()
            self.is_acknowledged = True
            return
        settings = frames.iterate_settings(payload)
        self.spend_frame(max(1, len(payload) // frames.SETTING_BYTES))
        windows = [self._sender.initial_window]
        for number, value in settings:
            if number == _INITIAL_WINDOW_SIZE:
                windows.append(value)
            else:
                self._apply(number, value)
        if len(windows) > 1:
            self._change_initial_window(*windows)
        self._answer(frames.SETTINGS_ACK)

    def take_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Take a PING frame. Raises Http2Error."""
        if stream_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "PING of another size")
        if not flags & frames.ACK:
            self.spend_due_frame()
            self._answer(frames.encode_frame(frames.PING, frames.ACK, 0, payload))
        else:
            self._take_acknowledgement(payload)

    def take_goaway(self, _flags: int, stream_id: int, payload: bytes) -> None:
        """Take a GOAWAY frame, which changes nothing: a peer that goes away opens no more streams. As above."""
        if stream_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY cut off")
        self.spend_frame()

    def take_priority(self, _flags: int, stream_id: int, payload: bytes) -> None:
        """Take a PRIORITY frame, which says nothing to us. Raises Http2Error or StreamError."""
        self.spend_frame()
        frames.check_priority(payload, stream_id)

    def take_push(self, _flags: int, _stream_id: int, _payload: bytes) -> None:
        """Raise Http2Error: a client pushes nothing."""
        raise Http2Error(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE from a client")

    def count_as_read(self) -> None:
        """Count the answers as read: the transport takes more."""
        self._unread_bytes = 0

    def _take_acknowledgement(self, payload: bytes) -> None:
        """Take the answer to a PING, of which one is due for each that was sent."""
        if self._pings_unanswered:
            self._pings_unanswered -= 1
        else:
            self.spend_frame()
        if payload == GRACEFUL_PING and not self._is_asked_twice:
            self._is_asked_twice = True
            self.ping(GRACEFUL_PING)
        elif payload == GRACEFUL_PING:
            self.is_told = True

    def _apply(self, number: int, value: int) -> None:
        if number == _HEADER_TABLE_SIZE:
            if value < _TABLE_BYTES:
                self._sender.shrink_table()
        elif number == _ENABLE_PUSH:
            if value > 1:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"SETTINGS_ENABLE_PUSH is {value}")
        elif number == _MAX_FRAME_SIZE and not frames.FRAME_BYTES_MAX <= value < 1 << 24:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"SETTINGS_MAX_FRAME_SIZE is {value}")

    def _change_initial_window(self, before: int, *values: int) -> None:
        """Change the windows of all streams in one pass; none of the values may make one too large."""
        highest, last = max(values), values[-1]
        if highest > WINDOW_MAX:
            raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, f"SETTINGS_INITIAL_WINDOW_SIZE is {highest}")
        self.spend_frame(len(self._streams.live) // _STREAMS_PER_FRAME)
        self._sender.initial_window = last
        for stream in self._streams.live.values():
            if stream.send_window.size + highest - before > WINDOW_MAX:
                raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "SETTINGS_INITIAL_WINDOW_SIZE on a wide window")
            self._sender.widen(stream, last - before)

    def _answer(self, frame: bytes) -> None:
        """Write an answer, as long as the peer reads them."""
        if self._sender.is_paused:
            self._unread_bytes += len(frame)
            if self._unread_bytes > self._limits.unsent_answers_bytes_max:
                raise _calm("answers that the peer does not read", "unread_answers")
        self._sender.write(frame)


def _calm(message: str, reason: str) -> Http2Error:
    return Http2Error(ErrorCode.ENHANCE_YOUR_CALM, message, reason)
