"""CPU of a chunk of 50 streams with a chunk each 20 ms: what a model's tokens cost a server that is well used.

A wake of the process serves several streams, so a chunk costs less than alone (`cpu.py`); docs/scale.md plans by it.
A contender that a core does not carry is not measured.
"""

from lab.bench.contenders import Contender
from lab.bench.fleet import Effort, Fleet, fleet, in_turn
from lab.bench.loads import Load
from lab.bench.parts import read_runs
from lab.bench.parts.cpu import COST, paced
from lab.report import Report

__all__ = ["AT_ONCE", "CASE", "INTERVAL_MS", "run"]

AT_ONCE, INTERVAL_MS = 50, 20
CASE = f"a chunk, {AT_ONCE} streams with one each {INTERVAL_MS} ms"
BUSY = {"core busy %": lambda ran: 100 * ran.busy, "upstream busy %": lambda ran: 100 * ran.upstream_cpu_s / ran.wall_s}
BUSY_MAX = 0.85


def run(effort: Effort) -> Report:
    report = Report()
    load = Load.paced(50 if effort.quick else 100, INTERVAL_MS, AT_ONCE)
    with fleet(effort.servers, effort.files, upstream="emulator") as running:
        able = find_able(running, effort)
        ran = in_turn(running.of(able), load, rounds=effort.rounds, run_s=effort.run_s, connections=2)
        report.results += read_runs(CASE, ran, COST | BUSY)
        unable = [each.title for each in running.servers if each not in able]
    if unable:
        report.notes.append(f"Not measured, for a core does not carry it: {', '.join(unable)}.")
    return report


def find_able(running: Fleet, effort: Effort) -> list[Contender]:
    cost = in_turn(running, paced(effort), rounds=1, run_s=effort.run_s)
    rate = AT_ONCE * 1000 / INTERVAL_MS
    return [contender for contender, runs in cost.items() if runs[0].cpu_us / 1e6 * rate < BUSY_MAX]
