"""Build and run one server process: a stack of what it needs, top to bottom; leaving the stack is the drain."""

import asyncio
import contextlib
import gc
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from bridge import __version__
from bridge.boundary import SERVICE_NAME, Boundary
from bridge.core.headers import METADATA_BYTES_MAX, HeaderPolicy
from bridge.service import ChatCompletionService
from bridge.settings import Settings, SettingsError
from bridge.telemetry import Observer
from bridge.upstream import Upstream

__all__ = ["PRODUCT", "header_policy", "running", "serve"]

PRODUCT: Final = f"ollm-bridge/{__version__}"

_LAST_WORDS_S: Final = 1.0
"""How long statuses already decided may take to reach their callers, and open Health.Watch streams to end."""
_GC_THRESHOLDS: Final = (50_000, 50, 50)
"""Collections of the young every 50,000 new objects, not 700: a call makes thousands that are freed by their counts."""
_RESPONSE_BYTES_UNLIMITED: Final = -1  # the upstream's limits bound it


def header_policy(settings: Settings) -> HeaderPolicy:
    """Give what may cross, by the settings. Raises SettingsError."""
    upstream = settings.upstream
    try:
        return HeaderPolicy(
            product=PRODUCT,
            api_key=upstream.read_key(),
            forward=upstream.forward_metadata,
            give_back=upstream.return_headers,
        )
    except ValueError as error:
        raise SettingsError(f"upstream.forward_metadata, upstream.return_headers: {error}") from None


@contextlib.asynccontextmanager
async def running(settings: Settings, observers: Sequence[Observer] = ()) -> AsyncIterator[str]:
    """Serve while the block lasts, and give the address listened at; leaving it drains.

    Raises SettingsError where the settings can't be used, such as a port that is taken.
    """
    policy = header_policy(settings)
    async with contextlib.AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(
            Upstream(settings.upstream, policy, connections_max=settings.calls_max)
        )
        boundary = Boundary(ChatCompletionService(upstream, settings.upstream), policy, settings, observers)
        server = grpc.aio.server(options=_options(settings))
        server.add_generic_rpc_handlers((boundary.handler(),))
        status = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(status, server)
        reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        address = _bound(server, settings.listen)

        stack.push_async_callback(server.stop, _LAST_WORDS_S)
        await server.start()
        stack.push_async_callback(boundary.drain, settings.drain_grace_s)
        stack.push_async_callback(status.enter_graceful_shutdown)
        for name in ("", SERVICE_NAME):
            await status.set(name, health_pb2.HealthCheckResponse.SERVING)
        yield address


def _options(settings: Settings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.request_bytes_max),
        ("grpc.max_send_message_length", _RESPONSE_BYTES_UNLIMITED),
        # Far above the bridge's own limit, so that this one is met: between its two grpc refuses calls at random.
        ("grpc.max_metadata_size", 4 * METADATA_BYTES_MAX),
        ("grpc.absolute_max_metadata_size", 4 * METADATA_BYTES_MAX),
        ("grpc.so_reuseport", 0),  # on by default: a second instance would bind silently
        # Clients that ping each 10 s live; the default kills them with too_many_pings.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def _bound(server: grpc.aio.Server, listen: str) -> str:
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError as error:
        raise SettingsError(f"listen: expected an address that can be bound, found {listen!r}: {error}") from None
    host = listen.rpartition(":")[0]
    return f"{host}:{port}"


async def serve(settings: Settings, observers: Sequence[Observer], ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain. `ready` is told the address once calls are taken."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(settings, observers) as address:
        gc.freeze()  # what start-up made stays: the collector need not walk it
        gc.set_threshold(*_GC_THRESHOLDS)
        ready(address)
        await stop.wait()
