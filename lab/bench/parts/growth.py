"""How the cost of a call grows with the messages in it, and with the chunks of its answer: it must be linear."""

import statistics

from lab.bench.contenders import BARE
from lab.bench.figures import build_result, exponent
from lab.bench.fleet import Effort, fleet, in_turn
from lab.bench.loads import Load
from lab.report import Report

__all__ = ["CHUNKS", "CPU", "EXPONENT", "EXPONENT_MAX", "MESSAGES", "run"]

MESSAGES, CHUNKS = "messages in the request", "chunks in the answer"
CPU, EXPONENT = "CPU of a call µs", "exponent"
SIZES = {MESSAGES: (1, 10, 100, 1000), CHUNKS: (10, 100, 1000, 10_000, 100_000)}
QUICK_SIZES = {MESSAGES: (1, 100, 1000), CHUNKS: (10, 1000, 10_000)}
EXPONENT_MAX = 1.1
"""Linear, but for the noise of the measure: the two largest sizes are ten times apart."""


def create_load(measure: str, size: int) -> Load:
    return Load.unary(messages=size, at_once=4) if measure == MESSAGES else Load.fast(size, at_once=1)


def run(effort: Effort) -> Report:
    report = Report()
    contenders = effort.some("bridge", "native", "bare")
    with fleet(contenders, effort.files, upstream="canned") as running:
        for measure, sizes in (QUICK_SIZES if effort.quick else SIZES).items():
            costs: dict[str, dict[int, float]] = {each.title: {} for each in contenders}
            for size in sizes:
                rounds = max(1, effort.rounds - 2)
                ran = in_turn(running, create_load(measure, size), rounds=rounds, run_s=effort.run_s / 4)
                for contender, runs in ran.items():
                    a_call = tuple(each.cpu_us * (size + 2 if measure == CHUNKS else 1) for each in runs)
                    figures = {CPU: a_call, "of each µs": [cost / size for cost in a_call]}
                    report.results.append(build_result(f"{size:,} {measure}", contender.title, figures))
                    costs[contender.title][size] = statistics.median(a_call)
            for contender in contenders:
                if contender != BARE:
                    growth = exponent(costs[contender.title])
                    report.results.append(build_result(measure, contender.title, {EXPONENT: [growth]}))
    return report
