"""llmock's faults: its verdict on a caller that never retries, and on one that retries as the status says."""

import asyncio
import itertools
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc

from lab.report import Figure, Result
from lab.torture.faults.judgment import ENDS_MAX, LATE_S_MAX, judge
from lab.torture.faults.required import (
    DEADLINES,
    FAR_S,
    INCOMPLETE,
    INVALID,
    KEPT_S,
    LOST,
    SETTINGS,
    STALLED,
    WHOLE,
    WORDS,
    End,
)
from lab.torture.subject import run_bridge
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest
from tests.kit.client import Bridge, chat
from tests.kit.real import servers
from tests.kit.real.servers import Llmock
from tests.kit.status_table import find_verdict

__all__ = ["meet_llmock"]


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
        for status in servers.LLMOCK_STATUSES:
            code, reason = find_verdict(status, has_envelope=True)
            details = frozenset({"ResourceInfo"}) if code == "NOT_FOUND" else frozenset()
            end = End(code, reason, status=status, details=details)
            yield Mocked(f"fail, {status}", {"type": "fail", "status": status}, stream, end, {})
        for status in (429, 503):
            code, reason = find_verdict(status, has_envelope=True)
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


async def meet_llmock(folder: Path, chance: random.Random, repeats: int) -> list[Result]:
    """Meet llmock's behaviours, and let it judge."""
    if missing := servers.find_missing_packages():
        what = f"not run: {', '.join(missing)} missing; `make interop WHAT=real` installs them"
        return [Result("llmock", 0, what, ok=False, figures={})]
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


async def call_once(llmock: Llmock, caller: Bridge, cases: Sequence[tuple[Mocked, str]]) -> list[Result]:
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
    results = []
    for kind, count in tried.items():
        bad = +wrong[kind]
        found_ends = sorted({str(case.end) for case, _ in cases if case.name.startswith(kind)})
        texts = ", ".join(found_ends) if len(found_ends) <= ENDS_MAX else f"{len(found_ends)} ends, each by its status"
        outcome = "; ".join(f"{each} x {what}" for what, each in bad.most_common(5)) or texts
        results.append(Result(f"llmock: {kind}", count, outcome, not bad, {}))
    ill = {code: count for code, count in found.items() if code not in BY_DEFINITION}
    outcome = "; ".join(f"{count} x {code}" for code, count in ill.items()) or "each came once; none was retried"
    note = "llmock calls a client that never retries " + ", ".join(
        f"`{code}` ({found[code]})" for code in sorted(BY_DEFINITION) if found[code]
    )
    results.sort(key=lambda each: each.case)
    case = "llmock's verdict on a caller that retries nothing"
    return [*results, Result(case, len(cases), outcome, not ill, {}, note)]


def read_wait_ms(request: dict[str, Any]) -> int | None:
    """Return the wait that llmock requested."""
    return None if request["retry_after"] is None else round(request["retry_after"] * 1000)


async def call_with_retries(llmock: Llmock, caller: Bridge, cases: Sequence[Mocked], chance: random.Random) -> Result:
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
    figures: dict[str, Figure] = {"calls": calls, "attempts": attempts}
    return Result("llmock's verdict on a caller that retries by the status", calls, outcome, not found, figures)


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
