"""Mixed load for a long time, with faults and callers that leave: nothing lost, nothing said twice, nothing that grows.

Three parties count for themselves and are compared call by call: the callers (`caller.py`, stock clients in processes
of their own), the emulated gateway (`witness.py`) and the bridge (its metrics). The load is 70 % of the capacity that
the same mix has in the same run.
"""

import asyncio
import contextlib
import itertools
import math
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.torture import caller, witness
from tests.torture.caller import KINDS, Told
from tests.torture.counted import Counted
from tests.torture.report import Finding, Options
from tests.torture.subject import Process, bridge, counting, python
from tests.torture.witness import Seen

__all__ = ["run"]

LOAD = 0.7
CALLERS = 2
AT_ONCE = 48
"""Calls of each caller at once while capacity is measured."""
SETTLE_S = 45.0
"""How long the bridge may take to be idle again: unused upstream connections of 15 s are looked for each 15 s."""
GROWTH_MIB_PER_HOUR_MAX = 10.0
GROWTH_QUICK_MIB_MAX = 8.0
"""By the fitted line over a quick run's last minute, which is too short to give a rate."""
DESCRIPTORS_MORE_MAX = 8
PARTS = 6
"""Of the time that the memory is looked at in; each part's mean is told, since a line hides how a curve bends."""


@dataclass(frozen=True)
class Times:
    capacity_s: float
    load_s: float
    warm_s: float
    look_s: float


FULL = Times(capacity_s=20, load_s=1800, warm_s=300, look_s=5)
QUICK = Times(capacity_s=8, load_s=90, warm_s=30, look_s=1)


@dataclass(frozen=True)
class Look:
    """The bridge at one moment."""

    at_s: float
    memory_mib: float
    descriptors: int
    counted: Counted
    in_flight: float


async def run(options: Options) -> list[Finding]:
    """Soak one bridge for half an hour, or for a minute and a half where it must be quick."""
    times = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with (
            python("-m", "tests.torture.witness", str(folder / "seen"), log=folder / "witness.log") as upstream,
            bridge(upstream.address, folder=folder, command=counting(folder / "counted")) as subject,
        ):
            before = await look(subject, folder, 0.0)
            first = await called(subject, folder, times.capacity_s, seed=options.seed * 1000, at_once=AT_ONCE)
            capacity = len(first) / times.capacity_s
            rate = capacity * LOAD
            looks: list[Look] = []
            watching = asyncio.create_task(watch(subject, folder, looks, times.look_s))
            seed = options.seed * 1000 + CALLERS
            then = await called(subject, folder, times.load_s, seed=seed, rate=rate / CALLERS)
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            after = await idle(subject, folder)
            metrics = await subject.metrics()
            await upstream.ended()
            told = {each.request_id: each for each in (*first, *then)}
            seen = witness.read(folder / "seen")
            return [
                outcomes(told, seen, rate, capacity),
                *counts(told, seen, metrics),
                *flat(looks, before, after, times),
            ]


async def called(
    subject: Process, folder: Path, seconds: float, *, seed: int, rate: float = 0.0, at_once: int = 0
) -> list[Told]:
    """Let the callers call, each in a process of its own, and give what they were told."""
    how = ["--rate", str(rate)] if rate else ["--at-once", str(at_once)]
    files = [folder / f"told-{seed + number}" for number in range(CALLERS)]
    commands = [
        (
            "-m",
            "tests.torture.caller",
            subject.address,
            str(file),
            "--seed",
            str(seed + number),
            "--seconds",
            str(seconds),
            *how,
        )
        for number, file in enumerate(files)
    ]
    processes = [await asyncio.create_subprocess_exec(sys.executable, *command) for command in commands]
    try:
        async with asyncio.timeout(seconds + 120):
            codes = await asyncio.gather(*(process.wait() for process in processes))
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
    if any(codes):
        raise RuntimeError(f"expected the callers to end by themselves, found exit codes {codes}")
    return [each for file in files for each in caller.read(file)]


async def look(subject: Process, folder: Path, at_s: float) -> Look:
    in_flight = sum(
        value for (name, _), value in (await subject.metrics()).items() if name == "ollm_bridge_calls_in_flight"
    )
    counted = await subject.counted(folder / "counted")
    return Look(at_s, subject.memory_mib, subject.descriptors, counted, in_flight)


async def watch(subject: Process, folder: Path, looks: list[Look], period_s: float) -> None:
    start = time.monotonic()
    for number in itertools.count(1):
        await asyncio.sleep(max(0.0, start + number * period_s - time.monotonic()))
        with contextlib.suppress(OSError):  # no answer in time from a machine that is busy elsewhere is no finding
            looks.append(await look(subject, folder, time.monotonic() - start))


async def idle(subject: Process, folder: Path) -> Look:
    """Wait until no call goes on and unused connections are closed, and look then."""
    end = time.monotonic() + SETTLE_S
    while True:
        now = await look(subject, folder, 0.0)
        connections = sum(
            value
            for (name, _), value in (await subject.metrics()).items()
            if name == "ollm_bridge_upstream_connections"
        )
        if time.monotonic() > end or not (now.in_flight or connections):
            return now
        await asyncio.sleep(0.5)


# What the callers were told, and what the upstream saw


def outcomes(told: Mapping[str, Told], seen: Sequence[Seen], rate: float, capacity: float) -> Finding:
    of = {each.request_id: each for each in seen}
    wrong = Counter(what for each in told.values() if (what := fault(each, of.get(each.request_id))))
    kinds = Counter("fault" if "fault" in each.kind else each.code for each in told.values())
    whole = [each.took_ms for each in told.values() if each.kind == "unary"]
    return Finding(
        "soak",
        "every call's outcome is known to its caller and is what the upstream did",
        len(told),
        ", ".join(f"{count} x {what}" for what, count in wrong.most_common(8)) or "all as they must be",
        ok=not wrong,
        figures={
            "capacity, calls/s": capacity,
            "load, calls/s": rate,
            "calls": len(told),
            "of them, whole": kinds["OK"],
            "with a fault asked for": kinds["fault"],
            "cancelled": kinds["CANCELLED"],
            "past their deadline": kinds["DEADLINE_EXCEEDED"],
            "unary p50, ms": statistics.median(whole),
            "unary p99, ms": statistics.quantiles(whole, n=100)[98],
        },
    )


_KIND = {kind.name: kind for kind in KINDS}


def fault(told: Told, seen: Seen | None) -> str:
    """Say what is wrong with a call; "" where its two ends agree, and with what its kind must end in."""
    kind = _KIND[told.kind]
    what = f"{told.kind}: {told.code} {told.reason}".rstrip()
    if kind.leaves and told.code == kind.code:
        if seen is not None and not (seen.finished or seen.closed):
            return f"{what}, but the upstream was left open"
        return "" if told.good else f"{what}, but not with what belongs to it"
    if told.reason == "OVERLOADED":
        return "" if seen is None else f"{what}, but it went upstream"
    if kind.leaves and told.code == "OK":  # it ended before its caller left
        return "" if told.good and seen is not None and seen.finished else f"{what}, but the upstream did not finish"
    if (told.code, told.reason) != (kind.code, kind.reason):
        return f"{what}, expected {kind.code} {kind.reason}".rstrip()
    if not told.good:
        return f"{what}, but not with what belongs to it"
    if seen is None:
        return f"{what}, but it never came to the upstream"
    if seen.status != kind.upstream or kind.ends not in {None, seen.finished}:
        return f"{what}, but the upstream wrote {seen.status}, {'whole' if seen.finished else 'broken off'}"
    if told.code == "OK" and kind.stream and told.messages != seen.events - 1:
        return f"{what}, but of {seen.events} events"
    return ""


def counts(told: Mapping[str, Told], seen: Sequence[Seen], metrics: Mapping[tuple[str, str], float]) -> list[Finding]:
    """Compare the three counts: callers', bridge's, upstream's."""
    ids = Counter(each.request_id for each in seen)
    twice = sum(count > 1 for count in ids.values())
    unknown = len(ids.keys() - told.keys())
    of_bridge = total(metrics, "ollm_bridge_calls_total")
    sent = total(metrics, "http_client_request_duration_seconds_count")
    by_code: Counter[str] = Counter()
    for (name, labels), value in metrics.items():
        if name == "ollm_bridge_calls_total":
            by_code[dict(part.split("=") for part in labels.split(","))["code"].strip('"')] += int(value)
    told_code = Counter(each.code for each in told.values())
    never_came = sum(each.request_id not in ids for each in told.values())
    differ = {
        code: (told_code[code], by_code[code]) for code in told_code | by_code if told_code[code] != by_code[code]
    }
    # Of a call that is cancelled, the bridge may have seen the end, or nothing at all where it was cancelled at once.
    unexplained = {code: pair for code, pair in differ.items() if code not in {"OK", "CANCELLED", "DEADLINE_EXCEEDED"}}
    return [
        Finding(
            "soak",
            "upstream and callers agree on the number of calls, to the call",
            len(told),
            f"{len(told)} called, {len(seen)} came to the upstream, {never_came} were left by their callers before",
            ok=not twice
            and not unknown
            and len(told) == len(seen) + never_came
            and 0 <= sent - len(seen) <= never_came,
            figures={
                "calls": len(told),
                "requests that the upstream saw": len(seen),
                "requests that the bridge counted": sent,
                "requests seen twice": twice,
                "requests of no call": unknown,
                "calls that never came upstream": never_came,
            },
            note="a call may end before it comes to the upstream only where its caller leaves it, while it is sent too",
        ),
        Finding(
            "soak",
            "the bridge's own count is the callers', by code",
            int(of_bridge),
            ", ".join(f"{code} {pair[1]} for {pair[0]}" for code, pair in sorted(differ.items()))
            or "the same for each code",
            ok=not unexplained and 0 <= len(told) - of_bridge <= never_came,
            figures={f"{code}, of the bridge": float(count) for code, count in sorted(by_code.items())},
            note="a call may end by itself in the moment in which its caller leaves; each then tells it in its own way",
        ),
    ]


def total(metrics: Mapping[tuple[str, str], float], wanted: str) -> float:
    return sum(value for (name, _), value in metrics.items() if name == wanted)


# What must not grow


def flat(looks: Sequence[Look], before: Look, after: Look, times: Times) -> list[Finding]:
    warm = [each for each in looks if each.at_s >= times.warm_s]
    per_hour = slope_per_hour(warm, memory_of)
    grown = per_hour * (warm[-1].at_s - warm[0].at_s) / 3600
    full = times is FULL
    memory = list(map(memory_of, warm))
    return [
        Finding(
            "soak",
            f"memory is flat after the first {times.warm_s:g} s",
            len(warm),
            f"{per_hour:+.1f} MiB an hour",
            ok=per_hour <= GROWTH_MIB_PER_HOUR_MAX if full else grown <= GROWTH_QUICK_MIB_MAX,
            figures={
                "slope, MiB/hour": per_hour,
                "its standard error": slope_error(warm, memory_of),
                "by the line, MiB": grown,
                "at the start, MiB": before.memory_mib,
                "least, MiB": min(memory),
                "most, MiB": max(memory),
                "idle again, MiB": after.memory_mib,
                f"in each {PARTS}th of the time, MiB": ", ".join(f"{each:.1f}" for each in means(memory)),
                "slope in the last third of that, MiB/hour": slope_per_hour(warm[-len(warm) // 3 :], memory_of),
                "given out by malloc, slope, MiB/hour": slope_per_hour(warm, lambda each: each.counted.malloced_mib),
                "Python's blocks, slope, thousands/hour": slope_per_hour(warm, lambda each: each.counted.blocks / 1000),
                "Python's blocks, thousands": statistics.fmean(each.counted.blocks for each in warm) / 1000,
            },
            note=f"at most {GROWTH_MIB_PER_HOUR_MAX:g} MiB an hour"
            if full
            else f"at most {GROWTH_QUICK_MIB_MAX:g} MiB in so short a time",
        ),
        Finding(
            "soak",
            "descriptors and tasks are flat",
            len(warm),
            f"descriptors: {before.descriptors} before, {after.descriptors} idle again; "
            f"tasks: {before.counted.tasks} before, {after.counted.tasks} idle again",
            ok=after.descriptors <= before.descriptors + DESCRIPTORS_MORE_MAX
            and after.counted.tasks <= before.counted.tasks,
            figures={
                "most descriptors under load": max(each.descriptors for each in looks),
                "their slope, an hour": slope_per_hour(warm, lambda each: each.descriptors),
                "most tasks under load": max(each.counted.tasks for each in looks),
                "their slope, tasks an hour": slope_per_hour(warm, lambda each: each.counted.tasks),
            },
        ),
        Finding(
            "soak",
            "no call stays in flight",
            len(looks),
            f"{after.in_flight:g} when idle again",
            ok=after.in_flight == 0,
            figures={
                "most under load": max(each.in_flight for each in looks),
                "slope under load, an hour": slope_per_hour(warm, lambda each: each.in_flight),
            },
        ),
    ]


def means(values: Sequence[float]) -> list[float]:
    """Give the mean of each of PARTS equal parts."""
    size = max(1, len(values) // PARTS)
    return [statistics.fmean(values[at : at + size]) for at in range(0, size * PARTS, size) if values[at : at + size]]


def memory_of(look: Look) -> float:
    return look.memory_mib


def slope_per_hour(looks: Sequence[Look], value: Callable[[Look], float]) -> float:
    """Fit a line by least squares."""
    if len(looks) < 2:
        return math.nan
    line = statistics.linear_regression([each.at_s / 3600 for each in looks], [value(each) for each in looks])
    return line.slope


def slope_error(looks: Sequence[Look], value: Callable[[Look], float]) -> float:
    """Give the standard error of that slope, as if what the looks found were independent of each other."""
    if len(looks) < 3:
        return math.nan
    hours, values = [each.at_s / 3600 for each in looks], [value(each) for each in looks]
    line = statistics.linear_regression(hours, values)
    left = sum((v - line.slope * h - line.intercept) ** 2 for h, v in zip(hours, values, strict=True))
    mean = statistics.fmean(hours)
    return math.sqrt(left / (len(looks) - 2) / sum((h - mean) ** 2 for h in hours))
