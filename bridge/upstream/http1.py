"""One connection with one exchange at a time: an asyncio.Protocol that parses as bytes come.

A connection belongs to the pool or to one answer. Bytes that come while no exchange is on, or after an answer's end,
were not asked for: they end the connection, and can never be part of another answer. Only what a new connection brings
before its first request is the answer to that, since it can be nobody else's: a server that is full may say so and
close at once. A wait costs one future; one timer a connection, left to run, serves all its waits.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Final, cast

from bridge.upstream.causes import describe_cause
from bridge.upstream.exchange import ConnectError, ConnectionLostError, ReadTimeoutError
from bridge.upstream.framing import AnswerParser
from bridge.upstream.wait_timer import WaitTimer

__all__ = ["Connection", "Http1Answer"]

HELD_BYTES_MAX: Final = 64 * 1024
"""Of a body, what may wait for its reader before the connection is read no further; one more read may come."""


class Http1Answer:
    """An answer, as `exchange.Answer` has it. Once closed it has nothing to do with the connection any more."""

    __slots__ = ("_connection", "_is_closed", "_waiter", "parser")

    def __init__(self, connection: "Connection", parser: AnswerParser) -> None:
        self._connection = connection
        self._is_closed = False
        self._waiter: asyncio.Future[None] | None = None
        self.parser = parser

    @property
    def status(self) -> int:
        """The final status."""
        return self.parser.status

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The header fields in their order, with lower-case names."""
        return self.parser.headers

    @property
    def ends_with_connection(self) -> bool:
        """Whether the body is framed by the connection's end alone."""
        return self.parser.ends_with_connection

    def read_nowait(self) -> bytes:
        """Return what has come of the body."""
        if not self.parser.pieces:
            return b""
        data = self.parser.take()
        self._connection.resume_reading()
        return data

    async def read(self, timeout_s: float) -> bytes:
        """Return what has come of the body, and wait for some if nothing has; `b""` at the end. Raises EngineError."""
        parser = self.parser
        while not parser.pieces:
            if parser.is_complete:
                return b""
            if parser.failure is not None:
                raise parser.failure
            await self._wait(self._connection.loop.time() + timeout_s)
        return self.read_nowait()

    async def wait_for_head(self, timeout_s: float) -> None:
        """Wait until the head has come. Raises EngineError."""
        parser = self.parser
        deadline = self._connection.loop.time() + timeout_s
        while not parser.status:
            if parser.failure is not None:
                raise parser.failure
            await self._wait(deadline)

    def close(self) -> None:
        """Return the connection if the exchange is over on both sides, else end it at once."""
        if self._is_closed:
            return
        self._is_closed = True
        parser = self.parser
        parser.pieces.clear()
        if not parser.is_complete and parser.failure is None:
            parser.fail(ConnectionLostError("the answer was closed before its end"))
        self._connection.end_exchange(is_reusable=parser.is_reusable)

    def wake(self) -> None:
        """Let whoever waits look at the parser again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self, deadline: float) -> None:
        connection = self._connection
        connection.timer.start(deadline, connection.fail_late)
        self._waiter = connection.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
            connection.timer.pause()


class Connection(asyncio.Protocol):
    """A connection of the pool. `attach` it to its transport before its first exchange.

    `on_free` is called when an exchange ends, with whether another may follow; else the connection has been aborted.
    `on_lost` is called once the transport has ended.
    """

    __slots__ = (
        "_answer",
        "_early",
        "_has_early_end",
        "_is_new",
        "_is_paused",
        "_make_parser",
        "_on_free",
        "_on_lost",
        "_raw_transport",
        "_socket",
        "_transport",
        "loop",
        "timer",
    )

    def __init__(
        self,
        *,
        make_parser: Callable[[], AnswerParser],
        on_free: Callable[["Connection", bool], None],
        on_lost: Callable[["Connection"], None],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._make_parser = make_parser
        self._on_free = on_free
        self._on_lost = on_lost
        self._answer: Http1Answer | None = None
        self._is_new = True
        self._early = b""
        self._has_early_end = False
        self._is_paused = False
        self.timer = WaitTimer(self.loop)

    def attach(self, transport: asyncio.Transport, raw_transport: asyncio.Transport, sock: socket.socket) -> None:
        """Take what carries it: below TLS, the raw transport has the bytes that are yet to be sent."""
        self._transport = transport
        self._raw_transport = raw_transport
        self._socket = sock

    def is_closing(self) -> bool:
        """Whether the connection has ended or is about to, and has not brought an early answer."""
        return self._transport.is_closing() and not self._early

    def is_quiet(self) -> bool:
        """Whether the connection still stands and nothing has come on it, its end included.

        Bytes that the loop has not read yet count. With TLS they are records, of which some are the peer's own affairs
        (a session ticket); the connection is given up for them too. A record of which a part has been read is not seen.
        """
        if self._transport.is_closing():
            return False
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    async def exchange(self, head: bytes, body: bytes, *, timeout_s: float) -> Http1Answer:
        """Send a request and return its answer when the head has come. Raises EngineError."""
        answer = self._answer = Http1Answer(self, self._make_parser())
        if self._early:
            self._take_early(answer.parser)
        if not answer.parser.is_complete and answer.parser.failure is None:
            self._transport.writelines((head, body))
        self._is_new = False
        try:
            await answer.wait_for_head(timeout_s)
        except BaseException:
            answer.close()
            raise
        return answer

    def _take_early(self, parser: AnswerParser) -> None:
        """Parse what came before the first request. If that is all there is, the request need not be sent."""
        parser.feed(self._early)
        if self._has_early_end or self._transport.is_closing():
            parser.feed_end()
        if isinstance(parser.failure, ConnectionLostError):
            parser.fail(ConnectError("the connection ended at once"))

    def end_exchange(self, *, is_reusable: bool) -> None:
        """Leave the exchange: for the pool if the connection can serve another, else for good."""
        self._answer = None
        is_reusable = is_reusable and not (self._early or self._transport.is_closing() or self._unsent_bytes())
        if is_reusable:
            self.resume_reading()
        else:
            self.abort()
        self._on_free(self, is_reusable)

    def abort(self) -> None:
        """End the connection at once; what has not been sent is dropped."""
        self._transport.abort()

    def resume_reading(self) -> None:
        """Read on, if reading was paused."""
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()

    def fail_late(self) -> None:
        """End an exchange for which nothing came in time."""
        answer = self._answer
        if answer is not None:
            answer.parser.fail(ReadTimeoutError("nothing came in time"))
            answer.wake()
            self.abort()

    def _unsent_bytes(self) -> int:
        return self._transport.get_write_buffer_size() + self._raw_transport.get_write_buffer_size()

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport; it may bring bytes, or its end, before `attach`."""
        self._transport = self._raw_transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Parse what has come."""
        answer = self._answer
        if answer is None:
            self._early += data
            if not self._is_new or len(self._early) > HELD_BYTES_MAX:  # nobody asked for it
                self.abort()
            return
        parser = answer.parser
        parser.feed(data)
        if parser.failure is not None or (parser.is_complete and not parser.is_reusable):
            self.abort()
        elif parser.held_bytes > HELD_BYTES_MAX and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
        answer.wake()

    def eof_received(self) -> bool:
        """Take the peer's end in order, which is the end of the connection: it is not used in one direction.

        asyncio's own loop calls this also if TLS was not ended by close_notify; uvloop does not.
        """
        if self._answer is None and self._is_new and self._early:
            self._has_early_end = True
            return True
        if self._answer is not None:
            self._answer.parser.feed_end()
            self._answer.wake()
        self.abort()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """Take the end of the transport, whoever ended it."""
        self.timer.stop()
        if self._answer is not None:
            self._answer.parser.fail_as_lost(describe_cause(error) if error is not None else "")
            self._answer.wake()
        self._on_lost(self)
