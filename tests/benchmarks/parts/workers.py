"""The bridge with 1, 2 and 4 workers on all cores of the machine, which load and upstream have to share with them.

So the rate alone would charge the bridge with what the load takes. Where every worker has always work, N workers on
cores of their own do N times what one does, but for what their CPU a call has grown by: that is read from CPU time.
How evenly the work came to them stands beside it: the kernel spreads connections, not calls.
"""

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from tests.benchmarks.contenders import BRIDGE, Contender, Place
from tests.benchmarks.figures import Figure
from tests.benchmarks.fleet import Effort, fleet, in_turn
from tests.benchmarks.loads import Load
from tests.benchmarks.parts import Result, figures
from tests.benchmarks.processes import ALL_CORES, Process

__all__ = ["CHUNK", "OWN_CORES", "UNARY", "create_workers", "run"]

OWN_CORES = "x one worker, on cores of its own"
CONNECTIONS = 64
UNARY, CHUNK = "a unary call", "a chunk, as fast as they come"
LOADS = {UNARY: Load.unary(at_once=128), CHUNK: Load.fast(200, at_once=64)}
METRICS = {
    "a second": lambda ran: ran.rate,
    "CPU µs": lambda ran: ran.cpu_us,
    "the busiest worker's share %": lambda ran: 100 * share(ran.cpu_each_s),
}


def create_workers(count: int) -> Contender:
    start = functools.partial(_start, count)
    title = f"{BRIDGE.title}, {count} {'worker' if count == 1 else 'workers'}"
    return replace(BRIDGE, key=f"bridge with {count}", title=title, start=start)


def _start(count: int, place: Place) -> AbstractContextManager[Process]:
    return BRIDGE.start(replace(place, workers=count))


def run(effort: Effort) -> Result:
    result = Result()
    one, workers = create_workers(1), {count: create_workers(count) for count in ((2,) if effort.quick else (2, 4))}
    cores = {"server_cores": ALL_CORES, "load_cores": ALL_CORES}
    with fleet([one, *workers.values()], effort.files, upstream="canned", **cores) as running:
        for contender, server in running.servers.items():
            idle = Figure("idle", contender.title, "memory MB", (server.resident_bytes() / 1e6,))
            result.figures.append(idle)
        for measure, load in LOADS.items():
            rounds = max(1, effort.rounds - 2)
            ran = in_turn(running, load, rounds=rounds, run_s=effort.run_s, connections=CONNECTIONS)
            result.figures += figures(measure, ran, METRICS)
            for count, contender in workers.items():
                pairs = list(zip(ran[one], ran[contender], strict=True))
                ratios = {
                    "x one worker, here": [each.rate / alone.rate for alone, each in pairs],
                    OWN_CORES: [count * alone.cpu_us / each.cpu_us for alone, each in pairs],
                }
                for metric, values in ratios.items():
                    result.figures.append(Figure(measure, contender.title, metric, tuple(values)))
    return result


def share(cpu_each_s: Sequence[float]) -> float:
    """The busiest worker's part of their CPU; the first process is the supervisor, which serves nothing."""
    workers = cpu_each_s[1:] or cpu_each_s
    return max(workers) / sum(workers)
