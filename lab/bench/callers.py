"""Callers, in a process of their own: `python -m lab.bench.callers` with a plan as JSON on the command line.

Three kinds: `grpc` calls the bridge and its like; `aiohttp` and `openai` call an HTTP gateway straight, as a service
without a bridge would. Neither `grpc` nor `aiohttp` reads what a message says: it is the cost of the way that counts.

Four plans. `closed`: so many calls, a number of them at any time. `rate`: calls at a fixed rate, and the time of each
from the moment at which it was due, so that waiting for a busy caller counts (no coordinated omission). `streams`: so
many paced streams at once, and how late each chunk came. `open`: streams held open until standard input ends.

A line `steady` says that all calls have started; the last line is the result: times in seconds, and what
CPU time this process took itself, so that a reader sees whether it had any to spare.
"""

import array
import asyncio
import contextlib
import gc
import json
import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import aiohttp
import grpc
import uvloop

from lab.bench.loads import HEADERS, SERVICE

if TYPE_CHECKING:
    import openai

CHANNELS = 4
STARTS_A_SECOND = 250
LEAD_S = 0.05
SETTLING_S = 0.5
SWITCH_S = 0.0002
"""How long the thread that begins calls waits for the loop's to let go: Python's 5 ms would be in the latencies."""
CLOCKS = re.compile(rb"(\d{9,}) (\d{9,}) ")
"""When a paced chunk was due, and when it was sent (the emulator's `pace`)."""


class Caller(Protocol):
    """`call` makes a whole unary call, `stream` yields each chunk's bytes as it comes; both raise on failure."""

    async def call(self) -> None: ...

    def stream(self) -> AsyncIterator[bytes]: ...


class Grpc:
    def __init__(self, body: bytes, channels: Sequence[grpc.aio.Channel]) -> None:
        self.body = body
        self.unary = [channel.unary_unary(f"{SERVICE}CreateChatCompletion") for channel in channels]
        self.streamed = [channel.unary_stream(f"{SERVICE}StreamChatCompletion") for channel in channels]
        self.turn = 0

    async def call(self) -> None:
        self.turn += 1
        await self.unary[self.turn % len(self.unary)](self.body)

    async def stream(self) -> AsyncIterator[bytes]:
        self.turn += 1
        async for message in self.streamed[self.turn % len(self.streamed)](self.body):
            yield message


class Aiohttp:
    def __init__(self, url: str, body: bytes, session: aiohttp.ClientSession) -> None:
        self.url, self.body, self.session = url, body, session

    async def call(self) -> None:
        async with self.session.post(self.url, data=self.body) as response:
            response.raise_for_status()
            await response.read()

    async def stream(self) -> AsyncIterator[bytes]:
        async with self.session.post(self.url, data=self.body) as response:
            response.raise_for_status()
            async for line in response.content:  # no parser of the kit's: what is measured is the rest
                if line.startswith(b"data: {"):
                    yield line


class OpenAi:
    def __init__(self, body: bytes, client: "openai.AsyncOpenAI") -> None:
        self.client, self.given = client, json.loads(body)

    async def call(self) -> None:
        await self.client.chat.completions.create(**self.given)

    async def stream(self) -> AsyncIterator[bytes]:
        async with await self.client.chat.completions.create(**self.given) as chunks:
            async for chunk in chunks:
                yield (chunk.choices[0].delta.content or "").encode()


@contextlib.asynccontextmanager
async def open_caller(kind: str, target: str, body: bytes) -> AsyncIterator[Caller]:
    async with contextlib.AsyncExitStack() as stack:
        match kind:
            case "grpc":
                apart = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
                channels = [
                    await stack.enter_async_context(grpc.aio.insecure_channel(target, options=apart))
                    for _ in range(CHANNELS)
                ]
                yield Grpc(body, channels)
            case "aiohttp":
                session = aiohttp.ClientSession(
                    headers=HEADERS,
                    connector=aiohttp.TCPConnector(limit=0),
                    cookie_jar=aiohttp.DummyCookieJar(),
                    timeout=aiohttp.ClientTimeout(total=None),
                )
                yield Aiohttp(f"http://{target}/v1/chat/completions", body, await stack.enter_async_context(session))
            case "openai":
                import openai  # noqa: PLC0415 - it takes a second, which the others need not wait

                client = openai.AsyncOpenAI(base_url=f"http://{target}/v1", api_key="none", max_retries=0)
                yield OpenAi(body, await stack.enter_async_context(client))
            case _:
                sys.exit(f"expected grpc, aiohttp or openai, found {kind}")


async def read_all(caller: Caller) -> int:
    return sum([1 async for _ in caller.stream()])


async def run_closed(caller: Caller, *, calls: int, at_once: int, streamed: bool) -> dict[str, Any]:
    async def some(count: int) -> int:
        return sum([await read_all(caller) if streamed else await caller.call() or 1 for _ in range(count)])

    await asyncio.gather(*(some(1) for _ in range(at_once)))
    print_line("steady")
    began, cpu = time.perf_counter(), time.process_time()
    units = sum(await asyncio.gather(*(some(calls // at_once) for _ in range(at_once))))
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    return {"units": units, "wall_s": wall_s, "cpu_s": cpu_s}


def launch(loop: asyncio.AbstractEventLoop, count: int, rate: float, start: Callable[[float], None]) -> None:
    """Call `start` in the loop at even intervals, with the time at which it was due.

    For a thread: an event loop's own timers are a millisecond coarse.
    """
    began = time.perf_counter() + LEAD_S
    for number in range(count):
        due = began + number / rate
        time.sleep(max(0.0, due - time.perf_counter()))
        loop.call_soon_threadsafe(start, due)


async def launch_all(count: int, rate: float, job: Callable[[float], Coroutine[Any, Any, None]]) -> None:
    """Start `count` jobs, `rate` a second, and wait for their ends. Raises the exception of a job."""
    loop, tasks = asyncio.get_running_loop(), []
    await asyncio.to_thread(launch, loop, count, rate, lambda due: tasks.append(loop.create_task(job(due))))
    await asyncio.gather(*tasks)


async def rate(caller: Caller, *, calls: int, rate: float, streamed: bool) -> dict[str, Any]:
    """`took` has the times of unary calls, or of streams' first chunks; `begun_late` is our own part of them."""
    took, begun_late = array.array("d"), array.array("d")

    async def one(due: float) -> None:
        begun_late.append(time.perf_counter() - due)
        if not streamed:
            await caller.call()
            took.append(time.perf_counter() - due)
            return
        chunks = 0
        async for _ in caller.stream():
            if not chunks:
                took.append(time.perf_counter() - due)
            chunks += 1

    await launch_all(max(1, round(rate / 2)), rate, one)
    del took[:], begun_late[:]
    print_line("steady")
    began, cpu = time.perf_counter(), time.process_time()
    await launch_all(calls, rate, one)
    busy = (time.process_time() - cpu) / (time.perf_counter() - began)
    return {"took": list(took), "begun_late": list(begun_late), "busy": busy}


async def streams(caller: Caller, *, at_once: int, chunks: int) -> dict[str, Any]:
    """`late` is how long after its due time a chunk was here, `sent_late` the upstream's own part of that.

    They count from when all streams have begun, and a moment more, until one has ended.
    """
    late, sent_late = array.array("q"), array.array("q")
    steady_from = steady_to = sys.maxsize
    begun = lost = 0

    async def one(_due: float) -> None:
        nonlocal begun, lost, steady_from, steady_to
        begun += 1
        if begun == at_once:
            steady_from = time.monotonic_ns() + int(SETTLING_S * 1e9)
            print_line("steady")
        seen = 0
        async for message in caller.stream():
            now = time.monotonic_ns()
            seen += 1
            if steady_from <= now < steady_to and (clocks := CLOCKS.search(message)):
                late.append(now - int(clocks[1]))
                sent_late.append(int(clocks[2]) - int(clocks[1]))
        lost += chunks + 2 - seen
        steady_to = min(steady_to, time.monotonic_ns())

    cpu = time.process_time()
    await launch_all(at_once, STARTS_A_SECOND, one)
    cpu_s = time.process_time() - cpu
    in_s = {name: [each / 1e9 for each in values] for name, values in {"late": late, "sent_late": sent_late}.items()}
    return {"lost": lost, "cpu_s": cpu_s, **in_s}


async def hold_open(caller: Caller, *, at_once: int) -> dict[str, Any]:
    opened: list[AsyncIterator[bytes]] = []

    async def one(_due: float) -> None:
        opened.append(caller.stream())
        await anext(opened[-1])

    await launch_all(at_once, STARTS_A_SECOND, one)
    print_line("steady")
    await asyncio.to_thread(sys.stdin.read)
    return {}


def print_line(line: str) -> None:
    print(line, flush=True)


async def main() -> None:
    plan = json.loads(sys.argv[1])
    plans = {"closed": run_closed, "rate": rate, "streams": streams, "open": hold_open}
    async with open_caller(plan.pop("kind"), plan.pop("target"), bytes.fromhex(plan.pop("body"))) as caller:
        gc.freeze()
        gc.disable()  # a pause of the caller's would be counted as the server's
        sys.setswitchinterval(SWITCH_S)
        print_line(json.dumps(await plans[plan.pop("plan")](caller, **plan)))


if __name__ == "__main__":
    uvloop.run(main())
