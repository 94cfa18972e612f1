"""A supervisor over several workers on one port. It serves nothing itself, and shows what they count, summed.

The kernel spreads connections over the workers (SO_REUSEPORT). A worker that dies takes its own calls along and no
others; another takes its place, later the more often that happens. Workers are spawned, not forked, since grpc must not
be forked, and keep the settings of the start.
"""

import asyncio
import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Final

import structlog

from bridge import __version__
from bridge.admin.site import Shown, serve_admin
from bridge.process.about import describe_process, log_start
from bridge.process.connections import CallerConnections
from bridge.process.ports import hold_ports
from bridge.process.signals import handle_reload
from bridge.process.stop import log_drain
from bridge.process.worker import run_worker
from bridge.settings import Loaded, Settings, SettingsError
from bridge.telemetry.caller_counts import CallerCounts
from bridge.telemetry.failures import Failures
from bridge.telemetry.logs import Log
from bridge.telemetry.metrics import Metrics, Reader
from bridge.telemetry.snapshots import SnapshotReader

__all__ = ["Supervisor"]

_RESTART_BACKOFF_S: Final = (0.5, 30.0)
"""How long after a worker's death another starts: at first, and at most. It doubles while they die young."""
_RESTART_RESET_S: Final = 60.0
"""Age from which a worker's death is a new matter."""
_START_TIMEOUT_S: Final = 60.0
_KILL_AFTER_S: Final = 10.0
"""How long workers may take to end, beyond what the settings give a drain, before they are killed."""
_LOG: Final = structlog.get_logger("ollm_bridge")


class Supervisor:
    """Starts workers, replaces those that die, and drains them all."""

    def __init__(self, loaded: Loaded, log: Log, count: int, shared: Path) -> None:
        self._loaded = loaded
        self._log = log
        self._count = count
        self._shared = shared
        self._snapshots = SnapshotReader(shared)
        self._workers: set[_Worker] = set()
        self._stopping = asyncio.Event()
        self._restarts = 0

    async def run(self, on_ready: Callable[[str, str], None]) -> int:
        """Serve until SIGTERM or SIGINT and return the exit code; `on_ready` as in `run.py`. Raises SettingsError."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        handle_reload(self._tell_workers_to_reload)
        snapshots = self._snapshots
        shown = Shown(
            Failures(workers=snapshots.read_failures), CallerCounts(workers=snapshots.read_callers), self._is_serving
        )
        with hold_ports(self._loaded.settings) as settings:
            address = settings.listen
            readers: dict[str, Reader] = {
                "log_lines_dropped": self._log.dropped_lines,
                "worker_restarts": lambda: self._restarts,
                "caller_connections": CallerConnections(lambda: [address, settings.web_listen]),
            }
            metrics = Metrics(__version__, readers, workers=snapshots.read_metrics, pids=self._list_pids)
            try:
                await self._start_all(settings)
                async with serve_admin(self._loaded, metrics, shown, address=address) as page:
                    web = settings.web_listen
                    log_start(settings, address=address, web=web, page=page, workers=self._count)
                    on_ready(address, describe_process(settings, page=page, web=web))
                    async with asyncio.TaskGroup() as group:
                        for worker in list(self._workers):
                            group.create_task(self._keep_running(worker, settings))
            finally:
                await self._end_all()
        _LOG.info("stopped", pid=os.getpid(), workers=self._count)
        return 0

    def _tell_workers_to_reload(self) -> None:
        for pid in self._list_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGHUP)

    def _is_serving(self) -> bool:
        return not self._stopping.is_set() and any(worker.is_serving for worker in self._workers)

    def _list_pids(self) -> list[int]:
        return [pid for worker in list(self._workers) if (pid := worker.process.pid) is not None]

    async def _start_all(self, settings: Settings) -> None:
        """Start the workers at once. Raises SettingsError if one refuses, or is not ready in time."""
        for _ in range(self._count):
            self._workers.add(_Worker(settings, self._shared))
        for number, worker in enumerate(self._workers, start=1):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_START_TIMEOUT_S):
                    await worker.started.wait()
            if not worker.address:
                late = f"workers: worker {number} was not ready after {_START_TIMEOUT_S:g} s"
                dead = f"workers: worker {number} ended before it was ready; its log may say why"
                raise SettingsError(worker.refusal or (dead if worker.ended.is_set() else late))

    async def _keep_running(self, worker: "_Worker", settings: Settings) -> None:
        """Wait for a worker's end and start another in its place, until all are to stop."""
        backoff_s = _RESTART_BACKOFF_S[0]
        while True:
            await worker.ended.wait()
            self._workers.discard(worker)
            self._snapshots.retire(str(worker.process.pid))
            if self._stopping.is_set():
                return
            if time.monotonic() - worker.started_at > _RESTART_RESET_S:
                backoff_s = _RESTART_BACKOFF_S[0]
            _LOG.error("a worker died", pid=worker.process.pid, exit_code=worker.process.exitcode, again_in_s=backoff_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff_s):
                    await self._stopping.wait()
                    return
            backoff_s = min(2 * backoff_s, _RESTART_BACKOFF_S[1])
            worker = _Worker(settings, self._shared)
            self._workers.add(worker)
            self._restarts += 1
            _LOG.info("a worker was replaced", pid=worker.process.pid)

    def _on_signal(self) -> None:
        if self._stopping.is_set():
            _LOG.warning("stopped at once by a second signal: calls in flight are cut")
        else:
            log_drain(self._loaded.settings, workers=len(self._workers))
        self._stop()

    def _stop(self) -> None:
        """Drain the workers; at the second call, kill them."""
        is_second = self._stopping.is_set()
        self._stopping.set()
        for worker in self._workers:
            if is_second:
                worker.process.kill()
            else:
                worker.process.terminate()

    async def _end_all(self) -> None:
        """Make sure that no worker is left, however long that takes them within their time."""
        settings = self._loaded.settings
        if not self._stopping.is_set():
            self._stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settings.drain_delay_s + settings.drain_grace_s + _KILL_AFTER_S):
                for worker in self._workers:
                    await worker.ended.wait()
        for worker in self._workers:
            worker.process.kill()


class _Worker:
    """A worker's process as its supervisor knows it. `started` is set once it is ready, has refused, or has ended."""

    def __init__(self, settings: Settings, shared: Path) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self.process: SpawnProcess = spawn.Process(target=run_worker, args=(settings, shared, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.started_at = time.monotonic()
        self.address = ""
        self.refusal = ""
        self.is_serving = False
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pipe.fileno(), self._read_message)
        loop.add_reader(self.process.sentinel, self._on_exit)

    def _read_message(self) -> bool:
        """Read one message of the worker's; return False if there will be no more."""
        try:
            kind, value = self._pipe.recv()
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            return False
        match kind:
            case "ready":
                self.address = value
                self.started.set()
            case "serving":
                self.is_serving = value
            case _:
                self.refusal = value
                self.started.set()
        return True

    def _on_exit(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.process.sentinel)
        while self._read_message():  # what it sent before it ended
            pass
        loop.remove_reader(self._pipe.fileno())
        self.process.join()
        self._pipe.close()
        self.is_serving = False
        self.ended.set()
        self.started.set()
