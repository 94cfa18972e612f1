"""One connection with one exchange at a time: an asyncio.Protocol that parses as bytes come.

A connection belongs to the pool or to one answer. Bytes that come while no exchange is on, or after an answer's end,
were not asked for: they end the connection, and can never be part of another answer. A wait costs one future; one timer
a connection, left to run, serves all its waits.
"""

import asyncio
import math
import socket
import ssl
from collections.abc import Callable
from os import strerror
from typing import Final

from bridge.upstream.exchange import ConnectionLostError, ReadTimeoutError
from bridge.upstream.framing import AnswerParser

__all__ = ["Connection", "Http1Answer", "describe_cause"]

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

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for more of it."""
        return self._waiter is not None

    async def _wait(self, deadline: float) -> None:
        self._connection.start_timer(deadline)
        self._waiter = self._connection.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


class Connection(asyncio.Protocol):
    """A connection of the pool. `attach` it to its transport before its first exchange.

    `on_free` is called when an exchange ends, with whether another may follow; else the connection has been aborted.
    `on_lost` is called once the transport has ended.
    """

    __slots__ = (
        "_answer",
        "_deadline",
        "_fires_at",
        "_head_bytes_max",
        "_is_paused",
        "_on_free",
        "_on_lost",
        "_raw_transport",
        "_socket",
        "_timer",
        "_transport",
        "loop",
    )

    def __init__(
        self,
        *,
        head_bytes_max: int,
        on_free: Callable[["Connection", bool], None],
        on_lost: Callable[["Connection"], None],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._head_bytes_max = head_bytes_max
        self._on_free = on_free
        self._on_lost = on_lost
        self._answer: Http1Answer | None = None
        self._is_paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._fires_at = self._deadline = math.inf

    def attach(self, transport: asyncio.Transport, raw_transport: asyncio.Transport, sock: socket.socket) -> None:
        """Take what carries it: below TLS, the raw transport has the bytes that are yet to be sent."""
        self._transport = transport
        self._raw_transport = raw_transport
        self._socket = sock

    def is_closing(self) -> bool:
        """Whether the connection has ended or is about to."""
        return self._transport.is_closing()

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
        answer = self._answer = Http1Answer(self, AnswerParser(head_bytes_max=self._head_bytes_max))
        self._transport.writelines((head, body))
        try:
            await answer.wait_for_head(timeout_s)
        except BaseException:
            answer.close()
            raise
        return answer

    def end_exchange(self, *, is_reusable: bool) -> None:
        """Leave the exchange: for the pool if the connection can serve another, else for good."""
        self._answer = None
        is_reusable = is_reusable and not self._transport.is_closing() and not self._unsent_bytes()
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

    def _unsent_bytes(self) -> int:
        return self._transport.get_write_buffer_size() + self._raw_transport.get_write_buffer_size()

    # What the transport calls

    def data_received(self, data: bytes) -> None:
        """Parse what has come."""
        answer = self._answer
        if answer is None:  # nobody asked for it
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

    def eof_received(self) -> None:
        """Take the peer's end in order, which is the end of the connection: it is not used in one direction."""
        if self._answer is not None:
            self._answer.parser.feed_end()
            self._answer.wake()
        self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """Take the end of the transport, whoever ended it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._answer is not None:
            self._answer.parser.fail_as_lost(describe_cause(error) if error is not None else "")
            self._answer.wake()
        self._on_lost(self)

    # Time

    def start_timer(self, deadline: float) -> None:
        """Let the wait that begins now fail at a moment of the loop's time, unless it is over by then."""
        self._deadline = deadline
        if deadline < self._fires_at:
            if self._timer is not None:
                self._timer.cancel()
            self._schedule(deadline)

    def _schedule(self, fires_at: float) -> None:
        self._fires_at = fires_at
        self._timer = self.loop.call_at(fires_at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._fires_at = math.inf
        answer = self._answer
        if answer is None or not answer.is_awaited or self._deadline == math.inf:
            return
        if self.loop.time() < self._deadline:
            self._schedule(self._deadline)
            return
        answer.parser.fail(ReadTimeoutError("nothing came in time"))
        answer.wake()
        self.abort()


def describe_cause(error: BaseException) -> str:
    """Say in words what the system or OpenSSL says, without the addresses and values that asyncio adds."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verification failed: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and (reason := getattr(error, "reason", None)):
        return str(reason).lower().replace("_", " ")
    if isinstance(error, socket.gaierror):
        return str(error.strerror).lower()
    if isinstance(error, OSError) and error.errno:
        return strerror(error.errno).lower()
    return "connection reset" if isinstance(error, ConnectionError) else "network error"
