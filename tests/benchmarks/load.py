"""CPU of a call and of a chunk, of whole processes: the bridge beside a bare grpc.aio server that answers from memory.

`python -m tests.benchmarks.load [--rounds N]`. The upstream of the bridge is the emulator, in a process of its own; the
caller is this process. The two servers take turns, A B A B; CPU is the server process's user and system time as the
operating system counts it, which holds still on a machine that others use too. Medians, with the least and the most.
"""

import argparse
import asyncio
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from bridge import __version__
from ollmbridge.v1 import chat_completion_service_pb2 as pb
from ollmbridge.v1 import chat_completion_service_pb2_grpc as pb_grpc

CALLS = 2000
STREAMS = 64
CHUNKS = 500
PACED_CHUNKS = 100
AT_ONCE = 32
OPEN_STREAMS = 1000

# Answers a call with the bytes of the bridge's own answer to it, read from standard input.
BARE_SERVER = """
import asyncio, sys, grpc, uvloop
from grpc import aio
reply, chunk = (bytes.fromhex(line) for line in sys.stdin.read().split())
SERVICE = "ollmbridge.v1.ChatCompletionService"
async def create(request, context):
    return reply
async def stream(request, context):
    count, interval_s = map(float, request.split(b"|")[1:3])
    loop = asyncio.get_running_loop()
    start = loop.time()
    for number in range(int(count)):
        if interval_s:
            await asyncio.sleep(start + number * interval_s - loop.time())
        await context.write(chunk)
async def main():
    server = aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {
        "CreateChatCompletion": grpc.unary_unary_rpc_method_handler(create),
        "StreamChatCompletion": grpc.unary_stream_rpc_method_handler(stream),
    }),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print("listening on 127.0.0.1:" + str(port), flush=True)
    await server.wait_for_termination()
uvloop.run(main())
"""


@dataclass(frozen=True)
class Process:
    """A server under measurement."""

    address: str
    pid: int
    start_s: float

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_mib(self) -> float:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def started(*command: str, feed: str | None = None) -> Iterator[Process]:
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE if feed else None,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        if feed:
            process.stdin.write(feed)
            process.stdin.close()
        line = process.stdout.readline()
        if not line.startswith("listening on "):
            sys.exit(f"expected {command[:3]} to say where it listens, found {line!r}")
        yield Process(line.split()[-1], process.pid, time.monotonic() - began)
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


def request(model: str) -> pb.CreateChatCompletionRequest:
    made = pb.CreateChatCompletionRequest(model=model, temperature=0.7, max_tokens=100)
    made.messages.add(role="system", text="You are a helpful assistant.")
    made.messages.add(role="user", text="Tell me about bridges, and how they carry their load.")
    return made


async def calls_of(stub: pb_grpc.ChatCompletionServiceStub, count: int) -> int:
    async def worker(share: int) -> None:
        for _ in range(share):
            await stub.CreateChatCompletion(request("echo"))

    await asyncio.gather(*(worker(count // AT_ONCE) for _ in range(AT_ONCE)))
    return count // AT_ONCE * AT_ONCE


async def chunks_of(channel: grpc.aio.Channel, body: bytes, streams: int) -> int:
    method = channel.unary_stream("/ollmbridge.v1.ChatCompletionService/StreamChatCompletion")
    seen = 0

    async def stream() -> None:
        nonlocal seen
        async for _ in method(body):
            seen += 1

    gate = asyncio.Semaphore(AT_ONCE)

    async def gated() -> None:
        async with gate:
            await stream()

    await asyncio.gather(*(gated() for _ in range(streams)))
    return seen


def stream_body(name: str, chunks: int, interval_s: float) -> bytes:
    """The request of a stream: the bridge reads the scenario, the bare server what stands between the bars."""
    scenario = (
        f"many?chunks={chunks}&bytes=16"
        if not interval_s
        else f"pace?chunks={chunks}&interval_ms={interval_s * 1000:g}"
    )
    made = request(f"scenario::{scenario}")
    made.messages.add(role="user", text=f"{name}|{chunks}|{interval_s}|")
    return made.SerializeToString()


Measure = Callable[[grpc.aio.Channel], Awaitable[int]]

MEASURES: dict[str, Measure] = {
    "unary call": lambda channel: calls_of(pb_grpc.ChatCompletionServiceStub(channel), CALLS),
    "chunk, as fast as they come": lambda channel: chunks_of(channel, stream_body("b", CHUNKS, 0), STREAMS),
    "chunk, each on its own": lambda channel: chunks_of(channel, stream_body("b", PACED_CHUNKS, 0.02), STREAMS),
}


async def measured(server: Process, measure: Measure) -> float:
    """CPU in microseconds a unit."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        before = server.cpu_s()
        units = await measure(channel)
        return (server.cpu_s() - before) / units * 1e6


async def open_streams_mib(server: Process, count: int) -> float:
    """Memory of the process that `count` streams take while they are open and idle, after their first chunks."""
    body = request("scenario::stall?after=1").SerializeToString()
    before = server.resident_mib()
    async with grpc.aio.insecure_channel(server.address) as channel:
        method = channel.unary_stream("/ollmbridge.v1.ChatCompletionService/StreamChatCompletion")
        calls = [method(body) for _ in range(count)]
        await asyncio.gather(*(call.read() for call in calls))
        after = server.resident_mib()
        for call in calls:
            call.cancel()
    return after - before


async def answers(address: str) -> str:
    """The bridge's own answers, for the bare server to give."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = pb_grpc.ChatCompletionServiceStub(channel)
        reply = await stub.CreateChatCompletion(request("echo"))
        chunks = [chunk async for chunk in stub.StreamChatCompletion(request("scenario::many?chunks=3&bytes=16"))]
    return f"{reply.SerializeToString().hex()}\n{chunks[1].SerializeToString().hex()}\n"


async def compare(rounds: int) -> None:
    with (
        started("-m", "bridge", "emulate", "--listen", "127.0.0.1:0") as emulator,
        started(
            "-m",
            "bridge",
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--admin-listen",
            "127.0.0.1:0",
            "--upstream",
            f"http://{emulator.address}",
        ) as bridge,
        started("-c", BARE_SERVER, feed=await answers(bridge.address)) as bare,
    ):
        print(
            f"ollm-bridge {__version__}, grpcio {grpc.__version__}, Python {platform.python_version()}, "
            f"{platform.machine()}, {os.cpu_count()} cores; {rounds} rounds after one to warm up"
        )
        print(f"start: bridge {bridge.start_s:.2f} s, bare server {bare.start_s:.2f} s")
        print(f"idle: bridge {bridge.resident_mib():.0f} MiB, bare server {bare.resident_mib():.0f} MiB")
        print(f"{'CPU of a':<30}{'bridge':>24}{'bare grpc.aio':>24}{'ratio':>20}")
        for name, measure in MEASURES.items():
            pairs = [(await measured(bridge, measure), await measured(bare, measure)) for _ in range(rounds + 1)][1:]
            columns = [[pair[0] for pair in pairs], [pair[1] for pair in pairs]]
            ratios = [mine / other for mine, other in pairs]
            texts = [f"{statistics.median(each):.0f} ({min(each):.0f}-{max(each):.0f}) µs" for each in columns]
            print(
                f"{name:<30}{texts[0]:>24}{texts[1]:>24}"
                f"{statistics.median(ratios):>9.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            )
        grown = await open_streams_mib(bridge, OPEN_STREAMS)
        each_kib = grown * 1024 / OPEN_STREAMS
        print(f"{OPEN_STREAMS} open, idle streams: {grown:.0f} MiB more in the bridge, {each_kib:.0f} KiB each")
        print(f"after: bridge {bridge.resident_mib():.0f} MiB, bare server {bare.resident_mib():.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (%(default)s)")
    asyncio.run(compare(parser.parse_args().rounds))


if __name__ == "__main__":
    main()
