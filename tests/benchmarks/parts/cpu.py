"""CPU of a unary call and of a chunk, and how many of them a core carries, with h2load as the caller.

A chunk is met twice: as fast as they come, many in one read, and paced, each on its own.
"""

from tests.benchmarks.fleet import Effort, fleet, in_turn
from tests.benchmarks.loads import Load
from tests.benchmarks.parts import Result, figures

__all__ = ["CPU", "FAST", "PACED", "UNARY", "paced", "run"]

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


def run(effort: Effort) -> Result:
    result = Result()
    with fleet(effort.servers, effort.files, upstream="canned") as running:
        for measure, load in {UNARY: Load.unary(), FAST: Load.fast()}.items():
            ran = in_turn(running, load, rounds=effort.rounds, run_s=effort.run_s)
            result.figures += figures(measure, ran, COST | RATE)
    with fleet(effort.servers, effort.files, upstream="emulator") as running:
        ran = in_turn(running, paced(effort), rounds=effort.rounds, run_s=effort.run_s)
        result.figures += figures(PACED, ran, COST)
    return result
