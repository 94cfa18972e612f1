"""uvicorn in a loop that runs already, silent: it serves an ASGI application at sockets, and ends within a second.

What one connection may take is the business of the connection's class, since each port has its own bounds.

uvicorn's faults for this use, with a test each; versions up to 0.54.0:

- `serve` takes over SIGINT and SIGTERM, which belong to the process, and no option turns that off
  (https://github.com/Kludex/uvicorn/issues/526). So `capture_signals` is overridden. Delete when there is an option.
  Test: tests/unit/admin/test_connection.py.
- A client that does not read outlives `timeout_graceful_shutdown`. So what is left after it is aborted. Test: the same.
- It logs what strangers send. So its loggers are set above CRITICAL; what fails in the application, that must log.
  Test: the same.
- Neither the request's size (with httptools), nor the time until it has come, nor the number of connections has a bound
  (https://github.com/Kludex/uvicorn/issues/157): `timeout_keep_alive` starts after an answer, `limit_concurrency`
  counts when a request has come. So `bridge/admin/connection.py` and `bridge/server/web_connection.py` have bounds.
  Delete what uvicorn learns to bound. Test: theirs.
- A TLS handshake may take the 60 s that asyncio gives it, since no option says less. So `startup` is overridden. Delete
  when there is an option. Test: tests/unit/http_server/test_shell.py.
- Pipelined requests are queued without a bound, and a client that has left is not noticed then. So
  `web_connection.py` refuses them. Test: tests/unit/server/test_web_connection.py.
"""

import asyncio
import contextlib
import functools
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from typing import Any, Final, TypeAlias

from uvicorn import Config, Server
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["Application", "Message", "Receive", "Send", "serve_http"]

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

_SILENT: Final = logging.CRITICAL + 1
_STOP_S: Final = 1
"""How long answers that are on their way have at the end."""


@contextlib.asynccontextmanager
async def serve_http(
    application: Application,
    sockets: list[socket.socket],
    connection: type[HttpToolsProtocol],
    *,
    tls: ssl.SSLContext | None = None,
    handshake_s: float | None = None,
) -> AsyncIterator[None]:
    """Serve an application while the block lasts. The sockets, which listen already, are closed at the end.

    `handshake_s` bounds each handshake of `tls`.
    """
    config = Config(
        application,
        http=connection,
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
        ssl_context_factory=None if tls is None else lambda _config, _default: tls,
    )
    server = _Server(config, handshake_s if tls is not None else None)
    serving = asyncio.create_task(server.serve(sockets))
    try:
        yield
    finally:
        server.should_exit = True
        await serving
        for connection_left in list(server.server_state.connections):
            connection_left.transport.abort()


class _Server(Server):
    """A server that leaves the process's signals alone, and does not wait long for a handshake."""

    def __init__(self, config: Config, handshake_s: float | None) -> None:
        super().__init__(config)
        self._handshake_s = handshake_s

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        config, loop = self.config, asyncio.get_running_loop()
        await self.lifespan.startup()
        make: Callable[[], asyncio.Protocol] = functools.partial(
            config.http_protocol_class,
            config,  # type: ignore[call-arg] # uvicorn says no more of it than that it is a Protocol
            self.server_state,
            self.lifespan.state,
            _loop=loop,
        )
        self.servers = [
            await loop.create_server(
                make, sock=each, backlog=config.backlog, ssl=config.ssl, ssl_handshake_timeout=self._handshake_s
            )
            for each in sockets or ()
        ]
        self.started = True
