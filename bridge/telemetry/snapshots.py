"""What workers count, summed by their supervisor: a small JSON file a worker in a folder that they share.

A worker replaces its file as a whole once a second if its values have changed, and at its end; so a worker that is
killed loses at most its last second. The supervisor sums the files. When a worker has ended, its counters and
histograms are kept in the supervisor's memory, its gauges and its file go. So there are never more files than workers,
and whatever is in the folder when a process dies, nothing must be repaired.

A full disk costs snapshots and nothing else: one that can't be written is counted, and the log says so once.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, TypeAlias

import orjson
import structlog

from bridge.telemetry.caller_counts import CallerCount, CallerCounts, Counts, add_counts
from bridge.telemetry.failures import Failure, Failures, keep_newest
from bridge.telemetry.metrics import Metrics
from bridge.telemetry.store import ModelLabels, Store

__all__ = ["PERIOD_S", "SnapshotReader", "publish_snapshots"]

PERIOD_S: Final = 1.0
_SUFFIX: Final = ".snapshot.json"
_LOG: Final = structlog.get_logger("ollm_bridge")


@contextlib.asynccontextmanager
async def publish_snapshots(
    folder: Path, name: str, metrics: Metrics, failures: Failures, callers: CallerCounts, *, period_s: float = PERIOD_S
) -> AsyncIterator[None]:
    """Write a worker's snapshots: at once, every `period_s`, and when the block ends.

    `name` tells the workers apart. Raises OSError if the first one can't be written.
    """
    writer = _SnapshotWriter(folder / f"{name}{_SUFFIX}", metrics, failures, callers)
    writer.write()
    task = asyncio.create_task(_write_regularly(writer, period_s))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        writer.try_write()


async def _write_regularly(writer: "_SnapshotWriter", period_s: float) -> None:
    while True:
        await asyncio.sleep(period_s)
        await asyncio.to_thread(writer.try_write)


class _SnapshotWriter:
    """A worker's file."""

    def __init__(self, path: Path, metrics: Metrics, failures: Failures, callers: CallerCounts) -> None:
        self._path = path
        self._metrics = metrics
        self._failures = failures
        self._callers = callers
        self._written = b""
        self._lock = threading.Lock()  # a write that still runs in a thread when the last one is to be made
        self._failing = False

    def try_write(self) -> None:
        """Write a snapshot; one that can't be written is counted, and the first such is logged."""
        try:
            self.write()
        except OSError as error:
            self._metrics.add_snapshot_error()
            if not self._failing:
                _LOG.warning("metrics could not be written for the supervisor", error=error.strerror)
            self._failing = True
        else:
            self._failing = False

    def write(self) -> None:
        """Write a snapshot if anything has changed. Raises OSError."""
        with self._lock:
            failures = [asdict(failure) for failure in self._failures.last()]
            callers = {name: list(count) for name, count in self._callers.read().items()}
            data = orjson.dumps({"metrics": self._metrics.read().dump(), "failures": failures, "callers": callers})
            if data != self._written:
                new = self._path.with_suffix(".new")
                new.write_bytes(data)
                new.replace(self._path)
                self._written = data


class SnapshotReader:
    """The supervisor's view of its workers' snapshots. Its methods may run in any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()  # so that no worker is counted twice or not at all while it is retired
        self._models = ModelLabels()
        self._retired = Store()
        self._retired_failures: list[Failure] = []
        self._retired_callers: Counts = {}

    def read_metrics(self) -> Store:
        """Return the sum of all workers' values, those of retired workers included."""
        total = Store()
        with self._lock:
            total.merge(self._retired)
            for store, _, _ in self._read_all():
                total.merge(store, models=self._models)
        return total

    def read_failures(self) -> list[Failure]:
        """Return the last failures of all workers, the newest first."""
        with self._lock:
            found = [*self._retired_failures]
            for _, failures, _ in self._read_all():
                found += failures
        return keep_newest(found)

    def read_callers(self) -> Counts:
        """Return what all workers counted by caller, retired ones included."""
        with self._lock:
            return add_counts([self._retired_callers, *(callers for _, _, callers in self._read_all())])

    def retire(self, name: str) -> None:
        """Keep what a worker that has ended had counted, but not its gauges, and remove its file."""
        path = self._folder / f"{name}{_SUFFIX}"
        with self._lock:
            if (snapshot := _read(path)) is not None:
                store, failures, callers = snapshot
                self._retired_callers = add_counts([self._retired_callers, callers])
                self._retired.merge(store, gauges=False, models=self._models)
                self._retired_failures = keep_newest((*self._retired_failures, *failures))
            for each in (path, path.with_suffix(".new")):
                with contextlib.suppress(OSError):
                    each.unlink()

    def _read_all(self) -> Iterator["_Snapshot"]:
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            if (snapshot := _read(path)) is not None:
                yield snapshot


_Snapshot: TypeAlias = tuple[Store, list[Failure], Counts]


def _read(path: Path) -> _Snapshot | None:
    """Return what a worker's file holds; None if it is gone or is none of ours."""
    try:
        snapshot: dict[str, Any] = orjson.loads(path.read_bytes())
        callers = {name: CallerCount(*count) for name, count in snapshot["callers"].items()}
        return Store.load(snapshot["metrics"]), [Failure(**failure) for failure in snapshot["failures"]], callers
    except (OSError, KeyError, TypeError, ValueError, AttributeError):
        return None
