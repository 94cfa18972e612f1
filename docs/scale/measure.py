"""Measure the cost of a call, a chunk and an open stream, and write costs.json: `python -m docs.scale.measure`.

CPU is the bridge process's user and system time as the operating system counts it; the emulated gateway and the caller
are other processes. Chunks are paced as a model's are, evenly and out of step, by few streams and by as many as use a
good part of a core: the more, the less each costs, since one wake of the process serves several. Medians of ROUNDS.
Only on Linux, about a minute; on an idle machine.
"""

import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc

from bridge import __version__
from docs.scale.plan import COSTS, Assumed
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest

__all__ = ["measure"]

ROUNDS: Final = 5
CALLS: Final = 1000
AT_ONCE: Final = 32
STREAM_S: Final = 3.0
FEW: Final = 8
MANY: Final = 128
IDLE_STREAMS: Final = 1000
_SERVICE: Final = "/ollmbridge.v1.ChatCompletionService"


@dataclass(frozen=True)
class _Process:
    address: str
    pid: int

    def read_cpu_s(self) -> float:
        times = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[11:13]
        return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")

    def read_resident_kib(self) -> float:
        pages = Path(f"/proc/{self.pid}/statm").read_text(encoding="utf-8").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1024


@contextmanager
def _start(*arguments: str) -> Iterator[_Process]:
    command = [sys.executable, "-m", "bridge", *arguments, "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:  # noqa: S603
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line.startswith("listening on "):
                raise RuntimeError(f"{arguments[0]} does not listen: it printed {line!r}")
            yield _Process(line.split()[-1], process.pid)
        finally:
            process.terminate()


def _request(model: str) -> bytes:
    request = CreateChatCompletionRequest(model=model)
    request.messages.add(role="user", text="Tell me about bridges, and how they carry their load.")
    return request.SerializeToString()


async def _measure_call_us(channel: grpc.aio.Channel, bridge: _Process) -> float:
    method: Any = channel.unary_unary(f"{_SERVICE}/CreateChatCompletion")
    body = _request("echo")

    async def some() -> None:
        for _ in range(CALLS // AT_ONCE):
            await method(body)

    before = bridge.read_cpu_s()
    await asyncio.gather(*(some() for _ in range(AT_ONCE)))
    return (bridge.read_cpu_s() - before) / (CALLS // AT_ONCE * AT_ONCE) * 1e6


async def _measure_chunk_us(channel: grpc.aio.Channel, bridge: _Process, streams: int) -> float:
    method: Any = channel.unary_stream(f"{_SERVICE}/StreamChatCompletion")
    interval_s = 1 / Assumed().chunks_per_stream_s
    body = _request(f"scenario::pace?chunks={round(STREAM_S / interval_s)}&interval_ms={interval_s * 1000:g}")

    async def one(number: int) -> int:
        await asyncio.sleep(STREAM_S / 10 * number / streams)  # out of step
        return sum([1 async for _ in method(body)])

    before = bridge.read_cpu_s()
    chunks = await asyncio.gather(*(one(number) for number in range(streams)))
    return (bridge.read_cpu_s() - before) / sum(chunks) * 1e6


async def _measure_open_stream_kib(channel: grpc.aio.Channel, bridge: _Process) -> float:
    method: Any = channel.unary_stream(f"{_SERVICE}/StreamChatCompletion")
    body = _request("scenario::stall?after=1")
    before = bridge.read_resident_kib()
    calls = [method(body) for _ in range(IDLE_STREAMS)]
    await asyncio.gather(*(call.read() for call in calls))
    grown = bridge.read_resident_kib() - before
    for call in calls:
        call.cancel()
    return grown / IDLE_STREAMS


async def measure() -> dict[str, dict[str, Any]]:
    """Return each cost with its description."""
    with (
        _start("emulate") as gateway,
        _start("serve", "--admin-listen", "127.0.0.1:0", "--upstream", f"http://{gateway.address}") as bridge,
    ):
        idle_kib = bridge.read_resident_kib()
        rounds: dict[str, list[float]] = {"call_us": [], "chunk_us": [], "chunk_alone_us": []}
        for _ in range(ROUNDS):
            async with grpc.aio.insecure_channel(bridge.address) as channel:
                rounds["call_us"].append(await _measure_call_us(channel, bridge))
                rounds["chunk_us"].append(await _measure_chunk_us(channel, bridge, MANY))
                rounds["chunk_alone_us"].append(await _measure_chunk_us(channel, bridge, FEW))
        async with grpc.aio.insecure_channel(bridge.address) as channel:
            open_stream_kib = await _measure_open_stream_kib(channel, bridge)
    pace = f"{Assumed().chunks_per_stream_s:g} chunks a second each"
    what = {
        "call_us": f"CPU of a unary call, {AT_ONCE} at once",
        "chunk_us": f"CPU of a chunk, {MANY} streams of {pace}",
        "chunk_alone_us": f"CPU of a chunk, {FEW} streams of {pace}",
        "idle_mib": "memory of an idle worker",
        "open_stream_kib": f"memory of an open stream, of {IDLE_STREAMS}",
    }
    values = {name: statistics.median(each) for name, each in rounds.items()}
    values |= {"idle_mib": idle_kib / 1024, "open_stream_kib": open_stream_kib}
    spread = {name: [round(min(each)), round(max(each))] for name, each in rounds.items()}
    return {name: {"value": round(values[name]), "what": what[name], "spread": spread.get(name, [])} for name in what}


def main() -> None:
    """Measure, and write costs.json."""
    versions = f"ollm-bridge {__version__}, grpcio {grpc.__version__}, Python {platform.python_version()}"
    costs = asyncio.run(measure())
    COSTS.write_text(
        json.dumps({"on": f"{versions}, {platform.machine()}", "costs": costs}, indent=1) + "\n", encoding="utf-8"
    )
    for row in costs.values():
        print(row["what"], row["value"], row["spread"])


if __name__ == "__main__":
    main()
