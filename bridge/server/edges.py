"""The engines of the call port, behind one interface: grpc.aio (`grpc_aio.py`) and our own (`native/`)."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

import grpc

from bridge.server.boundary import Boundary
from bridge.server.grpc_aio import STOP_HOLD_S, create_handlers, list_options, stop_server
from bridge.server.handshakes import Handshakes
from bridge.server.listeners import bind, remove_socket
from bridge.server.native.engine import Engine
from bridge.server.rpc import RpcMethod
from bridge.settings import Settings
from bridge.telemetry import Observer

__all__ = ["Edge", "bind_edge"]


class Edge(Protocol):
    """A server of the call port. It is bound when it is made, and takes calls from `start` on."""

    @property
    def address(self) -> str:
        """The address with its port."""
        ...

    async def start(self) -> None:
        """Take calls."""
        ...

    async def drain(self) -> None:
        """Tell callers that the server will stop, as far as the engine can; calls are still taken."""
        ...

    async def stop(self) -> None:
        """Stop, after the boundary has drained. Statuses that were sent get the time to be read."""
        ...

    def close(self) -> None:
        """Let go of what a server holds that never started; `stop` does it too."""
        ...

    async def wait_for_end(self) -> None:
        """Wait until the server has stopped by itself, which it never should."""
        ...


def bind_edge(
    settings: Settings,
    boundary: Boundary,
    side_methods: Sequence[RpcMethod],
    observers: Sequence[Observer] = (),
    *,
    reuse_port: bool = False,
    stop_hold_s: float = STOP_HOLD_S,
    handshakes: Handshakes | None = None,
) -> Edge:
    """Return the engine of the settings, bound to their address. Raises SettingsError."""
    handshakes = handshakes or Handshakes()
    methods = [*boundary.list_rpc_methods(), *side_methods]
    if settings.server.engine == "native":
        return Engine(settings, methods, observers, reuse_port=reuse_port, handshakes=handshakes)
    return _GrpcAioEdge(
        settings, boundary, methods, reuse_port=reuse_port, stop_hold_s=stop_hold_s, handshakes=handshakes
    )


class _GrpcAioEdge:
    """grpc.aio's server. It has no way to tell callers before it stops."""

    def __init__(
        self,
        settings: Settings,
        boundary: Boundary,
        methods: Sequence[RpcMethod],
        *,
        reuse_port: bool,
        stop_hold_s: float,
        handshakes: Handshakes,
    ) -> None:
        self._boundary = boundary
        self._stop_hold_s = stop_hold_s
        self._server = grpc.aio.server(options=list_options(settings, reuse_port=reuse_port))
        is_secure = settings.tls.cert_file is not None
        self._server.add_generic_rpc_handlers(create_handlers(methods, is_secure=is_secure))
        self._termination: asyncio.Task[bool] | None = None
        self.address = bind(self._server, settings, handshakes.begin)

    async def start(self) -> None:
        await self._server.start()
        # In a task of its own: cancelling it would break the stop, which ends it (grpc_aio.py, row 7).
        self._termination = asyncio.create_task(self._server.wait_for_termination())

    async def drain(self) -> None:
        return

    async def stop(self) -> None:
        await stop_server(self._server, self._boundary, hold_s=self._stop_hold_s)

    def close(self) -> None:
        # grpc closes the sockets of a server that never started once nobody holds it, and leaves this file.
        if self._termination is None:
            remove_socket(self.address)

    async def wait_for_end(self) -> None:
        if self._termination is not None:
            await asyncio.wait({self._termination})
