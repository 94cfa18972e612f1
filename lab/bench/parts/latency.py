"""The latency added to a call, at fixed rates: 300 calls a second, and shares of the bridge's capacity.

The rate is kept whatever becomes of the calls, and a call's time counts from when it was due. All contenders have the
same callers in Python (`callers`); what the same call takes without a bridge, by aiohttp, is what is subtracted,
round by round.
"""

import statistics

from lab.bench.calling import run_plan
from lab.bench.contenders import AIOHTTP, BRIDGE, Contender
from lab.bench.figures import QUANTILES, build_result, quantiles
from lab.bench.fleet import Effort, Fleet, fleet, in_turn
from lab.bench.loads import Load
from lab.report import Report

__all__ = ["FIRST_CHUNK", "FRACTIONS", "MODERATE", "name_added", "name_unary", "run"]

FRACTIONS = {"a quarter": 0.25, "half": 0.5, "three quarters": 0.75}
MODERATE_RATE = 300
MODERATE = f"a unary call, at {MODERATE_RATE} a second"
FIRST_CHUNK = "a first chunk, at half of capacity"
CHUNKS = 20
CALLS_MIN = 1000
RUN_S = 3.0
RUN_S_MAX = 6.0
SPARE = 1.2
"""A contender, or a caller, that can't do so much more than a rate is not given it: it would only fall behind."""
CAPACITY_S = 0.7
CALLERS_CALLS, CALLERS_AT_ONCE = 640, 16


def name_unary(fraction: str) -> str:
    return f"a unary call, at {fraction} of capacity"


def name_added(quantile: str) -> str:
    return f"{quantile} added ms"


def run(effort: Effort) -> Report:
    report = Report()
    fractions = {"half": 0.5} if effort.quick else FRACTIONS
    with fleet(effort.contenders, effort.files, upstream="canned") as running:
        unary, stream = Load.unary(), Load.fast(CHUNKS, at_once=32)
        carried = capacities(running, unary)
        measure_contender(report, effort, running, unary, MODERATE, MODERATE_RATE, carried)
        for name, fraction in fractions.items():
            measure_contender(report, effort, running, unary, name_unary(name), fraction * carried[BRIDGE], carried)
        carried = capacities(running, stream)
        measure_contender(report, effort, running, stream, FIRST_CHUNK, 0.5 * carried[BRIDGE], carried)
    return report


def capacities(running: Fleet, load: Load) -> dict[Contender, float]:
    """Calls a second, with always some waiting. Without a bridge it is the caller whose core is full first."""
    served = [each for each in running.servers if each.is_server]
    ran = in_turn(running.of(served), load, rounds=2, run_s=CAPACITY_S)
    rates = {contender: max(each.rate for each in runs) / load.units for contender, runs in ran.items()}
    return {
        each: rates[each] if each.is_server else measure_callers_rate(running, each, load) for each in running.servers
    }


def measure_callers_rate(running: Fleet, contender: Contender, load: Load) -> float:
    options = {"calls": CALLERS_CALLS, "at_once": CALLERS_AT_ONCE, "streamed": load.streamed}
    output = run_plan(contender, running.servers[contender], load, "closed", **options)
    return output["units"] / output["wall_s"] / load.units


def measure_contender(
    report: Report,
    effort: Effort,
    running: Fleet,
    load: Load,
    measure: str,
    rate: float,
    carried: dict[Contender, float],
) -> None:
    able = {each: server for each, server in running.servers.items() if carried[each] >= SPARE * rate}
    calls = round(rate * min(max(RUN_S, CALLS_MIN / rate), RUN_S_MAX) / (2 if effort.quick else 1))
    rounds = max(1, effort.rounds - 2)
    output: dict[Contender, list[dict]] = {contender: [] for contender in able}
    for _ in range(rounds):
        for contender, server in able.items():
            options = {"calls": calls, "rate": rate, "streamed": load.streamed}
            output[contender].append(run_plan(contender, server, load, "rate", **options))
    took = {contender: [quantiles(each["took"], scale=1e3) for each in runs] for contender, runs in output.items()}
    for contender, runs in took.items():
        figures = {f"{name} ms": [each[name] for each in runs] for name in (*QUANTILES, "most")}
        if AIOHTTP in took and contender is not AIOHTTP:
            for name in QUANTILES:
                pairs = zip(runs, took[AIOHTTP], strict=True)
                figures[name_added(name)] = [mine[name] - alone[name] for mine, alone in pairs]
        late = [quantiles(each["begun_late"], scale=1e3)["p99"] for each in output[contender]]
        report.results.append(build_result(measure, contender.title, figures | {"begun late p99 ms": late}))
    busiest = max(statistics.median(each["busy"] for each in runs) for runs in output.values())
    unable = [f"{each.title} ({carried[each]:,.0f} a second)" for each in running.servers if each not in able]
    report.notes.append(
        f"{measure.capitalize()}: {rate:,.0f} calls a second for {calls / rate:.1f} s; "
        f"the callers took at most {busiest:.0%} of their core."
        + (f" Not measured, for they do not carry it: {', '.join(unable)}." if unable else "")
    )
