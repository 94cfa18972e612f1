"""Take away what the bridge depends on, and restore it: the upstream, its name, a worker, the log's disk, the clock.

Each case has the status that callers must get meanwhile, and the time to recover. Names and disks are set up in a
mount namespace of the bridge's own (`unshare`), the clock is libfaketime's; a case for which the machine lacks the
means says so.
"""

import asyncio
import contextlib
import glob
import json
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc

from bridge.emulator import Emulator
from tests.conftest import Answer, Bridge, chat, decode_failure, eventually, scenario
from tests.e2e.process import describe_missing_namespaces, find_children
from tests.torture.chaos import describe_end, open_channel
from tests.torture.report import Finding, Options
from tests.torture.subject import Process, run_bridge, run_python

__all__ = ["run"]

CONCURRENCY = 20
SOON_S = 1.0
FAR_S = 20.0
UNREACHABLE, DISCONNECTED = "UNAVAILABLE UPSTREAM_UNREACHABLE", "ABORTED UPSTREAM_DISCONNECTED"


async def run(options: Options) -> list[Finding]:
    """Run each case."""
    rounds = 2 if options.quick else 20
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        findings = [*await kill_upstream(folder, rounds), await stop_upstream(folder, rounds)]
        findings += await change_names(folder, rounds=1 if options.quick else 3)
        findings += [await kill_worker(folder, rounds=1 if options.quick else 5), await kill_supervisor(folder)]
        findings += [*await fill_disks(folder), *await jump_clocks(folder)]
        return findings


def build_finding(
    case: str, tried: int, wrong: Sequence[str], outcome: str, note: str = "", **figures: float | str
) -> Finding:
    counts = ", ".join(f"{count} x {what}" for what, count in Counter(wrong).most_common(5))
    named = {name.replace("_", " "): value for name, value in figures.items()}
    return Finding("kill", case, tried, counts or outcome, not wrong, named, note)


def find_other_ends(answers: Sequence[Answer], end: str) -> list[str]:
    """Return the ends that are not as required."""
    return [f"{describe_end(each)} instead of {end}" for each in answers if describe_end(each) != end]


async def make_calls(
    caller: Bridge, count: int = CONCURRENCY, *, stream: bool | None = None, **options: Any
) -> list[Answer]:
    """Make good calls concurrently, half of them streamed unless `stream` is set."""
    calls = [
        caller.ask(chat(), stream=bool(number % 2) if stream is None else stream, timeout=FAR_S, **options)
        for number in range(count)
    ]
    return await asyncio.gather(*calls)


async def measure_recovery_s(caller: Bridge, limit_s: float) -> float | None:
    """Call until a call is OK, and return how long that took; None if it took longer than the limit."""
    began_at = time.monotonic()
    while time.monotonic() < began_at + limit_s:
        if (await caller.ask(chat(), timeout=FAR_S)).failure is None:
            return time.monotonic() - began_at
        await asyncio.sleep(0.02)
    return None


# The upstream


@contextlib.asynccontextmanager
async def run_gateway(folder: Path, port: int = 0) -> AsyncIterator[Process]:
    """Run an emulated gateway in a process of its own."""
    command = ("-m", "bridge", "emulate", "--listen", f"127.0.0.1:{port}")
    async with run_python(*command, log=folder / "gateway.log") as process:
        yield process


async def kill(process: Process) -> None:
    process.process.kill()
    await process.process.wait()


async def kill_upstream(folder: Path, rounds: int) -> list[Finding]:
    """Kill it while it is idle, before its answers, and in mid-stream; then start it again."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
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
        build_finding("the upstream dies while it is idle", rounds * CONCURRENCY, idle, UNREACHABLE),
        build_finding("the upstream dies before its answer", rounds * CONCURRENCY, waiting, DISCONNECTED),
        build_finding(
            "the upstream dies in mid-stream",
            rounds * CONCURRENCY,
            [*streaming, *slow],
            f"{DISCONNECTED}, with the count of the chunks that came",
            ended_within_ms=max(ended_s) * 1000,
        ),
        build_finding(
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


async def stop_upstream(folder: Path, rounds: int) -> Finding:
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
    return build_finding(
        "the upstream hangs", rounds * CONCURRENCY, wrong, outcome, deadline_s=deadline_s, longest_s=max(took_s)
    )


def read_state(pid: int) -> str:
    """Return a process's state as the kernel's one letter; T if it is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# Names, in a mount namespace

NAME = "gateway.test"
HOSTS = 'mount --bind "$1" /etc/hosts && shift && exec "$@"'
SMALL_DISK = 'mount -t tmpfs -o size=64k tmpfs "$1" && log="$1/log" && shift && exec "$@" 2>>"$log"'
SMALL_TMP = (
    'mount -t tmpfs -o size=$2 tmpfs "$1" && mount --bind "$1" /dev/shm && export TMPDIR="$1" && shift 2 && exec "$@"'
)


def build_namespace_command(script: str, *arguments: str) -> tuple[str, ...]:
    """Return the arguments with which Python runs a bridge in a mount namespace that a shell script sets up."""
    command = ["unshare", "-rm", "sh", "-c", script, "sh", *arguments, sys.executable, "-m", "bridge", "serve"]
    return ("-c", f"import os; os.execvp('unshare', {command!r})")


async def change_names(folder: Path, rounds: int) -> list[Finding]:
    """Point the upstream's name to another address, and to none."""
    cases = ("the upstream's name gets another address", "the upstream's name is unknown for a while")
    if why := describe_missing_namespaces():
        return [build_finding(case, 0, [], f"not run: {why}") for case in cases]
    hosts = folder / "hosts"
    stays: list[str] = []
    unknown: list[str] = []
    moved_within_s: list[float] = []
    known_s: list[float] = []
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(rounds):
            old = Emulator(host="127.0.0.1")
            await old.accept()
            new = await stack.enter_async_context(Emulator(host="127.0.0.2", port=old.port))
            point_name(hosts, "127.0.0.1")
            settings = {"command": build_namespace_command(HOSTS, str(hosts)), "upstream__plaintext": "true"}
            subject = await stack.enter_async_context(run_bridge(f"{NAME}:{old.port}", folder=folder, **settings))
            caller = Bridge(subject.address, await stack.enter_async_context(open_channel(subject.address)))
            stays += find_other_ends(await make_calls(caller), "OK")
            point_name(hosts, "127.0.0.2")
            for _ in range(CONCURRENCY):
                stays += find_other_ends(await make_calls(caller, 1), "OK")  # over a kept connection
            stays += ["a kept connection was not used"] * bool(new.exchanges)
            await old.__aexit__(None, None, None)
            moved = await measure_recovery_s(caller, SOON_S)
            moved_within_s.append(moved if moved is not None else float("inf"))
            stays += find_other_ends(await make_calls(caller), "OK")
            stays += ["the new address got no call"] * (not new.exchanges)
            point_name(hosts, "")
            await new.refuse()
            for connection in list(new.connections):
                connection.abort()
            unknown += find_other_ends(await make_calls(caller), UNREACHABLE)
            point_name(hosts, "127.0.0.2")
            await new.accept()
            known = await measure_recovery_s(caller, SOON_S)
            known_s.append(known if known is not None else float("inf"))
    stays += [f"only after {each:.1f} s" for each in moved_within_s if each > SOON_S]
    unknown += ["not back in time" for each in known_s if each > SOON_S]
    return [
        build_finding(
            cases[0],
            rounds * CONCURRENCY * 3,
            stays,
            "kept connections stay in use; once the old address is dead, the first call is OK at the new one",
            "a name is resolved for each new connection",
            moved_within_ms=max(moved_within_s) * 1000,
        ),
        build_finding(
            cases[1], rounds * CONCURRENCY, unknown, f"{UNREACHABLE}; then OK", back_after_ms=max(known_s) * 1000
        ),
    ]


def point_name(hosts: Path, address: str) -> None:
    """Point the name to the address, by writing to the same file, since it is mounted."""
    hosts.write_text(f"127.0.0.1 localhost\n{address} {NAME}\n" if address else "127.0.0.1 localhost\n")


# A worker

WORKERS_BACK_S_MAX = 40.0
"""Early deaths delay the next start: by half a second, then 1, 2, 4, 8 s."""
TCP_LISTEN = "0A"


async def kill_worker(folder: Path, rounds: int) -> Finding:
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
    return build_finding(
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


def count_listeners(address: str) -> int:
    """Return the number of sockets that accept connections at a port: each worker has its own."""
    port = f":{int(address.rpartition(':')[2]):04X}"
    tables = [Path(f"/proc/net/{name}").read_text().splitlines() for name in ("tcp", "tcp6")]  # grpc has v4 in v6
    return sum(line.split()[1].endswith(port) and line.split()[3] == TCP_LISTEN for table in tables for line in table)


async def kill_supervisor(folder: Path) -> Finding:
    """Kill the workers' parent: they let their calls finish, and end."""
    wrong: list[str] = []
    async with Emulator() as emulator, run_bridge(f"127.0.0.1:{emulator.port}", folder=folder, workers=2) as subject:
        pids = find_children(subject.process.pid, b"spawn_main")
        tasks = [asyncio.create_task(long_stream(subject.address)) for _ in range(CONCURRENCY)]
        await eventually(lambda: count_started(emulator, 0) == CONCURRENCY, timeout_s=FAR_S)
        await kill(subject)
        wrong += find_other_ends(await asyncio.gather(*tasks), "OK")
        with contextlib.suppress(TimeoutError):
            await eventually(lambda: not any(map(is_alive, pids)), timeout_s=FAR_S)
        wrong += ["a worker still runs" for pid in pids if is_alive(pid)]
        wrong += ["a stack in the log"] * subject.log.read_text().count("Traceback")
    outcome = "calls in flight are OK; the workers end"
    return build_finding("the workers' supervisor is killed", CONCURRENCY, wrong, outcome)


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def long_stream(address: str) -> Answer:
    async with open_channel(address) as channel:
        return await Bridge(address, channel).ask(scenario("pace?chunks=100&interval_ms=20"), stream=True)


def count_started(emulator: Emulator, start: int) -> int:
    return sum(each.events_sent > 2 for each in emulator.exchanges[start:])


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


async def fill_disks(folder: Path) -> list[Finding]:
    findings = []
    async with Emulator() as emulator:
        findings.append(await stop_reading_log(emulator, folder))
        if os.access(FULL, os.W_OK):
            async with run_bridge(f"127.0.0.1:{emulator.port}", folder=folder, log=FULL) as subject:
                findings.append(await log_on_full_disk("the log's disk is full from the start", subject))
        else:
            findings.append(
                build_finding("the log's disk is full from the start", 0, [], "not run: there is no /dev/full")
            )
        cases = (
            "the log's disk fills up, and has room again",
            "the disk of two workers' shared files is full from the start",
            "the disk of two workers' shared files fills up",
        )
        if why := describe_missing_namespaces():
            return [*findings, *(build_finding(case, 0, [], f"not run: {why}") for case in cases)]
        disk = folder / "disk"
        disk.mkdir()
        command = build_namespace_command(SMALL_DISK, str(disk))
        async with run_bridge(f"127.0.0.1:{emulator.port}", folder=folder, command=command) as subject:
            log = Path(f"/proc/{subject.process.pid}/root{disk}/log")
            findings.append(await log_on_full_disk(cases[0], subject, log))
        findings.append(await start_without_room(cases[1], folder, disk))
        command = build_namespace_command(SMALL_TMP, str(disk), "1m")
        async with run_bridge(f"127.0.0.1:{emulator.port}", folder=folder, command=command, workers=2) as subject:
            seen = Path(f"/proc/{subject.process.pid}/root{disk}")
            fill(seen / "others")
            findings.append(await share_on_full_disk(cases[2], subject, seen))
    return findings


async def start_without_room(case: str, folder: Path, disk: Path) -> Finding:
    """Start workers with no room for the files that they share."""
    command = build_namespace_command(SMALL_TMP, str(disk), "4k")
    try:
        async with run_bridge("127.0.0.1:1", folder=folder, command=command, workers=2):
            wrong = ["it started"]
    except RuntimeError:
        log_text = (folder / "bridge.log").read_text(errors="replace")
        wrong = [] if log_text.startswith("workers: cannot write ") else [f"its log is {log_text[:200]!r}"]
    return build_finding(case, 1, wrong, "it does not start, and the log says why")


def fill(file: Path) -> None:
    """Fill a disk."""
    with file.open("wb", 0) as filling, contextlib.suppress(OSError):
        while True:
            filling.write(bytes(512))


async def share_on_full_disk(case: str, subject: Process, disk: Path) -> Finding:
    """Make calls over many connections, so that both workers get some, of more models than the files have room for."""
    wrong: list[str] = []
    for number in range(MODELS):
        async with open_channel(subject.address) as channel:
            caller, model = Bridge("", channel), scenario(f"many?chunks=2&bytes={number + 1}")
            calls = [caller.ask(model, stream=bool(at % 2), timeout=FAR_S) for at in range(CONCURRENCY)]
            wrong += find_other_ends(await asyncio.gather(*calls), "OK")
    wrong += ["the disk was not full"] * (os.statvfs(disk).f_bavail > 0)
    events = Counter(each["event"] for each in read_records(subject.log))
    wrong += [event for event in events if event not in {"call", UNWRITTEN}]
    wrong += ["the log does not say that metrics could not be written"] * (not events[UNWRITTEN])
    code = await subject.stop()
    wrong += [f"the process ended with {code}"] * (code != 0)
    return build_finding(case, MODELS * CONCURRENCY, wrong, "every call is OK, no worker dies; it ends with 0")


async def log_on_full_disk(case: str, subject: Process, log: Path | None = None) -> Finding:
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
    return build_finding(case, LOG_CALLS, wrong, outcome, memory_growth_MiB=more_mib)


async def stop_reading_log(emulator: Emulator, folder: Path) -> Finding:
    """Log to a pipe that nobody reads, more than pipe and queue hold: lines are dropped, and nothing waits for them."""
    reading_end, writing_end = os.pipe()
    wrong: list[str] = []
    metadata = [("x-request-id", "x" * 200)]  # the log cuts longer ones
    try:
        async with (
            run_bridge(
                f"127.0.0.1:{emulator.port}", folder=folder, log=Path(f"/proc/self/fd/{writing_end}")
            ) as subject,
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
    return build_finding(
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


def read_records(log: Path) -> list[Any]:
    """Return the log's lines that are whole."""
    found = []
    for line in log.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


# The clock

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


async def jump_clocks(folder: Path) -> list[Finding]:
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
) -> Finding:
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
    return build_finding(case, calls, wrong, "every call ends in time, before, during and after the jump", note)


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
