"""The native engine: a listener, its connections, and what all of them share."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from bridge.server.exposure import check_exposure
from bridge.server.h2.limits import Limits
from bridge.server.handshakes import HANDSHAKE_S, Handshakes
from bridge.server.listeners import check_socket
from bridge.server.native.link import GO_AWAY_S, Link
from bridge.server.native.shared import Shared
from bridge.server.native.sockets import bind_sockets
from bridge.server.native.tls import ALPN
from bridge.server.rpc import RpcMethod
from bridge.server.tls_context import open_context
from bridge.settings import UNIX, Settings
from bridge.tcp import BACKLOG, close_server
from bridge.telemetry import Observer

__all__ = ["Engine"]

_FLUSH_S: Final = 1.0
"""How long statuses already sent may take to reach their callers, and open Health.Watch streams to end."""
_STEP_S: Final = 0.01


class Engine:
    """Serves methods at the address in the settings. To be made on a running loop. Raises SettingsError."""

    def __init__(
        self,
        settings: Settings,
        methods: Iterable[RpcMethod],
        observers: Sequence[Observer] = (),
        *,
        reuse_port: bool = False,
        handshakes: Handshakes | None = None,
        limits: Limits | None = None,
    ) -> None:
        limits = limits or Limits(streams_max=settings.connections.streams_max)
        self.shared = Shared(settings, methods, observers, limits)
        self._loop = self.shared.loop
        self._tls: ssl.SSLContext | None = None
        with contextlib.ExitStack() as resources:
            if settings.tls.cert_file is not None:
                context = open_context(settings.tls, alpn=[ALPN], handshakes=handshakes)
                self._tls = resources.enter_context(context)
            check_exposure(settings, "listen")
            if settings.listen.startswith(UNIX):
                check_socket(settings.listen.removeprefix(UNIX))
            self._listeners = bind_sockets(settings.listen, reuse_port=reuse_port)
            resources.callback(self._listeners.close)
            self._resources = resources.pop_all()
        self._servers: list[asyncio.Server] = []
        self._ended = asyncio.Event()
        self.address = self._listeners.address

    async def start(self) -> None:
        """Take calls."""
        for listener in self._listeners.sockets:
            self._servers.append(await self._serve(listener))

    async def _serve(self, listener: socket.socket) -> asyncio.Server:
        handshake_s = None if self._tls is None else HANDSHAKE_S
        if self.address.startswith(UNIX):
            return await self._loop.create_unix_server(
                self._accept, sock=listener, backlog=BACKLOG, ssl=self._tls, ssl_handshake_timeout=handshake_s
            )
        return await self._loop.create_server(
            self._accept, sock=listener, backlog=BACKLOG, ssl=self._tls, ssl_handshake_timeout=handshake_s
        )

    def _accept(self) -> Link:
        return Link(self.shared)

    async def drain(self) -> None:
        """Tell all callers to call elsewhere, and wait until they know; calls that come meanwhile are taken.

        Those that connect meanwhile, as a balancer does at once, learn of it from `stop`.
        """
        links = list(self.shared.links)
        for link in links:
            link.prepare_to_go_away("the server is shutting down")
        await self._wait(GO_AWAY_S, lambda: all(link.is_going_away for link in links if link in self.shared.links))

    async def stop(self) -> None:
        """Stop: calls that come from now on may be repeated elsewhere. Statuses get the time to be read."""
        for server in self._servers:
            await close_server(server)
        self.shared.is_stopping = True
        for link in list(self.shared.links):
            link.go_away()
        await self._wait(_FLUSH_S, lambda: not self.shared.links)
        for link in list(self.shared.links):
            link.abort()
        await self._wait(_FLUSH_S, lambda: not self.shared.links)
        self.close()
        self._ended.set()

    def close(self) -> None:
        """Let go of the sockets and files of an engine that never started; `stop` does it too."""
        self._resources.close()

    async def wait_for_end(self) -> None:
        """Wait until the engine has stopped."""
        await self._ended.wait()

    async def _wait(self, time_s: float, is_done: Callable[[], bool]) -> None:
        end = self._loop.time() + time_s
        while not is_done() and self._loop.time() < end:  # noqa: ASYNC110 - what is waited for is of many connections
            await asyncio.sleep(_STEP_S)
