"""The CPU of a call and of a chunk in the service that makes it, as a caller of the bridge and of the gateway."""

from tests.benchmarks.calling import run_plan
from tests.benchmarks.figures import Figure, join_rounds
from tests.benchmarks.fleet import Effort, fleet
from tests.benchmarks.loads import Load
from tests.benchmarks.parts import Result

__all__ = ["run"]

AT_ONCE = 16
LOADS = {"a unary call": (Load.unary(), 2000), "a chunk, as fast as they come": (Load.fast(200), 64)}
"""And how many calls."""


def run(effort: Effort) -> Result:
    result = Result()
    with fleet(effort.some("bridge", "aiohttp", "openai"), effort.files, upstream="canned") as running:
        for measure, (load, calls) in LOADS.items():
            for _ in range(max(1, effort.rounds - 2)):
                for contender, server in running.servers.items():
                    options = {"calls": calls, "at_once": AT_ONCE, "streamed": load.streamed}
                    output = run_plan(contender, server, load, "closed", **options)
                    cpu = Figure(
                        measure, contender.title, "CPU of the caller µs", (output["cpu_s"] / output["units"] * 1e6,)
                    )
                    result.figures.append(cpu)
    result.figures = join_rounds(result.figures)
    return result
