"""The HTTP engine: httpx2's transport interface, on aiohttp's connections and its parser.

aiohttp gives the pool, DNS, TLS, proxies and the parser in C. Its client is left out: it makes a dozen objects and a
task of each request, which costs more than all else that a call needs of HTTP. So here a request is a head and a body
written as one piece, and an answer is what aiohttp's parser makes of the bytes. Errors are aiohttp's own, since they
tell what was never sent from what may have run.

A request must have its headers whole, `content-length` among them; `host` and the proxy's are added.
"""

import functools
from collections.abc import AsyncIterator
from typing import Final

import aiohttp
import httpx2
from aiohttp import StreamReader
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawResponseMessage
from yarl import URL

__all__ = ["Body", "Engine"]

_PLACES_MAX: Final = 16
"""URLs whose preparation is kept; a bridge has one."""


class Body(httpx2.AsyncByteStream):
    """A response's body while it comes. `content` is what has come of it, and waits for more.

    Closing it gives the connection back to the pool where the body has been read to its end, and ends it otherwise.
    """

    def __init__(self, connection: Connection, content: StreamReader) -> None:
        self._connection = connection
        self.content = content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self.content.readany():
            yield piece

    async def aclose(self) -> None:
        """Let go of the connection."""
        transport = self._connection.transport
        if transport is not None and transport.get_write_buffer_size():
            _end(self._connection)  # the answer came before all of the request had gone out
        else:
            self._connection.release()  # aiohttp closes it, unless the body has come to its end


class Engine(httpx2.AsyncBaseTransport):
    """Sends requests over the connector's connections, through `proxy` if there is one."""

    def __init__(self, connector: aiohttp.TCPConnector, *, proxy: str | None, connect_timeout_s: float) -> None:
        self._connector = connector
        self._proxy = URL(proxy) if proxy else None
        self._timeout = aiohttp.ClientTimeout(total=None, connect=connect_timeout_s, sock_connect=connect_timeout_s)
        self._place = functools.lru_cache(_PLACES_MAX)(self._prepared)

    def _prepared(self, method: str, url: str) -> aiohttp.ClientRequest:
        """Give what aiohttp's connector asks when it looks for a connection."""
        return aiohttp.ClientRequest(method, URL(url), proxy=self._proxy)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request and give the answer, once its head has come. Raises aiohttp's errors."""
        body = await request.aread()
        place = self._place(request.method, str(request.url))
        connection = await self._connected(place)
        try:
            message, content = await _exchanged(connection, self._head(place, request), body)
        except HttpProcessingError as error:
            _end(connection)
            raise aiohttp.ClientResponseError(
                place.request_info, (), status=error.code, message=error.message
            ) from error
        except BaseException:
            _end(connection)
            raise
        return httpx2.Response(message.code, headers=message.raw_headers, stream=Body(connection, content))

    async def _connected(self, place: aiohttp.ClientRequest) -> Connection:
        try:
            return await self._connector.connect(place, traces=[], timeout=self._timeout)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError(f"Connection timeout to host {place.url}") from error

    def _head(self, place: aiohttp.ClientRequest, request: httpx2.Request) -> bytes:
        """Give the request's head. Raises ValueError for a header that would be two."""
        through = place.proxy is not None and not place.is_ssl()  # a proxy that is sent what the upstream is to get
        target = str(place.url) if through else place.url.raw_path_qs
        lines = [f"{place.method} {target} HTTP/1.1".encode(), b"host: " + place.headers["host"].encode()]
        if through and (known := place.headers.get("proxy-authorization")):  # set by the connector
            lines.append(b"proxy-authorization: " + known.encode())
        if self._connector.force_close:
            lines.append(b"connection: close")
        lines += [b"%b: %b" % header for header in request.headers.raw]
        head = b"\r\n".join([*lines, b"", b""])
        if not head.count(b"\r") == head.count(b"\n") == len(lines) + 1 or b"\0" in head:
            raise ValueError("expected headers of one line each, found a line break or a NUL in one")
        return head

    async def aclose(self) -> None:
        """Close every connection."""
        await self._connector.close()


async def _exchanged(connection: Connection, head: bytes, body: bytes) -> tuple[RawResponseMessage, StreamReader]:
    """Send a request and await the head of its answer; those before the final one (RFC 9110, 15.2) are passed over."""
    protocol, transport = connection.protocol, connection.transport
    if protocol is None or transport is None:
        raise aiohttp.ClientConnectionResetError("Connection lost")
    protocol.set_response_params(auto_decompress=False, read_until_eof=True)
    transport.writelines((head, body))
    while True:
        message, content = await protocol.read()
        if not 100 <= message.code < 200 or message.code == 101:
            return message, content


def _end(connection: Connection) -> None:
    """Close a connection at once, also where it has more to send: a close would wait for the peer to take it."""
    if connection.protocol is not None:
        connection.protocol.abort()
    connection.close()
