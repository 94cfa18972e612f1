"""One TCP port for HTTP/1 and for gRPC: by a connection's first bytes it is told which of the two is wanted.

A client that speaks HTTP/2 from the start, as every gRPC client in the clear does, begins with 24 fixed bytes (RFC
9113, section 3.4). Such a connection is relayed, byte for byte, to a gRPC server on the loopback; every other one is
given to the protocol that the HTTP server has made for it. Whatever a stranger may do here has a bound: how many
connections, how long until the first bytes, how long an HTTP connection.
"""

import asyncio
from collections.abc import Callable
from typing import Final, cast

__all__ = ["Doorman"]

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_CONNECTIONS_MAX: Final = 128
"""A few probes, a scraper and the browsers of a team; each has a buffer or two of 64 KiB."""
_FIRST_BYTES_S: Final = 5.0
_HTTP_S: Final = 30.0
"""Of an HTTP connection, which has one request: its head, the answer and a slow reader."""


class Doorman:
    """Makes the protocols of a listening socket's connections. `http` makes those of HTTP/1."""

    def __init__(self, http: Callable[[], asyncio.Protocol], grpc_port: int) -> None:
        self._http = http
        self._grpc_port = grpc_port
        self._visitors: set[_Visitor] = set()

    def __call__(self) -> asyncio.Protocol:
        """Make a connection's protocol."""
        return _Visitor(self._visitors, self._http, self._grpc_port)

    def close(self) -> None:
        """End every connection."""
        for visitor in list(self._visitors):
            visitor.end()


class _Visitor(asyncio.Protocol):
    """A connection: what comes before the decision is kept, what comes after it goes to the protocol decided on."""

    def __init__(self, visitors: set["_Visitor"], http: Callable[[], asyncio.Protocol], grpc_port: int) -> None:
        self._visitors = visitors
        self._http = http
        self._grpc_port = grpc_port
        self._seen = b""
        self._chosen: asyncio.Protocol | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if len(self._visitors) >= _CONNECTIONS_MAX:
            self._transport.abort()
            return
        self._visitors.add(self)
        self._time(_FIRST_BYTES_S)

    def data_received(self, data: bytes) -> None:
        if self._chosen is not None:
            self._chosen.data_received(data)
            return
        self._seen += data
        if len(self._seen) < len(_PREFACE) and _PREFACE.startswith(self._seen):
            return
        if self._seen.startswith(_PREFACE):
            self._time(None)
            self._chosen = _Relay(self._grpc_port)
        else:
            self._time(_HTTP_S)
            self._chosen = self._http()
        self._chosen.connection_made(self._transport)
        self._chosen.data_received(self._seen)

    def eof_received(self) -> bool | None:
        return self._chosen.eof_received() if self._chosen is not None else None

    def pause_writing(self) -> None:
        if self._chosen is not None:
            self._chosen.pause_writing()

    def resume_writing(self) -> None:
        if self._chosen is not None:
            self._chosen.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._time(None)
        self._visitors.discard(self)
        if self._chosen is not None:
            self._chosen.connection_lost(exc)

    def end(self) -> None:
        self._transport.abort()

    def _time(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if seconds is not None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._transport.abort)


class _Relay(asyncio.Protocol):
    """The outer half of a relayed connection; it makes the inner one. Each holds back while the other can't write."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._early = b""
        self._inner: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._outer = cast("asyncio.Transport", transport)
        _hold(self._outer, paused=True)
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            inner, _ = await loop.create_connection(lambda: _Inner(self._outer), "127.0.0.1", self._port)
        except OSError:  # the gRPC server is gone, and so will this one be
            self._outer.abort()
            return
        if self._outer.is_closing():
            inner.abort()
            return
        self._inner = inner
        inner.write(self._early)
        _hold(self._outer, paused=False)

    def data_received(self, data: bytes) -> None:
        if self._inner is None:
            self._early += data  # what came with the preface; the rest is held back
        else:
            self._inner.write(data)

    def pause_writing(self) -> None:
        _hold(self._inner, paused=True)

    def resume_writing(self) -> None:
        _hold(self._inner, paused=False)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - lost is lost
        if self._inner is not None:
            self._inner.abort()


class _Inner(asyncio.Protocol):
    """The inner half of a relayed connection."""

    def __init__(self, outer: asyncio.Transport) -> None:
        self._outer = outer

    def data_received(self, data: bytes) -> None:
        self._outer.write(data)

    def pause_writing(self) -> None:
        _hold(self._outer, paused=True)

    def resume_writing(self) -> None:
        _hold(self._outer, paused=False)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - lost is lost
        self._outer.close()


def _hold(transport: asyncio.Transport | None, *, paused: bool) -> None:
    if transport is not None and not transport.is_closing():  # uvloop's raises on one that is
        if paused:
            transport.pause_reading()
        else:
            transport.resume_reading()
