"""One connection of the native engine: asyncio's transport on one side, the pure core on the other.

Writes of one turn of the loop go out together. A request becomes a call only if it is gRPC, its method is known and the
engine has room for it; else it is answered here, without a task.
"""

import asyncio
import ssl
from typing import Final, cast

from bridge.core.errors import Code
from bridge.server.h2.connection import Connection
from bridge.server.h2.events import DataReceived, Drained, Event, Progressed, RequestReceived
from bridge.server.h2.frames import ErrorCode, Http2Error
from bridge.server.h2.headers import Request
from bridge.server.h2.streams import Stream
from bridge.server.native import answers
from bridge.server.native.lifetime import PING, Action
from bridge.server.native.requests import Accepted, Refused, judge
from bridge.server.native.rpc import NativeRpc
from bridge.server.native.shared import Shared
from bridge.server.native.timing import Timing
from bridge.server.native.tls import is_http2
from bridge.server.peer import format_peer, name_certificate, read_certificate

__all__ = ["Link"]

ABORT_S: Final = 1.0
"""How long a connection that is closed for its peer's fault may take to write what is left."""
LINGER_S: Final = 1.0
"""How long a peer over TLS may take to close a connection after the last answer, before it is closed here."""
GO_AWAY_S: Final = 5.0
"""How long a peer may take to learn of a GOAWAY before streams that it opens are ignored, as in grpc-go: a busy one
can't repeat a call elsewhere whose request is larger than its buffer for that."""

PLAIN_BYTES_MAX: Final = 16 * 1024
"""How much of the body of a request that is no gRPC is awaited before the answer."""


class Link(asyncio.Protocol):
    """A connection. `calls` are those that have not let go of it."""

    def __init__(self, shared: Shared, *, abort_s: float = ABORT_S) -> None:
        self._shared = shared
        self._abort_s = abort_s
        self.loop = shared.loop
        self.arrivals = shared.arrivals
        self._core = Connection(shared.limits, self.loop.time(), shared.arrivals.refuse)
        self._timing = Timing(self.loop, shared.settings.connections, self._act)
        self._transport: asyncio.Transport | None = None
        self._is_flushing = False
        self._is_closing = False
        self._timers: list[asyncio.TimerHandle] = []
        self.calls: set[NativeRpc] = set()
        self.peer = ""
        self.certificate = name_certificate("")

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, if there is room for one more connection."""
        self._transport = cast("asyncio.Transport", transport)
        tls = cast("ssl.SSLObject | None", transport.get_extra_info("ssl_object"))
        if not self._shared.add(self) or (tls is not None and not is_http2(tls)):
            self._is_closing = True
            self._transport.abort()
            return
        self.peer = format_peer(transport.get_extra_info("peername"))
        self.certificate = name_certificate(read_certificate(tls))
        timeout_s = self._shared.settings.connections.settings_timeout_s
        self._timers.append(self.loop.call_later(timeout_s, self._check_acknowledged))
        self._timing.start()
        self._schedule_flush()

    def data_received(self, data: bytes) -> None:
        """Take bytes."""
        if not self._is_closing:
            now = self._timing.lifetime.received_at = self.loop.time()
            events = self._core.receive(data, now)
            self.arrivals.end_read()
            self._dispatch(events)

    def pause_writing(self) -> None:
        """Send no more data for now."""
        self._core.pause()

    def resume_writing(self) -> None:
        """Send again."""
        self._core.resume()
        self._dispatch(self._core.take_events())

    def eof_received(self) -> None:
        """Close: a peer that can't send can't go on with HTTP/2."""

    def connection_lost(self, _error: Exception | None) -> None:
        """End all calls."""
        self._is_closing = True
        self._timing.stop()
        for timer in self._timers:
            timer.cancel()
        self._core.abandon()
        self._dispatch(self._core.take_events())
        self._core.sender.take_output()
        self._shared.remove(self)

    # What calls use

    def send_message(self, stream: Stream, head: bytes, message: bytes) -> bool:
        """Send a message, after the head if that was not sent; return False if it has to wait."""
        core = self._core
        if not stream.has_headers:
            core.send_headers(stream, head)
        self._schedule_flush()
        return core.send_message(stream, message)

    def send_headers(self, stream: Stream, head: bytes) -> None:
        """Send the head of an answer."""
        self._core.send_headers(stream, head)

    def end(self, stream: Stream, block: bytes) -> None:
        """End a stream with trailers, or an answer that is a head alone."""
        self._core.end(stream, block)
        self._schedule_flush()

    def open_window(self, stream: Stream, size: int) -> None:
        """Let the caller send so many bytes of its message."""
        self._core.open_window(stream, size)
        self._schedule_flush()

    def count_unread(self, call: NativeRpc, change: int) -> None:
        """Count bytes of a message that nobody reads yet; the call is refused if there are too many of all calls."""
        call.unread_bytes += change
        if not self._shared.count_unread(change):
            limit = f"connections.unread_bytes_max = {self._shared.settings.connections.unread_bytes_max}"
            call.refuse(Code.RESOURCE_EXHAUSTED, f"too many bytes of calls that wait ({limit})")

    def release(self, stream: Stream, call: NativeRpc) -> None:
        """Let go of a call that is over."""
        if call in self.calls:
            self.calls.discard(call)
            self._shared.count_unread(-call.unread_bytes)
            call.unread_bytes = 0
        stream.call = None
        self._core.reset(stream, ErrorCode.CANCEL)
        self._core.release(stream)
        if not self.calls:
            self._timing.lifetime.idle_since = self.loop.time()
            self._timing.start()
        if self._core.is_finished:
            self._schedule_flush()

    # What the engine uses

    def prepare_to_go_away(self, message: str) -> None:
        """Ask the peer to open no more streams; after a while, ignore those that it opens."""
        self._core.prepare_to_go_away(message)
        self._timers.append(self.loop.call_later(GO_AWAY_S, self.go_away))
        self._schedule_flush()

    def go_away(self) -> None:
        """Ignore streams that the peer opens from now on."""
        self._core.go_away()
        self._schedule_flush()

    @property
    def is_going_away(self) -> bool:
        """Whether new streams are ignored, or the connection is over."""
        return self._is_closing or self._core.is_going_away

    @property
    def held_bytes(self) -> int:
        """How many bytes the connection keeps."""
        return self._core.held_bytes

    @property
    def slots_in_use(self) -> int:
        """How many of the connection's streams are taken."""
        return self._core.streams.in_use

    def abort(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    # Events

    def _dispatch(self, events: list[Event]) -> None:
        for event in events:
            stream = event.stream
            if isinstance(event, RequestReceived):
                self._take_request(stream, event.request, is_end=event.is_end)
            elif isinstance(event, DataReceived):
                self._take_data(stream, event.data, is_end=event.is_end)
            elif isinstance(event, Drained):
                if isinstance(stream.call, NativeRpc):
                    stream.call.wake()
            elif isinstance(event, Progressed):
                if isinstance(stream.call, NativeRpc):
                    stream.call.report_progress()
            else:
                self._cancel(stream)
        self._schedule_flush()

    def _take_request(self, stream: Stream, request: Request | None, *, is_end: bool) -> None:
        if not stream.is_live:  # it was reset in the same segment
            self._core.release(stream)
            return
        judgement = judge(request, self._shared)
        if isinstance(judgement, Accepted):
            caller = self.arrivals.identify(judgement.route, judgement.head.metadata, self.certificate, self.peer)
            if isinstance(caller, bytes):
                self._answer(stream, Refused(caller))
                return
            call = NativeRpc(self, stream, *judgement, caller, self._shared.settings.request_bytes_max)
            stream.call = call
            self.calls.add(call)
            self._timing.lifetime.idle_since = None
            if is_end:
                call.feed(b"", is_end=True)
        elif judgement.is_plain and not is_end:
            stream.call = judgement  # it comes after the body, so that faults of the body are found
        else:
            self._answer(stream, judgement)

    def _take_data(self, stream: Stream, data: bytes, *, is_end: bool) -> None:
        call = stream.call
        if isinstance(call, NativeRpc):
            call.feed(data, is_end=is_end)
        elif isinstance(call, Refused) and (is_end or stream.received_bytes >= PLAIN_BYTES_MAX):
            self._answer(stream, call)

    def _cancel(self, stream: Stream) -> None:
        if isinstance(stream.call, NativeRpc):
            stream.call.cancel()
        else:
            self._core.release(stream)

    def _answer(self, stream: Stream, answer: Refused) -> None:
        """Answer without a call."""
        stream.call = None
        if answer.is_plain:
            self._core.send_headers(stream, answer.block)
            self._core.send_data(stream, answers.PLAIN_BODY, is_end=True)
        else:
            self._core.end(stream, answer.block)
        self._core.release(stream)

    # Writing and times

    def _schedule_flush(self) -> None:
        if not self._is_flushing and not self._is_closing:
            self._is_flushing = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flushing = False
        core, transport = self._core, self._transport
        if transport is None or self._is_closing:
            return
        if core.sender.is_paused and transport.get_write_buffer_size() > self._shared.limits.unsent_bytes_max:
            message = "answers that the caller does not read"
            core.fail(Http2Error(ErrorCode.ENHANCE_YOUR_CALM, message, "unread_answers"))
        while data := core.sender.take_output():
            transport.write(data)
            if not core.sender.blocked:
                break
            core.send_more()
        if events := core.take_events():
            self._dispatch(events)
        if core.fault is not None:
            self._shared.count_misuse(core.fault)
            self._close()
        elif core.is_finished:
            self._close()

    def _close(self) -> None:
        """Close the connection: at once for its peer's fault, else once the peer has read all, and closes too.

        A socket that is closed while its peer sends takes back what the peer has not read: the end of an answer.
        """
        self._is_closing = True
        transport, fault = self._transport, self._core.fault
        if transport is None:
            return
        if fault is None and transport.can_write_eof():
            transport.write_eof()
        elif fault is None:  # over TLS
            self._timers.append(self.loop.call_later(LINGER_S, transport.close))
        else:
            transport.close()
        limit_s = self._shared.settings.write_stall_timeout_s if fault is None else self._abort_s
        self._timers.append(self.loop.call_later(limit_s, transport.abort))

    def _check_acknowledged(self) -> None:
        if not self._core.is_acknowledged and not self._is_closing:
            message = "SETTINGS were not acknowledged in time"
            self._core.fail(Http2Error(ErrorCode.ENHANCE_YOUR_CALM, message, "settings_timeout"))
            self._dispatch(self._core.take_events())

    def _act(self, action: Action) -> None:
        """Do what is due."""
        if action is Action.PING:
            self._core.ping(PING)
            self._schedule_flush()
        elif action is Action.GO_AWAY:
            self.prepare_to_go_away("connection idle" if self._timing.lifetime.is_idle else "connection old")
        elif action is Action.CLOSE:
            self.abort()
