"""grpc.health.v1: SERVING after the start; NOT_SERVING at once on drain, or while the upstream can't be reached.

The messages are grpcio-health-checking's. Its servicer is not used: its `Watch` holds a lock while it writes, and a
change of the status waits for that lock. So one caller that reads nothing keeps the status from all others, and the
drain from its start. Versions: up to 1.83.2. Tests: tests/e2e/test_health.py, tests/e2e/test_drain.py. Here a change
waits for nobody: a watcher waits for it, and writes without any lock.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, Literal, TypeAlias, get_args

import structlog
from grpc_health.v1 import health_pb2

from bridge.core.errors import BridgeError
from bridge.core.reasons import SERVICE_NAME
from bridge.settings import HealthSettings

__all__ = ["STATES", "Health", "State"]

State: TypeAlias = Literal["starting", "serving", "upstream_unreachable", "draining"]
STATES: Final[tuple[State, ...]] = get_args(State)
_SERVICES: Final = ("", SERVICE_NAME)
_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
_SERVICE_UNKNOWN: Final = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
_LOG: Final = structlog.get_logger("ollm_bridge")


class Health:
    """The state of the process, and the status that it gives the server and the service.

    `state` says whether it serves, or why not, and `since` from when on, in seconds since 1970. `on_change` is called
    at each change with whether it serves.
    """

    def __init__(self, settings: HealthSettings, on_change: Callable[[bool], None] | None = None) -> None:
        self._settings = settings
        self._on_change = on_change
        self._changed = asyncio.Event()
        self.state: State = "starting"
        self.since = time.time()

    @property
    def is_serving(self) -> bool:
        """Whether calls are taken, and the upstream can be reached as far as that is known."""
        return self.state == "serving"

    def find_status(self, service: str) -> int | None:
        """Return the status of a service, "" for the server; None if it is unknown."""
        if service not in _SERVICES:
            return None
        return int(_SERVING if self.is_serving else _NOT_SERVING)

    async def wait_for_status(self, service: str, last: int | None = None) -> int:
        """Return the status of a service as soon as it is another than `last`; SERVICE_UNKNOWN is one."""
        while True:
            status = self.find_status(service)
            status = int(_SERVICE_UNKNOWN) if status is None else status
            if status != last:
                return status
            await self._changed.wait()

    def start(self) -> None:
        """Report SERVING, for the server and for the service."""
        self._change("serving")

    def drain(self) -> None:
        """Report NOT_SERVING for good, to open Watch calls too."""
        self._change("draining")

    @contextlib.asynccontextmanager
    async def watch(self, reach: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
        """While the block lasts, try the upstream as often as the settings say, and report what comes of it."""
        period_s = self._settings.upstream_period_s
        if period_s is None:
            yield
            return
        task = asyncio.create_task(self._try_upstream(reach, period_s))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _try_upstream(self, reach: Callable[[], Awaitable[None]], period_s: float) -> None:
        failures = 0
        while True:
            await asyncio.sleep(period_s)
            try:
                await reach()
            except Exception as error:  # noqa: BLE001 - whatever it is, the next try comes
                failures += 1
                if failures >= self._settings.upstream_failures and self.is_serving:
                    why = _explain(error)
                    _LOG.warning("not serving: the upstream can't be reached", failures=failures, **why)
                    self._change("upstream_unreachable")
            else:
                if not self.is_serving:
                    _LOG.info("serving: the upstream is reached again", failures=failures)
                    self._change("serving")
                failures = 0

    def _change(self, state: State) -> None:
        if self.state == "draining":
            return
        self.state = state
        self.since = time.time()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        if self._on_change is not None:
            self._on_change(self.is_serving)


def _explain(error: Exception) -> dict[str, str]:
    """Return the fields of the log that say why a try failed; the words are the bridge's own."""
    if isinstance(error, BridgeError):
        return {"reason": error.reason_name, "detail": error.message}
    return {"fault": type(error).__name__}
