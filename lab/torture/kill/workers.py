"""A worker of two is killed, and the supervisor of workers."""

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from pathlib import Path

from bridge.emulator import Emulator
from lab.report import Result
from lab.torture.chaos.calls import describe_end, open_channel
from lab.torture.kill.calls import CONCURRENCY, FAR_S, build_result, find_other_ends
from lab.torture.kill.upstream import kill
from lab.torture.subject import run_bridge
from tests.kit.client import Answer, Bridge, chat, scenario
from tests.kit.proc import count_listeners, find_children, is_running
from tests.kit.waiting import eventually

__all__ = ["kill_supervisor", "kill_worker"]

WORKERS_BACK_S_MAX = 40.0
"""Early deaths delay the next start: by half a second, then 1, 2, 4, 8 s."""


async def kill_worker(folder: Path, rounds: int) -> Result:
    """Kill one of two under load: its calls are lost, no others, and a new one replaces it."""
    wrong: list[str] = []
    back_s: list[float] = []
    lost = whole = 0
    async with Emulator() as emulator, run_bridge(f"127.0.0.1:{emulator.port}", folder=folder, workers=2) as subject:
        listeners = count_listeners(subject.address)
        for _ in range(rounds):
            pids = find_children(subject.process.pid, b"spawn_main")
            tasks = [asyncio.create_task(long_stream(subject.address)) for _ in range(2 * CONCURRENCY)]
            already = len(emulator.exchanges)
            await eventually(lambda start=already: count_started(emulator, start) == 2 * CONCURRENCY, timeout_s=FAR_S)
            os.kill(pids[0], signal.SIGKILL)
            replacing = asyncio.create_task(measure_replacement_s(subject.address, listeners))
            answers = await asyncio.gather(*tasks)
            ends = Counter(describe_end(each) for each in answers)
            lost += ends["UNAVAILABLE"]
            whole += ends["OK"]
            wrong += [
                f"{count} calls ended in {end}" for end, count in ends.items() if end not in {"OK", "UNAVAILABLE"}
            ]
            wrong += ["all calls were lost"] * (not ends["OK"]) + ["no call was lost"] * (not ends["UNAVAILABLE"])
            back_s.append(await replacing)
            async with open_channel(subject.address) as channel:
                wrong += find_other_ends([await Bridge("", channel).ask(chat(), timeout=FAR_S)], "OK")
        calls_counted = sum(
            value for (name, _), value in (await subject.read_metrics()).items() if name == "ollm_bridge_calls_total"
        )
        wrong += ["the process did not end with 0"] * (await subject.stop() != 0)
    return build_result(
        "a worker of two is killed",
        rounds * 2 * CONCURRENCY,
        wrong,
        "its calls end in UNAVAILABLE by the caller's own client; the other worker's are whole",
        lost=lost,
        whole=whole,
        calls_in_the_metrics=calls_counted,
        replaced_within_s=max(back_s),
    )


async def measure_replacement_s(address: str, listeners: int) -> float:
    """Wait until a worker has ended and another accepts calls in its place, and return how long that took."""
    began_at = time.monotonic()
    await eventually(lambda: count_listeners(address) < listeners)
    await eventually(lambda: count_listeners(address) == listeners, WORKERS_BACK_S_MAX)
    return time.monotonic() - began_at


async def kill_supervisor(folder: Path) -> Result:
    """Kill the workers' parent: they let their calls finish, and end."""
    wrong: list[str] = []
    async with Emulator() as emulator, run_bridge(f"127.0.0.1:{emulator.port}", folder=folder, workers=2) as subject:
        pids = find_children(subject.process.pid, b"spawn_main")
        tasks = [asyncio.create_task(long_stream(subject.address)) for _ in range(CONCURRENCY)]
        await eventually(lambda: count_started(emulator, 0) == CONCURRENCY, timeout_s=FAR_S)
        await kill(subject)
        wrong += find_other_ends(await asyncio.gather(*tasks), "OK")
        with contextlib.suppress(TimeoutError):
            await eventually(lambda: not any(map(is_running, pids)), timeout_s=FAR_S)
        wrong += ["a worker still runs" for pid in pids if is_running(pid)]
        wrong += ["a stack in the log"] * subject.log.read_text().count("Traceback")
    outcome = "calls in flight are OK; the workers end"
    return build_result("the workers' supervisor is killed", CONCURRENCY, wrong, outcome)


async def long_stream(address: str) -> Answer:
    async with open_channel(address) as channel:
        return await Bridge(address, channel).ask(scenario("pace?chunks=100&interval_ms=20"), stream=True)


def count_started(emulator: Emulator, start: int) -> int:
    return sum(each.events_sent > 2 for each in emulator.exchanges[start:])
