"""One server: the chat service, health and reflection at one address. Leaving it drains."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from bridge import __version__
from bridge.core.headers import HeaderPolicy
from bridge.server.boundary import Boundary
from bridge.server.callers import Callers
from bridge.server.edges import bind_edge
from bridge.server.grpc_aio import STOP_HOLD_S
from bridge.server.handshakes import Handshakes
from bridge.server.health import Health
from bridge.server.own_key import make_key_reader
from bridge.server.service import ChatCompletionService
from bridge.server.side_services import SideServices
from bridge.settings import Settings, SettingsError
from bridge.telemetry import Observer
from bridge.upstream.client import Upstream

if TYPE_CHECKING:
    from bridge.telemetry.spans import Tracer

__all__ = ["PRODUCT", "Server", "make_header_policy", "open_server", "run_server"]

PRODUCT: Final = f"ollm-bridge/{__version__}"


def make_header_policy(settings: Settings) -> HeaderPolicy:
    """Return what may cross, by the settings. Raises SettingsError."""
    upstream = settings.upstream
    try:
        return HeaderPolicy(
            product=PRODUCT,
            api_key=make_key_reader(upstream, grace_s=settings.reload_grace_s),
            forward=upstream.forward_metadata,
            return_headers=upstream.return_headers,
            deadline_header=upstream.deadline_header,
        )
    except ValueError as error:
        names = "upstream.forward_metadata, upstream.return_headers, upstream.deadline_header"
        raise SettingsError(f"{names}: {error}") from None


class Server:
    """A server that is bound when it is made, takes calls while it is entered, and drains when it is left.

    `handshakes` counts those of callers' TLS. To be made on a running loop. Raises SettingsError if the settings
    can't be used, such as a port that is taken. `stop_hold_s`: see STOP_HOLD_S.
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
        service = ChatCompletionService(upstream, settings.upstream, own_key=policy.own_key)
        self._settings = settings
        self._upstream = upstream
        self._health = health
        callers = Callers(settings)
        self._boundary = Boundary(service, policy, callers, settings, observers, tracer)
        side_services = SideServices(settings, callers, self._boundary.receiving, health, self._boundary.load)
        self._reuse_port = reuse_port
        self._stack = contextlib.AsyncExitStack()
        self.web_address = ""
        self.handshakes = Handshakes()
        self._edge = bind_edge(
            settings,
            self._boundary,
            side_services.methods,
            observers,
            reuse_port=reuse_port,
            stop_hold_s=stop_hold_s,
            handshakes=self.handshakes,
        )
        self.address = self._edge.address

    async def __aenter__(self) -> Self:
        settings, stack = self._settings, self._stack
        if settings.web_listen:
            from bridge.server.web import serve_web  # noqa: PLC0415 - an import of 0.1 s

            web = serve_web(self._boundary, settings, reuse_port=self._reuse_port, handshakes=self.handshakes)
            self.web_address = await stack.enter_async_context(web)
        await self._edge.start()
        stack.push_async_callback(self._edge.stop)
        stack.push_async_callback(self._boundary.drain.run, settings.drain_grace_s)
        stack.push_async_callback(self._edge.drain)
        stack.push_async_callback(asyncio.sleep, settings.drain_delay_s)
        stack.callback(self._health.drain)
        await stack.enter_async_context(self._health.watch(self._upstream.reach))
        self._health.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def in_flight(self) -> int:
        """How many calls are in flight."""
        return self._boundary.drain.in_flight

    @property
    def interrupted(self) -> int:
        """How many calls outlasted the drain, and were ended by it."""
        return self._boundary.drain.interrupted

    @property
    def queued(self) -> int:
        """How many calls wait for a slot."""
        return self._boundary.queued

    def close(self) -> None:
        """Let go of what a server holds that was never entered."""
        self._edge.close()

    async def wait_for_end(self) -> None:
        """Wait until the server has stopped by itself, which it never should."""
        await self._edge.wait_for_end()


@contextlib.asynccontextmanager
async def run_server(
    settings: Settings, observers: Sequence[Observer] = (), *, stop_hold_s: float = STOP_HOLD_S
) -> AsyncIterator[str]:
    """Serve while the block lasts and yield the address of the call port. Raises SettingsError."""
    async with open_server(settings, observers, stop_hold_s=stop_hold_s) as server:
        yield server.address


@contextlib.asynccontextmanager
async def open_server(
    settings: Settings, observers: Sequence[Observer] = (), *, stop_hold_s: float = STOP_HOLD_S
) -> AsyncIterator[Server]:
    """Serve while the block lasts and yield the server. Raises SettingsError."""
    policy = make_header_policy(settings)
    async with (
        Upstream(settings.upstream, policy, connections_max=settings.calls_max) as upstream,
        Server(
            settings, policy, upstream, Health(settings.health), observers=observers, stop_hold_s=stop_hold_s
        ) as server,
    ):
        yield server
