"""Mixed load for a long time, with faults, resets, slow readers and connections that drain: nothing lost or growing.

Three parties count for themselves and are compared call by call: the callers (`caller.py`, stock clients in processes
of their own), the emulated gateway (`recording_gateway.py`) and the bridge (its metrics). The load is 70 % of
the capacity that the same mix has in the same run. Connections reach their age again and again: the bridge asks their
callers to go away, and no call may be lost by that.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from lab.report import Result
from lab.torture import caller, recording_gateway
from lab.torture.caller import Outcome
from lab.torture.growth import judge_growth, sample_meanwhile, take_sample, wait_until_idle
from lab.torture.options import Options
from lab.torture.soak.judgment import FULL, QUICK, compare_counts, judge_outcomes
from lab.torture.subject import Process, build_holdings_command, run_bridge, run_python
from tests.kit.processes import run_joined

__all__ = ["run"]

LOAD = 0.7
CALLERS = 2
CONCURRENCY = 48
"""Concurrent calls of each caller while capacity is measured."""


async def run(options: Options) -> list[Result]:
    """Soak one bridge for half an hour, or for a minute and a half in a quick run."""
    times = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with (
            run_python(
                "-m", "lab.torture.recording_gateway", str(folder / "records"), log=folder / "gateway.log"
            ) as upstream,
            run_bridge(
                upstream.address,
                folder=folder,
                command=build_holdings_command(folder / "holdings"),
                connections__age_s=times.age_s,
            ) as subject,
        ):
            before = await take_sample(subject, folder, 0.0)
            first = await run_callers(
                subject, folder, times.capacity_s, seed=options.seed * 1000, concurrency=CONCURRENCY
            )
            capacity = len(first) / times.capacity_s
            rate = capacity * LOAD
            seed = options.seed * 1000 + CALLERS
            async with sample_meanwhile(subject, folder, times.period_s) as samples:
                then = await run_callers(subject, folder, times.load_s, seed=seed, rate=rate / CALLERS)
            after = await wait_until_idle(subject, folder)
            metrics = await subject.read_metrics()
            await upstream.stop()
            outcomes = {each.request_id: each for each in (*first, *then)}
            records = recording_gateway.read(folder / "records")
            return [
                judge_outcomes(outcomes, records, rate, capacity),
                *compare_counts(outcomes, records, metrics),
                *judge_growth(samples, before, after, warm_s=times.warm_s),
            ]


async def run_callers(
    subject: Process, folder: Path, seconds: float, *, seed: int, rate: float = 0.0, concurrency: int = 0
) -> list[Outcome]:
    """Run the callers, each in a process of its own, and return the outcomes of their calls."""
    how = ["--rate", str(rate)] if rate else ["--concurrency", str(concurrency)]
    files = [folder / f"outcomes-{seed + number}" for number in range(CALLERS)]
    command = (sys.executable, "-m", "lab.torture.caller", subject.address)
    ended = await asyncio.gather(
        *(
            run_joined(
                *(*command, file, "--seed", str(seed + number), "--seconds", str(seconds), *how),
                timeout_s=seconds + 120,
            )
            for number, file in enumerate(files)
        )
    )
    for code, output in ended:
        if code:
            raise RuntimeError(f"a caller failed with exit code {code}:\n{output[-4000:]}")
    return [each for file in files for each in caller.read(file)]
