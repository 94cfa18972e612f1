"""Time to start, and memory: of an idle process, and of each stream that is open and silent after its first chunk.

Memory is resident memory; a process is a fresh one in each round. A few streams are opened and closed first, so that
what is made once, for all of them, is not counted for each.
"""

from tests.benchmarks.calling import hold_streams
from tests.benchmarks.contenders import Contender
from tests.benchmarks.figures import Figure, join_rounds
from tests.benchmarks.fleet import Effort, Fleet, fleet
from tests.benchmarks.loads import Load
from tests.benchmarks.parts import Result

__all__ = ["OPEN_KB", "PROCESS", "run"]

PROCESS, OPEN_KB = "a process", "a stream open KB"
STREAMS = 1000
FIRST = 50
SILENT = Load.paced(1, 3_600_000)
"""A first chunk, and the next one in an hour."""


def run(effort: Effort) -> Result:
    result = Result()
    count = STREAMS // 4 if effort.quick else STREAMS
    for _ in range(max(1, effort.rounds - 2)):
        with fleet(effort.servers, effort.files, upstream="emulator") as running:
            for contender in effort.servers:
                measure_contender(result, contender, running, count)
    result.figures = join_rounds(result.figures)
    result.notes.append(f"{count:,} streams were open.")
    return result


def measure_contender(result: Result, contender: Contender, running: Fleet, count: int) -> None:
    server = running.servers[contender]
    idle = server.resident_bytes()
    with hold_streams(contender, server, SILENT, FIRST):
        pass
    before = server.resident_bytes()
    with hold_streams(contender, server, SILENT, count):
        opened = server.resident_bytes()
    metrics = {
        "start s": server.start_s,
        "idle MB": idle / 1e6,
        f"with {count:,} streams MB": opened / 1e6,
        OPEN_KB: (opened - before) / count / 1e3,
    }
    result.figures += [Figure(PROCESS, contender.title, metric, (value,)) for metric, value in metrics.items()]
