"""Three times as many calls as the capacity: the surplus refused at once, the others served as before.

Two bridges are overloaded, each with a limit of calls in flight. The limit bounds the first one, as if
completions take a while: the upstream answers after a quarter of a second, so the capacity is the limit over that
time. The core bounds the second one: it has one for itself, and an upstream that costs next to nothing.

Capacity and latency at saturation are measured with as many calls in flight as the limit admits, then comes the
overload at a fixed rate, then half of the capacity again, then saturation once more, since a shared machine is not
always as fast; and all of it is compared within one run.

How calls end is required, and that all is as before in the end. Rates and times are targets, as in the benchmarks: one
that is missed is told in the table and fails nothing, since it depends on the machine.
"""

import contextlib
import gc
import math
import os
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.bench.processes import LOAD_CORES, SERVER_CORES
from lab.report import Result
from lab.torture.openloop import LOST, OK, PENDING, REFUSED, RESOURCE_EXHAUSTED, UNSENT, Call, Client, connect
from lab.torture.options import Options
from lab.torture.subject import Process, run_bridge, run_python
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest
from tests.kit.bridges import SERVER_ENGINE

__all__ = ["run"]

OVERLOAD = 3.0
WINDOW_S = 0.5
NORMAL_WINDOWS = 4
SLOWER_AFTER_MAX = 2.0
"""Of the median in a half second at half of the capacity, to count as back to normal."""


@dataclass(frozen=True)
class Target:
    """Of the latency of admitted calls at p50, x of that at saturation; of a refusal's at p99; of what is served, x the
    capacity; and of the time until all is as before."""

    slower_max: float
    refused_ms_max: float
    served_min: float
    back_s_max: float


BY_LIMIT = Target(slower_max=2.0, refused_ms_max=100.0, served_min=0.9, back_s_max=5.0)
"""A refusal at once is a tenth of the second after which RetryInfo says to retry."""
BY_CORE = {
    "native": Target(slower_max=3.0, refused_ms_max=200.0, served_min=0.9, back_s_max=2.0),
    # grpc's core hands calls over one by one: what waits in it, refusals too, nobody sees.
    "grpcio": Target(slower_max=5.0, refused_ms_max=1000.0, served_min=0.9, back_s_max=5.0),
}
"""With a core that is busy a refusal waits for its turn of the loop, behind calls."""


@dataclass(frozen=True)
class Case:
    """A bridge to overload: its limit of calls, its upstream's model and program, and the target."""

    name: str
    calls_max: int
    model: str
    target: Target
    upstream: tuple[str, ...] = ("-m", "bridge", "emulate", "--listen", "127.0.0.1:0")


CASES = (
    Case("bound by its limit: 64 calls, the upstream takes 0.25 s", 64, "scenario::slow?delay_s=0.25", BY_LIMIT),
    Case(
        "bound by its core: 32 calls, the upstream answers at once",
        32,
        "echo",
        BY_CORE[SERVER_ENGINE],
        upstream=("-m", "lab.bench.canned"),
    ),
)


@dataclass(frozen=True)
class Phases:
    """The calls of each phase, in their order."""

    saturated: list[Call]
    saturated_s: float
    calm: list[Call]
    overloaded: list[Call]
    after: list[Call]
    after_s: float
    growth_mib: float

    @property
    def capacity(self) -> float:
        return sum(call.status == OK for call in self.saturated) / self.saturated_s


async def run(options: Options) -> list[Result]:
    """Overload each bridge for a minute, or for 15 s in a quick run."""
    seconds = 15.0 if options.quick else 60.0
    results = []
    for case in CASES:
        results += judge(case, await overload(case, seconds, seconds / 3))
    return results


async def overload(case: Case, overload_s: float, calm_s: float) -> Phases:
    request = CreateChatCompletionRequest(model=case.model)
    request.messages.add(role="user", text="Tell me about bridges, and how they carry their load.")
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(keep_on(LOAD_CORES))  # this process, and those that it starts
        upstream = await stack.enter_async_context(run_python(*case.upstream, log=folder / "upstream.log"))
        with keep_on(SERVER_CORES):
            subject = await stack.enter_async_context(
                run_bridge(upstream.address, folder=folder, calls_max=case.calls_max)
            )
        client = await stack.enter_async_context(connect(subject.address, request))
        return await run_phases(case, subject, client, overload_s, calm_s)


@contextlib.contextmanager
def keep_on(cores: Iterable[int]) -> Iterator[None]:
    """While the block lasts, keep this process on these cores, and for good each one that it starts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


async def run_phases(case: Case, subject: Process, client: Client, overload_s: float, calm_s: float) -> Phases:
    gc.disable()  # this process keeps each call: a walk over all of them would hold calls back until they are a burst
    await client.call_concurrently(case.calls_max, calm_s / 4)  # to warm up
    saturated = await client.call_concurrently(case.calls_max, calm_s)
    capacity = sum(call.status == OK for call in saturated) / calm_s
    calm = await client.call_at_rate(capacity / 2, calm_s)
    memory = subject.memory_mib
    surplus = await client.call_at_rate(capacity * OVERLOAD, overload_s)
    after_s = max(calm_s, 2 * BY_LIMIT.back_s_max)
    after = await client.call_at_rate(capacity / 2, after_s)
    growth_mib = subject.memory_mib - memory
    saturated += await client.call_concurrently(case.calls_max, calm_s)
    return Phases(saturated, 2 * calm_s, calm, surplus, after, after_s, growth_mib)


def judge(case: Case, found: Phases) -> list[Result]:
    surplus, target = found.overloaded, case.target
    admitted = list_times_ms(call for call in surplus if call.status == OK)
    sent = [(call.ended_at - call.sent_at) * 1000 for call in surplus if call.status == OK]
    refused = list_times_ms(call for call in surplus if call.status == RESOURCE_EXHAUSTED)
    saturated = list_times_ms(call for call in found.saturated if call.status == OK)
    outcomes = Counter(NAMES.get(call.status, f"status {call.status}") for call in surplus)
    slower = [find_quantile(admitted, share) / find_quantile(saturated, share) for share in (0.5, 0.99)]
    without_advice = sum(call.status == RESOURCE_EXHAUSTED and not call.has_advice for call in surplus)
    back_s = measure_recovery_s(found)
    offered = len(surplus) / (surplus[-1].due_at - surplus[0].due_at)
    served = offered / found.capacity * len(admitted) / len(surplus)
    return [
        Result(
            f"{case.name}: outcomes",
            len(surplus),
            ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items())),
            ok=set(outcomes) <= {"OK", "RESOURCE_EXHAUSTED", "REFUSED_STREAM", "not sent"}
            and 0 < len(admitted) < len(surplus)
            and not without_advice,
            figures={
                "capacity, calls/s": found.capacity,
                "offered, calls/s": offered,
                "refused without RetryInfo": without_advice,
                "memory growth, MiB": found.growth_mib,
            },
            note="every call must end in OK, in RESOURCE_EXHAUSTED, OVERLOADED, with RetryInfo and pushback, or as one "
            "above streams_max, which clients repeat; one that is not sent found no stream below streams_max for a "
            "second, so its client gave it up",
        ),
        Result(
            f"{case.name}: the capacity is served",
            len(admitted),
            tell(f"{served:.2f} of the capacity", is_met=served >= target.served_min),
            note=f"target: at least {target.served_min:g}",
        ),
        judge_refusals(case, refused),
        Result(
            f"{case.name}: admitted calls keep their latency",
            len(admitted),
            tell(f"{slower[0]:.2f} x at p50, {slower[1]:.2f} x at p99", is_met=slower[0] <= target.slower_max),
            figures={
                "p50, ms": find_quantile(admitted, 0.5),
                "p99, ms": find_quantile(admitted, 0.99),
                "p50 of them once sent, ms": find_quantile(sent, 0.5),
                "p50 at saturation, ms": find_quantile(saturated, 0.5),
                "p99 at saturation, ms": find_quantile(saturated, 0.99),
            },
            note=f"target: at p50 at most {target.slower_max:g} x that at saturation without surplus",
        ),
        Result(
            f"{case.name}: back to normal",
            len(found.after),
            tell(f"after {back_s:.1f} s", is_met=back_s <= target.back_s_max),
            ok=back_s < math.inf and list_normal_windows(found)[-1],
            figures={
                "seconds": back_s,
                "refused in the worst half second before": max(map(count_refused, cut_windows(found.calm))),
                "p99 after, ms": find_quantile(list_times_ms(found.after), 0.99),
                "p99 before, ms": find_quantile(list_times_ms(found.calm), 0.99),
            },
            note="from the last surplus call on, until the first two seconds in which no half second has more calls "
            f"refused than the worst before, and each a median within {SLOWER_AFTER_MAX:g} x of before, at half of "
            f"capacity; it must be so within the {found.after_s:g} s, and in their end; "
            f"target: at most {target.back_s_max:g} s",
        ),
    ]


def judge_refusals(case: Case, refused: Sequence[float]) -> Result:
    """Return the result of the calls that were refused after these times, in ms."""
    name, bound_ms = f"{case.name}: the surplus is refused at once", case.target.refused_ms_max
    note = f"target: at most {bound_ms:g} ms at p99"
    if not refused:
        return Result(name, 0, "none was refused", note=note)
    p99_ms = find_quantile(refused, 0.99)
    outcome = tell(f"refused after {p99_ms:.1f} ms at p99", is_met=p99_ms <= bound_ms)
    figures = {"p50, ms": find_quantile(refused, 0.5), "p99, ms": p99_ms, "most, ms": max(refused)}
    return Result(name, len(refused), outcome, figures=figures, note=note)


NAMES = {
    OK: "OK",
    RESOURCE_EXHAUSTED: "RESOURCE_EXHAUSTED",
    LOST: "lost",
    PENDING: "pending",
    REFUSED: "REFUSED_STREAM",
    UNSENT: "not sent",
}


def tell(words: str, *, is_met: bool) -> str:
    """Return the outcome of a target."""
    return words if is_met else f"**target missed:** {words}"


def list_times_ms(calls: Iterable[Call]) -> list[float]:
    return [call.took_s * 1000 for call in calls]


def find_quantile(times: Sequence[float], share: float) -> float:
    """Return the time within which this share of them lies; NaN if there is none."""
    return sorted(times)[min(int(len(times) * share), len(times) - 1)] if times else math.nan


def measure_recovery_s(found: Phases) -> float:
    """Return the time from the last surplus call to the first two seconds that are as before; infinite without any."""
    normal = list_normal_windows(found)
    for number in range(len(normal) - NORMAL_WINDOWS + 1):
        if all(normal[number : number + NORMAL_WINDOWS]):
            return found.after[0].due_at + number * WINDOW_S - found.overloaded[-1].due_at
    return math.inf


def list_normal_windows(found: Phases) -> list[bool]:
    """Return whether each half second after the overload is as those before it."""
    slow_ms = SLOWER_AFTER_MAX * statistics.median(list_times_ms(found.calm))
    refused_max = max(map(count_refused, cut_windows(found.calm)))
    return [
        statistics.median(list_times_ms(calls)) <= slow_ms and count_refused(calls) <= refused_max
        for calls in cut_windows(found.after)
    ]


def cut_windows(calls: Sequence[Call]) -> list[list[Call]]:
    """Return the calls of each half second."""
    windows: list[list[Call]] = [[] for _ in range(int((calls[-1].due_at - calls[0].due_at) / WINDOW_S) + 1)]
    for call in calls:
        windows[int((call.due_at - calls[0].due_at) / WINDOW_S)].append(call)
    return [window for window in windows if window]


def count_refused(calls: Sequence[Call]) -> int:
    return sum(call.status != OK for call in calls)
