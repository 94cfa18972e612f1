"""Calls by who made them, for the admin page: verified identities alone, since any other name is a caller's to choose.

Prometheus does not get these: a label for each caller would be a series for each caller. Several worker processes keep
each its own; the supervisor's CallerCounts shows the sum (snapshots.py).
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple, TypeAlias

from bridge.core.reasons import find_party
from bridge.telemetry.record import NOT_FAILURES, CallRecord, Observer

__all__ = ["CALLERS_MAX", "OTHERS", "CallerCount", "CallerCounts", "Counts", "add_counts"]

CALLERS_MAX: Final = 100
"""Callers with a row of their own; those that come later are counted together."""
OTHERS: Final = "(others)"
"""No identity: neither a SPIFFE id, a DNS name nor a token's name has parentheses around it."""


class CallerCount(NamedTuple):
    """What a caller did since the start. `last_at` is the end of its last call, in seconds since 1970."""

    calls: int = 0
    failed_caller: int = 0
    failed_gateway: int = 0
    failed_bridge: int = 0
    tokens_out: int = 0
    last_at: float = 0.0


Counts: TypeAlias = Mapping[str, CallerCount]
"""By the caller's name; "" are the calls of callers without one."""


class CallerCounts(Observer):
    """An Observer that counts calls by caller. `workers` returns the counts of the workers, if there are any."""

    def __init__(self, *, workers: Callable[[], Counts] = dict) -> None:
        self._counts: dict[str, CallerCount] = {}
        self._refused: dict[str, tuple[int, float]] = {}
        """How many calls of a caller were refused before they ran, and when the last. A CallerCount takes too long."""
        self._workers = workers

    def refuse(self, method: str, caller: str | None = None) -> None:  # noqa: ARG002 - all methods together
        """Count a call that was refused before it ran, if it is known whose it was."""
        if caller is not None:
            name = caller if caller in self._refused or len(self._refused) < CALLERS_MAX else OTHERS
            count, _ = self._refused.get(name, (0, 0.0))
            self._refused[name] = count + 1, time.time()

    def end(self, record: CallRecord) -> None:
        """Count a call that has ended."""
        party = None if record.code in NOT_FAILURES else find_party(record.reason)
        count = CallerCount(
            calls=1,
            failed_caller=int(party == "caller"),
            failed_gateway=int(party == "gateway"),
            failed_bridge=int(party == "bridge"),
            tokens_out=record.completion_tokens or 0,
            last_at=round(time.time(), 3),
        )
        _add(self._counts, record.caller, count)

    def read(self) -> dict[str, CallerCount]:
        """Return the counts of all processes."""
        refused = {
            name: CallerCount(calls=count, failed_bridge=count, last_at=round(at, 3))
            for name, (count, at) in self._refused.copy().items()
        }
        return add_counts([dict(self._counts), refused, self._workers()])


def add_counts(parts: Iterable[Counts]) -> dict[str, CallerCount]:
    """Return the sum of several counts, with at most CALLERS_MAX names."""
    total: dict[str, CallerCount] = {}
    for part in parts:
        for name, count in part.items():
            _add(total, name, count)
    return total


def _add(total: dict[str, CallerCount], name: str, count: CallerCount) -> None:
    if name not in total and len(total) >= CALLERS_MAX and name not in {"", OTHERS}:
        name = OTHERS
    mine = total.get(name, CallerCount())
    total[name] = CallerCount(
        calls=mine.calls + count.calls,
        failed_caller=mine.failed_caller + count.failed_caller,
        failed_gateway=mine.failed_gateway + count.failed_gateway,
        failed_bridge=mine.failed_bridge + count.failed_bridge,
        tokens_out=mine.tokens_out + count.tokens_out,
        last_at=max(mine.last_at, count.last_at),
    )
