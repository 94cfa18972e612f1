"""The receiving half of a connection: what each frame does, by the states of the streams.

What a peer breaks ends a stream (`StreamError`) or the connection (`Http2Error`). Frames that concern the connection
alone are `control.py`'s.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

from bridge.server.h2 import frames
from bridge.server.h2.blocks import BlockReader, HeaderBlock
from bridge.server.h2.control import Control
from bridge.server.h2.events import DataReceived, Drained, Event, Progressed, RequestReceived, StreamEnded
from bridge.server.h2.flow import WINDOW_MAX, ReceiveWindow
from bridge.server.h2.frames import ErrorCode, FrameCutter, Http2Error, StreamError
from bridge.server.h2.headers import MalformedError, Request, check_trailers, read_request
from bridge.server.h2.limits import SLOTS_PER_STREAM, Limits
from bridge.server.h2.refusing import Refuse, Refusing
from bridge.server.h2.sending import Sender
from bridge.server.h2.states import Received, State, transit
from bridge.server.h2.streams import Stream, Streams

__all__ = ["Receiver"]


class Receiver:
    """Takes the frames of a connection. `now` is a clock's, any that is monotonic, in seconds."""

    def __init__(self, limits: Limits, now: float, refuse: Refuse) -> None:
        self._limits = limits
        self._cutter = FrameCutter()
        self._blocks = BlockReader(limits)
        self._window = ReceiveWindow()
        self._events: list[Event] = []
        self._has_started = False
        self._is_going_away = False
        self._goaway_message = ""
        self.fault: Http2Error | None = None
        self.streams = Streams()
        self.sender = Sender()
        self._refusing = Refusing(refuse, self.sender, self.streams)
        self._control = Control(limits, self.sender, self.streams, now)

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Return what these bytes tell."""
        self._control.now = now
        if self.fault is None:
            try:
                for kind, flags, stream_id, payload in self._cutter.cut(data):
                    self._take_frame(kind, flags, stream_id, payload)
                self._refusing.end_read()
            except Http2Error as fault:
                # The frames of the traceback would hold this connection, and it the fault, until all is collected.
                fault.__context__ = None
                self.fail(fault.with_traceback(None))
        return self.take_events()

    def take_events(self) -> list[Event]:
        """Return what happened since the last time, other than by `receive`."""
        events, self._events = self._events, []
        return events

    def _take_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if not self._has_started:
            if kind != frames.SETTINGS or flags & frames.ACK:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a connection that does not begin with SETTINGS")
            self._has_started = True
        if self._blocks.is_open and kind != frames.CONTINUATION:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a header block that is interrupted")
        taker = self._TAKERS.get(kind)
        if taker is None:  # a frame of an extension
            self._control.spend_frame()
            return
        try:
            taker(self, flags, stream_id, payload)
        except StreamError as fault:
            if fault.stream_id > self.streams.last_id:
                raise Http2Error(fault.code, "a bad frame on an idle stream") from None
            self._control.spend_reset()
            self._reset(fault.stream_id, fault.code)

    def _take_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        length = len(payload)
        if not self._window.take(length):
            raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "DATA beyond the connection's window")
        if self._window.size < self._limits.window_bytes // 2:
            increment = self._window.open_to(self._limits.window_bytes)
            self.sender.write(frames.encode_window_update(0, increment))
        is_end = bool(flags & frames.END_STREAM)
        data = frames.strip_padding(payload, flags)
        if not data and not is_end:
            self._control.spend_frame()
        stream = self.streams.live.get(stream_id)
        if stream is None or stream.state is not State.OPEN:
            if not self._refusing.take_data(stream_id, is_end=is_end):
                transit(stream_id, self._find_state(stream_id), Received.DATA_END if is_end else Received.DATA)
            return
        if not stream.receive_window.take(length):
            raise StreamError(stream_id, ErrorCode.FLOW_CONTROL_ERROR)
        stream.received_bytes += len(data)
        _check_length(stream, is_end=is_end)
        if is_end:
            stream.state = State.HALF_CLOSED
        self._events.append(DataReceived(stream, data, is_end))

    def _take_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        block = self._blocks.take_headers(flags, stream_id, payload)
        if block is not None:
            self._take_block(block)

    def _take_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        block = self._blocks.take_continuation(flags, stream_id, payload)
        if block is not None:
            self._take_block(block)

    def _take_block(self, block: HeaderBlock) -> None:
        stream_id = block.stream_id
        state = self._find_state(stream_id)
        after = transit(stream_id, state, Received.HEADERS_END if block.is_end else Received.HEADERS)
        if state is State.IDLE:
            self._open(block, after)
        elif (stream := self.streams.live.get(stream_id)) is not None:
            try:
                check_trailers(block.headers or [])
            except MalformedError:
                raise StreamError(stream_id, ErrorCode.PROTOCOL_ERROR) from None
            _check_length(stream, is_end=True)
            stream.state = after
            self._events.append(DataReceived(stream, b"", is_end=True))
        elif block.is_end:
            self._refusing.take_data(stream_id, is_end=True)

    def _open(self, block: HeaderBlock, state: State) -> None:
        stream_id = self.streams.last_id = block.stream_id
        if self._refusing.take(block):
            return
        limit = self._limits.streams_max
        if len(self.streams.live) >= limit or self.streams.in_use >= SLOTS_PER_STREAM * limit:
            raise StreamError(stream_id, ErrorCode.REFUSED_STREAM)
        request: Request | None = None
        if block.headers is None:
            self._control.spend_reset()
        else:
            try:
                request = read_request(block.headers)
            except MalformedError:
                raise StreamError(stream_id, ErrorCode.PROTOCOL_ERROR) from None
            if block.is_end and request.length:
                raise StreamError(stream_id, ErrorCode.PROTOCOL_ERROR)
        stream = self.streams.add(stream_id, state, self.sender.initial_window)
        stream.expected_bytes = request.length if request is not None else None
        self._events.append(RequestReceived(stream, request, block.is_end))

    def _take_window_update(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE of another size")
        self._control.spend_due_frame()
        increment = frames.read_long(payload) & WINDOW_MAX
        fault = ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR
        if not stream_id:
            if not increment or not self.sender.window.widen(increment):
                raise Http2Error(fault, f"WINDOW_UPDATE by {increment}")
        else:
            transit(stream_id, self._find_state(stream_id), Received.WINDOW_UPDATE)
            stream = self.streams.live.get(stream_id)
            if stream is not None and (not increment or not self.sender.widen(stream, increment)):
                raise StreamError(stream_id, fault)
        self.send_more()

    def _take_reset(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM of another size")
        state = transit(stream_id, self._find_state(stream_id), Received.RESET)
        if stream_id in self.streams.live:
            self._control.spend_reset()
        else:  # the peer has the whole answer, and leaves out the rest of its request (RFC 9113, 8.1)
            self._control.spend_due_frame()
        self._close(stream_id, state)

    def _take_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        self._control.take_settings(flags, stream_id, payload)
        self.send_more()

    def _take_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        self._control.take_ping(flags, stream_id, payload)
        if self._control.is_told:
            self._go_away()

    def _find_state(self, stream_id: int) -> State:
        state = self.streams.find_state(stream_id)
        # Streams that the peer opens before it knows of a GOAWAY are ignored.
        return State.ABANDONED if state is State.IDLE and self._is_going_away and stream_id & 1 else state

    def send_more(self) -> None:
        """Send what waits, as far as it can be."""
        if self.sender.blocked:
            for stream in self.sender.send_blocked():
                if stream.pending is not None:
                    self._events.append(Progressed(stream))
                    continue
                if stream.ends_after_pending:
                    self._end(stream)
                self._events.append(Drained(stream))

    def _go_away(self) -> None:
        self._control.is_told = False
        if not self._is_going_away and self.fault is None:
            self._is_going_away = True
            goaway = frames.encode_goaway(self.streams.last_id, ErrorCode.NO_ERROR, self._goaway_message)
            self.sender.write(goaway)

    def fail(self, fault: Http2Error) -> None:
        """End the connection, and all of its streams."""
        if self.fault is None:
            self.fault = fault
            self.sender.write(frames.encode_goaway(self.streams.last_id, fault.code, fault.message))
            self.abandon()

    def abandon(self) -> None:
        """End all streams without a word: the connection is lost."""
        for stream_id in list(self.streams.live):
            self._close(stream_id, State.ABANDONED)

    def _reset(self, stream_id: int, code: int) -> None:
        self.sender.write(frames.encode_reset(stream_id, code))
        self._close(stream_id, State.ABANDONED)

    def _close(self, stream_id: int, state: State) -> None:
        """Close a stream that has not got its whole answer, or change what is remembered of a closed one."""
        stream = self.streams.live.get(stream_id)
        if stream is not None:
            self.sender.drop(stream)
            self.streams.close(stream, state)
            self._events.append(StreamEnded(stream))
        elif stream_id <= self.streams.last_id:
            self._refusing.forget(stream_id)
            self.streams.set_fate(stream_id, state)

    def _end(self, stream: Stream) -> None:
        """Close a stream that has its whole answer. If the peer is still at its request, it need not go on."""
        is_early = stream.state is State.OPEN
        if is_early:
            self.sender.write(frames.encode_reset(stream.id, ErrorCode.NO_ERROR))
        self.sender.drop(stream)
        self.streams.close(stream, State.ABANDONED if is_early else State.ENDED)

    _TAKERS: ClassVar[Mapping[int, Callable[["Receiver", int, int, bytes], None]]] = {
        frames.DATA: _take_data,
        frames.HEADERS: _take_headers,
        frames.PRIORITY: lambda self, *frame: self._control.take_priority(*frame),
        frames.RST_STREAM: _take_reset,
        frames.SETTINGS: _take_settings,
        frames.PUSH_PROMISE: lambda self, *frame: self._control.take_push(*frame),
        frames.PING: _take_ping,
        frames.GOAWAY: lambda self, *frame: self._control.take_goaway(*frame),
        frames.WINDOW_UPDATE: _take_window_update,
        frames.CONTINUATION: _take_continuation,
    }


def _check_length(stream: Stream, *, is_end: bool) -> None:
    """Raise StreamError if a body is longer than its content-length, or ends before it."""
    expected, received = stream.expected_bytes, stream.received_bytes
    if expected is not None and (received > expected or (is_end and received != expected)):
        raise StreamError(stream.id, ErrorCode.PROTOCOL_ERROR)
