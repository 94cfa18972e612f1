"""The emulated gateway in a process of its own, which writes down each request that it served: `… FILE`.

A line is JSON, see `Seen`. It is written once the answer has been written to its end or the peer has closed the
connection; on SIGTERM, what is left is written as it is.
"""

import asyncio
import contextlib
import json
import signal
import sys
from pathlib import Path
from typing import NamedTuple, TextIO

from bridge.emulator import Emulator, Exchange

__all__ = ["Seen", "read"]

_LOOK_S = 0.5


class Seen(NamedTuple):
    """One request, as the upstream saw it: `status` None where it wrote none, `events` data events written."""

    request_id: str
    status: int | None
    events: int
    finished: bool
    closed: bool


def read(file: Path) -> list[Seen]:
    return [Seen(*json.loads(line)) for line in file.read_text().splitlines()]


async def serve(file: TextIO) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    open_: list[Exchange] = []
    async with Emulator() as emulator:
        print(f"listening on {emulator.host}:{emulator.port}", flush=True)
        taking = asyncio.create_task(_take(emulator, open_))
        while not stopped.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopped.wait(), _LOOK_S)
            _write(file, [each for each in open_ if each.finished or each.closed.is_set()])
            open_[:] = [each for each in open_ if not (each.finished or each.closed.is_set())]
        taking.cancel()
    _write(file, open_)


async def _take(emulator: Emulator, into: list[Exchange]) -> None:
    while True:
        with contextlib.suppress(TimeoutError):
            into.append(await emulator.next_exchange(3600))


def _write(file: TextIO, exchanges: list[Exchange]) -> None:
    for each in exchanges:
        request_id = each.headers.get("x-request-id", "")
        seen = Seen(request_id, each.status, each.events_sent, each.finished, each.closed.is_set())
        file.write(json.dumps(seen) + "\n")
    file.flush()


if __name__ == "__main__":
    with open(sys.argv[1], "w") as lines:  # noqa: PTH123 - lines as they come
        asyncio.run(serve(lines))
