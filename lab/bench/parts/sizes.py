"""A request of 4 MB and an answer of 4 MB, one at a time: what they take, CPU and in all."""

from lab.bench.fleet import Effort, fleet, in_turn
from lab.bench.loads import TEXT, Load
from lab.bench.parts import read_runs
from lab.report import Report

__all__ = ["run"]

MB = 1_000_000
LOADS = {
    "a 4 MB request": Load.unary(messages=1, text=f"{TEXT}\n" * (4 * MB // len(f"{TEXT}\n")), at_once=1),
    "a 4 MB answer": Load.big(4 * MB),
}
METRICS = {"CPU ms": lambda ran: ran.cpu_us / 1e3, "in all ms": lambda ran: 1e3 / ran.rate}


def run(effort: Effort) -> Report:
    report = Report()
    with fleet(effort.servers, effort.files, upstream="canned") as running:
        for measure, load in LOADS.items():
            ran = in_turn(running, load, rounds=max(1, effort.rounds - 2), run_s=effort.run_s / 2)
            report.results += read_runs(measure, ran, METRICS)
    return report
