"""What the bridge tells balancers of its load, if a setting says so (`orca.py`).

A client that balances by weight gives a replica its share by `rps_fractional / application_utilization`. The first is
the rate at which calls have started lately; the second is how full the process is: of calls, by `calls_max`, or of
time, by the event loop's lag and `lag_max_ms`, whichever is more. It may be above 1.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Final

from google.protobuf.message import DecodeError

from bridge.core.errors import BridgeError, Code
from bridge.server import orca
from bridge.server.call import RpcCall
from bridge.server.receiving import Receiving
from bridge.settings import Settings
from ollmbridge.v1 import error_details_pb2 as details_pb2

__all__ = ["Load", "LoadStream"]

_RATE_S: Final = 10.0
"""Over which the rate is measured; what is older fades."""
_INTERVAL_S_MIN: Final = 1.0
_INTERVAL_S: Final = 10.0
"""Between two reports of a stream whose caller does not say."""


class Load:
    """Measures the load of a process."""

    def __init__(
        self,
        settings: Settings,
        in_flight: Callable[[], int],
        lag_s: Callable[[], float],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._calls_max = settings.calls_max
        self._lag_max_s = settings.lag_max_ms / 1000
        self._is_reported = bool(settings.load_reports)
        self._in_trailers = "trailers" in settings.load_reports
        self._in_flight = in_flight
        self._lag_s = lag_s
        self._clock = clock
        self._started_at = self._faded_at = clock()
        self._calls = 0.0

    def add_call(self) -> None:
        """Count a call that starts."""
        if self._is_reported:
            self._fade()
            self._calls += 1

    def encode(self, *, ending: int = 0) -> bytes:
        """Return the report; calls that are `ending` count as still in flight."""
        utilization = max((self._in_flight() + ending) / self._calls_max, self._lag_s() / self._lag_max_s)
        report = orca.LoadReport(rps_fractional=self._measure_rate(), application_utilization=utilization)
        data: bytes = report.SerializeToString()
        return data

    def trailers(self) -> list[tuple[str, bytes]]:
        """Return what a call that ends tells of the load."""
        return [(orca.TRAILER, self.encode(ending=1))] if self._in_trailers else []

    def _measure_rate(self) -> float:
        """Return the calls a second. A process that is younger than the measure has seen less of it."""
        self._fade()
        seen_s = _RATE_S * -math.expm1(-(self._faded_at - self._started_at) / _RATE_S)
        return self._calls / seen_s if seen_s else 0.0

    def _fade(self) -> None:
        now = self._clock()
        self._calls *= math.exp((self._faded_at - now) / _RATE_S)
        self._faded_at = now


class LoadStream:
    """The service that reports the load over and over, apart from calls, until its caller ends it."""

    def __init__(
        self, load: Load, receiving: Receiving, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._load = load
        self._receiving = receiving
        self._sleep = sleep

    async def run(self, call: RpcCall) -> None:
        """Send reports as often as the caller asks, and not more often than once a second."""
        interval_s = _read_interval_s(await self._receiving.receive(call))
        while True:
            await call.send(self._load.encode())
            await self._sleep(interval_s)


def _read_interval_s(data: bytes | None) -> float:
    try:
        interval = orca.LoadReportRequest.FromString(data or b"").report_interval
    except DecodeError:
        message = "expected an OrcaLoadReportRequest, found bytes that can't be decoded as one"
        raise BridgeError(Code.INVALID_ARGUMENT, details_pb2.ERROR_REASON_UNDECODABLE_REQUEST, message) from None
    asked_s = interval.seconds + interval.nanos / 1e9
    return max(_INTERVAL_S_MIN, asked_s) if asked_s > 0 else _INTERVAL_S
