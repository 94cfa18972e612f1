"""One server: the chat service, health and reflection at one address. Leaving it drains."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from bridge import __version__
from bridge.core.headers import HeaderPolicy
from bridge.core.reasons import SERVICE_NAME
from bridge.reload import api_key_reader
from bridge.server.boundary import Boundary
from bridge.server.callers import Callers
from bridge.server.grpc_aio import STOP_HOLD_S, create_handler, list_options, stop_server
from bridge.server.health import Health
from bridge.server.listeners import bind
from bridge.server.service import ChatCompletionService
from bridge.settings import Settings, SettingsError
from bridge.telemetry import Observer
from bridge.upstream.client import Upstream

if TYPE_CHECKING:
    from bridge.telemetry.spans import Tracer

__all__ = ["PRODUCT", "Server", "make_header_policy", "run_server"]

PRODUCT: Final = f"ollm-bridge/{__version__}"
_REFLECTED: Final = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)


def make_header_policy(settings: Settings) -> HeaderPolicy:
    """Return what may cross, by the settings. Raises SettingsError."""
    upstream = settings.upstream
    try:
        return HeaderPolicy(
            product=PRODUCT,
            api_key=api_key_reader(upstream),
            forward=upstream.forward_metadata,
            return_headers=upstream.return_headers,
        )
    except ValueError as error:
        raise SettingsError(f"upstream.forward_metadata, upstream.return_headers: {error}") from None


class Server:
    """A server that is bound when it is made, takes calls while it is entered, and drains when it is left.

    To be made on a running loop. Raises SettingsError if the settings can't be used, such as a port that is taken.
    `stop_hold_s`: see STOP_HOLD_S.
    """

    def __init__(
        self,
        settings: Settings,
        policy: HeaderPolicy,
        upstream: Upstream,
        health: Health,
        *,
        observers: Sequence[Observer] = (),
        tracer: "Tracer | None" = None,
        reuse_port: bool = False,
        stop_hold_s: float = STOP_HOLD_S,
    ) -> None:
        service = ChatCompletionService(upstream, settings.upstream)
        self._settings = settings
        self._upstream = upstream
        self._health = health
        self._stop_hold_s = stop_hold_s
        self._boundary = Boundary(service, policy, Callers(settings), settings, observers, tracer)
        self._server = grpc.aio.server(options=list_options(settings, reuse_port=reuse_port))
        handler = create_handler(self._boundary, is_secure=settings.tls.cert_file is not None)
        self._server.add_generic_rpc_handlers((handler,))
        health_pb2_grpc.add_HealthServicer_to_server(health.servicer, self._server)
        reflection.enable_server_reflection(_REFLECTED, self._server)
        self._stack = contextlib.AsyncExitStack()
        self.address = bind(self._server, settings)

    async def __aenter__(self) -> Self:
        settings, stack = self._settings, self._stack
        await self._server.start()
        stack.push_async_callback(stop_server, self._server, self._boundary, hold_s=self._stop_hold_s)
        stack.push_async_callback(self._boundary.drain.run, settings.drain_grace_s)
        stack.push_async_callback(asyncio.sleep, settings.drain_delay_s)
        stack.push_async_callback(self._health.drain)
        await stack.enter_async_context(self._health.watch(self._upstream.reach))
        await self._health.start()
        # In a task of its own: cancelling it would break the stop, which ends it (grpc_aio.py, row 7).
        self._termination = asyncio.create_task(self._server.wait_for_termination())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def wait_for_end(self) -> None:
        """Wait until the server has stopped by itself, which it never should."""
        await asyncio.wait({self._termination})


@contextlib.asynccontextmanager
async def run_server(
    settings: Settings, observers: Sequence[Observer] = (), *, stop_hold_s: float = STOP_HOLD_S
) -> AsyncIterator[str]:
    """Serve while the block lasts and yield the address. Raises SettingsError."""
    policy = make_header_policy(settings)
    async with (
        Upstream(settings.upstream, policy, connections_max=settings.calls_max) as upstream,
        Server(
            settings, policy, upstream, Health(settings.health), observers=observers, stop_hold_s=stop_hold_s
        ) as server,
    ):
        yield server.address
