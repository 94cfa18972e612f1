"""CPU of a chunk by what it adds: text, reasoning or a tool call's arguments, 16 bytes each, as fast as they come."""

from lab.bench.fleet import Effort, fleet, in_turn
from lab.bench.loads import Load
from lab.bench.parts import read_runs
from lab.bench.parts.cpu import COST
from lab.report import Report

__all__ = ["ARGUMENTS", "REASONING", "TEXT", "run"]

TEXT, REASONING, ARGUMENTS = "a chunk of text", "a chunk of reasoning", "a chunk of a tool call's arguments"
KINDS = {TEXT: "content", REASONING: "reasoning_content", ARGUMENTS: "arguments"}


def run(effort: Effort) -> Report:
    report = Report()
    with fleet(effort.some("bridge", "native"), effort.files, upstream="canned") as running:
        for case, kind in KINDS.items():
            ran = in_turn(running, Load.fast(kind=kind), rounds=effort.rounds, run_s=effort.run_s)
            report.results += read_runs(case, ran, COST)
    return report
