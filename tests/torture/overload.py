"""Three times as many calls as the capacity: the surplus refused at once, the others served as before.

Two bridges are overloaded, each with a limit of calls in flight. The limit bounds the first one, as if
completions take a while: the upstream answers after a quarter of a second, so the capacity is the limit over that
time. The core bounds the second one: the upstream answers at once.

Capacity and latency at saturation are measured with as many calls in flight as the limit admits, then comes the
overload at a fixed rate, then half of the capacity again, and all of it is compared within one run.
"""

import math
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest
from tests.torture.openloop import LOST, OK, PENDING, REFUSED, RESOURCE_EXHAUSTED, Call, Client, connect
from tests.torture.report import Finding, Options
from tests.torture.subject import Process, run_bridge, run_python

__all__ = ["run"]

OVERLOAD = 3.0
SLOWER_MAX = 2.0
BACK_S_MAX = 5.0
REFUSED_MS_MAX = 100.0
"""At once, for a refusal at p99: a tenth of the second after which RetryInfo says to retry."""
WINDOW_S = 0.5


@dataclass(frozen=True)
class Case:
    """A bridge to overload: its limit of calls, and its upstream's model."""

    name: str
    calls_max: int
    model: str


CASES = (
    Case("bound by its limit: 64 calls, the upstream takes 0.25 s", 64, "scenario::slow?delay_s=0.25"),
    Case("bound by its core: 32 calls, the upstream answers at once", 32, "echo"),
)


@dataclass(frozen=True)
class Phases:
    """The calls of each phase, in their order."""

    saturated: list[Call]
    saturated_s: float
    calm: list[Call]
    overloaded: list[Call]
    after: list[Call]
    growth_mib: float

    @property
    def capacity(self) -> float:
        return sum(call.status == OK for call in self.saturated) / self.saturated_s


async def run(options: Options) -> list[Finding]:
    """Overload each bridge for a minute, or for 15 s in a quick run."""
    seconds = 15.0 if options.quick else 60.0
    findings = []
    for case in CASES:
        findings += judge(case, await overload(case, seconds, seconds / 3))
    return findings


async def overload(case: Case, overload_s: float, calm_s: float) -> Phases:
    request = CreateChatCompletionRequest(model=case.model)
    request.messages.add(role="user", text="Tell me about bridges, and how they carry their load.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with (
            run_python("-m", "bridge", "emulate", "--listen", "127.0.0.1:0", log=folder / "emulator.log") as upstream,
            run_bridge(upstream.address, folder=folder, calls_max=case.calls_max) as subject,
            connect(subject.address, request) as client,
        ):
            return await run_phases(case, subject, client, overload_s, calm_s)


async def run_phases(case: Case, subject: Process, client: Client, overload_s: float, calm_s: float) -> Phases:
    await client.call_concurrently(case.calls_max, calm_s / 4)  # to warm up
    saturated = await client.call_concurrently(case.calls_max, calm_s)
    capacity = sum(call.status == OK for call in saturated) / calm_s
    calm = await client.call_at_rate(capacity / 2, calm_s)
    memory = subject.memory_mib
    surplus = await client.call_at_rate(capacity * OVERLOAD, overload_s)
    after = await client.call_at_rate(capacity / 2, max(calm_s, 2 * BACK_S_MAX))
    return Phases(saturated, calm_s, calm, surplus, after, subject.memory_mib - memory)


def judge(case: Case, found: Phases) -> list[Finding]:
    part = "overload"
    surplus = found.overloaded
    admitted = list_times_ms(call for call in surplus if call.status == OK)
    refused = list_times_ms(call for call in surplus if call.status == RESOURCE_EXHAUSTED)
    saturated = list_times_ms(call for call in found.saturated if call.status == OK)
    outcomes = Counter(NAMES.get(call.status, f"status {call.status}") for call in surplus)
    slower = [find_quantile(admitted, share) / find_quantile(saturated, share) for share in (0.5, 0.99)]
    without_advice = sum(call.status == RESOURCE_EXHAUSTED and not call.has_advice for call in surplus)
    back_s = measure_recovery_s(found)
    served = OVERLOAD * len(admitted) / len(surplus)
    return [
        Finding(
            part,
            f"{case.name}: outcomes",
            len(surplus),
            ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items())),
            ok=set(outcomes) <= {"OK", "RESOURCE_EXHAUSTED"} and bool(refused) and not without_advice,
            figures={
                "capacity, calls/s": found.capacity,
                "offered, calls/s": OVERLOAD * found.capacity,
                "served, of capacity": served,
                "refused without RetryInfo": without_advice,
                "memory growth, MiB": found.growth_mib,
            },
            note="every call must end in OK or in RESOURCE_EXHAUSTED, OVERLOADED, with RetryInfo and pushback",
        ),
        Finding(
            part,
            f"{case.name}: the surplus is refused at once",
            len(refused),
            f"refused after {find_quantile(refused, 0.99):.1f} ms at p99",
            ok=find_quantile(refused, 0.99) <= REFUSED_MS_MAX,
            figures={
                "p50, ms": find_quantile(refused, 0.5),
                "p99, ms": find_quantile(refused, 0.99),
                "most, ms": max(refused, default=math.nan),
            },
            note=f"at most {REFUSED_MS_MAX:g} ms at p99",
        ),
        Finding(
            part,
            f"{case.name}: admitted calls keep their latency",
            len(admitted),
            f"{slower[0]:.2f} x at p50, {slower[1]:.2f} x at p99",
            ok=max(slower) <= SLOWER_MAX,
            figures={
                "p50, ms": find_quantile(admitted, 0.5),
                "p99, ms": find_quantile(admitted, 0.99),
                "p50 at saturation, ms": find_quantile(saturated, 0.5),
                "p99 at saturation, ms": find_quantile(saturated, 0.99),
            },
            note=f"at most {SLOWER_MAX:g} x those at saturation without surplus",
        ),
        Finding(
            part,
            f"{case.name}: back to normal",
            len(found.after),
            f"after {back_s:.1f} s",
            ok=back_s <= BACK_S_MAX,
            figures={
                "seconds": back_s,
                "p99 after, ms": find_quantile(list_times_ms(found.after), 0.99),
                "p99 before, ms": find_quantile(list_times_ms(found.calm), 0.99),
            },
            note=f"from the last surplus call on, until each half second has no call refused and its median within "
            f"{SLOWER_MAX:g} x of before, at half of capacity; at most {BACK_S_MAX:g} s",
        ),
    ]


NAMES = {
    OK: "OK",
    RESOURCE_EXHAUSTED: "RESOURCE_EXHAUSTED",
    LOST: "lost",
    PENDING: "pending",
    REFUSED: "REFUSED_STREAM",
}


def list_times_ms(calls: Iterable[Call]) -> list[float]:
    return [call.took_s * 1000 for call in calls]


def find_quantile(times: Sequence[float], share: float) -> float:
    """Return the time within which this share of them lies; NaN if there is none."""
    return sorted(times)[min(int(len(times) * share), len(times) - 1)] if times else math.nan


def measure_recovery_s(found: Phases) -> float:
    """Return the time from the last surplus call to the end of the last half second that was not as before."""
    over_at = found.overloaded[-1].due_at
    normal_ms = statistics.median(list_times_ms(found.calm))
    back_at = found.after[0].due_at
    windows: dict[int, list[Call]] = {}
    for call in found.after:
        windows.setdefault(int((call.due_at - found.after[0].due_at) / WINDOW_S), []).append(call)
    for number, calls in windows.items():
        refused = any(call.status != OK for call in calls)
        if refused or statistics.median(list_times_ms(calls)) > SLOWER_MAX * normal_ms:
            back_at = found.after[0].due_at + (number + 1) * WINDOW_S
    return back_at - over_at
