"""A call of the native engine, as the boundary sees it (`rpc.py`): a stream of a connection, and its task.

A call ends once: with the status of its boundary, of its deadline or of the engine, or without one if its caller has
left. `close` is its last step, whatever came before, and lets go of all that it held.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import structlog

from bridge.core.errors import Code
from bridge.core.headers import Metadata
from bridge.server.h2.flow import INITIAL
from bridge.server.h2.hpack import encode_headers
from bridge.server.h2.streams import Stream
from bridge.server.native import answers
from bridge.server.native.arrivals import Arrivals
from bridge.server.protocols.framing import MessageError, MessageReader
from bridge.server.protocols.grpc import RequestHead, encode_metadata
from bridge.server.rpc import (
    Caller,
    Certificate,
    ClientDisconnectedError,
    RefusedByTransportError,
    RpcMethod,
    TakeRoom,
    find_expiry,
)

__all__ = ["Carrier", "NativeRpc"]

_UNKNOWN: Final = 2
_LOG: Final = structlog.get_logger("ollm_bridge")


class Carrier(Protocol):
    """The connection of a call, as far as the call uses it."""

    loop: asyncio.AbstractEventLoop
    peer: str
    certificate: Certificate
    arrivals: Arrivals

    def send_headers(self, stream: Stream, head: bytes) -> None:
        """Send the head of an answer."""
        ...

    def send_message(self, stream: Stream, head: bytes, message: bytes) -> bool:
        """Send a message, after the head if that was not sent; return False if it has to wait."""
        ...

    def end(self, stream: Stream, block: bytes) -> None:
        """End a stream with trailers, or an answer that is a head alone."""
        ...

    def open_window(self, stream: Stream, size: int) -> None:
        """Let the caller send so many bytes of its message."""
        ...

    def count_unread(self, call: "NativeRpc", change: int) -> None:
        """Count bytes of a message that nobody reads yet."""
        ...

    def release(self, stream: Stream, call: "NativeRpc") -> None:
        """Let go of a call that is over."""
        ...


class NativeRpc:
    """One call. The engine makes it, feeds it what comes, and cancels it; the boundary uses the rest."""

    __slots__ = (
        *("_arrival", "_expires_at", "_expiry", "_has_begun", "_has_ended", "_has_input_end", "_has_room"),
        *("_head_block", "_is_cancelled", "_is_closed", "_link", "_on_progress", "_reader", "_room", "_route"),
        *("_stream", "_task", "caller", "certificate", "metadata", "method", "peer", "timeout_s", "unread_bytes"),
    )

    def __init__(
        self, link: Carrier, stream: Stream, route: RpcMethod, head: RequestHead, caller: Caller | None, bytes_max: int
    ) -> None:
        self.method = route.name
        self.metadata = head.metadata
        self.timeout_s = head.timeout_s
        self.peer = link.peer
        self.certificate = link.certificate
        self.caller = caller
        self.unread_bytes = 0
        self._link = link
        self._stream = stream
        self._route = route
        self._reader = MessageReader(bytes_max, head.encoding)
        self._head_block: bytes | None = None
        self._has_begun = self._has_ended = self._has_input_end = self._is_closed = False
        self._is_cancelled = self._has_room = False
        self._arrival: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._on_progress: Callable[[], None] | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._expires_at = find_expiry(head.timeout_s, link.loop.time())
        if head.timeout_s is not None:
            self._expiry = link.loop.call_later(head.timeout_s, self._expire)
        link.arrivals.start(route, caller)
        self._task = link.loop.create_task(self._run())

    # What the boundary uses

    def has_expired(self) -> bool:
        """Return whether the caller's deadline has passed."""
        return self._link.loop.time() >= self._expires_at

    async def receive(self, take_room: TakeRoom | None = None) -> bytes | None:
        """Return the call's next message; None if the call ended without one, or within one.

        What fits into the first window counts as unread until it is whole; room is taken before the window opens wider.
        """
        try:
            while True:
                try:
                    is_known, message = self._read_message()
                except MessageError as error:
                    self.end(error.code, error.message, ())
                    raise RefusedByTransportError(error.code.name) from error
                if is_known:
                    return message
                held, missing = self._reader.held, self._reader.missing
                if held + missing > INITIAL and not self._has_room:
                    if take_room is not None:
                        await take_room()
                    self._has_room = True
                    self._link.count_unread(self, -self.unread_bytes)
                    continue
                self._link.open_window(self._stream, max(missing, INITIAL) if self._has_room else INITIAL - held)
                self._arrival = self._link.loop.create_future()
                await self._arrival
        finally:
            self._arrival = None
            self._has_room = False
            self._link.count_unread(self, -self.unread_bytes)

    async def decode(self, data: bytes) -> bytes:
        """Return a message as it is."""
        return data

    async def send_headers(self, metadata: Sequence[tuple[str, str]]) -> None:
        """Keep the initial metadata for the first message, or for the end if there is none."""
        block = encode_headers(encode_metadata(metadata))
        self._head_block = (self._head_block or answers.HEAD) + block

    async def send(self, message: bytes, on_progress: Callable[[], None] | None = None) -> None:
        """Send a message; wait while flow control holds it back."""
        if not self._stream.is_live:
            raise ClientDisconnectedError
        if not self._link.send_message(self._stream, self._head_block or answers.HEAD, message):
            self._room = self._link.loop.create_future()
            self._on_progress = on_progress
            try:
                await self._room
            finally:
                self._room = self._on_progress = None
            if not self._stream.is_live:
                raise ClientDisconnectedError

    def end(self, code: int, message: str, trailers: Metadata) -> None:
        """End the call with a status."""
        if self._has_ended:
            return
        self._has_ended = True
        block = answers.encode_trailers(code, message, trailers)
        if not self._stream.has_headers:
            if self._head_block is None:
                block = answers.HEAD + block
            else:
                self._link.send_headers(self._stream, self._head_block)
        self._link.end(self._stream, block)

    # What the engine uses

    def feed(self, data: bytes, *, is_end: bool) -> None:
        """Take a part of the body."""
        if self._has_ended:
            return
        self._reader.feed(data)
        self._has_input_end |= is_end
        if data and not self._has_room:
            self._link.count_unread(self, len(data))
        self._wake(self._arrival)

    def wake(self) -> None:
        """Go on: what waited has been sent."""
        self._wake(self._room)

    def report_progress(self) -> None:
        """Say that a part of what waits has been sent."""
        if self._on_progress is not None:
            self._on_progress()

    def cancel(self) -> None:
        """Cancel the call: its caller has left, or its deadline has passed."""
        self._has_ended = True
        if self._has_begun:
            if not self._is_cancelled and not self._is_closed:
                self._is_cancelled = True
                self._link.arrivals.leave(self.caller)
            self._task.cancel()
        else:  # a task that is cancelled before its first step runs no `finally`
            self._begin()
            self._task.cancel()
            self._close()

    def refuse(self, code: Code, message: str) -> None:
        """End the call with a status of the engine's own."""
        self.end(code, message, ())
        self.cancel()

    def _expire(self) -> None:
        self._expiry = None
        self.refuse(Code.DEADLINE_EXCEEDED, "Deadline Exceeded")

    def _read_message(self) -> tuple[bool, bytes | None]:
        """Return whether it is known what comes next, and the message. Raises MessageError.

        A method that takes one message gets it when nothing can follow any more.
        """
        takes_many = self._route.takes_many
        if not takes_many and not self._has_input_end:
            if not self._reader.missing and self._reader.has_more:
                raise MessageError(Code.UNIMPLEMENTED, "the method takes one message, and there are more")
            return False, None
        message = self._reader.read_message()
        if message is None and not self._has_input_end:
            return False, None
        if not takes_many and message is None and not self._reader.held:
            raise MessageError(Code.UNIMPLEMENTED, "the method takes one message, and there is none")
        if not takes_many and message is not None and self._reader.held:
            raise MessageError(Code.UNIMPLEMENTED, "the method takes one message, and there are more")
        return True, message

    def _begin(self) -> None:
        self._has_begun = True
        self._link.arrivals.begin(self._route, self.caller)

    async def _run(self) -> None:
        self._begin()
        try:
            await self._route.handle(self)
        except asyncio.CancelledError:
            pass  # by `cancel`, or after a refusal; nobody waits for this task
        except Exception as error:  # noqa: BLE001 - the caller must get a status
            _LOG.error("a call failed outside of its boundary", method=self.method, error=type(error).__name__)
        finally:
            self.end(_UNKNOWN, "the call ended without a status", ())
            self._close()

    def _close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._is_cancelled:
            self._link.arrivals.end(self.caller)
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        self._link.release(self._stream, self)

    @staticmethod
    def _wake(waiter: "asyncio.Future[None] | None") -> None:
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
