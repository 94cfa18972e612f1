"""Time to start, and memory: of an idle process, and of each stream that is open and silent after its first chunk.

Memory is resident memory; a process is a fresh one in each round. A few streams are opened and closed first, so that
what is made once, for all of them, is not counted for each.
"""

from lab.bench.calling import hold_streams
from lab.bench.contenders import Contender
from lab.bench.figures import build_result, join_rounds
from lab.bench.fleet import Effort, Fleet, fleet
from lab.bench.loads import Load
from lab.report import Report

__all__ = ["OPEN_KB", "PROCESS", "START_S", "run"]

PROCESS, OPEN_KB, START_S = "a process", "a stream open KB", "start s"
STREAMS = 1000
FIRST = 50
SILENT = Load.paced(1, 3_600_000)
"""A first chunk, and the next one in an hour."""


def run(effort: Effort) -> Report:
    report = Report()
    count = STREAMS // 4 if effort.quick else STREAMS
    for _ in range(max(1, effort.rounds - 2)):
        with fleet(effort.servers, effort.files, upstream="emulator") as running:
            for contender in effort.servers:
                measure_contender(report, contender, running, count)
    report.results = join_rounds(report.results)
    report.notes.append(f"{count:,} streams were open.")
    return report


def measure_contender(report: Report, contender: Contender, running: Fleet, count: int) -> None:
    server = running.servers[contender]
    idle = server.resident_bytes()
    with hold_streams(contender, server, SILENT, FIRST):
        pass
    before = server.resident_bytes()
    with hold_streams(contender, server, SILENT, count):
        opened = server.resident_bytes()
    metrics = {
        START_S: server.start_s,
        "idle MB": idle / 1e6,
        f"with {count:,} streams MB": opened / 1e6,
        OPEN_KB: (opened - before) / count / 1e3,
    }
    report.results.append(build_result(PROCESS, contender.title, {name: [value] for name, value in metrics.items()}))
