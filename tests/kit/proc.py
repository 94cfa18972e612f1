"""The operating system's figures of a process: memory, CPU time, descriptors, children, listening sockets. Linux alone.

Nothing else in tests/ or lab/ reads /proc. CPU time is user and system time, all threads together: steady on a machine
that others use too, where rates and latencies are not.
"""

import os
import re
import time
from pathlib import Path
from typing import Final

__all__ = [
    "HAS_PROC",
    "count_descriptors",
    "count_listeners",
    "find_children",
    "find_descriptor",
    "find_root",
    "is_running",
    "list_family",
    "read_cpu_s",
    "read_peak_bytes",
    "read_processor",
    "read_resident_bytes",
    "read_state",
]

PROC: Final = Path("/proc")
HAS_PROC: Final = (PROC / "self" / "status").exists()
"""Whether this system has what this module reads."""
_TCP_LISTEN: Final = "0A"


def read_resident_bytes(pid: int) -> int:
    return int((PROC / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def read_peak_bytes(pid: int) -> int:
    """Return the most memory that was resident since the process started."""
    status = dict(line.split(":", 1) for line in (PROC / str(pid) / "status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def count_descriptors(pid: int) -> int:
    return sum(1 for _ in (PROC / str(pid) / "fd").iterdir())


def read_cpu_s(pid: int) -> float:
    """Return the CPU time of a process and of the children that it has waited for.

    Its own is read from its clock (man 3 clock_getcpuclockid, CPUCLOCK_SCHED), to the nanosecond; the children's stands
    in /proc/PID/stat, to 10 ms.
    """
    ended = sum(map(int, _read_stat(pid)[13:15])) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(~pid << 3 | 2) + ended


def read_state(pid: int) -> str:
    """Return a process's state as the kernel's one letter; T if it is stopped."""
    return _read_stat(pid)[0]


def is_running(pid: int) -> bool:
    return (PROC / str(pid)).exists()


def list_family(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    tasks = (PROC / str(pid) / "task").iterdir()
    children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return [pid, *(each for child in children for each in list_family(child))]


def find_children(pid: int, word: bytes) -> list[int]:
    """Return the process ids of a process's children whose command line has a word."""
    found = []
    for path in PROC.glob("[0-9]*/cmdline"):
        child = int(path.parent.name)
        try:
            if int(_read_stat(child)[1]) == pid and word in path.read_bytes():
                found.append(child)
        except OSError:
            continue
    return found


def find_root(pid: int) -> Path:
    """Return the path of a process's root folder: with the mounts that only the process sees."""
    return PROC / str(pid) / "root"


def find_descriptor(descriptor: int) -> Path:
    """Return the path by which this process opens what is behind one of its descriptors again."""
    return PROC / "self" / "fd" / str(descriptor)


def read_processor() -> str:
    """Return the model of the first processor; an empty text if the kernel names none."""
    found = re.search(r"model name\s*: (.*)", (PROC / "cpuinfo").read_text(encoding="utf-8"))
    return found[1] if found else ""


def count_listeners(address: str) -> int:
    """Return the number of sockets that accept connections at a port: each worker has its own."""
    port = f":{int(address.rpartition(':')[2]):04X}"
    tables = [(PROC / "net" / name).read_text().splitlines() for name in ("tcp", "tcp6")]  # grpc has v4 in v6
    return sum(line.split()[1].endswith(port) and line.split()[3] == _TCP_LISTEN for table in tables for line in table)


def _read_stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat behind the command's name, which may have blanks."""
    return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
