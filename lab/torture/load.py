"""Ordinary load for an hour from ghz, a client that others wrote (grpc-go): each call OK, none lost, nothing grows.

The native engine of the call port, since the other one is grpc's own. Three ghz run beside each other at a fixed rate:
unary calls, unary calls in gzip, and streams. Their counts, the bridge's own metrics and the requests that the emulated
gateway saw are compared when all have ended.
"""

import asyncio
import json
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.environment import ROOT
from lab.report import Result
from lab.torture import recording_gateway
from lab.torture.growth import judge_growth, sample_meanwhile, sum_metric, take_sample, wait_until_idle
from lab.torture.options import Options
from lab.torture.recording_gateway import Record
from lab.torture.subject import build_holdings_command, run_bridge, run_python
from tests.kit import go_tools
from tests.kit.processes import find_program

__all__ = ["run"]

ENGINE = "native"
DESCRIPTORS = ROOT / "generated" / "ollmbridge" / "v1" / "ollmbridge.binpb"
SERVICE = "ollmbridge.v1.ChatCompletionService"
CONNECTIONS = 4
WORKERS = 100
"""Calls at once of each ghz at most: a bridge that is slow gets fewer calls than the rate."""
CALL_S = 30
STOP_S_MAX = 120
REFUSED = "RESOURCE_EXHAUSTED"
REFUSED_MAX = 0.001
"""Of all calls: the bridge refuses calls while its event loop is late, which others on the machine may cause."""


@dataclass(frozen=True)
class Times:
    load_s: int
    warm_s: float
    """From then on memory is judged: the status page's time line of ten minutes is full."""
    period_s: float


FULL = Times(load_s=3600, warm_s=660, period_s=10)
QUICK = Times(load_s=60, warm_s=20, period_s=1)


@dataclass(frozen=True)
class Load:
    """What one ghz calls, and its share of all calls."""

    name: str
    method: str
    share: float
    model: str
    options: tuple[str, ...] = ()
    size: int = 60


LOADS = (
    Load("unary", "CreateChatCompletion", 0.5, "echo"),
    Load("unary, 8 KB in gzip", "CreateChatCompletion", 0.1, "echo", ("--enable-compression",), 8_000),
    Load("stream of 22 chunks in 0.4 s", "StreamChatCompletion", 0.4, "scenario::pace?chunks=20&interval_ms=20"),
)


@dataclass(frozen=True)
class Counts:
    """What ghz reports of its calls. `codes` are gRPC's names, `errors` the messages of failures."""

    calls: int
    rate: float
    codes: Mapping[str, int]
    errors: Mapping[str, int]
    p50_ms: float
    p99_ms: float
    slowest_ms: float


async def run(options: Options) -> list[Result]:
    """Call for an hour, or for a minute in a quick run."""
    times = QUICK if options.quick else FULL
    if not (go_tools.GHZ.path.exists() or find_program("go")):
        raise RuntimeError(f"there is no Go to build {go_tools.GHZ.package} with")
    go_tools.build(go_tools.GHZ)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        records = folder / "records"
        async with (
            run_python("-m", "lab.torture.recording_gateway", str(records), log=folder / "gateway.log") as upstream,
            run_bridge(
                upstream.address,
                folder=folder,
                command=build_holdings_command(folder / "holdings"),
                server__engine=ENGINE,
            ) as subject,
        ):
            before = await take_sample(subject, folder, 0.0)
            async with sample_meanwhile(subject, folder, times.period_s) as samples:
                counts = await asyncio.gather(
                    *(run_ghz(subject.address, load, load.share * options.rps, times.load_s, folder) for load in LOADS)
                )
            after = await wait_until_idle(subject, folder)
            metrics = await subject.read_metrics()
            await upstream.stop()
            return [
                *map(judge_load, LOADS, counts),
                compare_counts(counts, recording_gateway.read(records), metrics),
                *judge_growth(samples, before, after, warm_s=times.warm_s),
            ]


async def run_ghz(address: str, load: Load, rate: float, seconds: int, folder: Path) -> Counts:
    """Run one ghz, and return what it counted."""
    request = {"model": load.model, "messages": [{"role": "user", "text": "x" * load.size}]}
    report = folder / f"{LOADS.index(load)}.json"
    options = {
        "--protoset": DESCRIPTORS,
        "--call": f"{SERVICE}/{load.method}",
        "--data": json.dumps(request),
        "--rps": max(1, round(rate)),
        "--concurrency": WORKERS,
        "--connections": CONNECTIONS,
        "--duration": f"{seconds}s",
        "--duration-stop": "wait",
        "--timeout": f"{CALL_S}s",
        "--format": "json",
        "--output": report,
    }
    words = [f"{option}={value}" for option, value in options.items()]
    exit_code, output = await go_tools.run(
        go_tools.GHZ, "--insecure", *words, *load.options, address, timeout_s=seconds + STOP_S_MAX
    )
    if exit_code:
        raise RuntimeError(f"ghz ended with {exit_code}: {output[-2000:]}")
    return parse_counts(await asyncio.to_thread(report.read_text, encoding="utf-8"))


_WORD = re.compile("(?<=[a-z])(?=[A-Z])")
"""Between the words of a code: ghz has them as Go has, such as ResourceExhausted."""


def parse_counts(report: str) -> Counts:
    """Return the counts of ghz's report."""
    found: dict[str, Any] = json.loads(report)
    took_ms = {each["percentage"]: each["latency"] / 1e6 for each in found["latencyDistribution"] or ()}
    return Counts(
        found["count"],
        found["rps"],
        {_WORD.sub("_", code).upper(): count for code, count in found["statusCodeDistribution"].items()},
        found["errorDistribution"] or {},
        took_ms.get(50, float("nan")),
        took_ms.get(99, float("nan")),
        found["slowest"] / 1e6,
    )


def judge_load(load: Load, counts: Counts) -> Result:
    codes = ", ".join(f"{count:,} {code}" for code, count in sorted(counts.codes.items()))
    first = "".join(f"; {count} x {error[:100]}" for error, count in list(counts.errors.items())[:3])
    return Result(
        load.name,
        counts.calls,
        f"{codes}{first}",
        ok=counts.codes.keys() <= {"OK", REFUSED}
        and 0 < counts.calls == sum(counts.codes.values())
        and counts.codes.get(REFUSED, 0) <= REFUSED_MAX * counts.calls,
        figures={
            "calls/s": counts.rate,
            "p50, ms": counts.p50_ms,
            "p99, ms": counts.p99_ms,
            "slowest, ms": counts.slowest_ms,
        },
    )


def compare_counts(
    counts: Sequence[Counts], records: Sequence[Record], metrics: Mapping[tuple[str, str], float]
) -> Result:
    """Compare what the callers, the bridge and the upstream counted, call by call and chunk by chunk."""
    of_callers = sum((Counter(each.codes) for each in counts), Counter[str]())
    of_bridge: Counter[str] = Counter()
    for (name, labels), value in metrics.items():
        if name == "ollm_bridge_calls_total" and value:
            of_bridge[dict(part.split("=") for part in labels.split(","))["code"].strip('"')] += int(value)
    chunks = int(sum_metric(metrics, "ollm_bridge_chunks_total"))
    events = sum(each.events - 1 for each in records if each.events)
    ended = int(sum_metric(metrics, "ollm_bridge_caller_connections_ended_total"))
    return Result(
        "callers, bridge and upstream count the same",
        of_callers.total(),
        f"{of_callers.total():,} calls, {of_bridge.total():,} of the bridge, {len(records):,} requests",
        ok=of_bridge == of_callers
        and len(records) == of_callers["OK"]
        and all(each.is_finished for each in records)
        and chunks == events
        and not ended,
        figures={
            **{f"{code}, of the bridge": float(count) for code, count in sorted(of_bridge.items())},
            "chunks that the bridge sent": chunks,
            "events that the upstream wrote, without [DONE]": events,
            "answers that the upstream did not finish": sum(not each.is_finished for each in records),
            "connections that the bridge ended for abuse": ended,
        },
    )
