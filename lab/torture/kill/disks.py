"""The log's disk is full from the start or later, as is the folder that workers share; nobody reads the log."""

import asyncio
import contextlib
import os
import time
from collections import Counter
from pathlib import Path

from bridge.emulator import Emulator
from lab.report import Result
from lab.torture.chaos.calls import open_channel
from lab.torture.kill.calls import (
    CONCURRENCY,
    FAR_S,
    build_namespace_command,
    build_result,
    find_other_ends,
    make_calls,
    read_records,
)
from lab.torture.subject import Process, run_bridge
from tests.kit.client import Bridge, scenario
from tests.kit.proc import find_descriptor, find_root
from tests.kit.processes import StartError, describe_missing_namespaces
from tests.kit.waiting import eventually

__all__ = ["fill_disks"]

SMALL_DISK = 'mount -t tmpfs -o size=64k tmpfs "$1" && log="$1/log" && shift && exec "$@" 2>>"$log"'
SMALL_TMP = (
    'mount -t tmpfs -o size=$2 tmpfs "$1" && mount --bind "$1" /dev/shm && export TMPDIR="$1" && shift 2 && exec "$@"'
)


# The log's disk

FULL = Path("/dev/full")
LOG_CALLS = 2_000
PIPE_CALLS = 9_000
"""With a log that nobody reads: their lines are more than the pipe and the queue hold."""
PIPE_MEMORY_MORE_MIB_MAX = 30.0
"""What so many calls cost with a log that is read, twice over, and the queue of 4 MiB."""
MODELS = 40
"""Their labels make a worker's snapshot several times larger than its first."""
MEMORY_MORE_MIB_MAX = 10.0
UNWRITTEN = "metrics could not be written for the supervisor"
UNWRITTEN_S_MAX = 10.0


async def fill_disks(folder: Path) -> list[Result]:
    results = []
    async with Emulator() as emulator:
        results.append(await stop_reading_log(emulator, folder))
        if os.access(FULL, os.W_OK):
            async with run_bridge(f"127.0.0.1:{emulator.port}", folder=folder, log=FULL) as subject:
                results.append(await log_on_full_disk("the log's disk is full from the start", subject))
        else:
            results.append(
                build_result("the log's disk is full from the start", 0, [], "not run: there is no /dev/full")
            )
        cases = (
            "the log's disk fills up, and has room again",
            "the disk of two workers' shared files is full from the start",
            "the disk of two workers' shared files fills up",
        )
        if why := describe_missing_namespaces():
            return [*results, *(build_result(case, 0, [], f"not run: {why}") for case in cases)]
        disk = folder / "disk"
        disk.mkdir()
        command = build_namespace_command(SMALL_DISK, str(disk))
        async with run_bridge(f"127.0.0.1:{emulator.port}", folder=folder, command=command) as subject:
            log = find_root(subject.process.pid) / disk.relative_to("/") / "log"
            results.append(await log_on_full_disk(cases[0], subject, log))
        results.append(await start_without_room(cases[1], folder, disk))
        command = build_namespace_command(SMALL_TMP, str(disk), "1m")
        async with run_bridge(f"127.0.0.1:{emulator.port}", folder=folder, command=command, workers=2) as subject:
            seen = find_root(subject.process.pid) / disk.relative_to("/")
            fill(seen / "others")
            results.append(await share_on_full_disk(cases[2], subject, seen))
    return results


async def start_without_room(case: str, folder: Path, disk: Path) -> Result:
    """Start workers with no room for the files that they share."""
    command = build_namespace_command(SMALL_TMP, str(disk), "4k")
    try:
        async with run_bridge("127.0.0.1:1", folder=folder, command=command, workers=2):
            wrong = ["it started"]
    except StartError:
        log_text = (folder / "bridge.log").read_text(errors="replace")
        says = any(line.startswith("workers: cannot write ") for line in log_text.splitlines())
        wrong = [] if says else [f"its log is {log_text[:200]!r}"]
    return build_result(case, 1, wrong, "it does not start, and the log says why")


def fill(file: Path) -> None:
    """Fill a disk."""
    with file.open("wb", 0) as filling, contextlib.suppress(OSError):
        while True:
            filling.write(bytes(512))


async def share_on_full_disk(case: str, subject: Process, disk: Path) -> Result:
    """Make calls over many connections, so that both workers get some, of more models than the files have room for."""
    wrong: list[str] = []
    for number in range(MODELS):
        async with open_channel(subject.address) as channel:
            caller, model = Bridge("", channel), scenario(f"many?chunks=2&bytes={number + 1}")
            calls = [caller.ask(model, stream=bool(at % 2), timeout=FAR_S) for at in range(CONCURRENCY)]
            wrong += find_other_ends(await asyncio.gather(*calls), "OK")
    wrong += ["the disk was not full"] * (os.statvfs(disk).f_bavail > 0)
    with contextlib.suppress(TimeoutError):  # workers write each second
        await eventually(lambda: UNWRITTEN in {each["event"] for each in read_records(subject.log)}, UNWRITTEN_S_MAX)
    events = Counter(each["event"] for each in read_records(subject.log))
    wrong += [event for event in events if event not in {"started", "call", UNWRITTEN}]
    wrong += ["the log does not say that metrics could not be written"] * (not events[UNWRITTEN])
    code = await subject.stop()
    wrong += [f"the process ended with {code}"] * (code != 0)
    return build_result(case, MODELS * CONCURRENCY, wrong, "every call is OK, no worker dies; it ends with 0")


async def log_on_full_disk(case: str, subject: Process, log: Path | None = None) -> Result:
    """Make more calls than the disk has room for; then, if there is a log, make room, and wait for new lines."""
    wrong: list[str] = []
    async with open_channel(subject.address) as channel:
        caller = Bridge(subject.address, channel)
        wrong += find_other_ends(await make_calls(caller, LOG_CALLS // 10), "OK")
        before_mib = subject.memory_mib
        for _ in range(9):
            wrong += find_other_ends(await make_calls(caller, LOG_CALLS // 10), "OK")
        more_mib = subject.memory_mib - before_mib
        wrong += [f"memory grew by {more_mib:.0f} MiB"] * (more_mib > MEMORY_MORE_MIB_MAX)
        lines = 0
        if log is not None:
            filled = truncate(log)
            wrong += find_other_ends(await make_calls(caller), "OK")
            with contextlib.suppress(TimeoutError):
                await eventually(lambda: len(read_records(log)) >= CONCURRENCY)
            lines = len(read_records(log))
            wrong += [f"{lines} lines for {CONCURRENCY} calls, once there was room"] * (lines < CONCURRENCY)
            wrong += [f"the disk was not full: {filled} bytes"] * (filled < 60_000)
    code = await subject.stop()
    wrong += [f"the process ended with {code}"] * (code != 0)
    outcome = "every call is OK" + ("; lines come again" if log is not None else "") + "; it ends with 0"
    return build_result(case, LOG_CALLS, wrong, outcome, memory_growth_MiB=more_mib)


async def stop_reading_log(emulator: Emulator, folder: Path) -> Result:
    """Log to a pipe that nobody reads, more than pipe and queue hold: lines are dropped, and nothing waits for them."""
    reading_end, writing_end = os.pipe()
    wrong: list[str] = []
    metadata = [("x-request-id", "x" * 200)]  # the log cuts longer ones
    try:
        async with (
            run_bridge(f"127.0.0.1:{emulator.port}", folder=folder, log=find_descriptor(writing_end)) as subject,
            open_channel(subject.address) as channel,
        ):
            caller = Bridge(subject.address, channel)
            await make_calls(caller)
            before_mib = subject.memory_mib
            for _ in range(PIPE_CALLS // 100):
                wrong += find_other_ends(await make_calls(caller, 100, metadata=metadata), "OK")
            growth_mib = subject.memory_mib - before_mib
            dropped = (await subject.read_metrics())["ollm_bridge_log_lines_dropped_total", ""]
            wrong += ["no line was dropped"] * (not dropped)
            wrong += [f"memory grew by {growth_mib:.0f} MiB"] * (growth_mib > PIPE_MEMORY_MORE_MIB_MAX)
            stop_at = time.monotonic()
            code = await subject.stop()
            stop_s = time.monotonic() - stop_at
            wrong += [f"the process ended with {code}"] * (code != 0)
    finally:
        os.close(reading_end)
        os.close(writing_end)
    return build_result(
        "nobody reads the log's pipe",
        PIPE_CALLS,
        wrong,
        "every call is OK, lines are dropped; it ends with 0",
        lines_dropped=dropped,
        memory_growth_MiB=growth_mib,
        ended_within_s=stop_s,
    )


def truncate(log: Path) -> int:
    """Truncate it, and return its size before."""
    size = log.stat().st_size
    os.truncate(log, 0)
    return size
