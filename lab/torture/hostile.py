"""Hostile callers for a while: what they cost, and what good calls beside them notice.

Each attack goes on for seconds, over connections that are opened again as soon as the bridge ends them, against both
engines of the call port. Beside it one client makes good calls, one after the other. The attackers share this process
and its core with that client, so a good call's time is theirs, too; the bridge's CPU is that of its process alone.
"""

import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import grpc

from bridge.emulator import Emulator
from lab.report import Result
from lab.torture.attack_bytes import BLOCK, FLOODS, Flood
from lab.torture.options import Options
from lab.torture.subject import Process, run_bridge
from ollmbridge.v1.chat_completion_service_pb2_grpc import ChatCompletionServiceStub
from tests.kit.client import chat
from tests.kit.hostile import MIB, connect
from tests.kit.http2 import DATA, OPENING, encode_frame, encode_headers, encode_message
from tests.kit.proc import read_cpu_s

__all__ = ["run"]

ENGINES = ("native", "grpcio")
FULL_S, QUICK_S = 4.0, 2.0
ATTACKERS = 4
HELD_S = 0.5
"""How long an attacker leaves a connection open that the bridge does not end."""
SETTLE_S = 1.0
CALL_S = 30.0
GROWTH_MIB_MAX = 64
SLOWEST_S_MAX = 5.0

UNFINISHED = Flood(
    OPENING
    + encode_headers(BLOCK, 1)
    + b"".join(
        encode_frame(DATA, 0, 1, encode_message(bytes(2 * MIB))[at : at + 16_384]) for at in range(0, MIB, 16_384)
    ),
    20,
)
"""Uploads of which half never comes."""
ATTACKS: Mapping[str, Flood | None] = {"nothing": None, **FLOODS, "uploads that are never finished": UNFINISHED}


async def run(options: Options) -> list[Result]:
    """Attack both engines."""
    names = list(ATTACKS)[:: 4 if options.quick else 1]
    results = []
    for engine in ENGINES:
        async with Emulator() as emulator, start(emulator, engine) as subject:
            results += [await attack(engine, subject, name, QUICK_S if options.quick else FULL_S) for name in names]
    return results


@contextlib.asynccontextmanager
async def start(emulator: Emulator, engine: str) -> AsyncIterator[Process]:
    upstream = emulator.url.removeprefix("http://")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        async with run_bridge(upstream, folder=Path(folder), server__engine=engine) as subject:
            yield subject


async def attack(engine: str, subject: Process, name: str, seconds: float) -> Result:
    """Attack for so long, and make good calls beside it."""
    flood = ATTACKS[name]
    opened = 0

    async def keep_attacking(flood: Flood) -> None:
        nonlocal opened
        while True:
            opened += 1
            with contextlib.suppress(OSError):
                await send_flood(subject.address, flood.payload, reads="without a reader" not in name)

    async with grpc.aio.insecure_channel(subject.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = ChatCompletionServiceStub(channel)
        await stub.CreateChatCompletion(chat(), timeout=CALL_S)
        memory_mib, cpu_s, started_at = subject.memory_mib, read_cpu_s(subject.process.pid), time.monotonic()
        attackers = []
        if flood is not None:
            count = max(ATTACKERS, flood.connections)
            attackers = [asyncio.create_task(keep_attacking(flood)) for _ in range(count)]
        times_s: list[float] = []
        failed = 0
        peak_mib = memory_mib
        while time.monotonic() < started_at + seconds and subject.is_alive:
            called_at = time.monotonic()
            try:
                await stub.CreateChatCompletion(chat(), timeout=CALL_S)
            except grpc.aio.AioRpcError:
                failed += 1
            times_s.append(time.monotonic() - called_at)
            peak_mib = max(peak_mib, subject.memory_mib)
            await asyncio.sleep(0.005)
        took_s = time.monotonic() - started_at
        used_s = read_cpu_s(subject.process.pid) - cpu_s if subject.is_alive else 0.0
        for task in attackers:
            task.cancel()
        await asyncio.gather(*attackers, return_exceptions=True)
    await asyncio.sleep(SETTLE_S)
    growth_mib = subject.memory_mib - memory_mib if subject.is_alive else 0.0
    return Result(
        name,
        len(times_s),
        f"{failed} good calls failed" if failed or not subject.is_alive else "all good calls are OK",
        ok=subject.is_alive and not failed and max(times_s) <= SLOWEST_S_MAX and growth_mib <= GROWTH_MIB_MAX,
        figures={
            "connections a second": round(opened / took_s, 1),
            "CPU of the bridge, % of a core": round(100 * used_s / took_s),
            "memory at most, MiB more": round(peak_mib - memory_mib, 1),
            "memory afterwards, MiB more": round(growth_mib, 1),
            "a good call, p50, ms": round(1000 * statistics.median(times_s), 1),
            "the slowest, ms": round(1000 * max(times_s), 1),
        },
        contender=engine,
    )


async def send_flood(address: str, payload: bytes, *, reads: bool) -> None:
    """Send the bytes over a connection, and keep it open for a while, unless the bridge ends it."""
    loop = asyncio.get_running_loop()
    connected = await connect(address)
    try:
        async with asyncio.timeout(HELD_S):
            sending = asyncio.create_task(loop.sock_sendall(connected, payload))
            try:
                while reads and await loop.sock_recv(connected, 65_536):
                    pass
                await asyncio.sleep(0 if reads else HELD_S)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
    except TimeoutError:
        pass
    finally:
        connected.close()
