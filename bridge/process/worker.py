"""A worker: one of several serving processes. It reports to its supervisor by a pipe, and drains when that is gone."""

import asyncio
import contextlib
import signal
from multiprocessing.connection import Connection
from pathlib import Path

from bridge.process.compose import compose, tune_garbage_collection
from bridge.process.loops import loop_factory
from bridge.process.stop import serve_until_stopped
from bridge.server.grpc_aio import is_loggable
from bridge.settings import Settings, SettingsError
from bridge.telemetry.logs import Log, open_log

__all__ = ["run_worker"]


def run_worker(settings: Settings, shared: Path, pipe: Connection) -> None:
    """Be a worker: the whole of its process.

    It sends `("ready", address)`, then `("serving", bool)` at each change; or `("refused", why)`.
    """
    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal sends them to all; the supervisor decides
        signal.signal(number, signal.SIG_IGN)
    try:
        with open_log(settings.log, is_loggable) as log, asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_serve(settings, log, shared, pipe))
    except SettingsError as error:
        pipe.send(("refused", str(error)))
        raise SystemExit(2) from None


async def _serve(settings: Settings, log: Log, shared: Path, pipe: Connection) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe.fileno(), stop.set)  # readable only at its end: the supervisor is gone

    def report(kind: str, value: object) -> None:
        with contextlib.suppress(OSError):  # the supervisor is gone, which sets `stop`
            pipe.send((kind, value))

    composed = compose(
        settings,
        log,
        shared=shared,
        on_health=lambda is_serving: report("serving", is_serving),
        reuse_port=True,
    )
    async with composed as parts:

        def on_started() -> None:
            tune_garbage_collection()
            report("ready", parts.server.address)

        await serve_until_stopped(parts.server, settings, on_started, (signal.SIGTERM,), stop)
