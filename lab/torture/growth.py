"""Sample and judge what must not grow under load: memory, descriptors, tasks and calls in flight."""

import asyncio
import contextlib
import itertools
import math
import statistics
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.report import Result
from lab.torture.holdings import Holdings
from lab.torture.subject import Process

__all__ = ["Sample", "judge_growth", "sample_meanwhile", "sum_metric", "take_sample", "wait_until_idle"]

GROWTH_MIB_PER_HOUR_MAX = 10.0
GROWTH_SHORT_MIB_MAX = 8.0
"""By the fitted line, if a minute or so was sampled: that is too short for a rate."""
SHORT_S = 600.0
DESCRIPTORS_MORE_MAX = 8
PARTS = 6
"""Of the time in which memory is sampled; the report has the mean of each, since a line hides how a curve bends."""
SETTLE_S = 45.0
"""How long the bridge may take to be idle again: it closes upstream connections that were unused for 15 s."""


@dataclass(frozen=True)
class Sample:
    """The bridge at one moment."""

    at_s: float
    memory_mib: float
    descriptors: int
    holdings: Holdings
    in_flight: float


# Sampling


async def take_sample(subject: Process, folder: Path, at_s: float) -> Sample:
    in_flight = sum_metric(await subject.read_metrics(), "ollm_bridge_calls_in_flight")
    holdings = await subject.read_holdings(folder / "holdings")
    return Sample(at_s, subject.memory_mib, subject.descriptors, holdings, in_flight)


@contextlib.asynccontextmanager
async def sample_meanwhile(subject: Process, folder: Path, period_s: float) -> AsyncIterator[list[Sample]]:
    """Yield a list that gets a sample each period while the block lasts."""
    samples: list[Sample] = []
    sampling = asyncio.create_task(_collect_samples(subject, folder, samples, period_s))
    try:
        yield samples
    finally:
        sampling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sampling


async def _collect_samples(subject: Process, folder: Path, samples: list[Sample], period_s: float) -> None:
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
        connections = sum_metric(await subject.read_metrics(), "ollm_bridge_upstream_connections")
        if time.monotonic() > end or not (sample.in_flight or connections):
            return sample
        await asyncio.sleep(0.5)


def sum_metric(metrics: Mapping[tuple[str, str], float], wanted: str) -> float:
    """Return the sum of a metric over its labels."""
    return sum(value for (name, _), value in metrics.items() if name == wanted)


# Judging


def judge_growth(samples: Sequence[Sample], before: Sample, after: Sample, *, warm_s: float) -> list[Result]:
    """Judge the samples from `warm_s` on, and what is left when the bridge is idle again."""
    warm = [each for each in samples if each.at_s >= warm_s]
    per_hour = fit_slope_per_hour(warm, read_memory_mib)
    grown = per_hour * (warm[-1].at_s - warm[0].at_s) / 3600
    is_long = warm[-1].at_s - warm[0].at_s >= SHORT_S
    memory = list(map(read_memory_mib, warm))
    return [
        Result(
            f"memory is flat after the first {warm_s:g} s",
            len(warm),
            f"{per_hour:+.1f} MiB an hour",
            ok=per_hour <= GROWTH_MIB_PER_HOUR_MAX if is_long else grown <= GROWTH_SHORT_MIB_MAX,
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
            if is_long
            else f"at most {GROWTH_SHORT_MIB_MAX:g} MiB in so short a time",
        ),
        Result(
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
        Result(
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


def read_memory_mib(sample: Sample) -> float:
    return sample.memory_mib


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
