"""Processes: start them on given cores, and read their CPU time and memory from the operating system.

CPU time is a process's user and system time, all its threads and children together: steady on a machine that others
use too, where rates and latencies are not. A server says `listening on HOST:PORT` on its standard output, as the
bridge does, or listens at a port that was chosen for it.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.conftest import clean_environment

__all__ = [
    "ALL_CORES",
    "LOAD_CORES",
    "ROOT",
    "SERVER_CORES",
    "BenchmarkError",
    "Process",
    "find_program",
    "pin",
    "start",
]

ROOT = Path(__file__).parent.parent.parent
START_S_MAX = 90.0
STOP_S_MAX = 20.0

ALL_CORES = tuple(sorted(os.sched_getaffinity(0)))
SERVER_CORES = ALL_CORES[:1]
"""The server under test has this core for itself."""
LOAD_CORES = ALL_CORES[1:] or ALL_CORES
"""The load generator and the upstream share the others."""


class BenchmarkError(Exception):
    """A server or a caller did not do its work, so the part has no figures."""


@dataclass(frozen=True)
class Process:
    """A process, its children included. `address` is HOST:PORT, or empty if it does not listen."""

    address: str
    pid: int
    start_s: float

    def cpu_s(self) -> float:
        """CPU time so far, of those that live and of those that have ended and been waited for."""
        return sum(self.cpu_each_s())

    def cpu_each_s(self) -> list[float]:
        """The same, a process: its own first, then its children's."""
        return [_cpu_s(pid) for pid in _family(self.pid)]

    def resident_bytes(self) -> int:
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in _family(self.pid))
        return pages * os.sysconf("SC_PAGE_SIZE")


def _cpu_s(pid: int) -> float:
    """CPU time of a process and of the children that it has waited for.

    Its own is read from its clock (man 3 clock_getcpuclockid, CPUCLOCK_SCHED), to the nanosecond; the children's stands
    in /proc/PID/stat, to 10 ms.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ended = sum(map(int, fields[13:15])) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(~pid << 3 | 2) + ended


def _family(pid: int) -> list[int]:
    children = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return [pid, *(each for child in children for each in _family(child))]


def pin(command: Sequence[str], cores: Sequence[int]) -> list[str]:
    """The command with all its threads and children kept on `cores`."""
    return ["taskset", "--cpu-list", ",".join(map(str, cores)), *command]


@contextlib.contextmanager
def start(
    command: Sequence[str],
    *,
    cores: Sequence[int],
    log: Path,
    environment: Mapping[str, str] | None = None,
    directory: Path = ROOT,
    port: int | None = None,
) -> Iterator[Process]:
    """Run a server until the block ends. `log` gets its standard error; `port` is set if the caller chose it.

    Raises BenchmarkError, with the end of the log, if it does not start.
    """
    inherited = clean_environment()
    began = time.monotonic()
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            pin(command, cores),
            env={**inherited, **(environment or {})},
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if port is None else errors,
            stderr=errors,
        ) as process,
    ):
        try:
            address = _read_address(process.stdout) if process.stdout else _wait_for_port(process, port or 0)
            if not address:
                raise BenchmarkError(f"expected {' '.join(command[:4])} to listen, found:\n{log.read_text()[-2000:]}")
            yield Process(address, process.pid, time.monotonic() - began)
        finally:
            process.terminate()
            try:
                process.wait(STOP_S_MAX)
            except subprocess.TimeoutExpired:
                process.kill()


def _read_address(output: IO[bytes]) -> str:
    line = output.readline().decode()
    return line.removeprefix("listening on ").strip() if line.startswith("listening on ") else ""


def _wait_for_port(process: subprocess.Popen[bytes], port: int) -> str:
    end = time.monotonic() + START_S_MAX
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return f"127.0.0.1:{port}"
        time.sleep(0.02)
    return ""


def find_program(program: str) -> str | None:
    """Return the path of a program, also from /usr/sbin, or None."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
