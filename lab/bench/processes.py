"""Processes: start them on given cores, and read their CPU time and memory from the operating system.

CPU time is a process's user and system time, all its threads and children together: steady on a machine that others
use too, where rates and latencies are not.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.environment import ROOT
from tests.kit.proc import list_family, read_cpu_s, read_resident_bytes
from tests.kit.processes import StartError, clean_environment, start_program

__all__ = [
    "ALL_CORES",
    "LOAD_CORES",
    "SERVER_CORES",
    "BenchmarkError",
    "Process",
    "pin",
    "start",
]


ALL_CORES = tuple(sorted(os.sched_getaffinity(0)))
SERVER_CORES = ALL_CORES[:1]
"""The server under test has this core for itself."""
LOAD_CORES = ALL_CORES[1:] or ALL_CORES
"""The load generator and the upstream share the others."""


class BenchmarkError(Exception):
    """A server or a caller did not do its work, so the part has no figures."""


@dataclass(frozen=True)
class Process:
    """A process, its children included. `address` is HOST:PORT, or empty if it does not listen.

    `tls` is the folder of the certificates, if it serves by TLS.
    """

    address: str
    pid: int
    start_s: float
    tls: Path | None = None

    def cpu_s(self) -> float:
        """CPU time so far, of those that live and of those that have ended and been waited for."""
        return sum(self.cpu_each_s())

    def cpu_each_s(self) -> list[float]:
        """The same, a process: its own first, then its children's."""
        return [read_cpu_s(pid) for pid in list_family(self.pid)]

    def resident_bytes(self) -> int:
        return sum(map(read_resident_bytes, list_family(self.pid)))


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
    tls: Path | None = None,
) -> Iterator[Process]:
    """Run a server until the block ends. `log` gets its standard error; `port` is set if the caller chose it.

    Raises BenchmarkError, with the end of the log, if it does not start.
    """
    began = time.monotonic()
    variables = clean_environment() | dict(environment or {})
    try:
        with start_program(*pin(command, cores), log=log, environment=variables, directory=directory, port=port) as it:
            yield Process(it.address, it.pid, time.monotonic() - began, tls)
    except StartError as error:
        raise BenchmarkError(str(error)) from error
