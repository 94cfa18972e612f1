"""Build and run one server process: a stack of what it needs, top to bottom; leaving the stack is the drain."""

import asyncio
import contextlib
import gc
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from os import _exit as exit_at_once
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from bridge import __version__
from bridge.core.headers import METADATA_BYTES_MAX, HeaderPolicy
from bridge.core.reasons import SERVICE_NAME
from bridge.reload import api_key
from bridge.server.boundary import Boundary
from bridge.server.callers import Callers
from bridge.server.health import Health
from bridge.server.listeners import bind
from bridge.server.service import ChatCompletionService
from bridge.settings import ConnectionSettings, Settings, SettingsError
from bridge.telemetry import Observer
from bridge.upstream.client import Upstream

if TYPE_CHECKING:
    from bridge.telemetry.spans import Tracer

__all__ = ["PRODUCT", "Started", "header_policy", "running", "serve", "started"]

PRODUCT: Final = f"ollm-bridge/{__version__}"

_LAST_WORDS_S: Final = 1.0
"""How long statuses already decided may take to reach their callers, and open Health.Watch streams to end."""
_HELD_S: Final = 0.05
"""How long before and after the stop calls are held: for those that grpc's core has taken in, and for its GOAWAYs."""
_IMPATIENT_EXIT: Final = 1
_REFLECTED: Final = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
_GC_THRESHOLDS: Final = (50_000, 50, 50)
"""Collections of the young every 50,000 new objects, not 700: a call makes thousands that are freed by their counts."""
_RESPONSE_BYTES_UNLIMITED: Final = -1  # the upstream's limits bound it


def header_policy(settings: Settings) -> HeaderPolicy:
    """Give what may cross, by the settings. Raises SettingsError."""
    upstream = settings.upstream
    try:
        return HeaderPolicy(
            product=PRODUCT,
            api_key=api_key(upstream),
            forward=upstream.forward_metadata,
            give_back=upstream.return_headers,
        )
    except ValueError as error:
        raise SettingsError(f"upstream.forward_metadata, upstream.return_headers: {error}") from None


class Started(NamedTuple):
    """A server that takes calls: where, and what tells of it."""

    address: str
    health: Health
    upstream: Upstream
    ended: asyncio.Task[bool]


@contextlib.asynccontextmanager
async def started(
    settings: Settings,
    observers: Sequence[Observer] = (),
    tracing: "Tracer | None" = None,
    *,
    reuse_port: bool = False,
) -> AsyncIterator[Started]:
    """Serve while the block lasts; leaving it drains.

    Raises SettingsError where the settings can't be used, such as a port that is taken.
    """
    policy = header_policy(settings)
    callers = Callers(settings)
    async with contextlib.AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(
            Upstream(settings.upstream, policy, connections_max=settings.calls_max)
        )
        service = ChatCompletionService(upstream, settings.upstream)
        boundary = Boundary(service, policy, callers, settings, observers, tracing)
        health = Health(settings.health)
        server = grpc.aio.server(options=_options(settings, reuse_port=reuse_port))
        server.add_generic_rpc_handlers((boundary.handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
        reflection.enable_server_reflection(_REFLECTED, server)
        address = bind(server, settings)

        stack.push_async_callback(_stopped, server, boundary)
        await server.start()
        stack.push_async_callback(boundary.drain, settings.drain_grace_s)
        stack.push_async_callback(asyncio.sleep, settings.drain_delay_s)
        stack.push_async_callback(health.drain)
        await stack.enter_async_context(health.watching(upstream.reach))
        await health.start()
        # Not to be cancelled, or the stop would break; the stop ends it.
        ended = asyncio.create_task(server.wait_for_termination())
        yield Started(address, health, upstream, ended)


async def _stopped(server: grpc.aio.Server, boundary: Boundary) -> None:
    """Stop while callers wait: a call that grpc's core has not handed over by then ends as CANCELLED, unheard."""
    with boundary.holding():
        await asyncio.sleep(_HELD_S)
        stopping = asyncio.create_task(server.stop(_LAST_WORDS_S))
        await asyncio.sleep(_HELD_S)
    await stopping


@contextlib.asynccontextmanager
async def running(settings: Settings, observers: Sequence[Observer] = ()) -> AsyncIterator[str]:
    """Serve while the block lasts, and give the address: `started` for who needs no more."""
    async with started(settings, observers) as server:
        yield server.address


def _options(settings: Settings, *, reuse_port: bool) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.request_bytes_max),
        ("grpc.max_send_message_length", _RESPONSE_BYTES_UNLIMITED),
        # Far above the bridge's own limit, so that this one is met: between its two grpc refuses calls at random.
        ("grpc.max_metadata_size", 4 * METADATA_BYTES_MAX),
        ("grpc.absolute_max_metadata_size", 4 * METADATA_BYTES_MAX),
        ("grpc.max_concurrent_streams", settings.connections.streams_max),
        ("grpc.max_allowed_incoming_connections", settings.connections.connections_max),
        *_aging(settings.connections),
        # Beyond 1000 that wait for their turn the core cancels calls by chance, good ones too.
        ("grpc.server.max_pending_requests", 20_000),
        ("grpc.server.max_pending_requests_hard_limit", 30_000),
        ("grpc.so_reuseport", int(reuse_port)),  # on by default: a second instance would bind silently
        # Clients that ping each 10 s live; the default kills them with too_many_pings.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def _aging(connections: ConnectionSettings) -> list[tuple[str, int]]:
    """Give the options of age and idleness. grpc jitters an age by a tenth: clients do not come back all at once."""
    times_s = {
        "grpc.max_connection_age_ms": connections.age_s,
        "grpc.max_connection_age_grace_ms": connections.age_grace_s,
        "grpc.max_connection_idle_ms": connections.idle_s,
    }
    return [(name, round(time_s * 1000)) for name, time_s in times_s.items() if time_s is not None]


async def serve(
    settings: Settings,
    observers: Sequence[Observer],
    ready: Callable[[Started], None],
    *,
    tracing: "Tracer | None" = None,
    beside: Callable[[Started], AbstractAsyncContextManager[Any]] | None = None,
    signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT),
    stop: asyncio.Event | None = None,
    reuse_port: bool = False,
) -> None:
    """Serve until one of `signals` comes or `stop` is set, then drain; a second signal ends the process at once.

    `ready` is called once calls are taken. `beside` is entered then, and left only after the drain, so that it can tell
    of that too. `reuse_port` lets other processes that want it too listen at the same port.
    """
    stopping = stop or asyncio.Event()
    loop = asyncio.get_running_loop()

    def leave() -> None:
        if stopping.is_set():
            exit_at_once(_IMPATIENT_EXIT)  # asked a second time: at once, whatever goes on
        stopping.set()

    for number in signals:
        loop.add_signal_handler(number, leave)
    async with (
        contextlib.AsyncExitStack() as after_the_drain,
        started(settings, observers, tracing, reuse_port=reuse_port) as server,
    ):
        if beside is not None:
            await after_the_drain.enter_async_context(beside(server))
        gc.freeze()  # what start-up made stays: the collector need not walk it
        gc.set_threshold(*_GC_THRESHOLDS)
        ready(server)
        asked = asyncio.create_task(stopping.wait())
        await asyncio.wait({asked, server.ended}, return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            asked.cancel()
            raise RuntimeError("expected to serve until asked to stop, found that the server has ended")
