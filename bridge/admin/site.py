"""The admin port, for people and for what watches over the bridge: a page, metrics, health; nothing here takes calls.

`/` is a page for a browser, `/status.json` what it asks for each two seconds, `/metrics` for Prometheus, `/healthz` for
whoever wants one word. The same port speaks grpc.health.v1. It shows no content and no key, has no TLS and asks nobody
who they are: it belongs on the loopback or on a network of one's own.

Rates and percentiles on the page come from the counters, looked at every few seconds and kept for ten minutes.
"""

import asyncio
import base64
import contextlib
import hashlib
import itertools
import json
import logging
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict
from importlib import resources
from typing import Any, Final

import grpc
import structlog
from aiohttp import web
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bridge import __version__
from bridge.admin.doorman import Doorman
from bridge.core.reasons import SERVICE_NAME
from bridge.settings import Loaded, SettingsError, split_address
from bridge.telemetry.failures import Failures
from bridge.telemetry.metrics import CONTENT_TYPE, Metrics, Totals

__all__ = ["serve_admin"]

_LOOK_S: Final = 2.5
_LOOKS_KEPT: Final = 241  # ten minutes
_MINUTE_S: Final = 60.0
_HEALTH_LOOK_S: Final = 0.5
"""How late a Health.Watch may learn of a change."""
_LAST_WORDS_S: Final = 0.5
_WATCHES_MAX: Final = 32  # of one connection
_LOG: Final = structlog.get_logger("ollm_bridge")
_SILENT: Final = logging.Logger("admin", logging.CRITICAL + 1)  # noqa: LOG001 - aiohttp quotes what strangers send

_PAGE: Final = resources.files("bridge.admin").joinpath("page.html").read_text(encoding="utf-8")


def _hashes(tag: str) -> str:
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", _PAGE, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found)
    return " ".join(f"'sha256-{digest}'" for digest in digests)


_HEADERS: Final = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_hashes('script')}; style-src {_hashes('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Server": "ollm-bridge",
}


@contextlib.asynccontextmanager
async def serve_admin(
    loaded: Loaded,
    metrics: Metrics,
    failures: Failures,
    serving: Callable[[], bool],
    *,
    address: str,
) -> AsyncIterator[str]:
    """Show all this while the block lasts, and give the address where; "" where the settings want it nowhere.

    `serving` says whether calls are taken, `address` where. Raises SettingsError where the port can't be had.
    """
    listen = loaded.settings.admin_listen
    if not listen:
        yield ""
        return
    async with contextlib.AsyncExitStack() as stack:
        history = await stack.enter_async_context(_history(metrics))
        site = _Site(loaded, metrics, failures, serving, history, address)
        http = web.Server(site.answer, access_log=None, logger=_SILENT, lingering_time=1.0)
        stack.push_async_callback(http.shutdown, 1.0)
        health = _Health(serving)
        doorman = Doorman(http, await health.start())
        stack.callback(doorman.close)
        stack.push_async_callback(health.stop)
        host, port = split_address(listen)
        try:
            server = await asyncio.get_running_loop().create_server(doorman, host.strip("[]"), port)
        except OSError as error:
            raise SettingsError(
                f"admin_listen: expected an address that can be bound, found {listen!r}: {error.strerror}"
            ) from None
        stack.callback(server.close)
        yield f"{host}:{server.sockets[0].getsockname()[1]}"


# HTTP


class _Site:
    """What is answered to whom asks by HTTP: one request a connection, so that no connection stays."""

    def __init__(
        self,
        loaded: Loaded,
        metrics: Metrics,
        failures: Failures,
        serving: Callable[[], bool],
        history: "_History",
        address: str,
    ) -> None:
        self._metrics = metrics
        self._failures = failures
        self._serving = serving
        self._history = history
        self._lasting = {
            "version": __version__,
            "address": address,
            "upstream": loaded.settings.upstream.base_url,
            "calls_max": loaded.settings.calls_max,
            "settings": [shown._asdict() for shown in loaded.describe()],
        }
        self._routes: Mapping[str, Callable[[], Awaitable[web.Response]]] = {
            "/": self._page,
            "/metrics": self._metrics_page,
            "/healthz": self._health,
            "/status.json": self._status,
        }

    async def answer(self, request: web.BaseRequest) -> web.Response:
        route = self._routes.get(request.path)
        if route is None:
            response = web.Response(status=404, text=f"expected one of {', '.join(self._routes)}\n")
        elif request.method not in {"GET", "HEAD"}:
            response = web.Response(status=405, text="expected GET\n", headers={"Allow": "GET, HEAD"})
        else:
            try:
                response = await route()
            except Exception as error:  # noqa: BLE001 - a page that fails fails alone
                _LOG.warning("admin page failed", path=request.path, fault=type(error).__name__)
                response = web.Response(status=500, text="the bridge could not make this page\n")
        response.headers.update(_HEADERS)
        response.force_close()
        return response

    async def _page(self) -> web.Response:
        return web.Response(text=_PAGE, content_type="text/html", charset="utf-8")

    async def _metrics_page(self) -> web.Response:
        body = await asyncio.to_thread(self._metrics.page)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    async def _health(self) -> web.Response:
        serving = self._serving()
        return web.Response(status=200 if serving else 503, text="SERVING\n" if serving else "NOT_SERVING\n")

    async def _status(self) -> web.Response:
        failed = await asyncio.to_thread(self._failures.last)
        status = {
            **self._lasting,
            "now": time.time(),
            "uptime_s": time.monotonic() - self._history.began_at,
            "serving": self._serving(),
            **self._history.shown(),
            "failures": [asdict(failure) for failure in failed],
        }
        return web.Response(body=json.dumps(status).encode(), content_type="application/json")


# What was counted, over the last minutes


class _History:
    """The totals, looked at now and then. `began_at` is on the monotonic clock."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.began_at = time.monotonic()
        self._looks: deque[tuple[float, Totals]] = deque(maxlen=_LOOKS_KEPT)

    async def look(self) -> None:
        totals = await asyncio.to_thread(self._metrics.totals)
        self._looks.append((time.monotonic(), totals))

    def shown(self) -> dict[str, Any]:
        """Give rates a second, percentiles in seconds, and the time lines and histograms to draw."""
        looks = list(self._looks)
        now_at, now = looks[-1]
        first_at, first = looks[0]
        minute_at, minute = next(look for look in looks if look[0] >= now_at - _MINUTE_S)
        elapsed_s = max(now_at - minute_at, _LOOK_S)
        calls = now.calls - first.calls
        return {
            "window_s": now_at - first_at,
            "in_flight": now.in_flight,
            "connections": now.connections,
            "calls": calls,
            "failed": now.failed - first.failed,
            "calls_total": now.calls,
            "calls_per_s": (now.calls - minute.calls) / elapsed_s,
            "tokens_in_per_s": (now.tokens_in - minute.tokens_in) / elapsed_s,
            "tokens_out_per_s": (now.tokens_out - minute.tokens_out) / elapsed_s,
            "duration": _histogram(first.duration, now.duration),
            "first_chunk": _histogram(first.first_chunk, now.first_chunk),
            "reasons": _since(first.reasons, now.reasons),
            "line": [_step(before, there, now_at) for before, there in itertools.pairwise(looks)],
        }


def _step(before: tuple[float, Totals], there: tuple[float, Totals], now_at: float) -> list[float]:
    """Give a point of the time line: seconds before now (negative), seconds it covers, calls, failed, in flight."""
    (before_at, old), (at, new) = before, there
    calls, failed = new.calls - old.calls, new.failed - old.failed
    return [round(at - now_at, 1), round(at - before_at, 2), calls, failed, new.in_flight]


@contextlib.asynccontextmanager
async def _history(metrics: Metrics) -> AsyncIterator[_History]:
    history = _History(metrics)
    await history.look()

    async def go_on() -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await history.look()
            except Exception as error:  # noqa: BLE001 - a look that fails is one look less
                _LOG.warning("metrics could not be read", fault=type(error).__name__)

    task = asyncio.create_task(go_on())
    try:
        yield history
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _since(before: Mapping[Any, int], now: Mapping[Any, int]) -> dict[Any, int]:
    return {key: count for key in now if (count := now[key] - before.get(key, 0)) > 0}


def _histogram(before: Mapping[float, int], now: Mapping[float, int]) -> dict[str, Any]:
    """Give what a histogram took in since: `[upper bound, count]` a bucket, its percentiles, None where it is empty."""
    bounds = sorted(now)
    upto = [max(0, now[bound] - before.get(bound, 0)) for bound in bounds]
    counts = [upper - lower for lower, upper in zip([0, *upto], upto, strict=False)]
    return {
        "buckets": [[None if bound == float("inf") else bound, n] for bound, n in zip(bounds, counts, strict=True)],
        "p50": _quantile(0.5, bounds, counts),
        "p95": _quantile(0.95, bounds, counts),
    }


def _quantile(share: float, bounds: list[float], counts: list[int]) -> float | None:
    """Give the value below which a share of what was counted lies, taken as spread evenly within its bucket."""
    wanted = share * sum(counts)
    lower = 0.0
    for bound, count in zip(bounds, counts, strict=True):
        if count and wanted <= count:
            return lower if bound == float("inf") else lower + (bound - lower) * wanted / count
        wanted -= count
        lower = bound
    return None


# grpc.health.v1


class _Health(health_pb2_grpc.HealthServicer):
    """The health of the bridge, by the one function that knows it, served on a loopback port of its own."""

    def __init__(self, serving: Callable[[], bool]) -> None:
        self._serving = serving
        self._ending = asyncio.Event()
        self._server = grpc.aio.server(
            options=[("grpc.so_reuseport", 0), ("grpc.max_concurrent_streams", _WATCHES_MAX)]
        )
        health_pb2_grpc.add_HealthServicer_to_server(self, self._server)

    async def start(self) -> int:
        """Take calls, and give the port."""
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return port

    async def stop(self) -> None:
        """Tell those who watch, and end."""
        self._ending.set()
        await self._server.stop(_LAST_WORDS_S)

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        state = self._state(request.service)
        if state == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "expected a service of the bridge's, found another")
        return health_pb2.HealthCheckResponse(status=state)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        told = None
        while True:
            ending = self._ending.is_set()
            if (state := self._state(request.service)) != told:
                told = state
                await context.write(health_pb2.HealthCheckResponse(status=state))
            if ending:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HEALTH_LOOK_S):
                    await self._ending.wait()

    def _state(self, service: str) -> Any:
        states = health_pb2.HealthCheckResponse
        if service not in {"", SERVICE_NAME}:
            return states.SERVICE_UNKNOWN
        return states.SERVING if self._serving() and not self._ending.is_set() else states.NOT_SERVING
