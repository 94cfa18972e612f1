"""Lines on their way to a file descriptor: a bounded queue, and a thread that writes it, so that nobody else waits.

A pipe that nobody reads, a reader that is gone or a full disk costs lines and nothing else: a line that finds the queue
full, or that can't be written, is dropped and counted. Once lines are written again, `on_recovery` is called with the
number of those that were dropped. What a line says is the business of others (logs.py).
"""

import contextlib
import io
import queue
import select
import threading
from collections.abc import Callable, Iterable, Iterator
from os import isatty, write
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["QUEUE_BYTES_MAX", "LogWriter", "open_text_stream", "wait_writable"]

QUEUE_BYTES_MAX: Final = 4 * 1024 * 1024
"""Of lines that wait to be written: about 10,000 calls. A line larger than this is dropped."""
_BATCH_S: Final = 0.01
"""How long the thread waits for more lines once there is one, so that a burst costs few wakes and writes."""
_POLL_S: Final = 1.0


class LogWriter:
    """Writes lines by a thread of its own. `put` may be called in any thread, a destructor included."""

    def __init__(
        self,
        fd: int,
        *,
        queue_bytes_max: int = QUEUE_BYTES_MAX,
        on_recovery: Callable[[int], None] = lambda _count: None,
    ) -> None:
        self._fd = fd
        self._queue_bytes_max = queue_bytes_max
        self._on_recovery = on_recovery
        # A SimpleQueue can be put to while it is put to, by a destructor that garbage collection runs; a lock can't.
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._put_bytes = 0
        self._done_bytes = 0
        self._refused = 0
        self._lost = 0
        self._reported = 0
        self._cut_off = False
        self._failing = False
        self._closing = threading.Event()
        self._abandoned = False  # then the descriptor may be another's by the time that a write returns
        self._thread = threading.Thread(target=self._run, name="log writer", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines that were dropped so far."""
        return self._refused + self._lost

    @property
    def failing(self) -> bool:
        """Whether the last write failed."""
        return self._failing

    def put(self, line: bytes) -> None:
        """Queue a line, its newline included, or drop it if the queue is full. Never waits."""
        size = len(line)
        if self._put_bytes - self._done_bytes + size > self._queue_bytes_max:
            self._refused += 1
            return
        self._put_bytes += size
        self._queue.put(line)

    def close(self, flush_s: float) -> bool:
        """Write what waits, for at most so long; return whether all was. What is left is then given up."""
        self._queue.put(None)
        self._closing.set()
        self._thread.join(flush_s)
        self._abandoned = self._thread.is_alive()
        return not self._abandoned

    # In the thread

    def _run(self) -> None:
        running = True
        while running and not self._abandoned:
            first = self._queue.get()
            self._closing.wait(_BATCH_S)
            lines = list(self._take(first))
            running = lines[-1] is not None
            for count, data in _join(line for line in lines if line is not None):
                self._write(count, data)
                self._done_bytes += len(data)
            if self._queue.empty():
                self._put_bytes = self._done_bytes  # two threads may have added to it at once
                self._report_dropped()

    def _take(self, line: bytes | None) -> Iterator[bytes | None]:
        """Yield the line and those that wait behind it; None is the end."""
        yield line
        with contextlib.suppress(queue.Empty):
            while line is not None:
                line = self._queue.get_nowait()
                yield line

    def _report_dropped(self) -> None:
        if self.dropped > self._reported and not self._failing:
            count = self.dropped - self._reported
            self._reported += count
            self._on_recovery(count)

    def _write(self, count: int, data: bytes) -> None:
        if self._cut_off:
            data = b"\n" + data
        whole = len(data)
        try:
            while data and not self._abandoned:
                try:
                    data = data[write(self._fd, data) :]
                except BlockingIOError:  # another process that has the descriptor may have made it non-blocking
                    wait_writable(self._fd, _POLL_S)
        except OSError:
            self._lost += count
            self._cut_off = self._cut_off or len(data) < whole
            self._failing = True
        else:
            self._cut_off = self._failing = False


def _join(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield lines joined, with their count, up to what a pipe takes as a whole: other processes may write to it too."""
    batch: list[bytes] = []
    size = 0
    for line in lines:
        if batch and size + len(line) > select.PIPE_BUF:
            yield len(batch), b"".join(batch)
            batch, size = [], 0
        batch.append(line)
        size += len(line)
    if batch:
        yield len(batch), b"".join(batch)


def wait_writable(fd: int, timeout_s: float) -> bool:
    """Wait until a descriptor takes data again; return whether it does, and without an error as far as is known."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return poll.poll(round(timeout_s * 1000)) == [(fd, select.POLLOUT)]


def open_text_stream(writer: LogWriter, fd: int) -> io.TextIOWrapper:
    """Return a text stream whose lines go to the writer: for structlog, for logging, and in place of sys.stderr."""
    return io.TextIOWrapper(_Lines(writer, fd), encoding="utf-8", errors="backslashreplace", write_through=True)


class _Lines(io.BufferedIOBase):
    """A binary stream that queues whole lines; the start of one waits for its end."""

    name = "log"

    def __init__(self, writer: LogWriter, fd: int) -> None:
        self._writer = writer
        self._fd = fd
        self._rest = b""

    def write(self, data: "ReadableBuffer") -> int:
        """Queue the data up to its last newline."""
        data = bytes(data)
        lines, newline, self._rest = (self._rest + data).rpartition(b"\n")
        if newline:
            self._writer.put(lines + newline)
        return len(data)

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the descriptor that the lines are written to."""
        return self._fd

    def isatty(self) -> bool:
        """Return whether that is a terminal."""
        return isatty(self._fd)
