"""The emulated gateway in a process of its own, which records each request: `… FILE`.

A line is JSON, see `Record`. It is written once the answer has been written to its end or the peer has closed the
connection; on SIGTERM, the rest is written as it is.
"""

import asyncio
import contextlib
import json
import signal
import sys
from pathlib import Path
from typing import NamedTuple, TextIO

from bridge.emulator import Emulator, Exchange

__all__ = ["Record", "read"]

_PERIOD_S = 0.5


class Record(NamedTuple):
    """One request, as the upstream saw it: `status` is None if it wrote none, `events` are data events written."""

    request_id: str
    status: int | None
    events: int
    is_finished: bool
    is_closed: bool


def read(file: Path) -> list[Record]:
    """Return what was recorded."""
    return [Record(*json.loads(line)) for line in file.read_text().splitlines()]


async def serve(file: TextIO) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    unwritten: list[Exchange] = []
    async with Emulator() as emulator:
        print(f"listening on {emulator.host}:{emulator.port}", flush=True)
        collecting = asyncio.create_task(_collect(emulator, unwritten))
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _PERIOD_S)
            _write(file, [each for each in unwritten if _is_over(each)])
            unwritten[:] = [each for each in unwritten if not _is_over(each)]
        collecting.cancel()
    _write(file, unwritten)


def _is_over(exchange: Exchange) -> bool:
    return exchange.finished or exchange.closed.is_set()


async def _collect(emulator: Emulator, into: list[Exchange]) -> None:
    while True:
        with contextlib.suppress(TimeoutError):
            into.append(await emulator.next_exchange(3600))


def _write(file: TextIO, exchanges: list[Exchange]) -> None:
    for each in exchanges:
        request_id = each.headers.get("x-request-id", "")
        record = Record(request_id, each.status, each.events_sent, each.finished, each.closed.is_set())
        file.write(json.dumps(record) + "\n")
    file.flush()


if __name__ == "__main__":
    with open(sys.argv[1], "w") as lines:  # noqa: PTH123 - lines as they come
        asyncio.run(serve(lines))
