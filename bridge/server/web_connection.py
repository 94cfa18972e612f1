"""A connection to the web port: requests one after another, each within bounds that uvicorn lacks.

Bounded are the connections, the time and the size of a head, what a body has beside its bytes (sizes of chunks, and
trailers), and how long a connection lives on when nobody needs it. Requests that are sent before the last one is
answered end the connection: uvicorn queues them without a bound, and would not notice that the caller has left. How
much of a body is read, and how long its reader may wait, is the application's.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from bridge.http_server.shell import Message, Receive, Send
from bridge.server.peer import read_certificate
from bridge.settings import ConnectionSettings

__all__ = ["Limits", "list_limits", "make_connection_class"]

HEAD_BYTES_MAX: Final = 64 * 1024
"""A browser's cookies among them."""
HEAD_S: Final = 10.0
LINGER_S: Final = 5.0
"""How long a connection may take to end, and what is left of a body to come once its call is over."""
CHUNK_OVERHEAD: Final = 8
"""Bytes of framing for each byte of a body, if it comes byte by byte."""
FOREVER_S: Final = 365 * 86_400.0


@dataclass(frozen=True)
class Limits:
    """What one caller, and all together, may take."""

    connections_max: int
    age_s: float
    idle_s: float
    head_s: float = HEAD_S
    linger_s: float = LINGER_S


def list_limits(settings: ConnectionSettings) -> Limits:
    """Return the limits that the settings set."""
    return Limits(settings.connections_max, settings.age_s or FOREVER_S, settings.idle_s or FOREVER_S)


def make_connection_class(limits: Limits) -> type[HttpToolsProtocol]:
    """Return the class of a server's connections, with these limits."""
    return type("_LimitedConnection", (_Connection,), {"limits": limits})


class _Parser(httptools.HttpRequestParser):
    """Reads a request that offers to upgrade, as Java's client and curl --http2 do, as if it did not.

    To ignore the offer is what HTTP says (RFC 9110, 7.8), but llhttp takes what follows the head for the other protocol
    then. It says where that begins: so the head without the offer is parsed instead, and then the body.
    """

    def __init__(self, connection: "_Connection") -> None:
        super().__init__(connection)
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        self._connection = connection

    def feed_data(self, data: bytes) -> None:  # type: ignore[override] # as uvicorn calls it
        while data:
            try:
                super().feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                if self._connection.transport.is_closing():
                    return
                super().feed_data(self._connection.encode_head_without_offer())
                data = data[offer.args[0] :]
            else:
                return


class _Connection(HttpToolsProtocol):
    """A connection within `limits`. It has one timer: for a head, for idleness, or for its own end."""

    limits: Limits
    timer: asyncio.TimerHandle | None = None
    is_in_head = True
    is_answering = False
    has_body_left = False
    framing_bytes = 0
    body_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        super().connection_made(transport)
        self.parser = _Parser(self)
        self.timeout_keep_alive = round(FOREVER_S)  # any byte stops that timer
        self.closes_at = time.monotonic() + self.limits.age_s
        self.tls = _describe_tls(transport)
        self.application, self.app = self.app, self.run
        if len(self.connections) > self.limits.connections_max:
            transport.abort()
        else:
            self.start_timer(self.limits.idle_s, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop_timer()
        super().connection_lost(exc)

    # What comes

    def data_received(self, data: bytes) -> None:
        self.framing_bytes += len(data)
        super().data_received(data)
        if self.framing_bytes > HEAD_BYTES_MAX + CHUNK_OVERHEAD * self.body_bytes and not self.transport.is_closing():
            if not self.is_answering:
                self.send_400_response(f"the request has more than {HEAD_BYTES_MAX} bytes beside its body\n")
            else:
                self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        super().send_400_response(msg)
        self.start_timer(self.limits.linger_s, self.transport.abort)

    def on_message_begin(self) -> None:
        if self.is_answering:
            self.transport.abort()
        super().on_message_begin()
        self.is_in_head = True
        self.body_bytes = 0
        if self.tls:
            self.scope["extensions"] = {"tls": self.tls}
        self.start_timer(self.limits.head_s, self.transport.abort)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.is_in_head:  # else it is a trailer, which would become a header of a call that runs
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self.is_in_head = False
        if self.transport.is_closing():
            return
        if self.parser.get_method() == b"CONNECT":
            self.send_400_response("this port is no proxy: send no CONNECT\n")
            return
        if self.parser.should_upgrade():
            return  # the head comes again, without the offer
        self.stop_timer()
        self.is_answering = self.has_body_left = True
        super().on_headers_complete()
        if time.monotonic() >= self.closes_at:
            self.cycle.keep_alive = False

    def encode_head_without_offer(self) -> bytes:
        """Return the head of the request that has just come, without its offers to upgrade."""
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def on_body(self, body: bytes) -> None:
        self.body_bytes += len(body)
        self.framing_bytes -= len(body)
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self.framing_bytes = 0
        if self.transport.is_closing():
            return
        super().on_message_complete()
        self.has_body_left = False
        if not self.is_answering:
            self.start_timer(self.limits.idle_s, self.timeout_keep_alive_handler)

    # The end of an answer, and of the connection

    async def run(self, scope: Message, receive: Receive, send: Send) -> None:
        """Run the application; an answer without its end must not look like one that has it."""
        cycle = self.cycle
        try:
            await self.application(scope, receive, send)
        finally:
            if not cycle.response_complete:
                self.transport.abort()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.is_answering = False
        if self.transport.is_closing() or self.has_body_left:
            self.start_timer(self.limits.linger_s, self.transport.abort)
        else:
            self.start_timer(self.limits.idle_s, self.timeout_keep_alive_handler)

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            self.start_timer(self.limits.linger_s, self.transport.abort)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self.start_timer(self.limits.linger_s, self.transport.abort)

    def start_timer(self, delay_s: float, act: Callable[[], None]) -> None:
        self.stop_timer()
        self.timer = self.loop.call_later(delay_s, act)

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


def _describe_tls(transport: asyncio.BaseTransport) -> dict[object, object]:
    """Return what ASGI's TLS extension says of a connection: the caller's certificate, if there is one."""
    pem = read_certificate(transport.get_extra_info("ssl_object"))
    return {"client_cert_chain": [pem]} if pem else {}
