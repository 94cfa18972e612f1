"""What the bridge stands on is taken away and given back: the upstream, its name, a worker, the log's disk, the clock.

Each case says what must be told to callers meanwhile, and how soon all is well again. Names and disks are made in a
mount namespace of the bridge's own (`unshare`), the clock is libfaketime's; a case that the machine has no means for
says so.
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
from tests.torture.chaos import end_of, own_channel
from tests.torture.report import Finding, Options
from tests.torture.subject import Process, bridge, python

__all__ = ["run"]

AT_ONCE = 20
SOON_S = 1.0
FAR_S = 20.0
UNREACHABLE, DISCONNECTED = "UNAVAILABLE UPSTREAM_UNREACHABLE", "ABORTED UPSTREAM_DISCONNECTED"


async def run(options: Options) -> list[Finding]:
    """Take each away in turn."""
    rounds = 2 if options.quick else 20
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        names = asyncio.create_task(names_change(Path(two), rounds=1 if options.quick else 3))  # waits most of its time
        folder = Path(one)
        findings = [*await upstream_dies(folder, rounds), await upstream_hangs(folder, rounds)]
        findings += [await worker_dies(folder, rounds=1 if options.quick else 5), await supervisor_dies(folder)]
        findings += [*await disk_is_full(folder), *await clock_jumps(folder)]
        return [*findings, *await names]


def finding(
    case: str, tried: int, wrong: Sequence[str], outcome: str, note: str = "", **figures: float | str
) -> Finding:
    told = ", ".join(f"{count} x {what}" for what, count in Counter(wrong).most_common(5))
    named = {name.replace("_", " "): value for name, value in figures.items()}
    return Finding("kill", case, tried, told or outcome, not wrong, named, note)


def other(answers: Sequence[Answer], end: str) -> list[str]:
    """Give the ends that are not as they must be."""
    return [f"{end_of(each)}, expected {end}" for each in answers if end_of(each) != end]


async def asked(caller: Bridge, count: int = AT_ONCE, *, stream: bool | None = None, **options: Any) -> list[Answer]:
    """Make good calls at once, half of them streamed unless one kind is asked for."""
    calls = [
        caller.ask(chat(), stream=bool(number % 2) if stream is None else stream, timeout=FAR_S, **options)
        for number in range(count)
    ]
    return await asyncio.gather(*calls)


async def back_after_s(caller: Bridge, limit_s: float) -> float | None:
    """Call again and again; give how long it took until one was OK, None where it took longer than it may."""
    began_at = time.monotonic()
    while time.monotonic() < began_at + limit_s:
        if (await caller.ask(chat(), timeout=FAR_S)).failure is None:
            return time.monotonic() - began_at
        await asyncio.sleep(0.02)
    return None


# The upstream


@contextlib.asynccontextmanager
async def gateway(folder: Path, port: int = 0) -> AsyncIterator[Process]:
    """Run an emulated gateway in a process of its own."""
    command = ("-m", "bridge", "emulate", "--listen", f"127.0.0.1:{port}")
    async with python(*command, log=folder / "gateway.log") as process:
        yield process


async def killed(process: Process) -> None:
    process.process.kill()
    await process.process.wait()


async def upstream_dies(folder: Path, rounds: int) -> list[Finding]:
    """Kill it while nothing goes on, while answers are waited for, and in mid-stream; then start it again."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    idle: list[str] = []
    waiting: list[str] = []
    streaming: list[str] = []
    back_s: list[float] = []
    ended_s: list[float] = []
    async with bridge(f"127.0.0.1:{port}", folder=folder) as subject, own_channel(subject.address) as channel:
        caller = Bridge(subject.address, channel)
        for _ in range(rounds):
            async with gateway(folder, port) as upstream:
                back_s.append(await back_after_s(caller, SOON_S) or float("inf"))
                idle += other(await asked(caller), "OK")
                await killed(upstream)
                idle += other(await asked(caller), UNREACHABLE)
            async with gateway(folder, port) as upstream:
                back_s.append(await back_after_s(caller, SOON_S) or float("inf"))
                ends, took_s = await killed_in_calls(caller, upstream)
                ended_s.append(took_s)
                waiting += other(ends[:AT_ONCE], DISCONNECTED)
                for each in ends[AT_ONCE:]:
                    streaming += other([each], DISCONNECTED) or [
                        f"{each.failure.upstream.chunks_delivered} chunks told, {len(each.messages)} came"
                        for _ in range(each.failure.upstream.chunks_delivered != len(each.messages))
                    ]
    late = [f"back only after {each:.2f} s" for each in back_s if each > SOON_S]
    slow = [f"told only after {each:.2f} s" for each in ended_s if each > SOON_S]
    return [
        finding("the upstream dies while nothing goes on", rounds * AT_ONCE, idle, UNREACHABLE),
        finding("the upstream dies while its answer is waited for", rounds * AT_ONCE, waiting, DISCONNECTED),
        finding(
            "the upstream dies in mid-stream",
            rounds * AT_ONCE,
            [*streaming, *slow],
            f"{DISCONNECTED}, with the count of the chunks that came",
            told_within_ms=max(ended_s) * 1000,
        ),
        finding(
            "the upstream comes back",
            len(back_s),
            late,
            "the first call is OK",
            median_ms=statistics.median(back_s) * 1000,
            longest_ms=max(back_s) * 1000,
        ),
    ]


async def killed_in_calls(caller: Bridge, upstream: Process) -> tuple[list[Answer], float]:
    """Kill it once calls wait and streams have begun; give their ends, the waiting ones first, and how long it took."""
    begun = [asyncio.Event() for _ in range(AT_ONCE)]
    waiting = [asyncio.create_task(caller.ask(scenario("stall?headers=0"))) for _ in range(AT_ONCE)]
    streams = [asyncio.create_task(streamed(caller, event)) for event in begun]
    async with asyncio.timeout(FAR_S):
        await asyncio.gather(*(event.wait() for event in begun))
        await killed(upstream)
        killed_at = time.monotonic()
        ends = await asyncio.gather(*waiting, *streams)
    return ends, time.monotonic() - killed_at


async def streamed(caller: Bridge, begun: asyncio.Event) -> Answer:
    """Read a long stream to its end, and say when its third chunk came."""
    messages: list[Any] = []
    call = caller.stub.StreamChatCompletion(scenario("pace?chunks=5000&interval_ms=10"))
    try:
        async for chunk in call:
            messages.append(chunk)
            if len(messages) == 3:
                begun.set()
    except grpc.aio.AioRpcError as error:
        return failed(messages, error)
    return Answer(messages, {}, {}, None)


def failed(messages: list[Any], error: grpc.aio.AioRpcError) -> Answer:
    return Answer(messages, {}, dict(error.trailing_metadata()), decode_failure(error))


async def upstream_hangs(folder: Path, rounds: int) -> Finding:
    """Stop it (SIGSTOP), so that its kernel takes connections and nobody answers, and let it go on."""
    wrong: list[str] = []
    took_s: list[float] = []
    deadline_s = 0.4
    async with (
        gateway(folder) as upstream,
        bridge(upstream.address, folder=folder) as subject,
        own_channel(subject.address) as channel,
    ):
        caller = Bridge(subject.address, channel)
        for _ in range(rounds):
            wrong += other(await asked(caller), "OK")
            upstream.process.send_signal(signal.SIGSTOP)
            await eventually(lambda: state(upstream.process.pid) == "T")
            began_at = time.monotonic()
            calls = [caller.ask(chat(), stream=bool(number % 2), timeout=deadline_s) for number in range(AT_ONCE)]
            wrong += other(await asyncio.gather(*calls), "DEADLINE_EXCEEDED")
            took_s.append(time.monotonic() - began_at)
            upstream.process.send_signal(signal.SIGCONT)
            wrong += other(await asked(caller), "OK")
    wrong += [f"told after {each:.2f} s" for each in took_s if each > deadline_s + SOON_S]
    outcome = "DEADLINE_EXCEEDED at the caller's deadline; OK once it goes on"
    return finding("the upstream hangs", rounds * AT_ONCE, wrong, outcome, deadline_s=deadline_s, longest_s=max(took_s))


def state(pid: int) -> str:
    """Give what a process does, as the kernel's one letter says: T where it is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# Names, in a mount namespace

NAME = "gateway.test"
DNS_CACHE_S = 10.0
"""How long aiohttp keeps the addresses of a name."""
HOSTS = 'mount --bind "$1" /etc/hosts && shift && exec "$@"'
SMALL_DISK = 'mount -t tmpfs -o size=64k tmpfs "$1" && log="$1/log" && shift && exec "$@" 2>>"$log"'
SMALL_TMP = (
    'mount -t tmpfs -o size=$2 tmpfs "$1" && mount --bind "$1" /dev/shm && export TMPDIR="$1" && shift 2 && exec "$@"'
)


def namespaced(script: str, *arguments: str) -> tuple[str, ...]:
    """Give what Python is to run so that it becomes a bridge in a mount namespace that a shell script has set up."""
    command = ["unshare", "-rm", "sh", "-c", script, "sh", *arguments, sys.executable, "-m", "bridge", "serve"]
    return ("-c", f"import os; os.execvp('unshare', {command!r})")


async def names_change(folder: Path, rounds: int) -> list[Finding]:
    """Let the upstream's name lead elsewhere, and nowhere."""
    cases = ("the upstream's name leads elsewhere", "the upstream's name is unknown for a while")
    if why := describe_missing_namespaces():
        return [finding(case, 0, [], f"not tried: {why}") for case in cases]
    hosts = folder / "hosts"
    stays: list[str] = []
    unknown: list[str] = []
    moved_s: list[float] = []
    known_s: list[float] = []
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(rounds):
            old = Emulator(host="127.0.0.1")
            await old.accept()
            new = await stack.enter_async_context(Emulator(host="127.0.0.2", port=old.port))
            lead(hosts, "127.0.0.1")
            settings = {"command": namespaced(HOSTS, str(hosts)), "upstream__plaintext": "true"}
            subject = await stack.enter_async_context(bridge(f"{NAME}:{old.port}", folder=folder, **settings))
            caller = Bridge(subject.address, await stack.enter_async_context(own_channel(subject.address)))
            stays += other(await asked(caller), "OK")
            lead(hosts, "127.0.0.2")
            stays += other(await asked(caller), "OK")  # over connections that are kept
            stays += ["a kept connection was left"] * bool(new.exchanges)
            await old.__aexit__(None, None, None)
            moved = await back_after_s(caller, DNS_CACHE_S + SOON_S)
            moved_s.append(moved if moved is not None else float("inf"))
            stays += other(await asked(caller), "OK")
            stays += ["the new address was not asked"] * (not new.exchanges)
            lead(hosts, "")
            await new.refuse()
            for connection in list(new.connections):
                connection.leave()
            unknown += other(await asked(caller), UNREACHABLE)
            await asyncio.sleep(DNS_CACHE_S)
            unknown += other(await asked(caller), UNREACHABLE)
            lead(hosts, "127.0.0.2")
            await new.accept()
            known = await back_after_s(caller, SOON_S)
            known_s.append(known if known is not None else float("inf"))
    stays += [f"only after {each:.1f} s" for each in moved_s if each > DNS_CACHE_S + SOON_S]
    unknown += ["not back in time" for each in known_s if each > SOON_S]
    return [
        finding(
            cases[0],
            rounds * AT_ONCE * 3,
            stays,
            f"kept connections go on; when the old address is dead, {UNREACHABLE} until the name is asked again",
            f"addresses are kept for {DNS_CACHE_S:g} s",
            moved_after_s=max(moved_s),
        ),
        finding(cases[1], rounds * AT_ONCE * 2, unknown, f"{UNREACHABLE}; then OK", back_after_ms=max(known_s) * 1000),
    ]


def lead(hosts: Path, address: str) -> None:
    """Let the name lead there, by writing within the same file, since it is mounted."""
    hosts.write_text(f"127.0.0.1 localhost\n{address} {NAME}\n" if address else "127.0.0.1 localhost\n")


# A worker

WORKERS_BACK_S_MAX = 40.0
"""Young deaths make the next start wait longer: half a second, then 1, 2, 4, 8 s."""
TCP_LISTEN = "0A"


async def worker_dies(folder: Path, rounds: int) -> Finding:
    """Kill one of two under load: its calls are lost, no others, and another takes its place."""
    wrong: list[str] = []
    back_s: list[float] = []
    lost = whole = 0
    async with Emulator() as emulator, bridge(f"127.0.0.1:{emulator.port}", folder=folder, workers=2) as subject:
        listeners = listening(subject.address)
        for _ in range(rounds):
            pids = find_children(subject.process.pid, b"spawn_main")
            tasks = [asyncio.create_task(long_stream(subject.address)) for _ in range(2 * AT_ONCE)]
            already = len(emulator.exchanges)
            await eventually(lambda start=already: begun(emulator, start) == 2 * AT_ONCE, timeout_s=FAR_S)
            os.kill(pids[0], signal.SIGKILL)
            replacing = asyncio.create_task(replaced_after_s(subject.address, listeners))
            answers = await asyncio.gather(*tasks)
            ends = Counter(end_of(each) for each in answers)
            lost += ends["UNAVAILABLE"]
            whole += ends["OK"]
            wrong += [
                f"{count} calls ended in {end}" for end, count in ends.items() if end not in {"OK", "UNAVAILABLE"}
            ]
            wrong += ["all calls were lost"] * (not ends["OK"]) + ["no call was lost"] * (not ends["UNAVAILABLE"])
            back_s.append(await replacing)
            async with own_channel(subject.address) as channel:
                wrong += other([await Bridge("", channel).ask(chat(), timeout=FAR_S)], "OK")
        counted = sum(
            value for (name, _), value in (await subject.metrics()).items() if name == "ollm_bridge_calls_total"
        )
        wrong += ["the process did not end with 0"] * (await subject.ended() != 0)
    return finding(
        "a worker of two is killed",
        rounds * 2 * AT_ONCE,
        wrong,
        "its calls end in UNAVAILABLE, said by the caller's own client; the other worker's are whole",
        lost=lost,
        whole=whole,
        calls_in_the_metrics=counted,
        another_within_s=max(back_s),
    )


async def replaced_after_s(address: str, listeners: int) -> float:
    """Wait until a worker is gone and another takes calls in its place, and give how long that took."""
    began_at = time.monotonic()
    await eventually(lambda: listening(address) < listeners)
    await eventually(lambda: listening(address) == listeners, WORKERS_BACK_S_MAX)
    return time.monotonic() - began_at


def listening(address: str) -> int:
    """Count the sockets that take connections at a port: each worker has its own."""
    port = f":{int(address.rpartition(':')[2]):04X}"
    tables = [Path(f"/proc/net/{name}").read_text().splitlines() for name in ("tcp", "tcp6")]  # grpc has v4 in v6
    return sum(line.split()[1].endswith(port) and line.split()[3] == TCP_LISTEN for table in tables for line in table)


async def supervisor_dies(folder: Path) -> Finding:
    """Kill the one that watches the workers: they let their calls finish, and end."""
    wrong: list[str] = []
    async with Emulator() as emulator, bridge(f"127.0.0.1:{emulator.port}", folder=folder, workers=2) as subject:
        pids = find_children(subject.process.pid, b"spawn_main")
        tasks = [asyncio.create_task(long_stream(subject.address)) for _ in range(AT_ONCE)]
        await eventually(lambda: begun(emulator, 0) == AT_ONCE, timeout_s=FAR_S)
        await killed(subject)
        wrong += other(await asyncio.gather(*tasks), "OK")
        with contextlib.suppress(TimeoutError):
            await eventually(lambda: not any(map(is_alive, pids)), timeout_s=FAR_S)
        wrong += ["a worker lives on" for pid in pids if is_alive(pid)]
        wrong += ["a stack in the log"] * subject.log.read_text().count("Traceback")
    outcome = "calls in flight are OK; the workers end"
    return finding("the workers' supervisor is killed", AT_ONCE, wrong, outcome)


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def long_stream(address: str) -> Answer:
    async with own_channel(address) as channel:
        return await Bridge(address, channel).ask(scenario("pace?chunks=100&interval_ms=20"), stream=True)


def begun(emulator: Emulator, start: int) -> int:
    return sum(each.events_sent > 2 for each in emulator.exchanges[start:])


# The log's disk

FULL = Path("/dev/full")
LOG_CALLS = 2_000
MODELS = 40
"""Whose labels make a worker's snapshot several times larger than its first."""
MEMORY_MORE_MIB_MAX = 10.0
UNWRITTEN = "metrics could not be written for the supervisor"


async def disk_is_full(folder: Path) -> list[Finding]:
    findings = []
    async with Emulator() as emulator:
        if os.access(FULL, os.W_OK):
            async with bridge(f"127.0.0.1:{emulator.port}", folder=folder, log=FULL) as subject:
                findings.append(await logging_nowhere("the log's disk is full from the start", subject))
        else:
            findings.append(finding("the log's disk is full from the start", 0, [], "not tried: there is no /dev/full"))
        cases = (
            "the log's disk fills up, and has room again",
            "the disk of two workers' shared files is full from the start",
            "the disk of two workers' shared files fills up",
        )
        if why := describe_missing_namespaces():
            return [*findings, *(finding(case, 0, [], f"not tried: {why}") for case in cases)]
        disk = folder / "disk"
        disk.mkdir()
        command = namespaced(SMALL_DISK, str(disk))
        async with bridge(f"127.0.0.1:{emulator.port}", folder=folder, command=command) as subject:
            log = Path(f"/proc/{subject.process.pid}/root{disk}/log")
            findings.append(await logging_nowhere(cases[0], subject, log))
        findings.append(await no_room_to_share(cases[1], folder, disk))
        command = namespaced(SMALL_TMP, str(disk), "1m")
        async with bridge(f"127.0.0.1:{emulator.port}", folder=folder, command=command, workers=2) as subject:
            seen = Path(f"/proc/{subject.process.pid}/root{disk}")
            fill(seen / "others")
            findings.append(await sharing_nowhere(cases[2], subject, seen))
    return findings


async def no_room_to_share(case: str, folder: Path, disk: Path) -> Finding:
    """Start workers where there is no room for what they share."""
    command = namespaced(SMALL_TMP, str(disk), "4k")
    try:
        async with bridge("127.0.0.1:1", folder=folder, command=command, workers=2):
            wrong = ["it started"]
    except RuntimeError:
        said = (folder / "bridge.log").read_text(errors="replace")
        wrong = [] if said.startswith("workers: cannot write ") else [f"it said {said[:200]!r}"]
    return finding(case, 1, wrong, "it does not start, and says why")


def fill(file: Path) -> None:
    """Take what room a disk has."""
    with file.open("wb", 0) as filling, contextlib.suppress(OSError):
        while True:
            filling.write(bytes(512))


async def sharing_nowhere(case: str, subject: Process, disk: Path) -> Finding:
    """Make calls over many connections, so that both workers have some, of more models than the files have room for."""
    wrong: list[str] = []
    for number in range(MODELS):
        async with own_channel(subject.address) as channel:
            caller, model = Bridge("", channel), scenario(f"many?chunks=2&bytes={number + 1}")
            calls = [caller.ask(model, stream=bool(at % 2), timeout=FAR_S) for at in range(AT_ONCE)]
            wrong += other(await asyncio.gather(*calls), "OK")
    wrong += ["the disk was not full"] * (os.statvfs(disk).f_bavail > 0)
    events = Counter(each["event"] for each in records(subject.log))
    wrong += [event for event in events if event not in {"call", UNWRITTEN}]
    wrong += ["the log does not say that metrics could not be written"] * (not events[UNWRITTEN])
    code = await subject.ended()
    wrong += [f"the process ended with {code}"] * (code != 0)
    return finding(case, MODELS * AT_ONCE, wrong, "every call is OK, no worker dies; it ends with 0")


async def logging_nowhere(case: str, subject: Process, log: Path | None = None) -> Finding:
    """Make more calls than the disk has room for; then, where there is a log, make room, and look for new lines."""
    wrong: list[str] = []
    async with own_channel(subject.address) as channel:
        caller = Bridge(subject.address, channel)
        wrong += other(await asked(caller, LOG_CALLS // 10), "OK")
        before_mib = subject.memory_mib
        for _ in range(9):
            wrong += other(await asked(caller, LOG_CALLS // 10), "OK")
        more_mib = subject.memory_mib - before_mib
        wrong += [f"memory grew by {more_mib:.0f} MiB"] * (more_mib > MEMORY_MORE_MIB_MAX)
        lines = 0
        if log is not None:
            filled = emptied(log)
            wrong += other(await asked(caller), "OK")
            with contextlib.suppress(TimeoutError):
                await eventually(lambda: len(records(log)) >= AT_ONCE)
            lines = len(records(log))
            wrong += [f"{lines} lines for {AT_ONCE} calls, once there was room"] * (lines < AT_ONCE)
            wrong += [f"the disk was not full: {filled} bytes"] * (filled < 60_000)
    code = await subject.ended()
    wrong += [f"the process ended with {code}"] * (code != 0)
    outcome = "every call is OK" + ("; lines come again" if log is not None else "") + "; it ends with 0"
    return finding(case, LOG_CALLS, wrong, outcome, memory_more_MiB=more_mib)


def emptied(log: Path) -> int:
    """Empty it, and give how many bytes it had."""
    size = log.stat().st_size
    os.truncate(log, 0)
    return size


def records(log: Path) -> list[Any]:
    """Give the log's lines that are whole."""
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


async def clock_jumps(folder: Path) -> list[Finding]:
    """Let the wall clock jump under way: times are on the monotonic clock, so nothing may end early or late."""
    library = next(iter(glob.glob(FAKETIME)), None)  # noqa: PTH207 - a pattern of a whole path
    file = folder / "offset"
    note = "by libfaketime" if library else "of Python's time.time alone: libfaketime (Debian's package) is not there"
    async with Emulator() as emulator:
        return [
            await jumped(emulator, folder, file, offset_s, f"the clock jumps {jump}", note, library)
            for jump, offset_s in JUMPS.items()
        ]


def with_clock(library: str | None, file: Path) -> tuple[str, ...]:
    """Give what Python is to run so that it becomes a bridge whose clock is off by the seconds that stand in a file."""
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


async def jumped(
    emulator: Emulator, folder: Path, file: Path, offset_s: int, case: str, note: str, library: str | None
) -> Finding:
    set_off(file, 0)
    idle_s = 1.5
    settings = {"command": with_clock(library, file), "upstream__idle_timeout_s": idle_s}
    async with (
        bridge(f"127.0.0.1:{emulator.port}", folder=folder, **settings) as subject,
        own_channel(subject.address) as channel,
    ):
        caller = Bridge(subject.address, channel)
        wrong = other(await asked(caller), "OK")
        during = [
            timed(caller, "pace?chunks=150&interval_ms=20", "OK", 3.0, stream=True, timeout=FAR_S),
            timed(caller, "slow?delay_s=3", "OK", 3.0, timeout=FAR_S),
            timed(caller, "slow?delay_s=3", "OK", 3.0),
            timed(caller, "comments?every=0.3&count=100", "DEADLINE_EXCEEDED", 3.0, stream=True, timeout=3.0),
        ]
        going = [asyncio.create_task(each) for each in during]
        await eventually(lambda: sum(not each.finished for each in emulator.exchanges) >= len(going))
        set_off(file, offset_s)
        if library is not None:
            await until_off(caller, subject.log, offset_s)
        wrong += [each for task in going if (each := await task)]
        after = [
            timed(caller, "stall?after=2", "DEADLINE_EXCEEDED", 0.5, stream=True, timeout=0.5),
            timed(caller, "stall?headers=0", "DEADLINE_EXCEEDED", 0.5, timeout=0.5),
            timed(caller, "stall?after=2", "DEADLINE_EXCEEDED UPSTREAM_TIMEOUT", idle_s, stream=True),
            timed(caller, "slow?delay_s=1", "OK", 1.0, timeout=2.0),
        ]
        wrong += [each for each in await asyncio.gather(*after) if each]
        wrong += other(await asked(caller), "OK")
        code = await subject.ended()
        wrong += [f"the process ended with {code}"] * (code != 0)
        codes = Counter(each.get("code") for each in records(subject.log) if each["event"] == "call")
    if library is not None:  # else grpc's core and Python disagree about the time, which no clock does
        wrong += [f"{codes['CANCELLED']} calls past their deadline are logged as CANCELLED"] * bool(codes["CANCELLED"])
    calls = 2 * AT_ONCE + len(during) + len(after)
    return finding(case, calls, wrong, "every call ends in its own time, before, in and after the jump", note)


def set_off(file: Path, offset_s: int) -> None:
    """Let the clock be off by this."""
    file.write_text(f"{offset_s:+d}\n")


async def until_off(caller: Bridge, log: Path, offset_s: float) -> None:
    """Wait until the bridge's clock is off by this, as the times in its log show."""
    async with asyncio.timeout(FAR_S):
        while True:
            await caller.ask(chat(), timeout=FAR_S)
            last = datetime.fromisoformat(records(log)[-1]["timestamp"]).timestamp()
            if abs(last - time.time() - offset_s) < 60:
                return
            await asyncio.sleep(0.05)


async def timed(caller: Bridge, what: str, end: str, ends_s: float, *, stream: bool = False, **options: Any) -> str:
    """Make a call and say what is wrong with its end, or with when that came; nothing where nothing is."""
    began_at = time.monotonic()
    answer = await caller.ask(scenario(what), stream=stream, **options)
    took_s = time.monotonic() - began_at
    if end_of(answer) != end:
        return f"{what}: {end_of(answer)}, expected {end}"
    return "" if abs(took_s - ends_s) < SLACK_S else f"{what}: {took_s:.2f} s, expected {ends_s:g} s"
