"""The process: one server and what tells of it; or several on one port, and a supervisor over them that serves nothing.

The kernel spreads connections over the workers (SO_REUSEPORT); a worker that dies takes its own calls along and no
others, and another takes its place, later the more often it happens. Workers are spawned, not forked, since grpc must
not be forked, and keep the settings of the start. They share their metrics and failures through files, which the
supervisor's admin port shows summed. A worker whose supervisor is gone drains by itself.
"""

import asyncio
import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Final

import structlog
from prometheus_client.multiprocess import mark_process_dead

from bridge import __version__
from bridge.admin.site import serve_admin
from bridge.server.server import Started, serve
from bridge.settings import Loaded, Settings, SettingsError, split_address
from bridge.telemetry.failures import Failures
from bridge.telemetry.logs import CallLog, configure
from bridge.telemetry.metrics import Metrics
from bridge.telemetry.tracing import tracing

__all__ = ["loop_factory", "run"]

_SHARED_METRICS: Final = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that makes prometheus_client keep its values in files. It is read when the library is first imported."""
_BACKOFF_S: Final = (0.5, 30.0)
"""How long after a worker's death another starts: at first, and at most. It doubles while they die young."""
_YOUNG_S: Final = 60.0
_START_S: Final = 60.0
_LAST_WORDS_S: Final = 10.0
"""How long workers may take to end, beyond what the settings give a drain, before they are killed."""
_LOG: Final = structlog.get_logger("ollm_bridge")

Ready = Callable[[str], None]


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Give what makes event loops: uvloop's, where it is to be had."""
    try:
        import uvloop  # noqa: PLC0415 - not to be had on every platform
    except ImportError:
        return None
    return uvloop.new_event_loop


async def run(loaded: Loaded, ready: Ready) -> int:
    """Serve until SIGTERM or SIGINT, and give the exit code. `ready` is told the address once calls are taken.

    Raises SettingsError where the settings can't be used.
    """
    settings = loaded.settings
    configure(settings.log)
    count = len(os.sched_getaffinity(0)) if settings.workers == "auto" else settings.workers
    try:
        if count == 1:
            return await _run_alone(loaded, ready)
        with tempfile.TemporaryDirectory(prefix="ollm-bridge-") as shared:
            return await _Supervisor(loaded, count, Path(shared)).run(ready)
    finally:
        _let_go_of_the_log()


def _let_go_of_the_log() -> None:
    """Drop what is left of a log that nobody reads any more: Python would end with 120 for it, not with our code."""
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


async def _run_alone(loaded: Loaded, ready: Ready) -> int:
    settings = loaded.settings
    metrics, failures = Metrics(__version__), Failures()

    def shown(server: Started) -> AbstractAsyncContextManager[str]:
        metrics.connections = lambda: server.upstream.connections
        return serve_admin(loaded, metrics, failures, lambda: server.health.serving, address=server.address)

    async with tracing(settings, __version__) as traces:
        observers = [CallLog(), metrics, failures]
        await serve(settings, observers, lambda server: ready(server.address), tracing=traces, beside=shown)
    return 0


# A worker's side: what it says goes through a pipe, whose end is the supervisor's.


def _work(settings: Settings, shared: Path, pipe: Connection) -> None:
    """Be a worker: the whole of its process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the supervisor alone decides
    configure(settings.log)
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_worked(settings, shared, pipe))
    except SettingsError as error:
        pipe.send(("refused", str(error)))
        raise SystemExit(2) from None


async def _worked(settings: Settings, shared: Path, pipe: Connection) -> None:
    try:
        metrics, failures = Metrics(__version__, shared=shared), Failures(shared=shared, name=str(os.getpid()))
    except OSError as error:
        message = f"workers: expected room for what they share in {shared}, found: {error.strerror}"
        raise SettingsError(message) from None
    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe.fileno(), stop.set)  # nothing is ever sent: its end is the supervisor's

    def tell(kind: str, what: object) -> None:
        with contextlib.suppress(OSError):  # a supervisor that is gone: `stop` is set by that
            pipe.send((kind, what))

    def ready(server: Started) -> None:
        metrics.connections = lambda: server.upstream.connections
        server.health.told = lambda serving: tell("serving", serving)
        tell("ready", server.address)

    async with tracing(settings, __version__) as traces:
        observers = [CallLog(), metrics, failures]
        await serve(settings, observers, ready, tracing=traces, signals=(signal.SIGTERM,), stop=stop, reuse_port=True)


# The supervisor's side


class _Worker:
    """A worker's process, and what it has said."""

    def __init__(self, settings: Settings, shared: Path) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self.process: SpawnProcess = spawn.Process(target=_work, args=(settings, shared, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.started_at = time.monotonic()
        self.address = ""
        self.refusal = ""
        self.serving = False
        self.told = asyncio.Event()
        self.ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pipe.fileno(), self._hear)
        loop.add_reader(self.process.sentinel, self._note_end)

    def _hear(self) -> bool:
        """Take in what the worker says; False where it will say no more."""
        try:
            kind, what = self._pipe.recv()
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            return False
        match kind:
            case "ready":
                self.address, self.serving = what, True
            case "serving":
                self.serving = what
            case _:
                self.refusal = what
        self.told.set()
        return True

    def _note_end(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.process.sentinel)
        while self._hear():  # its last words
            pass
        loop.remove_reader(self._pipe.fileno())
        self.process.join()
        self._pipe.close()
        self.serving = False
        self.ended.set()
        self.told.set()


class _Supervisor:
    """Starts workers, starts others for those that die, and drains them all."""

    def __init__(self, loaded: Loaded, count: int, shared: Path) -> None:
        self._loaded = loaded
        self._count = count
        self._shared = shared
        self._workers: set[_Worker] = set()
        self._stopping = asyncio.Event()

    async def run(self, ready: Ready) -> int:
        """Serve until SIGTERM or SIGINT, and give the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        os.environ[_SHARED_METRICS] = str(self._shared)
        metrics, failures = Metrics(__version__, shared=self._shared), Failures(shared=self._shared)
        with _reserved(self._loaded.settings) as settings:
            try:
                async with contextlib.AsyncExitStack() as stack:
                    await self._start_all(settings)
                    shown = serve_admin(self._loaded, metrics, failures, self._serving, address=settings.listen)
                    await stack.enter_async_context(shown)
                    ready(settings.listen)
                    async with asyncio.TaskGroup() as group:
                        for worker in list(self._workers):
                            group.create_task(self._keep(worker, settings))
            finally:
                await self._end_all()
        return 0

    def _serving(self) -> bool:
        return not self._stopping.is_set() and any(worker.serving for worker in self._workers)

    async def _start_all(self, settings: Settings) -> None:
        """Start the workers at once. Raises SettingsError where one of them refuses, or none gets ready in time."""
        for _ in range(self._count):
            self._workers.add(_Worker(settings, self._shared))
        for worker in self._workers:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_START_S):
                    await worker.told.wait()
            if not worker.address:
                raise SettingsError(worker.refusal or "workers: expected all to start, found one that did not")

    async def _keep(self, worker: _Worker, settings: Settings) -> None:
        """Wait for a worker's end, and start another in its place, until all are to stop."""
        backoff_s = _BACKOFF_S[0]
        while True:
            await worker.ended.wait()
            self._workers.discard(worker)
            mark_process_dead(worker.process.pid, path=str(self._shared))  # type: ignore[no-untyped-call]
            if self._stopping.is_set():
                return
            if time.monotonic() - worker.started_at > _YOUNG_S:
                backoff_s = _BACKOFF_S[0]
            _LOG.error("a worker died", pid=worker.process.pid, exit_code=worker.process.exitcode, again_in_s=backoff_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff_s):
                    await self._stopping.wait()
                    return
            backoff_s = min(2 * backoff_s, _BACKOFF_S[1])
            worker = _Worker(settings, self._shared)
            self._workers.add(worker)

    def _stop(self) -> None:
        """Drain the workers; asked a second time, end them."""
        again = self._stopping.is_set()
        self._stopping.set()
        for worker in self._workers:
            if again:
                worker.process.kill()
            else:
                worker.process.terminate()

    async def _end_all(self) -> None:
        """See to it that no worker is left: they have been told to drain, or are now."""
        settings = self._loaded.settings
        if not self._stopping.is_set():
            self._stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settings.drain_delay_s + settings.drain_grace_s + _LAST_WORDS_S):
                for worker in self._workers:
                    await worker.ended.wait()
        for worker in self._workers:
            worker.process.kill()


@contextlib.contextmanager
def _reserved(settings: Settings) -> Iterator[Settings]:
    """Hold the port, so that each worker finds the same, and give the settings with it. Raises SettingsError."""
    try:
        host, port = split_address(settings.listen)
    except ValueError:
        raise SettingsError(f"listen: expected HOST:PORT for several workers, found {settings.listen!r}") from None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    address = (host.strip("[]"), port)
    with socket.socket(family) as held:
        try:
            with socket.socket(family) as probe:  # who shares its port must not share it with strangers
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind(address)
        except OSError as error:
            message = f"listen: expected an address that can be bound, found {settings.listen!r}: {error.strerror}"
            raise SettingsError(message) from None
        yield settings.model_copy(update={"listen": f"{host}:{held.getsockname()[1]}"})
