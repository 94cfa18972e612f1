"""Runs the bridge: one serving process, or several and a supervisor over them."""

import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bridge.admin.site import serve_admin
from bridge.process.compose import compose, tune_garbage_collection
from bridge.process.stop import wait_for_stop
from bridge.process.supervisor import Supervisor
from bridge.server.grpc_aio import is_loggable
from bridge.settings import Loaded
from bridge.telemetry.logs import Log, open_log

__all__ = ["run"]

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


async def run(loaded: Loaded, on_ready: Callable[[str], None]) -> int:
    """Serve until SIGTERM or SIGINT and return the exit code. `on_ready` gets the address once calls are taken.

    Raises SettingsError if the settings can't be used.
    """
    settings = loaded.settings
    count = len(os.sched_getaffinity(0)) if settings.workers == "auto" else settings.workers
    with open_log(settings.log, is_loggable) as log:
        if count == 1:
            return await _run_alone(loaded, log, on_ready)
        with tempfile.TemporaryDirectory(prefix="ollm-bridge-") as shared:
            return await Supervisor(loaded, log, count, Path(shared)).run(on_ready)


async def _run_alone(loaded: Loaded, log: Log, on_ready: Callable[[str], None]) -> int:
    async with (
        compose(loaded.settings, log) as parts,
        serve_admin(
            loaded,
            parts.metrics,
            parts.failures,
            lambda: parts.health.is_serving,
            address=parts.server.address,
        ),
        parts.server as server,
    ):
        tune_garbage_collection()
        on_ready(server.address)
        await wait_for_stop(server, _SIGNALS)
    return 0
