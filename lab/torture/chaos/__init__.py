"""A line that delays, drips, resets, half-closes, stalls and corrupts: in front of the upstream and of the bridge.

The seed draws a plan for each call. The line records the bytes that it passes on, and readers that share no code with
the bridge (`wire.py`) judge the call by them: an OK must be the completion of those bytes; the chunks delivered before
a failure must be its beginning; a failure must have a reason; and each call must end in time, on both sides. Plain HTTP
has no checksum, so a flipped bit may produce another valid answer: then that is the answer.
"""

import asyncio
import contextlib
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from bridge.emulator import Emulator
from lab.report import Figure, Result
from lab.torture.chaos.caller_line import call_over_caller_line
from lab.torture.chaos.calls import CALL_S, IDLE_S, Attempt, open_channel
from lab.torture.chaos.upstream_line import UpstreamLine, call_over_upstream_line
from lab.torture.options import Options
from lab.torture.subject import Process, build_holdings_command, run_bridge
from tests.kit.client import Bridge
from tests.kit.health import answer_good_call, is_expected

__all__ = ["run"]

FULL = {"upstream": 50_000, "caller": 10_000}
QUICK = {"upstream": 1_000, "caller": 300}
CONCURRENCY = 48
WARM = 0.1
"""The part of the calls after which memory is first measured."""

SETTLE_S = 10.0
KEEPALIVE_S = 2.0
MEMORY_MORE_MIB_MAX = 30.0
DESCRIPTORS_MORE_MAX = 8
SETTINGS = {
    "call_timeout_s": CALL_S,
    "upstream__idle_timeout_s": IDLE_S,
    "upstream__first_chunk_timeout_s": IDLE_S,
    "upstream__keepalive_s": KEEPALIVE_S,
}


async def run(options: Options) -> list[Result]:
    """Damage both lines."""
    counts = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as name:
        before = await attack_line(Path(name), "upstream", counts["upstream"], options.seed)
        return [*before, *await attack_line(Path(name), "caller", counts["caller"], options.seed)]


@dataclass(frozen=True)
class Resources:
    """What the bridge holds while no call is in flight."""

    in_flight: float
    connections: int
    descriptors: int
    tasks: int


async def attack_line(folder: Path, side: str, count: int, seed: int) -> list[Result]:
    """Make calls over one damaged line, and inspect the process before and after."""
    async with Emulator() as emulator, contextlib.AsyncExitStack() as stack:
        line = UpstreamLine(emulator)
        port = await stack.enter_async_context(line.listen()) if side == "upstream" else emulator.port
        counts = folder / "tasks"
        subject = await stack.enter_async_context(
            run_bridge(f"127.0.0.1:{port}", folder=folder, command=build_holdings_command(counts), **SETTINGS)
        )
        caller = Bridge(subject.address, await stack.enter_async_context(open_channel(subject.address)))

        async def make_attempt(number: int) -> Attempt:
            chance = Random(f"{seed}:{side}:{number}")
            if side == "upstream":
                return await call_over_upstream_line(line, caller, f"call-{number}", chance)
            return await call_over_caller_line(emulator, subject.address, f"call-{number}", chance)

        await answer_good_call(caller)
        before = await wait_until_settled(subject, emulator, counts)
        warm = round(count * WARM)
        attempts = await run_concurrently(make_attempt, range(warm))
        warm_mib = subject.memory_mib
        attempts += await run_concurrently(make_attempt, range(warm, count))
        growth_mib = subject.memory_mib - warm_mib
        await answer_good_call(caller)
        after = await wait_until_settled(subject, emulator, counts, before)
        alive = subject.is_alive
        log = subject.log_text.splitlines()
    where = {"upstream": "bridge and upstream", "caller": "caller and bridge"}[side]
    return [*list_results(attempts, where), judge_process(where, count, before, after, growth_mib, log, alive=alive)]


async def run_concurrently(make_attempt: Callable[[int], Awaitable[Attempt]], numbers: Iterable[int]) -> list[Attempt]:
    """Make the calls of these numbers concurrently, without a task for each: the collector would walk them all."""
    left = iter(numbers)
    attempts: list[Attempt] = []

    async def work() -> None:
        for number in left:
            attempts.append(await make_attempt(number))  # noqa: PERF401 - all workers share the list

    await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
    return attempts


async def wait_until_settled(
    subject: Process, emulator: Emulator, counts: Path, before: Resources | None = None
) -> Resources:
    """Wait until the bridge holds no more than before, for as long as that may take, and return what it holds."""
    end = time.monotonic() + SETTLE_S
    while True:
        metrics = await subject.read_metrics()
        in_flight = sum(value for (name, _), value in metrics.items() if name == "ollm_bridge_calls_in_flight")
        resources = Resources(
            in_flight, len(emulator.connections), subject.descriptors, (await subject.read_holdings(counts)).tasks
        )
        if not describe_leaks(before or resources, resources) or time.monotonic() > end:
            return resources
        await asyncio.sleep(0.2)


def describe_leaks(before: Resources, after: Resources) -> str:
    """Return what the bridge still holds, in words."""
    kept = [
        (after.in_flight, "calls in flight"),
        (after.connections, "upstream connections"),
        (max(0, after.descriptors - before.descriptors - DESCRIPTORS_MORE_MAX), "descriptors"),
        (max(0, after.tasks - before.tasks), "tasks"),
    ]
    return ", ".join(f"{count:g} {what}" for count, what in kept if count)


def list_results(attempts: Sequence[Attempt], where: str) -> list[Result]:
    groups: dict[str, list[Attempt]] = defaultdict(list)
    for each in attempts:
        groups[each.kind].append(each)
    results = []
    for kind in sorted(groups):
        group = groups[kind]
        wrong = Counter(each.wrong for each in group if each.wrong)
        ends = Counter(each.end for each in group)
        counts_by_text = wrong or ends
        outcome = ", ".join(f"{count} x {what}" for what, count in counts_by_text.most_common(8))
        figures: dict[str, Figure] = {"longest, s": max(each.took_s for each in group)}
        results.append(Result(f"between {where}: {kind}", len(group), outcome, not wrong, figures))
    return results


def judge_process(
    where: str, count: int, before: Resources, after: Resources, growth_mib: float, log: Sequence[str], *, alive: bool
) -> Result:
    faults = [line for line in log if not is_call_line(line)]
    wrong = [
        "" if alive else "it died",
        describe_leaks(before, after),
        f"memory grew by {growth_mib:.0f} MiB" if growth_mib > MEMORY_MORE_MIB_MAX else "",
        f"{len(faults)} lines in the log that are no call's, such as {faults[0][:200]!r}" if faults else "",
    ]
    outcome = "; ".join(filter(None, wrong)) or "alive, answers in time, and holds no more than before"
    figures: dict[str, Figure] = {
        "memory growth, MiB": growth_mib,
        "tasks before": before.tasks,
        "tasks after": after.tasks,
        "descriptors before": before.descriptors,
        "descriptors after": after.descriptors,
    }
    return Result(f"between {where}: the process afterwards", count, outcome, not any(wrong), figures)


def is_call_line(line: str) -> bool:
    """Whether a line of the log is that of a call that ended without a fault of the bridge."""
    return is_expected(line, unexpected_codes=("UNKNOWN",))
