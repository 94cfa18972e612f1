"""Mixed load for a long time, with faults and callers that cancel: nothing lost, sent twice or growing.

Three parties count for themselves and are compared call by call: the callers (`caller.py`, stock clients in processes
of their own), the emulated gateway (`recording_gateway.py`) and the bridge (its metrics). The load is 70 % of
the capacity that the same mix has in the same run.
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

from tests.torture import caller, recording_gateway
from tests.torture.caller import KINDS, Outcome
from tests.torture.holdings import Holdings
from tests.torture.recording_gateway import Record
from tests.torture.report import Finding, Options
from tests.torture.subject import Process, build_holdings_command, run_bridge, run_python

__all__ = ["run"]

LOAD = 0.7
CALLERS = 2
CONCURRENCY = 48
"""Concurrent calls of each caller while capacity is measured."""
SETTLE_S = 45.0
"""How long the bridge may take to be idle again: it closes upstream connections that were unused for 15 s."""
GROWTH_MIB_PER_HOUR_MAX = 10.0
GROWTH_QUICK_MIB_MAX = 8.0
"""By the fitted line over a quick run's last minute, which is too short for a rate."""
DESCRIPTORS_MORE_MAX = 8
PARTS = 6
"""Of the time in which memory is sampled; the report has the mean of each, since a line hides how a curve bends."""


@dataclass(frozen=True)
class Times:
    capacity_s: float
    load_s: float
    warm_s: float
    period_s: float


FULL = Times(capacity_s=20, load_s=1800, warm_s=300, period_s=5)
QUICK = Times(capacity_s=8, load_s=90, warm_s=30, period_s=1)


@dataclass(frozen=True)
class Sample:
    """The bridge at one moment."""

    at_s: float
    memory_mib: float
    descriptors: int
    holdings: Holdings
    in_flight: float


async def run(options: Options) -> list[Finding]:
    """Soak one bridge for half an hour, or for a minute and a half in a quick run."""
    times = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with (
            run_python(
                "-m", "tests.torture.recording_gateway", str(folder / "records"), log=folder / "gateway.log"
            ) as upstream,
            run_bridge(upstream.address, folder=folder, command=build_holdings_command(folder / "holdings")) as subject,
        ):
            before = await take_sample(subject, folder, 0.0)
            first = await run_callers(
                subject, folder, times.capacity_s, seed=options.seed * 1000, concurrency=CONCURRENCY
            )
            capacity = len(first) / times.capacity_s
            rate = capacity * LOAD
            samples: list[Sample] = []
            sampling = asyncio.create_task(collect_samples(subject, folder, samples, times.period_s))
            seed = options.seed * 1000 + CALLERS
            then = await run_callers(subject, folder, times.load_s, seed=seed, rate=rate / CALLERS)
            sampling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sampling
            after = await wait_until_idle(subject, folder)
            metrics = await subject.read_metrics()
            await upstream.stop()
            outcomes = {each.request_id: each for each in (*first, *then)}
            records = recording_gateway.read(folder / "records")
            return [
                judge_outcomes(outcomes, records, rate, capacity),
                *compare_counts(outcomes, records, metrics),
                *judge_growth(samples, before, after, times),
            ]


async def run_callers(
    subject: Process, folder: Path, seconds: float, *, seed: int, rate: float = 0.0, concurrency: int = 0
) -> list[Outcome]:
    """Run the callers, each in a process of its own, and return the outcomes of their calls."""
    how = ["--rate", str(rate)] if rate else ["--concurrency", str(concurrency)]
    files = [folder / f"outcomes-{seed + number}" for number in range(CALLERS)]
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
        raise RuntimeError(f"the callers failed: exit codes {codes}")
    return [each for file in files for each in caller.read(file)]


async def take_sample(subject: Process, folder: Path, at_s: float) -> Sample:
    in_flight = sum(
        value for (name, _), value in (await subject.read_metrics()).items() if name == "ollm_bridge_calls_in_flight"
    )
    holdings = await subject.read_holdings(folder / "holdings")
    return Sample(at_s, subject.memory_mib, subject.descriptors, holdings, in_flight)


async def collect_samples(subject: Process, folder: Path, samples: list[Sample], period_s: float) -> None:
    start = time.monotonic()
    for number in itertools.count(1):
        await asyncio.sleep(max(0.0, start + number * period_s - time.monotonic()))
        with contextlib.suppress(OSError):  # no answer in time from a busy machine is no finding
            samples.append(await take_sample(subject, folder, time.monotonic() - start))


async def wait_until_idle(subject: Process, folder: Path) -> Sample:
    """Wait until no call is in flight and unused connections are closed, and return a sample then."""
    end = time.monotonic() + SETTLE_S
    while True:
        sample = await take_sample(subject, folder, 0.0)
        connections = sum(
            value
            for (name, _), value in (await subject.read_metrics()).items()
            if name == "ollm_bridge_upstream_connections"
        )
        if time.monotonic() > end or not (sample.in_flight or connections):
            return sample
        await asyncio.sleep(0.5)


# What the callers and the upstream saw


def judge_outcomes(outcomes: Mapping[str, Outcome], records: Sequence[Record], rate: float, capacity: float) -> Finding:
    of = {each.request_id: each for each in records}
    wrong = Counter(what for each in outcomes.values() if (what := find_fault(each, of.get(each.request_id))))
    kinds = Counter("fault" if "fault" in each.kind else each.code for each in outcomes.values())
    whole = [each.took_ms for each in outcomes.values() if each.kind == "unary"]
    return Finding(
        "soak",
        "every call's outcome is known to its caller and matches what the upstream did",
        len(outcomes),
        ", ".join(f"{count} x {what}" for what, count in wrong.most_common(8)) or "all as required",
        ok=not wrong,
        figures={
            "capacity, calls/s": capacity,
            "load, calls/s": rate,
            "calls": len(outcomes),
            "of these, whole": kinds["OK"],
            "with a requested fault": kinds["fault"],
            "cancelled": kinds["CANCELLED"],
            "deadline exceeded": kinds["DEADLINE_EXCEEDED"],
            "unary p50, ms": statistics.median(whole),
            "unary p99, ms": statistics.quantiles(whole, n=100)[98],
        },
    )


_KIND = {kind.name: kind for kind in KINDS}


def find_fault(outcome: Outcome, record: Record | None) -> str:
    """Return what is wrong with a call; "" if both sides agree with each other and with its kind's end."""
    kind = _KIND[outcome.kind]
    what = f"{outcome.kind}: {outcome.code} {outcome.reason}".rstrip()
    if kind.is_ended_by_caller and outcome.code == kind.code:
        if record is not None and not (record.is_finished or record.is_closed):
            return f"{what}, but the upstream connection stayed open"
        return "" if outcome.is_consistent else f"{what}, but with parts of another call"
    if outcome.reason == "OVERLOADED":
        return "" if record is None else f"{what}, but it went upstream"
    if kind.is_ended_by_caller and outcome.code == "OK":  # it ended before its caller cancelled
        return (
            ""
            if outcome.is_consistent and record is not None and record.is_finished
            else f"{what}, but the upstream did not finish"
        )
    if (outcome.code, outcome.reason) != (kind.code, kind.reason):
        return f"{what} instead of {kind.code} {kind.reason}".rstrip()
    if not outcome.is_consistent:
        return f"{what}, but with parts of another call"
    if record is None:
        return f"{what}, but it never reached the upstream"
    if record.status != kind.http_status or kind.is_finished not in {None, record.is_finished}:
        return f"{what}, but the upstream wrote {record.status}, {'to the end' if record.is_finished else 'broken off'}"
    if outcome.code == "OK" and kind.stream and outcome.messages != record.events - 1:
        return f"{what}, but of {record.events} events"
    return ""


def compare_counts(
    outcomes: Mapping[str, Outcome], records: Sequence[Record], metrics: Mapping[tuple[str, str], float]
) -> list[Finding]:
    """Compare the counts of the callers, the bridge and the upstream."""
    ids = Counter(each.request_id for each in records)
    twice = sum(count > 1 for count in ids.values())
    unknown = len(ids.keys() - outcomes.keys())
    of_bridge = sum_metric(metrics, "ollm_bridge_calls_total")
    sent = sum_metric(metrics, "http_client_request_duration_seconds_count")
    by_code: Counter[str] = Counter()
    for (name, labels), value in metrics.items():
        if name == "ollm_bridge_calls_total":
            by_code[dict(part.split("=") for part in labels.split(","))["code"].strip('"')] += int(value)
    caller_codes = Counter(each.code for each in outcomes.values())
    never_reached = sum(each.request_id not in ids for each in outcomes.values())
    differ = {
        code: (caller_codes[code], by_code[code])
        for code in caller_codes | by_code
        if caller_codes[code] != by_code[code]
    }
    # Of a cancelled call, the bridge may have seen the end, or nothing at all if it was cancelled at once.
    unexplained = {code: pair for code, pair in differ.items() if code not in {"OK", "CANCELLED", "DEADLINE_EXCEEDED"}}
    return [
        Finding(
            "soak",
            "upstream and callers agree on the number of calls, exactly",
            len(outcomes),
            f"{len(outcomes)} calls, {len(records)} reached the upstream, {never_reached} were cancelled before",
            ok=not twice
            and not unknown
            and len(outcomes) == len(records) + never_reached
            and 0 <= sent - len(records) <= never_reached,
            figures={
                "calls": len(outcomes),
                "requests that the upstream saw": len(records),
                "requests that the bridge counted": sent,
                "requests seen twice": twice,
                "requests of no call": unknown,
                "calls that never reached the upstream": never_reached,
            },
            note="a call may end before it reaches the upstream only if its caller cancels it, also while it is sent",
        ),
        Finding(
            "soak",
            "the bridge's own count equals the callers', by code",
            int(of_bridge),
            ", ".join(f"{code} {pair[1]} for {pair[0]}" for code, pair in sorted(differ.items()))
            or "the same for each code",
            ok=not unexplained and 0 <= len(outcomes) - of_bridge <= never_reached,
            figures={f"{code}, of the bridge": float(count) for code, count in sorted(by_code.items())},
            note="a call may end by itself at the moment when its caller cancels; each side then reports its own end",
        ),
    ]


def sum_metric(metrics: Mapping[tuple[str, str], float], wanted: str) -> float:
    return sum(value for (name, _), value in metrics.items() if name == wanted)


# What must not grow


def judge_growth(samples: Sequence[Sample], before: Sample, after: Sample, times: Times) -> list[Finding]:
    warm = [each for each in samples if each.at_s >= times.warm_s]
    per_hour = fit_slope_per_hour(warm, read_memory_mib)
    grown = per_hour * (warm[-1].at_s - warm[0].at_s) / 3600
    full = times is FULL
    memory = list(map(read_memory_mib, warm))
    return [
        Finding(
            "soak",
            f"memory is flat after the first {times.warm_s:g} s",
            len(warm),
            f"{per_hour:+.1f} MiB an hour",
            ok=per_hour <= GROWTH_MIB_PER_HOUR_MAX if full else grown <= GROWTH_QUICK_MIB_MAX,
            figures={
                "slope, MiB/hour": per_hour,
                "its standard error": estimate_slope_error(warm, read_memory_mib),
                "by the line, MiB": grown,
                "at the start, MiB": before.memory_mib,
                "least, MiB": min(memory),
                "most, MiB": max(memory),
                "idle again, MiB": after.memory_mib,
                f"in each {PARTS}th of the time, MiB": ", ".join(f"{each:.1f}" for each in calculate_means(memory)),
                "slope in the last third of that, MiB/hour": fit_slope_per_hour(
                    warm[-len(warm) // 3 :], read_memory_mib
                ),
                "allocated by malloc, slope, MiB/hour": fit_slope_per_hour(warm, lambda each: each.holdings.malloc_mib),
                "Python's blocks, slope, thousands/hour": fit_slope_per_hour(
                    warm, lambda each: each.holdings.blocks / 1000
                ),
                "Python's blocks, thousands": statistics.fmean(each.holdings.blocks for each in warm) / 1000,
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
            f"tasks: {before.holdings.tasks} before, {after.holdings.tasks} idle again",
            ok=after.descriptors <= before.descriptors + DESCRIPTORS_MORE_MAX
            and after.holdings.tasks <= before.holdings.tasks,
            figures={
                "most descriptors under load": max(each.descriptors for each in samples),
                "their slope, an hour": fit_slope_per_hour(warm, lambda each: each.descriptors),
                "most tasks under load": max(each.holdings.tasks for each in samples),
                "their slope, tasks an hour": fit_slope_per_hour(warm, lambda each: each.holdings.tasks),
            },
        ),
        Finding(
            "soak",
            "no call stays in flight",
            len(samples),
            f"{after.in_flight:g} when idle again",
            ok=after.in_flight == 0,
            figures={
                "most under load": max(each.in_flight for each in samples),
                "slope under load, an hour": fit_slope_per_hour(warm, lambda each: each.in_flight),
            },
        ),
    ]


def calculate_means(values: Sequence[float]) -> list[float]:
    """Return the mean of each of PARTS equal parts."""
    size = max(1, len(values) // PARTS)
    return [statistics.fmean(values[at : at + size]) for at in range(0, size * PARTS, size) if values[at : at + size]]


def read_memory_mib(take_sample: Sample) -> float:
    return take_sample.memory_mib


def fit_slope_per_hour(samples: Sequence[Sample], value: Callable[[Sample], float]) -> float:
    """Return the slope of a line fitted by least squares."""
    if len(samples) < 2:
        return math.nan
    line = statistics.linear_regression([each.at_s / 3600 for each in samples], [value(each) for each in samples])
    return line.slope


def estimate_slope_error(samples: Sequence[Sample], value: Callable[[Sample], float]) -> float:
    """Return the standard error of that slope, as if the samples were independent of each other."""
    if len(samples) < 3:
        return math.nan
    hours, values = [each.at_s / 3600 for each in samples], [value(each) for each in samples]
    line = statistics.linear_regression(hours, values)
    residuals = sum((v - line.slope * h - line.intercept) ** 2 for h, v in zip(hours, values, strict=True))
    mean = statistics.fmean(hours)
    return math.sqrt(residuals / (len(samples) - 2) / sum((h - mean) ** 2 for h in hours))
