"""Calls that are refused because the event loop is late, all slots are taken, or their caller has too many already.

The loop's lag is how late a timer runs. If two timers in a row are later than lag_max_ms, calls in flight already wait
that long at each of their steps, and one more would only make them wait longer. So a new call is refused before its
metadata and its message are looked at, with a status that was prepared once. Such refusals are counted as any other
call, and logged in sum. One late timer alone is a pause, such as a large message, and no overload. The same goes for a
call for which there is neither a slot nor a place in the queue, whoever makes it. Of a call that is above the limit of
its caller, the metadata is looked at first, since who calls may stand there.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from bridge.core.status import GrpcStatus, to_grpc_status
from bridge.server.admission import overload_error
from bridge.server.rpc import Caller
from bridge.telemetry import Observer

__all__ = ["Shedding"]

TICK_S: Final = 0.02
LOG_S: Final = 1.0
_LOG: Final = structlog.get_logger("ollm_bridge")


class Shedding:
    """Says which calls to refuse. `has_calls` says whether calls are in flight: the lag is measured only then.

    `is_full` says whether there is no slot for any call if so many others come before it, `full_message` what such a
    refusal says; `has_too_many` and `too_many_message` do so for calls of one caller, by its `bucket`.
    """

    def __init__(
        self,
        lag_max_ms: float,
        has_calls: Callable[[], bool],
        observers: Sequence[Observer] = (),
        *,
        is_full: Callable[[int], bool] = lambda _arriving: False,
        full_message: str = "",
        has_too_many: Callable[[str, int], bool] = lambda _bucket, _arriving: False,
        too_many_message: str = "",
        tick_s: float = TICK_S,
        log_s: float = LOG_S,
    ) -> None:
        self._lag_max_ms = lag_max_ms
        self._lag_max_s = lag_max_ms / 1000
        self._has_calls = has_calls
        self._observers = observers
        self._tick_s = tick_s
        self._log_s = log_s
        self._is_full = is_full
        self._has_too_many = has_too_many
        self._full_status = to_grpc_status(overload_error(full_message))
        self._too_many_status = to_grpc_status(overload_error(too_many_message))
        self._late_status = to_grpc_status(overload_error(f"the event loop is late (lag_max_ms = {lag_max_ms:g})"))
        self._due_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._last_s = self._previous_s = 0.0
        self._refusals = {"late": 0, "full": 0, "too many": 0}
        self._last_bucket = ""
        self._will_log = False

    @property
    def lag_s(self) -> float:
        """How late the last timer was; 0 while no calls are in flight."""
        return self._last_s if self._timer is not None else 0.0

    def watch(self) -> None:
        """Measure the lag while calls are in flight; to be called as one starts."""
        if self._timer is None:
            self._last_s = self._previous_s = 0.0
            self._schedule()

    def refuse(self, method: str, arriving: int = 0) -> GrpcStatus | None:
        """Return the status of a call that is refused, and count it; None if the call is welcome.

        `arriving` is how many calls were welcome and have not begun.
        """
        if self._timer is not None and self._is_late():
            self._count("late", method)
            return self._late_status
        if self._is_full(arriving):
            self._count("full", method)
            return self._full_status
        return None

    def refuse_caller(self, method: str, caller: Caller, arriving: int = 0) -> GrpcStatus | None:
        """Return the status of a call of a caller who has too many already, and count it; None if it is welcome.

        `arriving` is how many calls of this caller were welcome and have not begun.
        """
        if not self._has_too_many(caller.bucket, arriving):
            return None
        self._last_bucket = caller.bucket
        self._count("too many", method, caller.name)
        return self._too_many_status

    def _count(self, reason: str, method: str, caller: str | None = None) -> None:
        if not self._will_log:
            self._will_log = True
            asyncio.get_running_loop().call_later(self._log_s, self._log)
        self._refusals[reason] += 1
        for observer in self._observers:
            observer.refuse(method, caller)

    def _is_late(self) -> bool:
        """Return whether two timers in a row are late; one that has not run yet counts as soon as it is."""
        if self._last_s <= self._lag_max_s:
            return False
        return self._previous_s > self._lag_max_s or time.monotonic() - self._due_at > self._lag_max_s

    def _schedule(self) -> None:
        self._due_at = time.monotonic() + self._tick_s
        self._timer = asyncio.get_running_loop().call_later(self._tick_s, self._tick)

    def _tick(self) -> None:
        self._previous_s, self._last_s = self._last_s, max(0.0, time.monotonic() - self._due_at)
        for observer in self._observers:
            observer.add_lag(self._last_s)
        if self._has_calls():
            self._schedule()
        else:
            self._timer = None

    def _log(self) -> None:
        refusals, self._refusals = self._refusals, dict.fromkeys(self._refusals, 0)
        self._will_log = False
        lag_ms = round(self._last_s * 1000)
        if count := refusals["late"]:
            lags = {"lag_ms": lag_ms, "lag_max_ms": self._lag_max_ms}
            _LOG.warning("calls refused: the event loop is late", count=count, **lags)
        if count := refusals["full"]:
            _LOG.warning("calls refused: all slots are taken", count=count, lag_ms=lag_ms)
        if count := refusals["too many"]:
            last = self._last_bucket
            _LOG.warning("calls refused: their callers have too many in flight", count=count, last_caller=last)
