"""1, 100 and 1,000 paced streams at once: how late each chunk is, from the moment at which it was due in the upstream.

Each stream has 50 chunks a second, or so few that all together are what half a core of the bridge carries. The
emulator says when each chunk was due and when it was sent, on the one clock that all processes of a machine share.
"""

import time

from lab.bench.calling import run_plan
from lab.bench.contenders import BRIDGE, Contender
from lab.bench.figures import build_result, join_rounds, quantiles
from lab.bench.fleet import Effort, Fleet, fleet, in_turn
from lab.bench.loads import Load
from lab.bench.parts.cpu import paced
from lab.report import Report

__all__ = ["AT_ONCE", "LATE", "LOST", "name_streams", "run"]

AT_ONCE = (1, 100, 1000)
LATE, LOST = "late p99 ms", "chunks lost"
CHUNKS_A_SECOND = 50
STEADY_S = 4.0
STARTS_A_SECOND = 250  # by `callers`
BUSY_MAX = 0.85
"""Of its core: a contender that would be busier is not measured."""


def name_streams(at_once: int) -> str:
    return f"{at_once:,} {'stream' if at_once == 1 else 'streams'} at once"


def run(effort: Effort) -> Report:
    report = Report()
    contenders = effort.some("bridge", "native", "bare", "go_bare", "go_keep", "openai_sdk", "httpx_json", "aiohttp")
    with fleet(contenders, effort.files, upstream="emulator") as running:
        served = [each for each in contenders if each.is_server]
        cost = in_turn(running.of(served), paced(effort), rounds=1, run_s=1)
        cost_s = {contender: runs[0].cpu_us / 1e6 for contender, runs in cost.items()}
        for at_once in (100,) if effort.quick else AT_ONCE:
            each_a_second = min(CHUNKS_A_SECOND, 0.5 / cost_s[BRIDGE] / at_once)
            interval_ms = round(1000 / each_a_second)
            rate = at_once * 1000 / interval_ms
            lasts_s = at_once / STARTS_A_SECOND + 0.5 + STEADY_S / (2 if effort.quick else 1)
            load = Load.paced(round(lasts_s * 1000 / interval_ms), interval_ms, at_once)
            able = [each for each in contenders if cost_s.get(each, 0) * rate < BUSY_MAX]
            for _ in range(max(1, effort.rounds - 2)):
                for contender in able:
                    measure_contender(report, contender, running, load)
            unable = [each.title for each in contenders if each not in able]
            report.notes.append(
                f"{name_streams(at_once)}: a chunk each {interval_ms} ms, {rate:,.0f} chunks a second in all."
                + (f" Not measured, for a core does not carry it: {', '.join(unable)}." if unable else "")
            )
    report.results = join_rounds(report.results)
    return report


def measure_contender(report: Report, contender: Contender, running: Fleet, load: Load) -> None:
    server, upstream = running.servers[contender], running.upstream
    before = time.monotonic(), server.cpu_s(), upstream.cpu_s()
    output = run_plan(contender, server, load, "streams", at_once=load.at_once, chunks=load.chunks)
    lasted_s, server_s, upstream_s = (
        time.monotonic() - before[0],
        server.cpu_s() - before[1],
        upstream.cpu_s() - before[2],
    )
    late, sent = quantiles(output["late"], scale=1e3), quantiles(output["sent_late"], scale=1e3)
    metrics = {
        "late p50 ms": late["p50"],
        LATE: late["p99"],
        "late most ms": late["most"],
        "of that by the upstream, p99 ms": sent["p99"],
        LOST: output["lost"],
        "caller and upstream busy %": 100 * (output["cpu_s"] + upstream_s) / lasted_s,
    }
    if contender.is_server:
        metrics["core busy %"] = 100 * server_s / lasted_s
    measure = name_streams(load.at_once)
    report.results.append(build_result(measure, contender.title, {name: [value] for name, value in metrics.items()}))
