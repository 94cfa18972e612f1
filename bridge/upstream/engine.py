"""The bridge's own HTTP engine: posts to one URL by HTTP/1.1, over a bounded pool of connections.

Each place in the pool belongs to somebody: to a call, to an unused connection, or to nobody yet. Whoever gives a place
up hands it to the call that has waited longest, with the connection if that is good; so no newcomer overtakes it. A
kept connection is looked at before it is used again, and given up if anything has come on it.
"""

import asyncio
import functools
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from bridge.settings import UpstreamSettings
from bridge.upstream.dial import Dialer
from bridge.upstream.exchange import ConnectError
from bridge.upstream.framing import AnswerParser
from bridge.upstream.http1 import Connection, Http1Answer

__all__ = ["Http1Engine"]

_CLOSE_LINE: Final = "connection: close\r\n"


class Http1Engine:
    """An `exchange.Engine`. `url` is what is posted to. Raises SettingsError from `__init__`."""

    def __init__(self, settings: UpstreamSettings, *, url: str, connections_max: int) -> None:
        self._dialer = Dialer(settings, url)
        self._make_parser = functools.partial(
            AnswerParser, head_bytes_max=settings.head_bytes_max, head_fields_max=settings.head_fields_max
        )
        self._connect_timeout_s = settings.connect_timeout_s
        self._keepalive_s = settings.keepalive_s
        self._connections_max = connections_max
        self._request_lines = self._dialer.request_lines + ("" if settings.keepalive_s else _CLOSE_LINE)
        self._places_taken = 0
        self._unused: dict[Connection, float] = {}  # since when, the oldest first
        self._open: set[Connection] = set()
        self._waiting: OrderedDict[asyncio.Future[Connection | None], None] = OrderedDict()
        self._age_timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    @property
    def connections(self) -> int:
        """How many connections are in use, being made, or kept."""
        return self._places_taken

    async def post(self, headers: Sequence[tuple[str, str]], body: bytes, *, timeout_s: float) -> Http1Answer:
        """Post a request and return its answer when the head has come. Raises EngineError or ValueError."""
        head = self._encode_head(headers, len(body))
        connection = self._take_unused() or await self._wait_for_connection()
        return await connection.exchange(head, body, timeout_s=timeout_s)

    async def reach(self) -> None:
        """Make a connection and close it. Raises ConnectError."""
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                connection = await self._connect()
        except TimeoutError as error:
            raise ConnectError(self._describe_timeout("no connection")) from error
        connection.abort()

    async def close(self) -> None:
        """Close every connection; calls that wait for one fail."""
        self._is_closed = True
        if self._age_timer is not None:
            self._age_timer.cancel()
        for turn in self._waiting:
            if not turn.done():
                turn.set_exception(ConnectError("the client is closed"))
        self._waiting.clear()
        for connection in list(self._open):
            connection.abort()

    def _encode_head(self, headers: Sequence[tuple[str, str]], length: int) -> bytes:
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers])
        if not lines.count("\r") == lines.count("\n") == len(headers) or "\0" in lines:
            raise ValueError("expected headers of one line each, found a line break or a NUL in one")
        return f"{self._request_lines}content-length: {length}\r\n{lines}\r\n".encode("ascii")

    # A connection for a call. From when it is found good to when it is used, nothing is awaited.

    def _take_unused(self) -> Connection | None:
        while self._unused:
            connection, _ = self._unused.popitem()
            if connection.is_quiet():
                return connection
            connection.abort()
            self._pass_on(None)
        return None

    async def _wait_for_connection(self) -> Connection:
        missing = f"none of {self._connections_max} connections became free"
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                connection = await self._wait_for_place()
                if connection is not None and connection.is_quiet():
                    return connection
                missing = "no connection"
                return await self._replace(connection)
        except TimeoutError as error:
            raise ConnectError(self._describe_timeout(missing)) from error

    async def _wait_for_place(self) -> Connection | None:
        """Wait for a place in the pool, with a connection or empty."""
        if self._places_taken < self._connections_max:
            self._places_taken += 1
            return None
        turn: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = None
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._pass_on(turn.result())
            raise
        finally:
            self._waiting.pop(turn, None)

    async def _replace(self, connection: Connection | None) -> Connection:
        """Make a connection in a place, in which another may have stood."""
        if connection is not None:
            connection.abort()
        try:
            return await self._connect()
        except BaseException:
            self._pass_on(None)
            raise

    async def _connect(self) -> Connection:
        connection = Connection(make_parser=self._make_parser, on_free=self._take_back, on_lost=self._forget)
        await self._dialer.connect(connection)
        if connection.is_closing():
            raise ConnectError("the connection ended at once")
        self._open.add(connection)
        return connection

    def _describe_timeout(self, missing: str) -> str:
        return f"{missing} within {self._connect_timeout_s:g} s (upstream.connect_timeout_s)"

    # What becomes of a place

    def _take_back(self, connection: Connection, is_reusable: bool) -> None:  # noqa: FBT001 - a callback
        if is_reusable and self._keepalive_s and not self._is_closed:
            self._pass_on(connection)
            return
        connection.abort()
        self._pass_on(None)

    def _pass_on(self, connection: Connection | None) -> None:
        """Hand a place to the call that has waited longest, else keep its connection, else leave it free."""
        while self._waiting:
            turn, _ = self._waiting.popitem(last=False)
            if not turn.done():
                turn.set_result(connection)
                return
        if connection is None:
            self._places_taken -= 1
            return
        loop = asyncio.get_running_loop()
        self._unused[connection] = loop.time()
        if self._age_timer is None:
            self._age_timer = loop.call_later(self._keepalive_s, self._drop_aged)

    def _forget(self, connection: Connection) -> None:
        """Free the place of an unused connection that has ended; a call frees that of its own."""
        self._open.discard(connection)
        if self._unused.pop(connection, None) is not None:
            self._pass_on(None)

    def _drop_aged(self) -> None:
        self._age_timer = None
        loop = asyncio.get_running_loop()
        newest = loop.time() - self._keepalive_s
        for connection, since in list(self._unused.items()):
            if since > newest:
                self._age_timer = loop.call_at(since + self._keepalive_s, self._drop_aged)
                return
            connection.abort()
