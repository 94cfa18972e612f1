"""How many connections callers have to the call port and the web port, by the kernel's tables: grpc.aio does not say.

They know the sockets of the whole network namespace, so one reading counts those of all workers. Linux alone has them.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from bridge.settings import UNIX, split_address

__all__ = ["CallerConnections"]

_TABLES: Final = Path("/proc/self/net")
_ESTABLISHED: Final = "01"
_CONNECTED: Final = "03"
_KEEP_S: Final = 5.0
"""How long a count is returned again: at 10,000 connections a table is 1.5 MB."""


class CallerConnections:
    """Counts the connections to the addresses that `find_addresses` returns. For any thread.

    An address is HOST:PORT or unix:PATH; an empty one is none.
    """

    def __init__(
        self, find_addresses: Callable[[], Iterable[str]], *, keep_s: float = _KEEP_S, tables: Path = _TABLES
    ) -> None:
        self._find_addresses = find_addresses
        self._keep_s = keep_s
        self._tables = tables
        self._count = 0
        self._read_at = float("-inf")

    def __call__(self) -> int:
        """Return how many there are, or were a moment ago; 0 if the kernel does not say."""
        if time.monotonic() - self._read_at >= self._keep_s:
            self._read_at = time.monotonic()
            addresses = filter(None, self._find_addresses())
            self._count = sum(len(set(_list_connections(each, self._tables))) for each in addresses)
        return self._count


def _list_connections(address: str, tables: Path) -> Iterator[tuple[str, str]]:
    """Yield what tells the connections apart: the kernel gives a table in pieces, and repeats lines of a busy one."""
    if address.startswith(UNIX):
        path = address.removeprefix(UNIX)
        for line in _read_lines(tables / "unix"):
            words = line.split(maxsplit=7)
            if len(words) == 8 and words[7] == path and words[5] == _CONNECTED:
                yield words[6], address  # the inode
        return
    port = f":{split_address(address)[1]:04X}"
    for table in ("tcp", "tcp6"):
        for line in _read_lines(tables / table):
            words = line.split(maxsplit=4)
            if len(words) == 5 and words[1].endswith(port) and words[3] == _ESTABLISHED:
                yield words[1], words[2]


def _read_lines(table: Path) -> Iterator[str]:
    try:
        with table.open(encoding="utf-8", errors="replace") as lines:
            next(lines, None)
            for line in lines:
                yield line.rstrip("\n")
    except OSError:
        return
