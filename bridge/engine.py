"""The HTTP engine: one request and its answer, on aiohttp's connections and by its parser.

aiohttp gives the pool, DNS, TLS, proxies and the parser in C. Its client is left out: it makes a dozen objects and a
task of each request, which costs more than all else that a call needs of HTTP. So here a request is a head and a body
written as one piece, and an answer is what aiohttp's parser makes of the bytes: no redirect is followed, no cookie
kept, nothing taken from the environment. Errors are aiohttp's own, since they tell what was never sent from what may
have run.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import aiohttp
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawResponseMessage
from yarl import URL

__all__ = ["Answer", "Engine"]


@dataclass(eq=False, slots=True)
class Answer:
    """An answer whose head has come: `content` has what has come of its body, and waits for more."""

    head: RawResponseMessage
    content: aiohttp.StreamReader
    connection: Connection

    def header(self, name: str) -> str:
        """Give a header's values, joined as RFC 9110, 5.3, has it; "" where there is none."""
        return ", ".join(self.head.headers.getall(name, ()))

    def read_nowait(self, bytes_max: int) -> bytes:
        """Give of the body what has come."""
        pieces = self.content._buffer  # noqa: SLF001 - aiohttp looks after each whether to read on, and each is an HTTP chunk
        if len(pieces) > 1:
            whole = b"".join(pieces)
            pieces.clear()
            pieces.append(whole)
        return self.content.read_nowait(bytes_max)

    def close(self) -> None:
        """Give the connection back where the body has come to its end, and end it otherwise."""
        transport = self.connection.transport
        if transport is not None and transport.get_write_buffer_size():
            _end(self.connection)  # the answer came before all of the request had gone out
        else:
            self.connection.release()  # aiohttp closes it, unless the body has come to its end


class Engine:
    """Posts to one URL over the connector's connections, through `proxy` if there is one."""

    def __init__(
        self, connector: aiohttp.TCPConnector, url: str, *, proxy: str | None, connect_timeout_s: float
    ) -> None:
        self._connector = connector
        self._timeout = aiohttp.ClientTimeout(total=None, connect=connect_timeout_s, sock_connect=connect_timeout_s)
        # What the connector asks when it looks for a connection.
        self._place = place = aiohttp.ClientRequest("POST", URL(url), proxy=URL(proxy) if proxy else None)
        self._by_proxy = proxy is not None and not place.is_ssl()  # it is sent what the upstream is to get, no tunnel
        target = str(place.url) if self._by_proxy else place.url.raw_path_qs
        self._first_lines = [f"POST {target} HTTP/1.1", f"host: {place.headers['host']}"]
        if connector.force_close:
            self._first_lines.append("connection: close")

    async def post(self, headers: Iterable[tuple[str, str]], body: bytes) -> Answer:
        """Send a request and give its answer, once the head has come. Raises aiohttp's errors.

        `headers` are all but those of the connection; a ValueError is one that would be two.
        """
        place = self._place
        try:
            connection = await self._connector.connect(place, traces=[], timeout=self._timeout)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError(f"Connection timeout to host {place.url}") from error
        try:
            return await _exchanged(connection, self._head(headers, body), body)
        except HttpProcessingError as error:
            _end(connection)
            raise aiohttp.ClientResponseError(
                place.request_info, (), status=error.code, message=error.message
            ) from error
        except BaseException:
            _end(connection)
            raise

    def _head(self, headers: Iterable[tuple[str, str]], body: bytes) -> bytes:
        lines = [*self._first_lines, f"content-length: {len(body)}"]
        if self._by_proxy and (known := self._place.headers.get("proxy-authorization")):  # set by the connector
            lines.append(f"proxy-authorization: {known}")
        lines += [f"{name}: {value}" for name, value in headers]
        head = "\r\n".join([*lines, "", ""])
        if not head.count("\r") == head.count("\n") == len(lines) + 1 or "\0" in head:
            raise ValueError("expected headers of one line each, found a line break or a NUL in one")
        return head.encode("ascii")


async def _exchanged(connection: Connection, head: bytes, body: bytes) -> Answer:
    """Send a request and await the head of its answer; those before the final one (RFC 9110, 15.2) are passed over."""
    protocol, transport = connection.protocol, connection.transport
    if protocol is None or transport is None:
        raise aiohttp.ClientConnectionResetError("Connection lost")
    protocol.set_response_params(auto_decompress=False, read_until_eof=True)
    transport.writelines((head, body))
    while True:
        answer, content = await protocol.read()
        if not 100 <= answer.code < 200 or answer.code == 101:
            return Answer(answer, content, connection)


def _end(connection: Connection) -> None:
    """Close a connection at once, also where it has more to send: a close would wait for the peer to take it."""
    if connection.protocol is not None:
        connection.protocol.abort()
    connection.close()
