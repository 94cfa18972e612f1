"""The clock of the wall jumps while calls run."""

import asyncio
import glob
import sys
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

from bridge.emulator import Emulator
from lab.report import Result
from lab.torture.chaos.calls import describe_end, open_channel
from lab.torture.kill.calls import CONCURRENCY, FAR_S, build_result, find_other_ends, make_calls, read_records
from lab.torture.subject import run_bridge
from tests.kit.client import Bridge, chat, scenario
from tests.kit.waiting import eventually

__all__ = ["jump_clocks"]

FAKETIME = "/usr/lib/*/faketime/libfaketimeMT.so.1"
SLACK_S = 0.6
JUMPS = {"an hour ahead": 3600, "a day back": -86_400}
PATCHED = """
import pathlib, sys, time
real, file = time.time, pathlib.Path({file!r})
time.time = lambda: real() + float(file.read_text())
from bridge.cli.main import main
sys.exit(main(["serve"]))
"""


async def jump_clocks(folder: Path) -> list[Result]:
    """Let the wall clock jump during calls: timers use the monotonic clock, so nothing may end early or late."""
    library = next(iter(glob.glob(FAKETIME)), None)  # noqa: PTH207 - a pattern of a whole path
    file = folder / "offset"
    note = (
        "by libfaketime" if library else "of Python's time.time alone: libfaketime (Debian's package) is not installed"
    )
    async with Emulator() as emulator:
        return [
            await jump_clock(emulator, folder, file, offset_s, f"the clock jumps {jump}", note, library)
            for jump, offset_s in JUMPS.items()
        ]


def build_clock_command(library: str | None, file: Path) -> tuple[str, ...]:
    """Return the arguments with which Python runs a bridge whose clock is off by the seconds in a file."""
    if library is None:
        return ("-c", PATCHED.format(file=str(file)))
    variables = {
        "LD_PRELOAD": library,
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    command = [sys.executable, "-m", "bridge", "serve"]
    return ("-c", f"import os; os.execve({sys.executable!r}, {command!r}, os.environ | {variables!r})")


async def jump_clock(
    emulator: Emulator, folder: Path, file: Path, offset_s: int, case: str, note: str, library: str | None
) -> Result:
    set_offset(file, 0)
    idle_s = 1.5
    settings = {"command": build_clock_command(library, file), "upstream__idle_timeout_s": idle_s}
    async with (
        run_bridge(f"127.0.0.1:{emulator.port}", folder=folder, **settings) as subject,
        open_channel(subject.address) as channel,
    ):
        caller = Bridge(subject.address, channel)
        wrong = find_other_ends(await make_calls(caller), "OK")
        during = [
            time_call(caller, "pace?chunks=150&interval_ms=20", "OK", 3.0, stream=True, timeout=FAR_S),
            time_call(caller, "slow?delay_s=3", "OK", 3.0, timeout=FAR_S),
            time_call(caller, "slow?delay_s=3", "OK", 3.0),
            time_call(caller, "comments?every=0.3&count=100", "DEADLINE_EXCEEDED", 3.0, stream=True, timeout=3.0),
        ]
        going = [asyncio.create_task(each) for each in during]
        await eventually(lambda: sum(not each.finished for each in emulator.exchanges) >= len(going))
        set_offset(file, offset_s)
        if library is not None:
            await wait_for_offset(caller, subject.log, offset_s)
        wrong += [each for task in going if (each := await task)]
        after = [
            time_call(caller, "stall?after=2", "DEADLINE_EXCEEDED", 0.5, stream=True, timeout=0.5),
            time_call(caller, "stall?headers=0", "DEADLINE_EXCEEDED", 0.5, timeout=0.5),
            time_call(caller, "stall?after=2", "DEADLINE_EXCEEDED UPSTREAM_TIMEOUT", idle_s, stream=True),
            time_call(caller, "slow?delay_s=1", "OK", 1.0, timeout=2.0),
        ]
        wrong += [each for each in await asyncio.gather(*after) if each]
        wrong += find_other_ends(await make_calls(caller), "OK")
        code = await subject.stop()
        wrong += [f"the process ended with {code}"] * (code != 0)
        codes = Counter(each.get("code") for each in read_records(subject.log) if each["event"] == "call")
    if library is not None:  # else grpc's core and Python disagree about the time, which no real clock causes
        wrong += [f"{codes['CANCELLED']} calls past their deadline are logged as CANCELLED"] * bool(codes["CANCELLED"])
    calls = 2 * CONCURRENCY + len(during) + len(after)
    return build_result(case, calls, wrong, "every call ends in time, before, during and after the jump", note)


def set_offset(file: Path, offset_s: int) -> None:
    """Set the clock's offset."""
    file.write_text(f"{offset_s:+d}\n")


async def wait_for_offset(caller: Bridge, log: Path, offset_s: float) -> None:
    """Wait until the bridge's clock has this offset, by the times in its log."""
    async with asyncio.timeout(FAR_S):
        while True:
            await caller.ask(chat(), timeout=FAR_S)
            last = datetime.fromisoformat(read_records(log)[-1]["timestamp"]).timestamp()
            if abs(last - time.time() - offset_s) < 60:
                return
            await asyncio.sleep(0.05)


async def time_call(caller: Bridge, what: str, end: str, ends_s: float, *, stream: bool = False, **options: Any) -> str:
    """Make a call and return what is wrong with its end or its duration; "" if nothing is."""
    began_at = time.monotonic()
    answer = await caller.ask(scenario(what), stream=stream, **options)
    took_s = time.monotonic() - began_at
    if describe_end(answer) != end:
        return f"{what}: {describe_end(answer)} instead of {end}"
    return "" if abs(took_s - ends_s) < SLACK_S else f"{what}: {took_s:.2f} s instead of {ends_s:g} s"
