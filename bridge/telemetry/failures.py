"""The last calls that failed, for the admin page: when, and what their record says of how.

Several worker processes keep each its own; the supervisor's Failures shows the last of all (snapshots.py).
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from bridge.telemetry.record import NOT_FAILURES, CallRecord, Observer

__all__ = ["FAILURES_MAX", "Failure", "Failures"]

FAILURES_MAX: Final = 50


@dataclass(frozen=True)
class Failure:
    """A call that failed. `at` is in seconds since 1970; the rest is as in its CallRecord."""

    at: float
    method: str
    code: str
    reason: str
    model: str
    request_id: str
    trace_id: str
    caller: str
    duration_s: float
    upstream_status: int | None = None
    detail: str = ""


class Failures(Observer):
    """An Observer that keeps the last FAILURES_MAX failures.

    `workers` returns those of the workers, if this process is their supervisor.
    """

    def __init__(self, *, workers: Callable[[], Iterable[Failure]] = tuple) -> None:
        self._last: deque[Failure] = deque(maxlen=FAILURES_MAX)
        self._workers = workers

    def end(self, record: CallRecord) -> None:
        """Keep a call that failed; a cancelled call is not a failure."""
        if record.code in NOT_FAILURES:
            return
        self._last.append(
            Failure(
                at=round(time.time(), 6),
                method=record.method,
                code=record.code,
                reason=record.reason,
                model=record.model,
                request_id=record.request_id,
                trace_id=record.trace_id,
                caller=record.caller,
                duration_s=round(record.duration_s, 6),
                upstream_status=record.upstream_status,
                detail=record.detail,
            )
        )

    def last(self) -> list[Failure]:
        """Return the last FAILURES_MAX failures, of all processes, the newest first."""
        return keep_newest((*self._last, *self._workers()))


def keep_newest(failures: Iterable[Failure]) -> list[Failure]:
    """Return the newest FAILURES_MAX failures, the newest first."""
    return sorted(failures, key=lambda failure: failure.at, reverse=True)[:FAILURES_MAX]
