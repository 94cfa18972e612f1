"""HTTP/1.1 on the server's side: requests in, one after the other, and the steps of their answers out.

The bytes of a step are written as they are, since an answer may be broken HTTP. The connection always reads, so that a
peer that disconnects is seen at once; that cancels the answer. A connection is given the function that answers an
exchange, and knows nothing of the gateway.
"""

import asyncio
import contextlib
import functools
import math
import socket
import struct
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from email.utils import formatdate
from http import HTTPStatus
from typing import assert_never, cast

from bridge.emulator.exchange import Exchange
from bridge.emulator.reader import BODY_BYTES_MAX, HEAD_BYTES_MAX, RequestReader
from bridge.emulator.steps import Disconnect, Head, Header, RefusalError, Step, Wait, Write

__all__ = ["Connection"]

LINGER_S = 1.0
"""How long the emulator, once it has closed, waits for the peer to close too, so that no reset destroys the answer."""
WRITES_PER_TURN = 32
"""Then other connections get the loop."""

_REASON_PHRASES = {status.value: status.phrase for status in HTTPStatus}


class Connection(asyncio.Protocol):
    """One TCP connection.

    Args:
        answer: returns the steps that answer an exchange.
        build_headers: returns the headers that every response to an exchange ends with.
        on_open: called with the connection when it is there; it may reset it.
        on_close: called with the connection when it is no more.
    """

    def __init__(
        self,
        answer: Callable[[Exchange], Iterator[Step]],
        build_headers: Callable[[Exchange], Iterable[Header]],
        *,
        on_open: Callable[["Connection"], None],
        on_close: Callable[["Connection"], None],
    ) -> None:
        self._answer = answer
        self._build_headers = build_headers
        self._on_open = on_open
        self._on_close = on_close
        self._exchanges: weakref.WeakSet[Exchange] = weakref.WeakSet()
        self._reader = RequestReader(self._send_continue)
        self._writable = asyncio.Event()
        self._writable.set()
        self._lost = asyncio.Event()
        self._is_closing = False
        self._is_over = False

    @property
    def is_writable(self) -> bool:
        """Whether all that was written is the kernel's."""
        return self._writable.is_set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to serve."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=0)  # the transport is then paused until the kernel has it all
        self._task = asyncio.get_running_loop().create_task(self._serve())
        self._on_open(self)

    def data_received(self, data: bytes) -> None:
        """Keep what came until it is read; not without bound."""
        if self._is_closing:
            return
        self._reader.feed(data)
        if self._reader.unread_bytes > HEAD_BYTES_MAX + BODY_BYTES_MAX:
            self.abort()

    def eof_received(self) -> bool:
        """Take the peer's end for a disconnect, as gateways do."""
        self._mark_disconnect()
        self._transport.abort()
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the base's signature
        """End what is being played, if the peer is the cause."""
        if not self._is_over:
            self._mark_disconnect()
        self._on_close(self)
        self._lost.set()

    def pause_writing(self) -> None:
        """Wait, the kernel's buffer is full."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Go on."""
        self._writable.set()

    def abort(self) -> None:
        """End the connection at once."""
        self._is_over = True
        self._task.cancel()
        self._transport.abort()

    def reset(self) -> None:
        """End the connection by RST."""
        peer = self._transport.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.abort()

    async def wait_lost(self) -> None:
        """Wait for the end of an aborted connection and of its task."""
        await asyncio.gather(self._task, return_exceptions=True)
        await self._lost.wait()

    def _mark_disconnect(self) -> None:
        self._is_over = True
        for exchange in self._exchanges:
            exchange.closed_at = time.monotonic()
            exchange.closed.set()
        self._task.cancel()

    async def _serve(self) -> None:
        try:
            while await self._serve_one():
                pass
            if not self._is_over:
                await self._close()
        finally:
            self.abort()

    def _send_continue(self) -> None:
        self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def _close(self) -> None:
        """Send FIN, then wait a little for the peer's, which cancels this task."""
        self._is_closing = True
        await self._writable.wait()
        with contextlib.suppress(OSError):  # the peer has reset it meanwhile
            self._transport.write_eof()
        await asyncio.sleep(LINGER_S)

    async def _serve_one(self) -> bool:
        """Answer the next request; return whether another may follow on this connection."""
        try:
            exchange, keep_alive = await self._reader.read()
        except RefusalError as refusal:
            return await self._play(Exchange("GET", "", {}, b""), refusal.send(), keep_alive=False)
        self._exchanges.add(exchange)
        return await self._play(exchange, self._answer(exchange), keep_alive=keep_alive)

    async def _play(self, exchange: Exchange, steps: Iterator[Step], *, keep_alive: bool) -> bool:
        """Do the steps; return whether the connection can take another request."""
        chunked, unsent = False, b""
        for count, step in enumerate(steps, 1):
            match step:
                case Head(status, _, length):
                    chunked = length is None
                    unsent = self._encode_head(exchange, step, keep_alive=keep_alive)
                    exchange.status = status
                    exchange.billed = exchange.billed and status < 400
                case Write(data, events, framed):
                    if exchange.method == "HEAD":
                        data = b""
                    elif chunked and framed:
                        data = b"%X\r\n%b\r\n" % (len(data), data)
                    self._transport.write(unsent + data)
                    unsent = b""
                    exchange.events_sent += events
                    await self._writable.wait()
                    if count % WRITES_PER_TURN == 0:
                        await asyncio.sleep(0)
                case Wait(seconds):
                    self._transport.write(unsent)
                    unsent = b""
                    await (asyncio.sleep(seconds) if seconds < math.inf else asyncio.Event().wait())
                case Disconnect(reset):
                    self._transport.write(unsent)
                    await self._writable.wait()
                    if reset:
                        self.reset()
                    return False
                case _:
                    assert_never(step)
        self._transport.write(unsent + (b"0\r\n\r\n" if chunked else b""))
        await self._writable.wait()
        exchange.finished = True
        return keep_alive

    def _encode_head(self, exchange: Exchange, head: Head, *, keep_alive: bool) -> bytes:
        lines = [
            *head.headers,
            ("transfer-encoding", "chunked") if head.length is None else ("content-length", str(head.length)),
            *([] if keep_alive else [("connection", "close")]),
            ("date", _format_date(int(time.time()))),
            *self._build_headers(exchange),
        ]
        text = "".join(f"{name}: {_join_lines(value)}\r\n" for name, value in lines)
        reason = _REASON_PHRASES.get(head.status, "Unknown")
        return f"HTTP/1.1 {head.status} {reason}\r\n{text}\r\n".encode("latin-1", "replace")


@functools.lru_cache(maxsize=1)
def _format_date(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)


def _join_lines(value: str) -> str:
    return value.replace("\r", " ").replace("\n", " ")
