"""Requests out of the bytes that a peer sends, read by h11; what is not HTTP, or too large, is refused.

A reader is fed by its connection and waits for what is missing. Beside h11's rules it has its own: no version but 1.0
and 1.1, one framing a request, no content encoding, and bounds.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, cast

import h11

from bridge.emulator.exchange import Exchange
from bridge.emulator.steps import RefusalError

__all__ = ["BODY_BYTES_MAX", "HEAD_BYTES_MAX", "Request", "RequestReader"]

HEAD_BYTES_MAX = 64 * 1024
"""Of a request's line and headers, and of a chunked body's trailers: four times what common servers take."""
BODY_BYTES_MAX = 64 * 1024 * 1024
"""Above the bridge's own limit of 16 MiB, so that the bridge's limit is the one that is met."""


class Request(NamedTuple):
    """A whole request, and whether its sender wants to keep the connection."""

    exchange: Exchange
    keep_alive: bool


class RequestReader:
    """The requests of one connection, one after the other.

    Args:
        send_continue: called when the peer waits for `100 Continue` before it sends the body.
    """

    def __init__(self, send_continue: Callable[[], None]) -> None:
        self._send_continue = send_continue
        self._pieces: deque[bytes] = deque()
        self._fed = asyncio.Event()
        self.unread_bytes = 0

    def feed(self, data: bytes) -> None:
        """Add bytes that came."""
        self._pieces.append(data)
        self.unread_bytes += len(data)
        self._fed.set()

    async def read(self) -> Request:
        """Return the next request, once it is whole; RefusalError says what is wrong with it."""
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
        try:
            head = cast("h11.Request", await self._read_event(parser))
            headers = _join_headers(head)
            _check_head(head, headers)
            if parser.they_are_waiting_for_100_continue and not (self._pieces or parser.trailing_data[0]):
                self._send_continue()
            body = bytearray()
            while isinstance(event := await self._read_event(parser), h11.Data):
                body += event.data
                if len(body) > BODY_BYTES_MAX:
                    raise _refuse_body()
        except h11.RemoteProtocolError as error:
            raise _refuse_http(error) from error
        if rest := parser.trailing_data[0]:
            self._pieces.appendleft(rest)
            self.unread_bytes += len(rest)
        exchange = Exchange(head.method.decode(), head.target.decode(), headers, bytes(body))
        connection = headers.get("connection", "").lower()
        is_kept = "close" not in connection if head.http_version == b"1.1" else "keep-alive" in connection
        return Request(exchange, is_kept)

    async def _read_event(self, parser: h11.Connection) -> h11.Event:
        while (event := parser.next_event()) is h11.NEED_DATA:
            while not self._pieces:
                self._fed.clear()
                await self._fed.wait()
            data = self._pieces.popleft()
            self.unread_bytes -= len(data)
            parser.receive_data(data)
        return cast("h11.Event", event)


def _join_headers(head: h11.Request) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in head.headers.raw_items():
        name, value = raw_name.decode("ascii").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _check_head(head: h11.Request, headers: dict[str, str]) -> None:
    """Refuse what h11 accepts."""
    if head.http_version not in (b"1.0", b"1.1"):
        raise RefusalError(400, "invalid HTTP: expected version 1.0 or 1.1")
    if len(head.target) + sum(len(name) + len(value) for name, value in headers.items()) > HEAD_BYTES_MAX:
        raise _refuse_head()
    if "transfer-encoding" in headers and "content-length" in headers:
        raise RefusalError(400, "invalid HTTP: both transfer-encoding and content-length")
    if int(headers.get("content-length", 0)) > BODY_BYTES_MAX:
        raise _refuse_body()
    if headers.get("content-encoding", "identity") != "identity":
        raise RefusalError(415, "content-encoding: expected none")


def _refuse_http(error: h11.RemoteProtocolError) -> RefusalError:
    if error.error_status_hint == 431:
        return _refuse_head()
    text = str(error).partition(":")[0]  # the peer's bytes follow the colon
    return RefusalError(error.error_status_hint, f"invalid HTTP: {text}")


def _refuse_head() -> RefusalError:
    return RefusalError(431, f"the headers are larger than {HEAD_BYTES_MAX} bytes")


def _refuse_body() -> RefusalError:
    return RefusalError(413, f"the body is larger than {BODY_BYTES_MAX} bytes")
