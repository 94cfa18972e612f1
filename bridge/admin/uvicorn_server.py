"""uvicorn as the admin port needs it: in a loop that runs already, silent, and with the bounds that it lacks.

A connection has one request and one answer, each within its time. If there are too many connections, the oldest one
ends, first of those whose request has not come: so silent or slow clients do not keep a probe out. What is served is
the ASGI application's business; its answers must have `connection: close`.

uvicorn's faults for this use, each with a test in tests/unit/admin/test_uvicorn_server.py; versions up to 0.54.0:

- `serve` takes over SIGINT and SIGTERM, which belong to the process, and no option turns that off
  (https://github.com/Kludex/uvicorn/issues/526). So `capture_signals` is overridden. Delete when there is an option.
- Neither the request's size (with httptools), nor the time until it has come, nor the number of connections has a bound
  (https://github.com/Kludex/uvicorn/issues/157): `timeout_keep_alive` starts after an answer, `limit_concurrency`
  counts when a request has come. So `_Connection` has these bounds. Delete what uvicorn learns to bound.
- A client that does not read outlives `timeout_graceful_shutdown`. So what is left after it is aborted.
- It logs what strangers send. So its loggers are set above CRITICAL; what fails in the application, that must log.
"""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from uvicorn import Config, Server
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["Application", "Limits", "Message", "open_sockets", "serve_http"]

Message: TypeAlias = MutableMapping[str, Any]
Application: TypeAlias = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]

_SILENT: Final = logging.CRITICAL + 1
_STOP_S: Final = 1
"""How long answers that are on their way have at the end."""


@dataclass(frozen=True)
class Limits:
    """What one client, and all together, may take."""

    connections_max: int = 128
    """A few probes, a scraper and the browsers of a team."""
    request_bytes_max: int = 16_384
    """A browser's cookies for `localhost` are of all that was ever developed there."""
    request_s: float = 5.0
    answer_s: float = 30.0
    """From the request to the answer's last byte, a slow reader included."""


@contextlib.asynccontextmanager
async def serve_http(
    application: Application, sockets: list[socket.socket], *, limits: Limits = Limits()
) -> AsyncIterator[None]:
    """Serve an application while the block lasts. The sockets, which listen already, are closed at the end."""
    config = Config(
        application,
        http=type("_LimitedConnection", (_Connection,), {"limits": limits}),
        ws="none",
        lifespan="off",
        interface="asgi3",
        workers=1,
        log_config=None,
        log_level=_SILENT,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_STOP_S,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets))
    try:
        yield
    finally:
        server.should_exit = True
        await serving
        for connection in list(server.server_state.connections):
            connection.transport.abort()


async def open_sockets(host: str, port: int) -> list[socket.socket]:
    """Listen at every address of a host, and return the sockets. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(address, family=family)) for family, _, _, _, address in found
        ]
        stack.pop_all()
    return sockets


class _Server(Server):
    """A server that leaves the process's signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Connection(HttpToolsProtocol):
    """A connection of one request, within `limits`."""

    limits: Limits
    has_request = False
    is_aborted = False
    received_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        super().connection_made(transport)
        self.opened_at = time.monotonic()
        self.timer = self.loop.call_later(self.limits.request_s, self.abort)
        self.make_room()

    def make_room(self) -> None:
        """End another connection if there are too many: the oldest whose request has not come, else the oldest."""
        others = [
            each
            for each in self.connections
            if isinstance(each, _Connection) and each is not self and not each.is_aborted
        ]
        if len(others) >= self.limits.connections_max:
            min(others, key=lambda each: (each.has_request, each.opened_at)).abort()

    def data_received(self, data: bytes) -> None:
        if self.has_request:
            return  # nothing of what follows a request's head is wanted
        self.received_bytes += len(data)
        if self.received_bytes > self.limits.request_bytes_max:
            self.send_400_response(f"the request has more than {self.limits.request_bytes_max} bytes\n")
        else:
            super().data_received(data)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self.has_request = True
        self.timer.cancel()
        self.timer = self.loop.call_later(self.limits.answer_s, self.abort)

    def abort(self) -> None:
        self.is_aborted = True  # it stays in `connections` until the loop's next turn
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.timer.cancel()
        super().connection_lost(exc)
