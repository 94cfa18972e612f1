"""grpc.health.v1: SERVING after the start; NOT_SERVING at once on drain, or while the upstream can't be reached."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import structlog
from grpc_health.v1 import health, health_pb2

from bridge.core.errors import BridgeError
from bridge.core.reasons import SERVICE_NAME
from bridge.settings import HealthSettings

__all__ = ["Health"]

_SERVICES: Final = ("", SERVICE_NAME)
_LOG: Final = structlog.get_logger("ollm_bridge")


class Health:
    """The state of the process, kept in a health servicer. `on_change` is called with each state."""

    def __init__(self, settings: HealthSettings, on_change: Callable[[bool], None] | None = None) -> None:
        self._settings = settings
        self._on_change = on_change
        self.servicer = health.aio.HealthServicer()
        self.is_serving = False

    async def start(self) -> None:
        """Report SERVING, for the server and for the service."""
        await self._set(is_serving=True)

    async def drain(self) -> None:
        """Report NOT_SERVING for good, to open Watch calls too."""
        self._change(is_serving=False)
        await self.servicer.enter_graceful_shutdown()

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
                    kind = error.reason_name if isinstance(error, BridgeError) else type(error).__name__
                    _LOG.warning("not serving: the upstream can't be reached", failures=failures, reason=kind)
                    await self._set(is_serving=False)
            else:
                if not self.is_serving:
                    _LOG.info("serving: the upstream is reached again", failures=failures)
                    await self._set(is_serving=True)
                failures = 0

    def _change(self, *, is_serving: bool) -> None:
        self.is_serving = is_serving
        if self._on_change is not None:
            self._on_change(is_serving)

    async def _set(self, *, is_serving: bool) -> None:
        self._change(is_serving=is_serving)
        states = health_pb2.HealthCheckResponse
        for name in _SERVICES:
            await self.servicer.set(name, states.SERVING if is_serving else states.NOT_SERVING)
