"""Every fault of two faulty upstreams, in both methods, at each place, with a deadline and without: the end of each.

The required ends are tables here and in tests/kit/http_statuses.py, written from docs/behavior.md and
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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from bridge.emulator import SCENARIOS, Emulator
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest
from tests.conftest import Answer, Bridge, chat, scenario
from tests.kit.http_statuses import BARE, BY_STATUS, ENVELOPED
from tests.real import servers
from tests.real.servers import Llmock
from tests.torture.report import Finding, Options
from tests.torture.subject import Process, run_bridge

__all__ = ["run"]

REPEATS = 10
"""Of a full run: each time in another order."""
CONCURRENCY = 12

IDLE_S, CALL_S, DEADLINE_S = 1.0, 6.0, 0.5
"""The bridge's own limits, and the deadline of a caller whose deadline comes first."""
FAR_S = 20.0
"""A deadline that never comes."""
LATE_S_MAX = 1.0
KEPT_S = 1.0
SETTLE_S = 10.0
BODY_BYTES_MAX, EVENT_BYTES_MAX = 4 * 1024 * 1024, 1024 * 1024
DESCRIPTORS_MORE_MAX = 8
SETTINGS = {
    "call_timeout_s": CALL_S,
    "upstream__idle_timeout_s": IDLE_S,
    "upstream__response_bytes_max": BODY_BYTES_MAX,
    "upstream__event_bytes_max": EVENT_BYTES_MAX,
}

DEADLINES = {"no deadline": None, "a deadline": DEADLINE_S}
PLACES = {"before the headers": -1, "before the first chunk": 0, "at the first chunk": 1, "after the first chunk": 3}
"""By the number of events, or slices of a body, that were sent before the fault."""


# The required ends


@dataclass(frozen=True)
class End:
    """The end of a call; a failure's details are ErrorInfo, RequestInfo and those in `details`.

    `chunks` were delivered before a failure. `status` is the HTTP status in UpstreamError; None if nothing
    promises one. `waits_s` is how long the bridge waits before it gives up.
    """

    code: str = "OK"
    reason: str = ""
    text: str = ""
    chunks: int = 0
    status: int | None = None
    details: frozenset[str] = frozenset()
    retry_ms: int | None = None
    waits_s: float | None = None

    def __str__(self) -> str:
        return f"{self.code} {self.reason}".rstrip()


class Row(NamedTuple):
    """A fault, its place, and the ends of both methods; `is_closing`: the upstream itself closes the connection."""

    scenario: str
    unary: End
    stream: End
    place: str = ""
    is_closing: bool = False


WORDS = "one two {id}"
REPLY = "You said: one two {id}"
CHUNKS = 7  # the role, five words and the end
WHOLE = End(text=REPLY)
LOST = End("ABORTED", "UPSTREAM_DISCONNECTED")
INVALID = End("INTERNAL", "INVALID_UPSTREAM_RESPONSE", status=200)
INCOMPLETE = End("ABORTED", "INCOMPLETE_STREAM", status=200)
BROKEN = End("INTERNAL", "UPSTREAM_STREAM_ERROR", status=200)
LARGE = End("INTERNAL", "UPSTREAM_RESPONSE_TOO_LARGE", status=200)
LARGE_BODY = replace(LARGE, status=None)
STALLED = End("DEADLINE_EXCEEDED", "UPSTREAM_TIMEOUT", waits_s=IDLE_S)

OWN = {
    "UPSTREAM_UNREACHABLE",
    "UPSTREAM_DISCONNECTED",
    "UPSTREAM_TIMEOUT",
    "INCOMPLETE_STREAM",
    "INVALID_UPSTREAM_RESPONSE",
    "UPSTREAM_RESPONSE_TOO_LARGE",
}
"""Reasons of the bridge's own; the others are the upstream's."""

HARMLESS = {
    "plain": WHOLE,
    "slow?delay_s=0.1&chunk_delay_s=0.01": WHOLE,
    "split?size=7": WHOLE,
    "no_done": WHOLE,
    "comments?every=0.15&count=2": WHOLE,  # longer than the idle timeout in all, but never without data for as long
    "huge_event?size=200000": WHOLE,
    "big?size=2000000": WHOLE,
    "many?chunks=1000&bytes=50": WHOLE,
    "pace?chunks=10&interval_ms=5": WHOLE,
    "crlf": WHOLE,
    "cr": WHOLE,
    "bom": WHOLE,
    "multiline": WHOLE,
    "usage_chunk": WHOLE,
    "reasoning": WHOLE,
    "logprobs": WHOLE,
    "unknown_fields": WHOLE,
    "misfit": WHOLE,
    "surrogate": WHOLE,
    "two_choices": WHOLE,
    "mirror": WHOLE,
    "gzip": WHOLE,
    "header_flood?count=40&size=100": WHOLE,
}
_TEXTS: dict[str, tuple[str, str]] = {  # if the answer is another one: unary and streamed
    "huge_event": ("x" * 200_000, "x" * 200_000 + REPLY),
    "big": ("x" * 2_000_000, ""),
    "many": (REPLY, "x" * 50_000),
    "pace": (REPLY, ""),
    "mirror": ("", ""),
    "surrogate": ("cut \ufffd", "cut \ufffd\ufffd whole" + REPLY),
}
"""An empty text is not compared: it can't be known before."""


def _list_harmless() -> Iterator[Row]:
    for text, end in HARMLESS.items():
        unary, stream = _TEXTS.get(text.partition("?")[0], (REPLY, REPLY))
        large = text.startswith("big")  # more than an event may have
        yield Row(text, replace(end, text=unary), LARGE if large else replace(end, text=stream))


def _list_broken_off() -> Iterator[Row]:
    for place, after in PLACES.items():
        lost_in_body = replace(LOST, chunks=after, status=200) if after >= 0 else LOST
        for name in ("reset", "close"):
            yield Row(f"{name}?after={after}", LOST, lost_in_body, place, is_closing=True)
        if after < 0:
            yield Row("stall?headers=0", replace(STALLED, waits_s=CALL_S), replace(STALLED, waits_s=CALL_S), place)
            continue
        yield Row(f"half_chunk?after={after}", LOST, lost_in_body, place, is_closing=True)
        yield Row(f"stall?after={after}", STALLED, replace(STALLED, chunks=after, status=200), place)
        yield Row(f"cut?after={after}", INVALID, replace(INCOMPLETE, chunks=after), place)
        yield Row(f"garbage?after={after}", INVALID, replace(INVALID, chunks=after), place)
        yield from _list_error_events(place, after)


def _list_error_events(place: str, after: int) -> Iterator[Row]:
    broken = replace(BROKEN, chunks=after)
    for query in ("", "&flat=1", "&raw=1", "&named=1", "&code=no_known_word"):
        yield Row(f"error_event?after={after}{query}", BROKEN, broken, place)
    for query, code, detail in (
        ("status=429", "RESOURCE_EXHAUSTED", ""),
        ("code=insufficient_quota", "RESOURCE_EXHAUSTED", "QuotaFailure"),
        ("type=invalid_request_error", "INVALID_ARGUMENT", ""),
        ("code=504", "DEADLINE_EXCEEDED", ""),
        ("type=overloaded_error", "UNAVAILABLE", ""),
    ):
        end = replace(BROKEN, code=code, details=frozenset({detail} - {""}))
        delivered = replace(end, chunks=after)
        if after and code == "UNAVAILABLE":  # reserved for calls that generated nothing
            delivered = replace(delivered, code="ABORTED")
        yield Row(f"error_event?after={after}&{query}", end, delivered, place)


def _list_answers() -> Iterator[Row]:
    """Yield the faults that are a whole answer, of which no chunk is delivered, or all are."""
    place = "before the first chunk"
    for row in (*ENVELOPED, *BARE):
        details = frozenset({"ResourceInfo"}) if row.code == "NOT_FOUND" else frozenset()
        end = End(row.code, row.reason, status=row.status, details=details)
        yield Row(f"error?status={row.status}&envelope={row.envelope}&type=odd_type", end, end, place)
    for name, end in {
        "http_error?status=507": End("INTERNAL", "UPSTREAM_INTERNAL", status=507),
        "rate_limited": End("RESOURCE_EXHAUSTED", "UPSTREAM_RATE_LIMITED", status=429, retry_ms=1000),
        "overloaded": End("UNAVAILABLE", "UPSTREAM_UNAVAILABLE", status=503, retry_ms=1000),
        "flaky?retry_after_ms=200": End("UNAVAILABLE", "UPSTREAM_UNAVAILABLE", status=503, retry_ms=200),
        "provider_failed": End("UNAVAILABLE", "UPSTREAM_PROVIDER_FAILED", status=502),
        "error?status=429&retry_after_ms=1500": End(
            "RESOURCE_EXHAUSTED", "UPSTREAM_RATE_LIMITED", status=429, retry_ms=1500
        ),
        "error?status=503&retry_after=90": End("UNAVAILABLE", "UPSTREAM_UNAVAILABLE", status=503, retry_ms=90_000),
        "error?status=400&param=messages[0]": End(
            "INVALID_ARGUMENT", "UPSTREAM_INVALID_REQUEST", status=400, details=frozenset({"BadRequest"})
        ),
        "error?status=429&code=insufficient_quota": End(
            "RESOURCE_EXHAUSTED", "UPSTREAM_RATE_LIMITED", status=429, details=frozenset({"QuotaFailure"})
        ),
        "not_json": INVALID,
        "not_object": INVALID,
        "redirect": replace(INVALID, status=307),
        "redirect?status=302&location=/v1/chat/completions": replace(INVALID, status=302),
        "header_flood?count=1&size=20000": INVALID,
    }.items():
        yield Row(name, end, end, place)
    yield Row("wrong_type", WHOLE, INVALID, place)
    yield Row("wrong_type?in_200=1", BROKEN, BROKEN, place)
    yield Row("done_only", WHOLE, INCOMPLETE, place)
    yield Row("huge_event?size=2000000", replace(WHOLE, text=""), LARGE, place)
    yield Row("big?size=6000000", LARGE_BODY, LARGE, place)
    yield Row("gzip?bomb=1", LARGE_BODY, LARGE, place)
    place = "after all chunks"
    yield Row("no_finish", WHOLE, replace(INCOMPLETE, chunks=CHUNKS), place)
    yield Row("no_choices", INVALID, replace(INCOMPLETE, chunks=CHUNKS), place)


ROWS = (*_list_harmless(), *_list_broken_off(), *_list_answers())
ALONE = frozenset({"refuse"})
"""Faults that would affect other calls too."""


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


async def run(options: Options) -> list[Finding]:
    """Meet every fault of both upstreams."""
    repeats = 1 if options.quick else REPEATS
    chance = random.Random(f"faults:{options.seed}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one_each, rest_one_each = await meet_all(folder, chance, repeats, 0.0)
        kept, rest_kept = await meet_all(folder, chance, repeats, KEPT_S)
        met = [*group_by_fault([*one_each, *kept]), await meet_refusals(folder, repeats), rest_one_each, rest_kept]
        return [check_coverage(), *met, *await meet_llmock(folder, chance, repeats)]


def check_coverage() -> Finding:
    """Check that every fault of the emulated gateway has a row."""
    met = {row.scenario.partition("?")[0] for row in ROWS} | ALONE
    forgotten = sorted(SCENARIOS.keys() - met)
    outcome = f"without a row: {', '.join(forgotten)}" if forgotten else "each has a row"
    return Finding("faults", "scenarios of the emulated gateway", len(SCENARIOS), outcome, not forgotten, {})


async def meet_all(folder: Path, chance: random.Random, repeats: int, keepalive_s: float) -> tuple[list[Try], Finding]:
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


def judge(answer: Answer, must: End, name: str, took_s: float, *, stream: bool) -> str:
    """Return what is wrong with an answer; "" if nothing is."""
    if must.waits_s is not None and not must.waits_s * 0.9 <= took_s <= must.waits_s + LATE_S_MAX:
        return f"it ended after {took_s:.2f} s instead of {must.waits_s:g} s"
    if answer.failure is None:
        expected = must.text.format(id=name)
        if must.code != "OK":
            return f"OK instead of {must}"
        return "" if not expected or answer.text == expected else f"another text than {expected[:80]!r}"
    failed = answer.failure
    found = End(failed.code, failed.details["ErrorInfo"].reason if "ErrorInfo" in failed.details else "")
    if str(found) != str(must):
        return f"{found} instead of {must}: {failed.message[:120]}"
    if len(answer.messages) != must.chunks * stream:
        return f"{len(answer.messages)} chunks before it instead of {must.chunks}"
    return judge_details(answer, must, name) if must.reason else ""


def judge_details(answer: Answer, must: End, name: str) -> str:
    failed = answer.failure
    expected = {"ErrorInfo", "RequestInfo", *must.details}
    expected |= {"UpstreamError"} if must.status is not None else failed.details.keys() & {"UpstreamError"}
    expected |= {"RetryInfo"} if must.retry_ms is not None else set()
    if failed.details.keys() != expected:
        return f"expected the details {sorted(expected)}, found {sorted(failed.details)}"
    domain = "ollmbridge" if must.reason in OWN else "upstream.ollmbridge"
    facts: list[tuple[str, Any, Any]] = [
        ("domain", failed.info.domain, domain),
        ("request id", failed.details["RequestInfo"].request_id, name),
        ("a message", bool(failed.message), True),
    ]
    if must.status is not None:
        facts += [
            ("httpStatus", failed.info.metadata["httpStatus"], str(must.status)),
            ("http_status", failed.upstream.http_status, must.status),
            ("chunks_delivered", failed.upstream.chunks_delivered, len(answer.messages)),
        ]
    if must.retry_ms is not None:
        repeatable = must.code in {"UNAVAILABLE", "RESOURCE_EXHAUSTED"}
        pushback = str(must.retry_ms if must.retry_ms <= 60_000 else -1) if repeatable else None
        facts += [
            ("RetryInfo, ms", failed.details["RetryInfo"].retry_delay.ToMilliseconds(), must.retry_ms),
            ("grpc-retry-pushback-ms", failed.trailers.get("grpc-retry-pushback-ms"), pushback),
        ]
    return next((f"{what}: {found!r} instead of {good!r}" for what, found, good in facts if found != good), "")


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


def judge_rest(left: Rest, how: str, tried: int) -> Finding:
    ok = not (left.in_flight or left.connections) and left.descriptors <= DESCRIPTORS_MORE_MAX
    figures: dict[str, float | str] = {
        "calls in flight": left.in_flight,
        "connections open": left.connections,
        "more descriptors": left.descriptors,
    }
    outcome = "nothing is held" if ok else "something is held"
    return Finding("faults", f"after all of them, {how}", tried, outcome, ok, figures)


def group_by_fault(tries: Sequence[Try]) -> list[Finding]:
    groups: dict[str, list[Try]] = defaultdict(list)
    for tried in tries:
        groups[tried.row.scenario.partition("?")[0]].append(tried)
    harmless = [name for name, group in sorted(groups.items()) if {tried.end.code for tried in group} == {"OK"}]
    together = [tried for name in harmless for tried in groups.pop(name)]
    title = "no faults, only unusual: " + ", ".join(f"`{name}`" for name in harmless)
    return [build_finding(f"`{name}`", groups[name]) for name in sorted(groups)] + [build_finding(title, together)]


def build_finding(case: str, tries: Sequence[Try]) -> Finding:
    wrong = Counter(f"{tried.where}: {tried.wrong}" for tried in tries if tried.wrong)
    closed = [tried.closed_ms for tried in tries if tried.closed_ms is not None]
    figures: dict[str, float | str] = {"closed within, ms": max(0.0, *closed)} if closed else {}
    outcome = "; ".join(f"{count} x {what}" for what, count in wrong.most_common(5)) or describe_ends(tries)
    return Finding("faults", case, len(tries), outcome, not wrong, figures)


ENDS_MAX = 4


def describe_ends(tries: Sequence[Try]) -> str:
    """Return the ends, which are as required, by method."""
    texts = {}
    for method, stream in (("unary", False), ("stream", True)):
        found = sorted({str(tried.end) for tried in tries if tried.stream == stream})
        many = f"{len(found)} ends, each by its status or text as behavior.md says"
        texts[method] = ", ".join(found) if len(found) <= ENDS_MAX else many
    same = len(set(texts.values())) == 1
    return texts["unary"] if same else "; ".join(f"{method}: {what}" for method, what in texts.items())


async def meet_refusals(folder: Path, repeats: int) -> Finding:
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
    return Finding("faults", "`refuse`", 8 * repeats, outcome, not bad, {})


# llmock

STALL_S = 30
LLMOCK_FAULTS = ("disconnect", "truncate", "malformed", "stall")
BY_DEFINITION = {"truncated_stream_accepted", "malformed_chunk_ignored", "gave_up"}
"""llmock's findings about any client that does not retry, whatever it reports to its own caller."""
LONG = {"type": "reply", "text": "word " * 5_000, "match": {"stream": True}}
TRIES_MAX = 3
BACKOFF_S = (0.06, 0.2)
RETRIED = {"RESOURCE_EXHAUSTED", "UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED"}
"""The codes that a caller retries; and INTERNAL, if the stream was broken or a 500 was its cause."""


@dataclass(frozen=True)
class Mocked:
    """A behaviour of llmock's, and its required end."""

    name: str
    behavior: dict[str, Any]
    stream: bool
    end: End
    fields: dict[str, Any]

    @property
    def is_stream_fault(self) -> bool:
        return bool(self.behavior["type"] == "stream_fault")


def list_mocked() -> Iterator[Mocked]:
    tools = {"tools": [{"function": {"name": "get_weather", "parameters_json": "{}"}}]}
    for stream in (False, True):
        for status, (code, reason) in BY_STATUS.items():
            details = frozenset({"ResourceInfo"}) if code == "NOT_FOUND" else frozenset()
            end = End(code, reason, status=status, details=details)
            yield Mocked(f"fail, {status}", {"type": "fail", "status": status}, stream, end, {})
        for status in (429, 503):
            code, reason = BY_STATUS[status]
            end = End(code, reason, status=status)
            behavior = {"type": "fail", "status": status, "retry_after": 0.3}
            yield Mocked(f"fail, {status} with retry_after", behavior, stream, end, {})
        yield Mocked("delay", {"type": "delay", "seconds": 0.1}, stream, WHOLE, {})
        yield Mocked("reply", {"type": "reply", "text": "橋 \u2028 [DONE] \x01"}, stream, WHOLE, {})
        for kind in ("malformed_arguments", "unknown_tool"):
            yield Mocked(f"tool_fault, {kind}", {"type": "tool_fault", "kind": kind}, stream, WHOLE, tools)
    yield Mocked("slow_first_token", {"type": "slow_first_token", "seconds": 0.1}, True, WHOLE, {})
    for kind, after in itertools.product(LLMOCK_FAULTS, (0, 1, 3)):
        must = {"disconnect": LOST, "truncate": INCOMPLETE, "malformed": INVALID, "stall": STALLED}[kind]
        behavior = {"type": "stream_fault", "kind": kind, "after_chunks": after, "stall_seconds": STALL_S}
        place = {0: "before", 1: "at", 3: "after"}[after]
        end = replace(must, chunks=after, status=200)
        yield Mocked(f"stream_fault, {kind} {place} the first chunk", behavior, True, end, {})


async def meet_llmock(folder: Path, chance: random.Random, repeats: int) -> list[Finding]:
    """Meet llmock's behaviours, and let it judge."""
    if missing := servers.find_missing_packages():
        what = f"not run: {', '.join(missing)} missing; `make test-real` installs them"
        return [Finding("faults", "llmock", 0, what, ok=False, figures={})]
    with servers.llmock(directory=folder) as llmock:
        settings = SETTINGS | {"upstream__keepalive_s": KEPT_S}
        async with (
            run_bridge(llmock.url.removeprefix("http://"), folder=folder, **settings) as subject,
            grpc.aio.insecure_channel(subject.address) as channel,
        ):
            caller = Bridge(subject.address, channel)
            cases = list(list_mocked()) * repeats
            chance.shuffle(cases)
            with_deadlines = [(case, deadline) for case in cases for deadline in DEADLINES]
            once = await call_once(llmock, caller, with_deadlines)
            return [*once, await call_with_retries(llmock, caller, cases, chance)]


async def call_once(llmock: Llmock, caller: Bridge, cases: Sequence[tuple[Mocked, str]]) -> list[Finding]:
    """Call each once: judge the end, and that llmock got the call once and to its end, or saw a disconnect."""
    wrong: dict[str, Counter[str]] = defaultdict(Counter)
    tried: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for number, (case, deadline) in enumerate(cases):
        await llmock.reset()
        await llmock.scenario(case.behavior)
        must, timeout_s = case.end, DEADLINES[deadline]
        if timeout_s is not None:
            timeout_s = FAR_S if must.waits_s is None else timeout_s
            must = must if must.waits_s is None else End("DEADLINE_EXCEEDED", chunks=must.chunks, waits_s=timeout_s)
        name = f"case-{number}"
        began_at = time.monotonic()
        metadata = [("x-request-id", name)]
        answer = await caller.ask(
            build_mock_request(case, name), stream=case.stream, timeout=timeout_s, metadata=metadata
        )
        took_s = time.monotonic() - began_at
        requests = await llmock.requests()
        what = "" if len(requests) == 1 else f"llmock got it {len(requests)} times"
        if not what:
            what = judge(
                answer, replace(must, text="", retry_ms=read_wait_ms(requests[0])), name, took_s, stream=case.stream
            )
        if not what and must.waits_s is not None:
            left = not requests[0]["completed"] and (requests[0]["stall_waited"] or 0) <= must.waits_s + LATE_S_MAX
            what = "" if left else "llmock saw no disconnect"
        kind = " ".join(case.name.split()[:2]).rstrip(",") if case.is_stream_fault else case.name.partition(",")[0]
        tried[kind] += 1
        wrong[kind][f"{case.name}, {deadline}: {what}"] += bool(what)
        found.update(each["code"] for each in (await llmock.verdict())["findings"])
    findings = []
    for kind, count in tried.items():
        bad = +wrong[kind]
        found_ends = sorted({str(case.end) for case, _ in cases if case.name.startswith(kind)})
        texts = ", ".join(found_ends) if len(found_ends) <= ENDS_MAX else f"{len(found_ends)} ends, each by its status"
        outcome = "; ".join(f"{each} x {what}" for what, each in bad.most_common(5)) or texts
        findings.append(Finding("faults", f"llmock: {kind}", count, outcome, not bad, {}))
    ill = {code: count for code, count in found.items() if code not in BY_DEFINITION}
    outcome = "; ".join(f"{count} x {code}" for code, count in ill.items()) or "each came once; none was retried"
    note = "llmock calls a client that never retries " + ", ".join(
        f"`{code}` ({found[code]})" for code in sorted(BY_DEFINITION) if found[code]
    )
    findings.sort(key=lambda each: each.case)
    case = "llmock's verdict on a caller that retries nothing"
    return [*findings, Finding("faults", case, len(cases), outcome, not ill, {}, note)]


def read_wait_ms(request: dict[str, Any]) -> int | None:
    """Return the wait that llmock requested."""
    return None if request["retry_after"] is None else round(request["retry_after"] * 1000)


async def call_with_retries(llmock: Llmock, caller: Bridge, cases: Sequence[Mocked], chance: random.Random) -> Finding:
    """Call as a caller does that retries by the status: llmock must find no fault."""
    found: Counter[str] = Counter()
    attempts = calls = 0
    for number, case in enumerate(cases):
        await llmock.reset()
        # Long, so that llmock is still writing when the bridge disconnects: else it takes all it wrote for read.
        await llmock.scenario(case.behavior, *([LONG] if case.is_stream_fault else []))
        again = await retry(caller, case, f"again-{number}", chance)
        verdict = await llmock.verdict()
        calls += 1
        attempts += verdict["attempts"]
        found.update(f"{case.name}: {each['code']}" for each in verdict["findings"])
        if again != verdict["attempts"]:
            found[f"{case.name}: {again} calls were {verdict['attempts']} requests"] += 1
    outcome = "; ".join(f"{count} x {what}" for what, count in found.most_common(5)) or "clean"
    figures: dict[str, float | str] = {"calls": calls, "attempts": attempts}
    return Finding(
        "faults", "llmock's verdict on a caller that retries by the status", calls, outcome, not found, figures
    )


async def retry(caller: Bridge, case: Mocked, name: str, chance: random.Random) -> int:
    """Call until it is OK or the status says that it won't be, and return the number of calls."""
    for count in range(1, TRIES_MAX + 1):
        answer = await caller.ask(build_mock_request(case, name), stream=case.stream, timeout=FAR_S)
        failed = answer.failure
        if failed is None:
            return count
        broken = failed.code == "INTERNAL" and failed.reason in {"INVALID_UPSTREAM_RESPONSE", "UPSTREAM_INTERNAL"}
        is_rejected = failed.reason == "INVALID_UPSTREAM_RESPONSE" and failed.upstream.http_status >= 400
        if (failed.code not in RETRIED and not broken) or is_rejected:
            return count
        wait = failed.details.get("RetryInfo")
        wait_s = wait.retry_delay.ToMilliseconds() / 1000 if wait else chance.uniform(*BACKOFF_S)
        await asyncio.sleep(wait_s)
    return TRIES_MAX


def build_mock_request(case: Mocked, name: str) -> CreateChatCompletionRequest:
    return chat(WORDS.format(id=name), model="near_qwen3_30b", **case.fields)
