"""A bridge that measures how long its loop is held: `python -m lab.torture.lag FILE`, otherwise as `serve`.

A thread asks the loop for a sign of life every millisecond. On SIGUSR1 the longest wait for one since the last SIGUSR1,
and the most memory that was resident since the start, are written to the file. The wait is also measured in CPU time of
the process, since on a busy machine others make the wait longer.
"""

import asyncio
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from bridge.cli.main import main as run_command
from bridge.cli.main import print_address
from tests.kit.proc import read_peak_bytes

__all__ = ["Lag", "read"]

PERIOD_S = 0.001


class Lag(NamedTuple):
    """The longest time that the loop was held, by the clock and in CPU time, and the peak of the resident memory."""

    held_ms: float
    held_cpu_ms: float
    peak_mib: float


def read(file: Path) -> Lag:
    """Return what was written."""
    return Lag(**json.loads(file.read_text()))


class _Monitor:
    """Watches a loop from a thread that dies with the process."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._longest_s = self._longest_cpu_s = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        sign = threading.Event()
        while True:
            asked_at, cpu_at = time.monotonic(), time.process_time()
            sign.clear()
            try:
                self._loop.call_soon_threadsafe(sign.set)
            except RuntimeError:  # the loop is closed
                return
            sign.wait()
            self._longest_s = max(self._longest_s, time.monotonic() - asked_at)
            self._longest_cpu_s = max(self._longest_cpu_s, time.process_time() - cpu_at)
            time.sleep(PERIOD_S)

    def take(self) -> Lag:
        longest_s, cpu_s = self._longest_s, self._longest_cpu_s
        self._longest_s = self._longest_cpu_s = 0.0
        return Lag(longest_s * 1000, cpu_s * 1000, read_peak_bytes(os.getpid()) / 2**20)


def main(file: str) -> int:
    """Serve."""

    def on_ready(address: str, _about: str) -> None:
        loop = asyncio.get_running_loop()
        monitor = _Monitor(loop)

        def write_lag() -> None:
            new = Path(f"{file}.new")
            new.write_text(json.dumps(monitor.take()._asdict()))
            new.replace(file)

        loop.add_signal_handler(signal.SIGUSR1, write_lag)
        print_address(address)

    return run_command(["serve"], on_ready=on_ready)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
