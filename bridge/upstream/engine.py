"""The HTTP engine: a transport of httpx2's, on aiohttp's connections and by its parser.

aiohttp gives the pool, DNS, TLS, proxies and the parser in C. Its client is left out: it makes a dozen objects and a
task of each request, which costs more than all else that a call needs of HTTP. So here a request is a head and a body
written as one piece, and an answer is what aiohttp's parser makes of the bytes: no redirect is followed, no cookie
kept, nothing taken from the environment. Errors are aiohttp's own, since they tell what was never sent from what may
have run.
"""

from collections.abc import AsyncIterator

import aiohttp
import httpx2
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawResponseMessage
from yarl import URL

__all__ = ["Body", "Engine"]


class Body(httpx2.AsyncByteStream):
    """An answer's body while it comes. `content` has what has come of it, and waits for more."""

    def __init__(self, content: aiohttp.StreamReader, connection: Connection) -> None:
        self.content = content
        self._connection = connection

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self.content.readany():
            yield piece

    def read_nowait(self, bytes_max: int) -> bytes:
        """Give of the body what has come."""
        pieces = self.content._buffer  # noqa: SLF001 - aiohttp looks after each whether to read on, and each is an HTTP chunk
        if len(pieces) > 1:
            whole = b"".join(pieces)
            pieces.clear()
            pieces.append(whole)
        return self.content.read_nowait(bytes_max)

    async def aclose(self) -> None:
        """Give the connection back where the body has come to its end, and end it otherwise."""
        transport = self._connection.transport
        if transport is not None and transport.get_write_buffer_size():
            _end(self._connection)  # the answer came before all of the request had gone out
        else:
            self._connection.release()  # aiohttp closes it, unless the body has come to its end


class Engine(httpx2.AsyncBaseTransport):
    """Posts to one URL over the connector's connections, through `proxy` if there is one."""

    def __init__(
        self, connector: aiohttp.TCPConnector, url: httpx2.URL, *, proxy: str | None, connect_timeout_s: float
    ) -> None:
        self._connector = connector
        self._timeout = aiohttp.ClientTimeout(total=None, connect=connect_timeout_s, sock_connect=connect_timeout_s)
        # What the connector asks when it looks for a connection.
        self._place = place = aiohttp.ClientRequest("POST", URL(str(url)), proxy=URL(proxy) if proxy else None)
        self._by_proxy = proxy is not None and not place.is_ssl()  # it is sent what the upstream is to get, no tunnel
        target = str(place.url) if self._by_proxy else place.url.raw_path_qs
        self._first_lines = [f"POST {target} HTTP/1.1".encode(), f"host: {place.headers['host']}".encode()]
        if connector.force_close:
            self._first_lines.append(b"connection: close")

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Post a request and give its answer, once the head has come; its stream is a Body. Raises aiohttp's errors.

        The request's headers are all but those of the connection; a ValueError is one that would be two.
        """
        place = self._place
        body = await request.aread()
        connection = await self._connect()
        try:
            message, content = await _exchanged(connection, self._head(request, body), body)
        except HttpProcessingError as error:
            _end(connection)
            raise aiohttp.ClientResponseError(
                place.request_info, (), status=error.code, message=error.message
            ) from error
        except BaseException:
            _end(connection)
            raise
        return httpx2.Response(message.code, headers=message.raw_headers, stream=Body(content, connection))

    async def _connect(self) -> Connection:
        """Return a connection on which nothing waits: unasked bytes would become the answer to this request.

        aiohttp's pool hands out a kept connection without asking whether it should be closed.
        """
        while True:
            try:
                connection = await self._connector.connect(self._place, traces=[], timeout=self._timeout)
            except TimeoutError as error:
                raise aiohttp.ConnectionTimeoutError(f"Connection timeout to host {self._place.url}") from error
            if connection.protocol is None or not connection.protocol.should_close:
                return connection
            _end(connection)

    def _head(self, request: httpx2.Request, body: bytes) -> bytes:
        lines = [*self._first_lines, b"content-length: %d" % len(body)]
        if self._by_proxy and (known := self._place.headers.get("proxy-authorization")):  # set by the connector
            lines.append(f"proxy-authorization: {known}".encode())
        lines += [b"%b: %b" % header for header in request.headers.raw]
        head = b"\r\n".join([*lines, b"", b""])
        if not head.count(b"\r") == head.count(b"\n") == len(lines) + 1 or b"\0" in head:
            raise ValueError("expected headers of one line each, found a line break or a NUL in one")
        return head

    async def aclose(self) -> None:
        """Close every connection."""
        await self._connector.close()


async def _exchanged(
    connection: Connection, head: bytes, body: bytes
) -> tuple[RawResponseMessage, aiohttp.StreamReader]:
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
