"""The CPU of a call and of a chunk in the service that makes it, as a caller of the bridge and of the gateway."""

from lab.bench.calling import run_plan
from lab.bench.figures import build_result, join_rounds
from lab.bench.fleet import Effort, fleet
from lab.bench.loads import Load
from lab.report import Report

__all__ = ["run"]

AT_ONCE = 16
LOADS = {"a unary call": (Load.unary(), 2000), "a chunk, as fast as they come": (Load.fast(200), 64)}
"""And how many calls."""


def run(effort: Effort) -> Report:
    report = Report()
    with fleet(effort.some("bridge", "aiohttp", "openai"), effort.files, upstream="canned") as running:
        for measure, (load, calls) in LOADS.items():
            for _ in range(max(1, effort.rounds - 2)):
                for contender, server in running.servers.items():
                    options = {"calls": calls, "at_once": AT_ONCE, "streamed": load.streamed}
                    output = run_plan(contender, server, load, "closed", **options)
                    cpu_us = output["cpu_s"] / output["units"] * 1e6
                    report.results.append(build_result(measure, contender.title, {"CPU of the caller µs": [cpu_us]}))
    report.results = join_rounds(report.results)
    return report
