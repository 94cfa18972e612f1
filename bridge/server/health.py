"""grpc.health.v1: SERVING after the start, NOT_SERVING at once on drain, or while the upstream can't be reached."""

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
    """The state of the process, kept in a health servicer. `serving` says which it is, `told` is told of changes."""

    def __init__(self, settings: HealthSettings) -> None:
        self._settings = settings
        self.servicer = health.aio.HealthServicer()
        self.serving = False
        self.told: Callable[[bool], None] | None = None

    async def start(self) -> None:
        """Say SERVING, overall and of the service."""
        await self._set(serving=True)

    async def drain(self) -> None:
        """Say NOT_SERVING for good, to those who watch too."""
        self._note(serving=False)
        await self.servicer.enter_graceful_shutdown()

    @contextlib.asynccontextmanager
    async def watching(self, reach: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
        """While the block lasts, try the upstream as often as the settings say, and follow what comes of it."""
        period_s = self._settings.upstream_period_s
        if period_s is None:
            yield
            return
        task = asyncio.create_task(self._watch(reach, period_s))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _watch(self, reach: Callable[[], Awaitable[None]], period_s: float) -> None:
        failures = 0
        while True:
            await asyncio.sleep(period_s)
            try:
                await reach()
            except Exception as error:  # noqa: BLE001 - whatever it is, the watch goes on
                failures += 1
                if failures >= self._settings.upstream_failures and self.serving:
                    kind = error.reason_name if isinstance(error, BridgeError) else type(error).__name__
                    _LOG.warning("not serving: the upstream can't be reached", failures=failures, reason=kind)
                    await self._set(serving=False)
            else:
                if not self.serving:
                    _LOG.info("serving: the upstream is reached again", failures=failures)
                    await self._set(serving=True)
                failures = 0

    def _note(self, *, serving: bool) -> None:
        self.serving = serving
        if self.told is not None:
            self.told(serving)

    async def _set(self, *, serving: bool) -> None:
        self._note(serving=serving)
        states = health_pb2.HealthCheckResponse
        for name in _SERVICES:
            await self.servicer.set(name, states.SERVING if serving else states.NOT_SERVING)
