"""Raw HTTP/2 frames at a served port: conversations of `http2.py`, drawn by a seed, a good call after each batch."""

import asyncio
import contextlib
import statistics
import tempfile
import time
from pathlib import Path
from random import Random

import grpc

from bridge.emulator import Emulator
from lab.fuzz import http2
from lab.report import Result
from lab.torture.subject import Process, run_bridge
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest
from ollmbridge.v1.chat_completion_service_pb2_grpc import ChatCompletionServiceStub

__all__ = ["fuzz_port"]

BATCH = 64
"""Concurrent conversations."""
READ_S_MAX = 0.3
GOOD_S_MAX = 3.0
MEMORY_MORE_MIB_MAX = 16.0
DESCRIPTORS_MORE_MAX = 8
SETTLE_S = 45.0
"""The bridge closes upstream connections that were unused for 15 s."""


async def fuzz_port(seconds: float, seed: int) -> Result:
    """Send a bridge what it should not get, and check after each batch that it serves as before."""
    with tempfile.TemporaryDirectory() as name:
        async with (
            Emulator() as emulator,
            run_bridge(f"127.0.0.1:{emulator.port}", folder=Path(name)) as subject,
            grpc.aio.insecure_channel(subject.address) as channel,
        ):
            return await attack(subject, ChatCompletionServiceStub(channel), seconds, seed)


async def attack(subject: Process, stub: ChatCompletionServiceStub, seconds: float, seed: int) -> Result:
    await time_good_call(stub)
    descriptors = subject.descriptors
    good_s: list[float] = []
    memory_mib: list[float] = []
    count, wrong = 0, ""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not wrong:
        conversations = [http2.build_conversation(Random(f"{seed}:{number}")) for number in range(count, count + BATCH)]
        await asyncio.gather(*(send(subject.address, each) for each in conversations))
        count += BATCH
        try:
            good_s.append(await time_good_call(stub))
        except (grpc.aio.AioRpcError, AssertionError) as error:
            wrong = f"a good call failed after conversations {count - BATCH} to {count - 1}: {error!r}"
        if not subject.is_alive:
            wrong = f"the process ended after conversations {count - BATCH} to {count - 1}"
        else:
            memory_mib.append(subject.memory_mib)
    remaining = await wait_until_settled(subject, descriptors) if subject.is_alive else -1
    fifth = max(len(memory_mib) // 5, 1)
    early, late = statistics.median(memory_mib[fifth : 2 * fifth] or memory_mib), statistics.median(memory_mib[-fifth:])
    if not wrong and late - early > MEMORY_MORE_MIB_MAX:
        wrong = f"memory grew by {late - early:.1f} MiB"
    if not wrong and remaining > descriptors + DESCRIPTORS_MORE_MAX:
        wrong = f"{remaining} descriptors stayed open, {descriptors} before"
    if not wrong and any(mark in subject.log_text for mark in (' File "', "BRIDGE_FAULT")):
        wrong = "a fault of the bridge in its log"
    return Result(
        "raw HTTP/2 frames at the port",
        count,
        wrong or "alive, and every good call in time",
        ok=not wrong,
        figures={
            "good calls between": len(good_s),
            "slowest of them, ms": max(good_s, default=0.0) * 1000,
            "memory in the second fifth, MiB": early,
            "memory in the last fifth, MiB": late,
            "descriptors before": descriptors,
            "descriptors after": remaining,
        },
        note=f"after each {BATCH} conversations a good call within {GOOD_S_MAX:g} s; "
        f"memory grows by at most {MEMORY_MORE_MIB_MAX:g} MiB",
    )


async def send(address: str, data: bytes) -> None:
    """Send it, read for a moment, and abort the connection."""
    host, _, number = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(number))
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(READ_S_MAX):
            writer.write(data)
            while await reader.read(65_536):
                pass
    writer.transport.abort()


async def time_good_call(stub: ChatCompletionServiceStub) -> float:
    request = CreateChatCompletionRequest(model="echo")
    request.messages.add(role="user", text="still there?")
    started_at = time.monotonic()
    reply = await stub.CreateChatCompletion(request, timeout=GOOD_S_MAX)
    assert reply.choices[0].message.text == "You said: still there?"
    return time.monotonic() - started_at


async def wait_until_settled(subject: Process, descriptors: int) -> int:
    """Wait until descriptors are closed again, for as long as that may take, and return how many are open."""
    end = time.monotonic() + SETTLE_S
    while (remaining := subject.descriptors) > descriptors + DESCRIPTORS_MORE_MAX and time.monotonic() < end:  # noqa: ASYNC110
        await asyncio.sleep(0.5)
    return remaining
