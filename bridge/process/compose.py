"""The composition root: all that one serving process is made of, top to bottom. Nothing is assigned afterwards."""

import contextlib
import gc
import math
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final, NamedTuple

from bridge import __version__
from bridge.core.x509 import Validity
from bridge.process.connections import CallerConnections
from bridge.reload import FileState, list_files, list_unusable
from bridge.server.health import STATES, Health
from bridge.server.server import Server, make_header_policy
from bridge.settings import Settings, SettingsError
from bridge.telemetry.caller_counts import CallerCounts
from bridge.telemetry.failures import Failures
from bridge.telemetry.logs import CallLog, Log
from bridge.telemetry.metrics import Metrics, Reader
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
    callers: CallerCounts


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
        readers: dict[str, Reader] = {
            "connections": lambda: upstream.connections,
            "log_lines_dropped": log.dropped_lines,
            "calls_max": lambda: settings.calls_max,
            "queued": lambda: server.queued,
            "tls_handshakes": lambda: server.handshakes.begun,
            "tls_handshake_failures": lambda: {(why,): count for why, count in server.handshakes.failures.items()},
            "processes": lambda: {(state,): state == health.state for state in STATES},
            **_FILE_READERS,
        }
        if shared is None:  # else the supervisor counts those of all workers
            readers["caller_connections"] = CallerConnections(lambda: [server.address, server.web_address])
        metrics = Metrics(__version__, readers)
        failures, callers = Failures(), CallerCounts()
        observers = [CallLog(log), metrics, failures, callers]
        server = Server(settings, policy, upstream, health, observers=observers, tracer=tracer, reuse_port=reuse_port)
        stack.callback(server.close)
        if shared is not None:
            try:
                await stack.enter_async_context(publish_snapshots(shared, str(os.getpid()), metrics, failures, callers))
            except OSError as error:
                raise sharing_error(shared, error) from None
        yield Parts(server, health, metrics, failures, callers)


def sharing_error(folder: Path | str, error: OSError) -> SettingsError:
    """Return the error of a folder in which workers can't write what they count."""
    return SettingsError(f"workers: cannot write the metrics that they share in {folder}: {error.strerror}")


def _sum_files(read: Callable[[FileState], int]) -> Counter[tuple[str, ...]]:
    """Return the sums by setting."""
    found: Counter[tuple[str, ...]] = Counter()
    for file in list_files():
        found[file.setting,] += read(file)
    return found


def _read_certificates(read: Callable[[Validity], float]) -> dict[tuple[str, ...], float]:
    """Return what is first by setting."""
    found: dict[tuple[str, ...], float] = {}
    for file in list_files():
        for name, validity in file.validities.items():
            found[name,] = min(read(validity), found.get((name,), math.inf))
    return found


_FILE_READERS: Final[dict[str, Reader]] = {
    "files_unusable": lambda: len(list_unusable()),
    "reloads": lambda: _sum_files(lambda file: file.reloads),
    "reload_failures": lambda: _sum_files(lambda file: file.failures),
    "certificate_expiry": lambda: _read_certificates(lambda validity: validity.end),
    "certificate_lifetime": lambda: _read_certificates(lambda validity: validity.end - validity.start),
}


def tune_garbage_collection() -> None:
    """Leave what start-up made out of collections, and collect less often."""
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
