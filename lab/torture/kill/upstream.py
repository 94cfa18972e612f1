"""The upstream dies, hangs and comes back, idle, before its answer and in mid-stream."""

import asyncio
import contextlib
import signal
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from lab.report import Result
from lab.torture.chaos.calls import open_channel
from lab.torture.kill.calls import (
    CONCURRENCY,
    DISCONNECTED,
    FAR_S,
    SOON_S,
    UNREACHABLE,
    build_result,
    find_other_ends,
    make_calls,
    measure_recovery_s,
)
from lab.torture.subject import Process, run_bridge, run_python
from tests.kit.client import Answer, Bridge, chat, decode_failure, scenario
from tests.kit.proc import read_state
from tests.kit.processes import find_free_port
from tests.kit.waiting import eventually

__all__ = ["kill", "kill_upstream", "run_gateway", "stop_upstream"]


@contextlib.asynccontextmanager
async def run_gateway(folder: Path, port: int = 0) -> AsyncIterator[Process]:
    """Run an emulated gateway in a process of its own."""
    command = ("-m", "bridge", "emulate", "--listen", f"127.0.0.1:{port}")
    async with run_python(*command, log=folder / "gateway.log") as process:
        yield process


async def kill(process: Process) -> None:
    process.process.kill()
    await process.process.wait()


async def kill_upstream(folder: Path, rounds: int) -> list[Result]:
    """Kill it while it is idle, before its answers, and in mid-stream; then start it again."""
    port = find_free_port()
    idle: list[str] = []
    waiting: list[str] = []
    streaming: list[str] = []
    back_s: list[float] = []
    ended_s: list[float] = []
    async with run_bridge(f"127.0.0.1:{port}", folder=folder) as subject, open_channel(subject.address) as channel:
        caller = Bridge(subject.address, channel)
        for _ in range(rounds):
            async with run_gateway(folder, port) as upstream:
                back_s.append(await measure_recovery_s(caller, SOON_S) or float("inf"))
                idle += find_other_ends(await make_calls(caller), "OK")
                await kill(upstream)
                idle += find_other_ends(await make_calls(caller), UNREACHABLE)
            async with run_gateway(folder, port) as upstream:
                back_s.append(await measure_recovery_s(caller, SOON_S) or float("inf"))
                ends, took_s = await kill_during_calls(caller, upstream)
                ended_s.append(took_s)
                waiting += find_other_ends(ends[:CONCURRENCY], DISCONNECTED)
                for each in ends[CONCURRENCY:]:
                    streaming += find_other_ends([each], DISCONNECTED) or [
                        f"{each.failure.upstream.chunks_delivered} chunks reported, {len(each.messages)} came"
                        for _ in range(each.failure.upstream.chunks_delivered != len(each.messages))
                    ]
    late = [f"back only after {each:.2f} s" for each in back_s if each > SOON_S]
    slow = [f"ended only after {each:.2f} s" for each in ended_s if each > SOON_S]
    return [
        build_result("the upstream dies while it is idle", rounds * CONCURRENCY, idle, UNREACHABLE),
        build_result("the upstream dies before its answer", rounds * CONCURRENCY, waiting, DISCONNECTED),
        build_result(
            "the upstream dies in mid-stream",
            rounds * CONCURRENCY,
            [*streaming, *slow],
            f"{DISCONNECTED}, with the count of the chunks that came",
            ended_within_ms=max(ended_s) * 1000,
        ),
        build_result(
            "the upstream comes back",
            len(back_s),
            late,
            "the first call is OK",
            median_ms=statistics.median(back_s) * 1000,
            longest_ms=max(back_s) * 1000,
        ),
    ]


async def kill_during_calls(caller: Bridge, upstream: Process) -> tuple[list[Answer], float]:
    """Kill it once calls wait and streams have begun; return the ends, first the waiting ones', and the duration."""
    started = [asyncio.Event() for _ in range(CONCURRENCY)]
    waiting = [asyncio.create_task(caller.ask(scenario("stall?headers=0"))) for _ in range(CONCURRENCY)]
    streams = [asyncio.create_task(read_long_stream(caller, event)) for event in started]
    async with asyncio.timeout(FAR_S):
        await asyncio.gather(*(event.wait() for event in started))
        await kill(upstream)
        killed_at = time.monotonic()
        ends = await asyncio.gather(*waiting, *streams)
    return ends, time.monotonic() - killed_at


async def read_long_stream(caller: Bridge, started: asyncio.Event) -> Answer:
    """Read a long stream to its end, and set the event at its third chunk."""
    messages: list[Any] = []
    call = caller.stub.StreamChatCompletion(scenario("pace?chunks=5000&interval_ms=10"))
    try:
        async for chunk in call:
            messages.append(chunk)
            if len(messages) == 3:
                started.set()
    except grpc.aio.AioRpcError as error:
        return build_failed_answer(messages, error)
    return Answer(messages, {}, {}, None)


def build_failed_answer(messages: list[Any], error: grpc.aio.AioRpcError) -> Answer:
    return Answer(messages, {}, dict(error.trailing_metadata()), decode_failure(error))


async def stop_upstream(folder: Path, rounds: int) -> Result:
    """Stop it (SIGSTOP), so that its kernel accepts connections and nobody answers, and continue it."""
    wrong: list[str] = []
    took_s: list[float] = []
    deadline_s = 0.4
    async with (
        run_gateway(folder) as upstream,
        run_bridge(upstream.address, folder=folder) as subject,
        open_channel(subject.address) as channel,
    ):
        caller = Bridge(subject.address, channel)
        for _ in range(rounds):
            wrong += find_other_ends(await make_calls(caller), "OK")
            upstream.process.send_signal(signal.SIGSTOP)
            await eventually(lambda: read_state(upstream.process.pid) == "T")
            began_at = time.monotonic()
            calls = [caller.ask(chat(), stream=bool(number % 2), timeout=deadline_s) for number in range(CONCURRENCY)]
            wrong += find_other_ends(await asyncio.gather(*calls), "DEADLINE_EXCEEDED")
            took_s.append(time.monotonic() - began_at)
            upstream.process.send_signal(signal.SIGCONT)
            wrong += find_other_ends(await make_calls(caller), "OK")
    wrong += [f"ended after {each:.2f} s" for each in took_s if each > deadline_s + SOON_S]
    outcome = "DEADLINE_EXCEEDED at the caller's deadline; OK once it continues"
    return build_result(
        "the upstream hangs", rounds * CONCURRENCY, wrong, outcome, deadline_s=deadline_s, longest_s=max(took_s)
    )
