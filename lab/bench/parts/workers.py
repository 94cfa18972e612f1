"""The bridge on each engine with 1, 2 and 4 workers, on all cores, which load and upstream have to share with them.

So the rate alone would charge the bridge with what the load takes. Where every worker has always work, N workers on
cores of their own do N times what one does, but for what their CPU a call has grown by: that is read from CPU time.
How evenly the work came to them stands beside it: the kernel spreads connections, not calls.
"""

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from lab.bench.contenders import BRIDGE, NATIVE, Contender
from lab.bench.contenders.place import Place
from lab.bench.figures import build_result, join_rounds
from lab.bench.fleet import Effort, fleet, in_turn
from lab.bench.loads import Load
from lab.bench.parts import read_runs
from lab.bench.processes import ALL_CORES, Process
from lab.report import Report

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


def create_workers(count: int, engine: Contender = BRIDGE) -> Contender:
    start = functools.partial(_start, count, engine)
    title = f"{engine.title}, {count} {'worker' if count == 1 else 'workers'}"
    return replace(engine, key=f"{engine.key} with {count}", title=title, start=start)


def _start(count: int, engine: Contender, place: Place) -> AbstractContextManager[Process]:
    return engine.start(replace(place, workers=count))


def run(effort: Effort) -> Report:
    report = Report()
    for engine in effort.some(BRIDGE.key, NATIVE.key):
        measure_engine(report, effort, engine)
    report.results = join_rounds(report.results)
    return report


def measure_engine(report: Report, effort: Effort, engine: Contender) -> None:
    one = create_workers(1, engine)
    workers = {count: create_workers(count, engine) for count in ((2,) if effort.quick else (2, 4))}
    cores = {"server_cores": ALL_CORES, "load_cores": ALL_CORES}
    with fleet([one, *workers.values()], effort.files, upstream="canned", **cores) as running:
        for contender, server in running.servers.items():
            idle = {"memory MB": [server.resident_bytes() / 1e6]}
            report.results.append(build_result("idle", contender.title, idle))
        for measure, load in LOADS.items():
            rounds = max(1, effort.rounds - 2)
            ran = in_turn(running, load, rounds=rounds, run_s=effort.run_s, connections=CONNECTIONS)
            report.results += read_runs(measure, ran, METRICS)
            for count, contender in workers.items():
                pairs = list(zip(ran[one], ran[contender], strict=True))
                ratios = {
                    "x one worker, here": [each.rate / alone.rate for alone, each in pairs],
                    OWN_CORES: [count * alone.cpu_us / each.cpu_us for alone, each in pairs],
                }
                report.results.append(build_result(measure, contender.title, ratios))


def share(cpu_each_s: Sequence[float]) -> float:
    """The busiest worker's part of their CPU; the first process is the supervisor, which serves nothing."""
    workers = cpu_each_s[1:] or cpu_each_s
    return max(workers) / sum(workers)
