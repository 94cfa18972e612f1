"""The last calls that failed, for the page: when, and what their record says of how.

With several worker processes each has a file of its own in a directory that they share, one JSON object a line, so that
any of them, or who watches over them, can show all.
"""

import json
import time
from collections import deque
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Final

from bridge.telemetry import CallRecord, Observer

__all__ = ["KEPT", "Failure", "Failures"]

KEPT: Final = 50
_FILE_BYTES_MAX: Final = 256 * 1024
"""Of a process's file, which is then begun anew; KEPT lines are some 20 KB."""
_FILES_MAX: Final = 64
"""Of processes that were and are; the oldest files go. One process after another may die young."""
_UNHURT: Final = frozenset({"OK", "CANCELLED"})
_SUFFIX: Final = ".failures.jsonl"


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


class Failures(Observer):
    """An Observer that keeps the last KEPT failures. `shared` is the directory that several processes share, if any.

    `name` tells the processes apart, such as the number of each.
    """

    def __init__(self, *, shared: Path | None = None, name: str = "") -> None:
        self._last: deque[Failure] = deque(maxlen=KEPT)
        self._shared = shared
        self._path = None if shared is None else shared / f"{name}{_SUFFIX}"
        self._file: FileIO | None = None

    def ended(self, record: CallRecord) -> None:
        """Keep a call that failed; who leaves has not failed."""
        if record.code in _UNHURT:
            return
        failure = Failure(
            at=round(time.time(), 6),
            method=record.method,
            code=record.code,
            reason=record.reason,
            model=record.model,
            request_id=record.request_id,
            trace_id=record.trace_id,
            caller=record.caller,
            duration_s=round(record.duration_s, 6),
        )
        self._last.append(failure)
        if self._path is not None:
            self._write(self._path, failure)

    def _write(self, path: Path, failure: Failure) -> None:
        line = json.dumps(asdict(failure)).encode() + b"\n"
        if self._file is None:
            _clear(path.parent)
            self._file = FileIO(path, "w")
        elif self._file.tell() + len(line) > _FILE_BYTES_MAX:
            self._file.seek(0)
            self._file.truncate()
            line = b"".join(json.dumps(asdict(each)).encode() + b"\n" for each in self._last)
        self._file.write(line)

    def last(self) -> list[Failure]:
        """Give the last KEPT failures, of all processes, the newest first."""
        found = list(self._last)[::-1]
        if self._shared is not None:
            for path in self._shared.glob(f"*{_SUFFIX}"):
                if path != self._path:
                    found += _read(path)
        return sorted(found, key=lambda failure: failure.at, reverse=True)[:KEPT]

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _clear(shared: Path) -> None:
    """Make room for one more file."""
    files = sorted(shared.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime_ns)
    for path in files[: max(0, len(files) - _FILES_MAX + 1)]:
        path.unlink(missing_ok=True)


def _read(path: Path) -> list[Failure]:
    """Give what a process's file holds of the last; a line that is just being written is for the next time."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1][-KEPT:]
    except OSError:
        return []
    found = []
    for line in reversed(lines):
        try:
            found.append(Failure(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found
