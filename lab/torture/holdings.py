"""A bridge that writes on SIGUSR1 what it holds: `python -m lab.torture.holdings FILE`, otherwise as `serve`."""

import asyncio
import ctypes
import json
import signal
import sys
from pathlib import Path
from typing import NamedTuple

from bridge.cli.main import main as run_command
from bridge.cli.main import print_address

__all__ = ["Holdings", "read"]


class Holdings(NamedTuple):
    """What a process holds: asyncio tasks, blocks of Python's own allocator, and the bytes that malloc has allocated.

    The resident memory is more: pages that were needed once, and that neither allocator has returned.
    """

    tasks: int
    blocks: int
    malloc_mib: float


def read(file: Path) -> Holdings:
    """Return what was written."""
    return Holdings(**json.loads(file.read_text()))


class _Mallinfo2(ctypes.Structure):
    """https://man7.org/linux/man-pages/man3/mallinfo.3.html"""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def _measure_malloc_mib() -> float:
    """Return what malloc has allocated; NaN if the C library does not tell."""
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return float("nan")
    mallinfo2.restype = _Mallinfo2
    info = mallinfo2()
    return float(info.uordblks + info.hblkhd) / 2**20


def main(file: str) -> int:
    """Serve."""

    def write_holdings() -> None:
        new = Path(f"{file}.new")
        holdings = Holdings(len(asyncio.all_tasks()), sys.getallocatedblocks(), _measure_malloc_mib())
        new.write_text(json.dumps(holdings._asdict()))
        new.replace(file)

    def on_ready(address: str, _about: str) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, write_holdings)
        print_address(address)

    return run_command(["serve"], on_ready=on_ready)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
