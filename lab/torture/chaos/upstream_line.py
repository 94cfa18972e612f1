"""The damaged line between the bridge and its upstream, and the judgment of a call over it."""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from random import Random

from bridge.emulator import Emulator
from lab.torture.chaos.calls import (
    CALL_S,
    CROSSED,
    LATE_S_MAX,
    SAFE_S,
    WORDS,
    Attempt,
    choose_deadline_s,
    describe_end,
    make_call,
)
from lab.torture.chaos.plans import ANSWER_PLANS, PIECE_BYTES, REQUEST_PLANS, SOUND, Piece, Plan, play
from tests.kit.client import Answer, Bridge, chat
from tests.kit.http1 import is_whole_response, read
from tests.kit.oracle import find_difference

__all__ = ["UpstreamLine", "call_over_upstream_line"]


# Between bridge and upstream


@dataclass
class Record:
    """One call on the line: how often it came, the bytes passed on, and whether these were complete and unchanged."""

    kind: str
    chance: Random
    requests: int = 0
    passed: bytearray = field(default_factory=bytearray)
    closing: str = ""
    intact: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)


class UpstreamLine:
    """A line to the upstream: it takes a whole request, sends it on, and passes the answer on by the call's plan."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator
        self.records: dict[str, Record] = {}

    @contextlib.asynccontextmanager
    async def listen(self) -> AsyncIterator[int]:
        """Accept connections, and yield the port."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=PIECE_BYTES)
        async with server:
            yield server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while request := await _read_request(reader):
                named = re.search(rb"x-request-id: ([\w-]+)", request)
                record = self.records.get(named[1].decode()) if named else None
                record = record or Record("", Random(0))
                try:
                    if not await self._exchange(request, record, writer):
                        await _read_to_end(reader)
                        break
                finally:
                    record.over.set()
        writer.close()

    async def _exchange(self, request: bytes, record: Record, writer: asyncio.StreamWriter) -> bool:
        """Pass a request and its answer on; return whether the line serves another."""
        record.requests += 1
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._emulator.port)
        try:
            plan = REQUEST_PLANS.get(record.kind, _keep)(request, record.chance)
            await play(plan, upstream_writer, bytearray())
            if plan.closing and plan.closing != "stall":
                record.closing = plan.closing
                await play(Plan([], plan.closing), writer, record.passed)
                return False
            answer = await _read_answer(upstream_reader)
        finally:
            upstream_writer.transport.abort()
        plan = ANSWER_PLANS.get(record.kind, _keep)(answer, record.chance) if answer else Plan([], "stall")
        record.closing = plan.closing
        await play(plan, writer, record.passed)
        record.intact = bool(answer) and bytes(record.passed) == answer and not plan.closing
        return not plan.closing


def _keep(data: bytes, _chance: Random) -> Plan:
    return Plan([Piece(data)])


async def _read_request(reader: asyncio.StreamReader) -> bytes:
    """Return a whole request of the bridge's; nothing at the end."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return head + await reader.readexactly(int(length[1]) if length else 0)


ANSWER_S_MAX = 1.0
"""How long the upstream may stall before its answer counts as over: it waits for a request that was cut."""


async def _read_answer(upstream_reader: asyncio.StreamReader) -> bytes:
    answer = b""
    with contextlib.suppress(TimeoutError, ConnectionError):
        while not is_whole_response(answer):
            async with asyncio.timeout(ANSWER_S_MAX):
                data = await upstream_reader.read(PIECE_BYTES)
            if not data:
                break
            answer += data
    return answer


async def _read_to_end(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        while await reader.read(PIECE_BYTES):
            pass


async def call_over_upstream_line(line: UpstreamLine, caller: Bridge, name: str, chance: Random) -> Attempt:
    kind = chance.choice((*ANSWER_PLANS, *REQUEST_PLANS))
    stream, deadline = chance.random() < 0.6, chance.random() < 0.5
    record = line.records[name] = Record(kind, Random(chance.random()))
    text = f"{name} " + " ".join(chance.choices(WORDS, k=chance.randrange(1, 60)))
    deadline_s = choose_deadline_s(is_ok_required=kind in SOUND) if deadline else None
    began_at = time.monotonic()
    request = chat(text)
    request.stream_options.include_usage = stream  # else the bridge asks for it, and takes out what that brings
    answer, end = await make_call(caller, request, name, SAFE_S, stream=stream, deadline_s=deadline_s)
    took_s = time.monotonic() - began_at
    wrong = ""
    try:
        async with asyncio.timeout(LATE_S_MAX):
            await record.over.wait()
    except TimeoutError:
        wrong = "the connection stayed open"
    if answer is not None:
        wrong = wrong or judge(answer, record, stream=stream, deadline=deadline)
    elif end != CROSSED:
        wrong = end
    if not wrong and took_s > (deadline_s or CALL_S) + LATE_S_MAX:
        wrong = f"it took {took_s:.1f} s"
    del line.records[name]
    return Attempt(kind, end, f"{name}: {wrong}" if wrong else "", took_s)


UNAVAILABLE = {502, 503, *range(520, 524), *range(525, 528), 529, 530}


def judge(answer: Answer, record: Record, *, stream: bool, deadline: bool) -> str:
    """Return what is wrong with an answer, given the bytes passed on; "" if nothing is."""
    if record.requests > 1:
        return f"it came {record.requests} times"
    found = read(bytes(record.passed), is_closed=record.closing in {"reset", "half-close"}, stream=stream)
    for number, message in enumerate(answer.messages):
        if number >= len(found.values):
            return f"message {number + 1} is not from the upstream"
        if fault := find_difference(message, found.values[number]):
            return f"message {number + 1} differs from the upstream's: {fault}"
    if answer.failure is None:
        if not found.is_whole:
            return f"a wrong OK: the completion is not whole {found.lenient}".rstrip()
        return "" if len(answer.messages) == len(found.values) else "a wrong OK: chunks are missing"
    return judge_failure(answer, record, found.status, deadline=deadline)


def judge_failure(answer: Answer, record: Record, status: int, *, deadline: bool) -> str:
    failed = answer.failure
    end = describe_end(answer)
    if record.kind in SOUND and record.intact:
        return f"{end}, though nothing was damaged"
    if end == "DEADLINE_EXCEEDED":
        return "" if deadline else "DEADLINE_EXCEEDED without a deadline or a reason"
    if "ErrorInfo" not in failed.details or failed.reason == "BRIDGE_FAULT" or failed.code in {"UNKNOWN", "CANCELLED"}:
        return f"{end}: {failed.message[:200]}"
    if failed.code == "UNAVAILABLE" and (answer.messages or status not in UNAVAILABLE):
        return f"{end}, though the request may have run"
    upstream = failed.details.get("UpstreamError")
    if upstream is not None and upstream.chunks_delivered != len(answer.messages):
        return f"{end} reports {upstream.chunks_delivered} chunks, of which {len(answer.messages)} came"
    return ""
