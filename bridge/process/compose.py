"""The composition root: all that one serving process is made of, top to bottom. Nothing is assigned afterwards."""

import contextlib
import gc
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final, NamedTuple

from bridge import __version__
from bridge.server.health import Health
from bridge.server.server import Server, make_header_policy
from bridge.settings import Settings, SettingsError
from bridge.telemetry.failures import Failures
from bridge.telemetry.logs import CallLog, Log
from bridge.telemetry.metrics import Metrics
from bridge.telemetry.snapshots import publish_snapshots
from bridge.telemetry.tracing import start_tracing
from bridge.upstream.client import Upstream

__all__ = ["Parts", "compose", "tune_garbage_collection"]

_GC_THRESHOLDS: Final = (50_000, 50, 50)
"""Collections of the young every 50,000 new objects, not 700: a call makes thousands that are freed by their counts."""


class Parts(NamedTuple):
    """What a process shows of itself, and its server, which takes calls once it is entered."""

    server: Server
    health: Health
    metrics: Metrics
    failures: Failures


@contextlib.asynccontextmanager
async def compose(
    settings: Settings,
    log: Log,
    *,
    shared: Path | None = None,
    on_health: Callable[[bool], None] | None = None,
    reuse_port: bool = False,
) -> AsyncIterator[Parts]:
    """Make a process's parts; leaving the block closes what the server leaves open.

    A worker writes what it counts into the `shared` folder, calls `on_health` when it starts or stops serving, and
    shares its port by `reuse_port`. Raises SettingsError if the settings can't be used, such as a port that is taken.
    """
    async with contextlib.AsyncExitStack() as stack:
        tracer = await stack.enter_async_context(start_tracing(settings, __version__))
        policy = make_header_policy(settings)
        upstream = Upstream(settings.upstream, policy, connections_max=settings.calls_max)
        await stack.enter_async_context(upstream)
        health = Health(settings.health, on_health)
        metrics = Metrics(__version__, connections=lambda: upstream.connections, dropped_log_lines=log.dropped_lines)
        failures = Failures()
        if shared is not None:
            try:
                await stack.enter_async_context(publish_snapshots(shared, str(os.getpid()), metrics, failures))
            except OSError as error:
                message = f"workers: cannot write the metrics that they share in {shared}: {error.strerror}"
                raise SettingsError(message) from None
        observers = [CallLog(log), metrics, failures]
        server = Server(settings, policy, upstream, health, observers=observers, tracer=tracer, reuse_port=reuse_port)
        yield Parts(server, health, metrics, failures)


def tune_garbage_collection() -> None:
    """Leave what start-up made out of collections, and collect less often."""
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
