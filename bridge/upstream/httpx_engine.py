"""The second engine: the interface of `exchange.py` over httpx2, for HTTP/2 and SOCKS proxies, and as a second opinion.

It shares no code with `engine.py` and passes the same tests; `tests/unit/upstream/engines.py` lists where they differ.
httpx2's transport is used without its client, which adds cookies, redirects, authentication and a log line a call.
Faults below it are worked around; `tests/unit/upstream/test_httpx_engine.py` fails when one is gone:

- h11 keeps bytes that came behind an answer, and httpcore2 takes them for the answer to the next request. So HTTP/1.1
  has a connection an exchange, whatever `keepalive_s` is.
- httpcore2 does not reset the HTTP/2 stream of a request that is left (encode/httpcore#1022), so the upstream would go
  on generating. So a connection has one stream at a time, is kept between two, and is closed if its stream is left.
- httpcore2 does not close a connection whose TLS handshake is cancelled. So the stream that its trace shows is closed.
- h2 takes a GOAWAY for the end of the connection, though the answer to a request before it may follow
  (python-hyper/h2#1181). So such an answer is lost, as if its connection had ended.
- httpx2 bounds each phase of a connect separately. So one timer bounds all, until the trace shows the request go out.
"""

import asyncio
import contextlib
import importlib.util
import math
import select
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import httpx2

from bridge.settings import UpstreamSettings
from bridge.upstream.exchange import ConnectionLostError, EngineError, InvalidAnswerError
from bridge.upstream.httpx_failures import to_engine_error
from bridge.upstream.tls import TlsContext

__all__ = ["HttpxAnswer", "HttpxEngine"]

_CONNECTED: Final = (".connect_tcp.complete", ".connect_unix_socket.complete")
_SENDING: Final = frozenset({"http11.send_request_headers.started", "http2.send_request_headers.started"})
"""Events of the trace after which a byte of the request may have been sent."""


class HttpxEngine:
    """Posts to one URL with httpx2."""

    def __init__(self, settings: UpstreamSettings, *, url: str, connections_max: int) -> None:
        self._proxy = settings.proxy
        self._socket_path = settings.socket_path
        self._connect_timeout_s = settings.connect_timeout_s
        self._keepalive_s = settings.keepalive_s
        self._url = httpx2.URL(url)
        self._tls = TlsContext(settings)
        self._is_http2 = self._url.scheme == "https" and importlib.util.find_spec("h2") is not None
        self._places = asyncio.Semaphore(connections_max)
        self._in_use: set[_Connection] = set()
        self._idle: deque[_Connection] = deque()  # the one that was used last is at the end
        self._closings: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None

    @property
    def connections(self) -> int:
        """How many connections are in use or kept."""
        return len(self._in_use) + len(self._idle)

    async def post(self, headers: Sequence[tuple[str, str]], body: bytes, *, timeout_s: float) -> "HttpxAnswer":
        """Post a request and return its answer when the head has come. See `Engine.post`."""
        request = self._request(headers, body)
        timer = asyncio.timeout(self._connect_timeout_s)
        connection: _Connection | None = None
        try:
            async with timer:
                connection = await self._take()
                connection.timer, connection.timeout_s, connection.is_sent = timer, timeout_s, False
                response = await connection.send(request)
        except BaseException as error:
            is_sent = connection is not None and connection.is_sent
            if connection is not None:
                self._end(connection)
            if isinstance(error, EngineError) or not isinstance(error, Exception):
                raise
            limit_s = timeout_s if is_sent else self._connect_timeout_s
            raise to_engine_error(error, is_sent=is_sent, limit_s=limit_s) from error
        return HttpxAnswer(self, connection, response)

    async def reach(self) -> None:
        """Make a connection, through the proxy and TLS if there are any, and close it. Raises ConnectError."""
        connection = _Connection(self._transport())
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                with contextlib.suppress(_ReachedError):
                    await connection.send(self._request((), b""))
        except Exception as error:
            raise to_engine_error(error, is_sent=False, limit_s=self._connect_timeout_s) from error
        finally:
            await connection.close()

    async def close(self) -> None:
        """Close every connection."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in (*self._in_use, *self._idle):
            self._end(connection)
        self._idle.clear()
        while self._closings:
            await asyncio.wait(self._closings)

    def give_back(self, connection: "_Connection", response: httpx2.Response, *, is_whole: bool) -> None:
        """Take a connection from its answer, to keep it only if nothing of this exchange can meet the next."""
        is_kept = is_whole and self._keepalive_s > 0 and response.extensions["http_version"] == b"HTTP/2"
        if not is_kept or connection not in self._in_use:
            self._end(connection)
            return
        connection.idle_since = asyncio.get_running_loop().time()
        self._in_use.discard(connection)
        self._idle.append(connection)
        self._places.release()
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(self._keepalive_s, self._sweep)

    def _request(self, headers: Sequence[tuple[str, str]], body: bytes) -> httpx2.Request:
        fields = [("host", self._url.netloc.decode("ascii")), ("content-length", str(len(body))), *headers]
        if not self._is_http2:
            fields.append(("connection", "close"))
        if any(char in name or char in value for name, value in fields for char in "\r\n\0"):
            raise ValueError("expected headers of one line each, found a line break or a NUL in one")
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields]
        return httpx2.Request("POST", self._url, headers=raw, stream=httpx2.ByteStream(body), extensions={})

    async def _take(self) -> "_Connection":
        """Return a connection for one exchange: the last one used if nothing came on it since, or a new one."""
        await self._places.acquire()
        while self._idle and not self._idle[-1].is_quiet():
            self._end(self._idle.pop())
        connection = self._idle.pop() if self._idle else _Connection(self._transport())
        self._in_use.add(connection)
        return connection

    def _transport(self) -> httpx2.AsyncHTTPTransport:
        return httpx2.AsyncHTTPTransport(
            verify=self._tls.current(),
            trust_env=False,
            http2=self._is_http2,
            limits=httpx2.Limits(max_connections=1, keepalive_expiry=None),
            proxy=self._proxy,
            uds=self._socket_path,
        )

    def _end(self, connection: "_Connection") -> None:
        """End a connection at once, unsent bytes included: in the loop's next turn, since httpx2 can do no better."""
        if connection in self._in_use:
            self._in_use.discard(connection)
            self._places.release()
        closing = asyncio.get_running_loop().create_task(connection.close())
        self._closings.add(closing)
        closing.add_done_callback(self._closings.discard)

    def _sweep(self) -> None:
        """Close the connections that nobody used for `keepalive_s`."""
        self._sweeper = None
        loop = asyncio.get_running_loop()
        oldest = loop.time() - self._keepalive_s
        while self._idle and self._idle[0].idle_since <= oldest:
            self._end(self._idle.popleft())
        if self._idle:
            self._sweeper = loop.call_at(self._idle[0].idle_since + self._keepalive_s, self._sweep)


class _Stream(Protocol):
    """What the trace says that a connect returned, as far as it is used here."""

    def get_extra_info(self, info: str) -> Any: ...
    async def aclose(self) -> None: ...


@dataclass(slots=True, eq=False)
class _Connection:
    """A transport that has one connection, with what its trace shows.

    `timer` bounds the connect until the request goes out, then the wait for the answer, `timeout_s` long. Without a
    timer the connection is given up when the request would go out.
    """

    transport: httpx2.AsyncHTTPTransport
    stream: _Stream | None = None
    pieces: AsyncGenerator[bytes, None] | None = None
    timer: asyncio.Timeout | None = None
    timeout_s: float = 0.0
    is_sent: bool = False
    idle_since: float = 0.0

    async def send(self, request: httpx2.Request) -> httpx2.Response:
        request.extensions["trace"] = self._trace
        response = await self.transport.handle_async_request(request)
        if response.status_code == 101:
            raise InvalidAnswerError("it switches protocols (HTTP 101), which nobody asked for")
        return response

    async def _trace(self, event: str, info: dict[str, Any]) -> None:
        if event.endswith(_CONNECTED):
            self.stream = info["return_value"]
        elif event in _SENDING and info["request"].method == b"POST":  # and not a proxy's CONNECT
            if self.timer is None:
                raise _ReachedError
            self.is_sent = True
            until = asyncio.get_running_loop().time() + self.timeout_s
            self.timer.reschedule(None if math.isinf(until) else until)

    def is_quiet(self) -> bool:
        """Whether nothing came while the connection was kept, not even its end."""
        if self.stream is None:
            return False
        unread = select.poll()
        unread.register(self.stream.get_extra_info("socket").fileno(), select.POLLIN)
        return not unread.poll(0)

    async def close(self) -> None:
        """End the connection, also one in its TLS handshake, then the generator of the body, which may wait for it."""
        for each in (self.transport, self.stream, self.pieces):
            if each is not None:
                with contextlib.suppress(Exception):
                    await each.aclose()


class _ReachedError(Exception):
    """No failure: the connection stands, and the request would go out next."""


class HttpxAnswer:
    """An answer whose head has come. httpx2 returns nothing of the body without a wait."""

    def __init__(self, engine: HttpxEngine, connection: _Connection, response: httpx2.Response) -> None:
        self.status = response.status_code
        self.headers = [(name.lower(), value) for name, value in response.headers.raw]
        is_framed = bool({b"content-length", b"transfer-encoding"} & dict(self.headers).keys())
        self.ends_with_connection = response.http_version != "HTTP/2" and not is_framed
        self._engine = engine
        self._connection = connection
        self._response = response
        self._pieces = connection.pieces = response.aiter_raw()
        self._is_whole = False
        self._is_closed = False
        self._failure: EngineError | None = None

    def read_nowait(self) -> bytes:
        """Return `b""`: httpx2 does not say what has come."""
        return b""

    async def read(self, timeout_s: float) -> bytes:
        """Return what has come of the body, and wait for some if nothing has; `b""` at the end. Raises EngineError."""
        if self._failure is not None:
            raise self._failure
        self._failure = ConnectionLostError("the read was cancelled")  # unless it comes to an end
        try:
            async with asyncio.timeout(None if math.isinf(timeout_s) else timeout_s):
                piece = await anext(self._pieces, None)
                while piece == b"":
                    piece = await anext(self._pieces, None)
        except Exception as error:
            self._failure = to_engine_error(error, is_sent=True, limit_s=timeout_s)
            raise self._failure from error
        self._failure = None
        if piece is not None:
            return piece
        self._is_whole = True
        return b""

    def close(self) -> None:
        """Return the connection if the answer was read to its end and it can be kept, else end it at once."""
        if not self._is_closed:
            self._is_closed = True
            self._engine.give_back(self._connection, self._response, is_whole=self._is_whole)
