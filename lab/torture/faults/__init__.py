"""Every fault of two faulty upstreams, in both methods, at each place, with a deadline and without: the end of each.

The required ends are tables here and in tests/kit/status_table.py, written from docs/behavior.md and
docs/operations.md, not from what the bridge does. The emulated gateway's faults run twice: with one connection per
call, when each connection must be closed at the call's end; and with kept connections, when one that was abandoned
within an answer must be closed, and a good call right after each fault must get its own answer, whole.

llmock judges its client by its retries, and the bridge retries nothing. So its faults run with a caller that never
retries, when each call must have reached it just once, and with a caller that retries as the status says, when its
verdict must be clean.
"""

import asyncio
import itertools
import random
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import grpc

from bridge.emulator import SCENARIOS, Emulator
from lab.report import Figure, Result
from lab.torture.faults.judgment import ENDS_MAX, LATE_S_MAX, judge
from lab.torture.faults.llmock import meet_llmock
from lab.torture.faults.required import ALONE, DEADLINES, FAR_S, KEPT_S, REPLY, ROWS, SETTINGS, WORDS, End, Row
from lab.torture.options import Options
from lab.torture.subject import Process, run_bridge
from tests.kit.client import Bridge, chat, scenario

__all__ = ["run"]

REPEATS = 10
"""Of a full run: each time in another order."""
CONCURRENCY = 12

SETTLE_S = 10.0
DESCRIPTORS_MORE_MAX = 8


# The emulated gateway


class Try(NamedTuple):
    """A call, and what is wrong with its end, if anything."""

    row: Row
    stream: bool
    deadline: str
    end: End
    wrong: str
    closed_ms: float | None

    @property
    def where(self) -> str:
        method = "stream" if self.stream else "unary"
        return ", ".join(filter(None, (self.row.scenario, method, self.row.place, self.deadline)))


async def run(options: Options) -> list[Result]:
    """Meet every fault of both upstreams."""
    repeats = 1 if options.quick else REPEATS
    chance = random.Random(f"faults:{options.seed}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one_each, rest_one_each = await meet_all(folder, chance, repeats, 0.0)
        kept, rest_kept = await meet_all(folder, chance, repeats, KEPT_S)
        met = [*group_by_fault([*one_each, *kept]), await meet_refusals(folder, repeats), rest_one_each, rest_kept]
        return [check_coverage(), *met, *await meet_llmock(folder, chance, repeats)]


def check_coverage() -> Result:
    """Check that every fault of the emulated gateway has a row."""
    met = {row.scenario.partition("?")[0] for row in ROWS} | ALONE
    forgotten = sorted(SCENARIOS.keys() - met)
    outcome = f"without a row: {', '.join(forgotten)}" if forgotten else "each has a row"
    return Result("scenarios of the emulated gateway", len(SCENARIOS), outcome, not forgotten, {})


async def meet_all(folder: Path, chance: random.Random, repeats: int, keepalive_s: float) -> tuple[list[Try], Result]:
    """Meet every row's fault, `repeats` times, each time in another order; return the calls, and what is held then."""
    kept = keepalive_s > 0
    settings = SETTINGS | {"upstream__keepalive_s": keepalive_s}
    async with (
        Emulator() as emulator,
        run_bridge(f"127.0.0.1:{emulator.port}", folder=folder, **settings) as subject,
        grpc.aio.insecure_channel(subject.address, options=[("grpc.max_receive_message_length", -1)]) as channel,
    ):
        caller = Bridge(subject.address, channel)
        await caller.ask(chat())
        descriptors = subject.descriptors
        seats = asyncio.Semaphore(CONCURRENCY)
        numbers = itertools.count(1)

        async def one(row: Row, deadline: str, *, stream: bool) -> Try:
            async with seats:
                number = next(numbers)
                tried = await meet(emulator, caller, row, deadline, f"case-{number}", stream=stream, kept=kept)
                if not kept or tried.wrong:
                    return tried
                return tried._replace(wrong=await make_good_call_after(caller, f"after-{number}"))

        cases = [(row, deadline, stream) for row in ROWS for deadline in DEADLINES for stream in (False, True)]
        tries: list[Try] = []
        for _ in range(repeats):
            chance.shuffle(cases)
            tries += await asyncio.gather(*(one(row, deadline, stream=stream) for row, deadline, stream in cases))
        left = await wait_for_rest(emulator, subject, descriptors)
    return tries, judge_rest(left, "connections kept" if kept else "a connection a call", len(tries))


async def meet(
    emulator: Emulator, caller: Bridge, row: Row, deadline: str, name: str, *, stream: bool, kept: bool
) -> Try:
    """Make one call, and judge its end and that of its connection."""
    must = row.stream if stream else row.unary
    timeout_s = DEADLINES[deadline]
    if timeout_s is not None:
        if must.waits_s is None:
            timeout_s = FAR_S
        else:  # the caller gives up first: only the code is known
            must = End("DEADLINE_EXCEEDED", chunks=must.chunks, waits_s=timeout_s)
    request = scenario(row.scenario, messages=[{"role": "user", "text": WORDS.format(id=name)}])
    began_at = time.monotonic()
    answer = await caller.ask(request, stream=stream, timeout=timeout_s, metadata=[("x-request-id", name)])
    ended_at = time.monotonic()
    wrong = judge(answer, must, name, ended_at - began_at, stream=stream)
    exchanges = [each for each in emulator.exchanges if each.headers.get("x-request-id") == name]
    if not wrong and len(exchanges) != 1:
        wrong = f"the upstream got it {len(exchanges)} times"
    closed_ms = None
    if not wrong and not row.is_closing and not (kept and exchanges[0].finished):
        try:
            closed_ms = (await exchanges[0].wait_closed(LATE_S_MAX) - ended_at) * 1000
        except TimeoutError:
            if not (kept and exchanges[0].finished):  # it may have been written to its end meanwhile
                wrong = f"the connection is open {LATE_S_MAX:g} s after the call's end"
    return Try(row, stream, deadline, must, wrong, closed_ms)


async def make_good_call_after(caller: Bridge, name: str) -> str:
    """Make a good call, which may use the connection of a bad one before, and return what is wrong with its answer."""
    answer = await caller.ask(chat(WORDS.format(id=name)), timeout=FAR_S)
    good = answer.failure is None and answer.text == REPLY.format(id=name)
    return "" if good else f"a good call right after it got {answer.failure or answer.text[:80]!r}"


@dataclass(frozen=True)
class Rest:
    """What is held once all calls are over."""

    in_flight: float
    connections: int
    descriptors: int


async def wait_for_rest(emulator: Emulator, subject: Process, descriptors: int) -> Rest:
    """Wait until nothing is held beyond the start, for as long as that may take, and return what is."""

    def measure(in_flight: float) -> Rest:
        return Rest(in_flight, len(emulator.connections), max(0, subject.descriptors - descriptors))

    end = time.monotonic() + SETTLE_S
    while True:
        metrics = await subject.read_metrics()
        in_flight = sum(value for (name, _), value in metrics.items() if name == "ollm_bridge_calls_in_flight")
        left = measure(in_flight)
        none = not (left.in_flight or left.connections) and left.descriptors <= DESCRIPTORS_MORE_MAX
        if none or time.monotonic() > end:
            return left
        await asyncio.sleep(0.2)


def judge_rest(left: Rest, how: str, tried: int) -> Result:
    ok = not (left.in_flight or left.connections) and left.descriptors <= DESCRIPTORS_MORE_MAX
    figures: dict[str, Figure] = {
        "calls in flight": left.in_flight,
        "connections open": left.connections,
        "more descriptors": left.descriptors,
    }
    outcome = "nothing is held" if ok else "something is held"
    return Result(f"after all of them, {how}", tried, outcome, ok, figures)


def group_by_fault(tries: Sequence[Try]) -> list[Result]:
    groups: dict[str, list[Try]] = defaultdict(list)
    for tried in tries:
        groups[tried.row.scenario.partition("?")[0]].append(tried)
    harmless = [name for name, group in sorted(groups.items()) if {tried.end.code for tried in group} == {"OK"}]
    together = [tried for name in harmless for tried in groups.pop(name)]
    title = "no faults, only unusual: " + ", ".join(f"`{name}`" for name in harmless)
    return [build_result(f"`{name}`", groups[name]) for name in sorted(groups)] + [build_result(title, together)]


def build_result(case: str, tries: Sequence[Try]) -> Result:
    wrong = Counter(f"{tried.where}: {tried.wrong}" for tried in tries if tried.wrong)
    closed = [tried.closed_ms for tried in tries if tried.closed_ms is not None]
    figures: dict[str, Figure] = {"closed within, ms": max(0.0, *closed)} if closed else {}
    outcome = "; ".join(f"{count} x {what}" for what, count in wrong.most_common(5)) or describe_ends(tries)
    return Result(case, len(tries), outcome, not wrong, figures)


def describe_ends(tries: Sequence[Try]) -> str:
    """Return the ends, which are as required, by method."""
    texts = {}
    for method, stream in (("unary", False), ("stream", True)):
        found = sorted({str(tried.end) for tried in tries if tried.stream == stream})
        many = f"{len(found)} ends, each by its status or text as behavior.md says"
        texts[method] = ", ".join(found) if len(found) <= ENDS_MAX else many
    same = len(set(texts.values())) == 1
    return texts["unary"] if same else "; ".join(f"{method}: {what}" for method, what in texts.items())


async def meet_refusals(folder: Path, repeats: int) -> Result:
    """Meet resets at accept, which no other call may share, and judge the end of each call."""
    wrong: Counter[str] = Counter()
    async with (
        Emulator() as emulator,
        run_bridge(f"127.0.0.1:{emulator.port}", folder=folder, upstream__keepalive_s=0) as subject,
        grpc.aio.insecure_channel(subject.address) as channel,
    ):
        caller = Bridge(subject.address, channel)
        for _ in range(repeats):
            for stream in (False, True):
                first = await caller.ask(scenario("refuse?connects=2"), stream=stream)
                then = [await caller.ask(chat(), stream=stream, timeout=FAR_S) for _ in range(3)]
                # The connection was there, so the request may have been sent, unless the reset came before.
                lost = {"ABORTED UPSTREAM_DISCONNECTED", "UNAVAILABLE UPSTREAM_UNREACHABLE"}
                found = [f"{each.failure.code} {each.failure.reason}" if each.failure else "OK" for each in then]
                good = first.failure is None and found[2] == "OK" and set(found[:2]) <= lost
                wrong[", ".join(found)] += not good
    bad = +wrong
    outcome = "; ".join(bad) or "two calls lost, as ABORTED UPSTREAM_DISCONNECTED; the next is OK"
    return Result("`refuse`", 8 * repeats, outcome, not bad, {})
