"""Answers that are small in bytes and large in work: how long does one hold the loop, and keep other callers waiting?

Each answer comes to one caller, while another makes good calls one after the other. The upstream runs in this process,
so its own time to build an answer is spent before the call. What is required is in CPU time, so that the result is the
same on a busy machine.
"""

import asyncio
import gzip
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import grpc

from lab.report import Result
from lab.torture import lag
from lab.torture.options import Options
from lab.torture.subject import Process, run_bridge
from ollmbridge.v1.chat_completion_service_pb2_grpc import ChatCompletionServiceStub
from tests.kit.client import chat
from tests.kit.waiting import eventually

__all__ = ["run"]

HELD_MS_MAX = 100.0
CALL_S = 60.0
MIB = 1024 * 1024
GOOD = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}'


class Attack(NamedTuple):
    """An answer: its status, content coding and body, and whether it is to a stream."""

    body: bytes
    streamed: bool = False
    status: int = 200
    coding: str = ""
    interim: bytes = b""


def build_text(text: bytes) -> bytes:
    return b'{"choices":[{"index":0,"message":{"role":"assistant","content":"%b"},"finish_reason":"stop"}]}' % text


def build_keys(count: int) -> bytes:
    return b",".join(b'"k%d":1' % n for n in range(count))


def build_logprobs(tokens: int, others: bytes = b"") -> bytes:
    token = b'"token":" bridge","logprob":-0.25,"bytes":[32,98,114,105]' + others
    content = b",".join([b'{%b,"top_logprobs":[%b]}' % (token, b",".join([b"{%b}" % token] * 20))] * tokens)
    return GOOD[:-2].removesuffix(b"}") + b',"logprobs":{"content":[%b]}}]}' % content


def build_event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


ATTACKS: Mapping[str, Callable[[], Attack]] = {
    "nothing: a good answer": lambda: Attack(GOOD),
    "a million choices, 8 MiB": lambda: Attack(b'{"choices":[' + b'{"x":1},' * MIB + b"{}]}"),
    "a million unknown keys, 11 MiB": lambda: Attack(b'{"choices":[{}],' + build_keys(MIB) + b"}"),
    "290,000 unknown keys of one value, 4 MiB": lambda: Attack(b'{"choices":[],"a":{' + build_keys(290_000) + b"}}"),
    "290,000 objects of an empty array": lambda: Attack(b'{"choices":[],"a":[' + b'{"a":[]},' * 290_000 + b"1]}"),
    "5 million empty objects, 16 MiB": lambda: Attack(b'{"choices":[],"a":[' + b"{}," * (5 * MIB) + b"1]}"),
    "16,000 tool calls": lambda: Attack(
        b'{"choices":[{"message":{"tool_calls":[' + b'{"index":0,"function":{"name":"f"}},' * 16_000 + b"{}]}}]}"
    ),
    "130,000 tool calls, 16 MiB": lambda: Attack(
        b'{"choices":[{"message":{"tool_calls":[' + b'{"index":0,"id":"%b"},' % (b"x" * 100) * 130_000 + b"{}]}}]}"
    ),
    "legitimate: log probabilities of 3,000 tokens, 20 each": lambda: Attack(build_logprobs(3000)),
    "legitimate: the same of 700 tokens, with an unknown key each": lambda: Attack(build_logprobs(700, b',"id":7')),
    "2,000 unknown keys": lambda: Attack(b'{"choices":[{}],' + build_keys(2000) + b"}"),
    "escapes with a lone surrogate, 15 MiB": lambda: Attack(build_text(rb"\n" * (7 * MIB) + rb"\ud83d")),
    "nothing but lone surrogates, 15 MiB": lambda: Attack(build_text(rb"\ud83d" * (15 * MIB // 6))),
    "a number beyond a double, 15 MiB": lambda: Attack(b'{"a":1e999,' + build_text(rb"\n" * (7 * MIB))[1:]),
    "legitimate: text with commas, 15 MiB": lambda: Attack(build_text(b"words, words and words. " * (15 * MIB // 24))),
    "legitimate: Chinese text, 15 MiB": lambda: Attack(build_text("字句、".encode() * (15 * MIB // 9))),
    "a stream's event of 15 MiB": lambda: Attack(
        build_event(build_text(b"words, words. " * (15 * MIB // 14)).replace(b"message", b"delta")), streamed=True
    ),
    "an error event of a million keys": lambda: Attack(
        build_event(b'{"error":{' + build_keys(MIB) + b"}}"), streamed=True
    ),
    "an error event of 290,000 keys": lambda: Attack(
        build_event(b'{"error":{' + build_keys(290_000) + b"}}"), streamed=True
    ),
    "an error body of 350,000 keys, 4 MiB": lambda: Attack(b'{"error":{' + build_keys(350_000) + b"}}", status=400),
    "16 KiB of gzip that are 16 MiB of blank lines": lambda: Attack(
        gzip.compress(b":\n" * (8 * MIB)), streamed=True, coding="gzip"
    ),
    "gzip that is 1 MiB of empty events": lambda: Attack(
        gzip.compress(b"data: {}\n\n" * (MIB // 10)), streamed=True, coding="gzip"
    ),
    "gzip that is 100 MB of zeros": lambda: Attack(gzip.compress(bytes(100_000_000)), coding="gzip"),
    "comments at full speed, 16 MiB": lambda: Attack(b":\n" * (8 * MIB), streamed=True),
    "events at full speed, 1 MiB": lambda: Attack(b"data: {}\n\n" * (MIB // 10), streamed=True),
    "12 choices whose index is a text of 12 MiB": lambda: Attack(
        b"".join(build_event(b'{"choices":[{"index":"%d%b"}]}' % (n, b"x" * (12 * MIB))) for n in range(12)),
        streamed=True,
    ),
    "interim answers, 16 MiB": lambda: Attack(GOOD, interim=b"HTTP/1.1 103 Early Hints\r\n\r\n" * (16 * MIB // 28)),
}


async def run(options: Options) -> list[Result]:
    """Play each attack once, or a few of them."""
    names = list(ATTACKS)[:: 4 if options.quick else 1]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return [await play(name, Path(folder)) for name in names]


async def play(name: str, folder: Path) -> Result:
    """Run a bridge of its own for one attack, so that its memory is that of the attack."""
    attack = ATTACKS[name]()
    file = folder / "lag.json"
    command = ("-m", "lab.torture.lag", str(file))
    async with (
        serve(attack) as upstream,
        run_bridge(upstream, folder=folder, command=command) as process,
        grpc.aio.insecure_channel(process.address, [("grpc.max_receive_message_length", -1)]) as bad,
        grpc.aio.insecure_channel(process.address, [("grpc.use_local_subchannel_pool", 1)]) as good,
    ):
        for _ in range(20):
            await ChatCompletionServiceStub(good).CreateChatCompletion(chat(model="good"), timeout=CALL_S)
        before = await take_lag(process, file)
        stop = asyncio.Event()
        others = asyncio.create_task(call_on(ChatCompletionServiceStub(good), stop))
        started_at = time.monotonic()
        outcome = await call_once(ChatCompletionServiceStub(bad), attack.streamed)
        took_s = time.monotonic() - started_at
        await asyncio.sleep(0.05)
        stop.set()
        slowest_ms = await others
        found = await take_lag(process, file)
    return Result(
        name,
        1,
        outcome,
        ok=found.held_cpu_ms <= HELD_MS_MAX,
        figures={
            "bytes": len(attack.body) + len(attack.interim),
            "loop held, ms": round(found.held_ms, 1),
            "the same in CPU time, ms": round(found.held_cpu_ms, 1),
            "slowest good call beside, ms": round(slowest_ms, 1),
            "call, s": round(took_s, 2),
            "peak memory, MiB more": round(found.peak_mib - before.peak_mib),
        },
        note=f"at most {HELD_MS_MAX:g} ms of CPU time",
    )


async def take_lag(process: Process, file: Path) -> lag.Lag:
    file.unlink(missing_ok=True)  # noqa: ASYNC240 - a tiny file
    process.process.send_signal(signal.SIGUSR1)
    await eventually(file.exists, CALL_S)
    return lag.read(file)


async def call_once(stub: ChatCompletionServiceStub, streamed: bool) -> str:  # noqa: FBT001 - one of two methods
    """Return the code of the call that meets the attack."""
    try:
        if streamed:
            async for _ in stub.StreamChatCompletion(chat(model="bad"), timeout=CALL_S):
                pass
        else:
            await stub.CreateChatCompletion(chat(model="bad"), timeout=CALL_S)
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


async def call_on(stub: ChatCompletionServiceStub, stop: asyncio.Event) -> float:
    """Make good calls until `stop`, and return the time of the slowest, in milliseconds."""
    slowest_s = 0.0
    while not stop.is_set():
        started_at = time.monotonic()
        await stub.CreateChatCompletion(chat(model="good"), timeout=CALL_S)
        slowest_s = max(slowest_s, time.monotonic() - started_at)
        await asyncio.sleep(0.002)
    return slowest_s * 1000


@asynccontextmanager
async def serve(attack: Attack) -> AsyncIterator[str]:
    """Run an upstream that answers the model `bad` with the attack and any other with a good answer."""
    kind = "text/event-stream" if attack.streamed else "application/json"
    coding = f"content-encoding: {attack.coding}\r\n" if attack.coding else ""
    head = f"HTTP/1.1 {attack.status} X\r\ncontent-type: {kind}\r\n{coding}content-length: {len(attack.body)}\r\n\r\n"
    bad = attack.interim + head.encode() + attack.body
    good = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(GOOD), GOOD)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                length = int(request.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
                body = await reader.readexactly(length)
                view = memoryview(bad if b'"bad"' in body else good)
                for at in range(0, len(view), 65536):
                    writer.write(view[at : at + 65536])
                    await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
