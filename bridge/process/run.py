"""Runs the bridge: one serving process, or several and a supervisor over them."""

import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bridge.admin.site import Shown, serve_admin
from bridge.process.about import describe_process, log_start
from bridge.process.compose import compose, tune_garbage_collection
from bridge.process.hardening import harden
from bridge.process.ports import count_workers
from bridge.process.stop import serve_until_stopped
from bridge.process.supervisor import Supervisor
from bridge.server.grpc_aio import is_loggable
from bridge.settings import Loaded
from bridge.telemetry.logs import Log, open_log

__all__ = ["run"]

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


async def run(loaded: Loaded, on_ready: Callable[[str, str], None]) -> int:
    """Serve until SIGTERM or SIGINT and return the exit code.

    `on_ready` gets the address, and what the process says of itself, once calls are taken. Raises SettingsError if the
    settings can't be used.
    """
    settings = loaded.settings
    count = count_workers(settings)
    with open_log(settings.log, is_loggable) as log:
        harden(settings)
        if count == 1:
            return await _run_alone(loaded, log, on_ready)
        with tempfile.TemporaryDirectory(prefix="ollm-bridge-") as shared:
            return await Supervisor(loaded, log, count, Path(shared)).run(on_ready)


async def _run_alone(loaded: Loaded, log: Log, on_ready: Callable[[str, str], None]) -> int:
    settings = loaded.settings
    async with (
        compose(settings, log) as parts,
        serve_admin(
            loaded,
            parts.metrics,
            Shown(parts.failures, parts.callers, lambda: parts.health.is_serving),
            address=parts.server.address,
        ) as page,
    ):
        address = parts.server.address

        def on_started() -> None:
            tune_garbage_collection()
            web = parts.server.web_address
            log_start(settings, address=address, web=web, page=page, workers=1)
            on_ready(address, describe_process(settings, page=page, web=web))

        await serve_until_stopped(parts.server, settings, on_started, _SIGNALS)
    return 0
