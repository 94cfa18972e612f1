"""CPU of a unary call and of a chunk, and how many of them a core carries, with h2load as the caller.

A chunk is met twice: as fast as they come, many in one read, and paced, each on its own.
"""

from lab.bench.fleet import Effort, fleet, in_turn
from lab.bench.loads import Load
from lab.bench.parts import read_runs
from lab.report import Report

__all__ = ["COST", "CPU", "FAST", "PACED", "RATE", "UNARY", "paced", "run"]

UNARY, FAST, PACED = "a unary call", "a chunk, as fast as they come", "a chunk, each on its own"
CPU = "CPU µs"
COST = {CPU: lambda ran: ran.cpu_us}
RATE = {
    "a second": lambda ran: ran.rate,
    "core busy %": lambda ran: 100 * ran.busy,
    "upstream busy %": lambda ran: 100 * ran.upstream_cpu_s / ran.wall_s,
}


def paced(effort: Effort) -> Load:
    """20 streams of 50 chunks a second each: so few that every contender carries them with time to spare."""
    return Load.paced(50 if effort.quick else 100, 20)


def run(effort: Effort) -> Report:
    report = Report()
    with fleet(effort.servers, effort.files, upstream="canned") as running:
        for measure, load in {UNARY: Load.unary(), FAST: Load.fast()}.items():
            ran = in_turn(running, load, rounds=effort.rounds, run_s=effort.run_s)
            report.results += read_runs(measure, ran, COST | RATE)
    with fleet(effort.servers, effort.files, upstream="emulator") as running:
        ran = in_turn(running, paced(effort), rounds=effort.rounds, run_s=effort.run_s)
        report.results += read_runs(PACED, ran, COST)
    return report
