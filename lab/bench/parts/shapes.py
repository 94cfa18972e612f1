"""A unary call at two shapes of the same load, 32 calls at once: 2 connections x 16, and 4 x 8.

Ratios of contenders moved between machines and shapes: side by side they show how much of that is the shape's.
"""

from lab.bench.fleet import Effort, fleet, in_turn
from lab.bench.loads import Load
from lab.bench.parts import read_runs
from lab.bench.parts.cpu import COST, RATE
from lab.report import Report

__all__ = ["run"]

CONTENDERS = ("bridge", "native", "bare", "go_bare", "go_bridge", "go_keep")
CONNECTIONS = (2, 4)


def run(effort: Effort) -> Report:
    report = Report()
    load = Load.unary()
    with fleet(effort.some(*CONTENDERS), effort.files, upstream="canned") as running:
        for connections in CONNECTIONS:
            ran = in_turn(running, load, rounds=effort.rounds, run_s=effort.run_s, connections=connections)
            case = f"a unary call, {connections} connections x {load.at_once // connections}"
            report.results += read_runs(case, ran, COST | RATE)
    return report
