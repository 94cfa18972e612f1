"""A line that delays, drips, resets, half-closes, falls silent and corrupts: before the upstream and the caller.

Each call has a plan, drawn by the seed. What a line passed on is kept, byte for byte, and judged by readers that share
no code with the bridge (`wire.py`): an OK must be the completion that those bytes are; what was delivered before a
failure must be the beginning of it; a failure must have a reason; and each call must have an end in its time, at both
its sides. No checksum guards plain HTTP, so a flipped bit may make another, valid answer: then that is the answer.
"""

import asyncio
import contextlib
import json
import re
import socket
import struct
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import grpc
from google.protobuf.message import DecodeError

from bridge.emulator import Emulator
from ollmbridge.v1.chat_completion_service_pb2 import (
    CreateChatCompletionRequest,
    CreateChatCompletionResponse,
    StreamChatCompletionResponse,
)
from tests.conftest import Answer, Bridge, chat
from tests.e2e.test_containment import answer_good_call, is_expected
from tests.torture.report import Finding, Options
from tests.torture.subject import Process, bridge, counting
from tests.torture.wire import grpc_messages, is_whole_response, parsed, read, same

__all__ = ["run"]

FULL = {"upstream": 50_000, "caller": 10_000}
QUICK = {"upstream": 1_000, "caller": 300}
AT_ONCE = 48
WARM = 0.1
"""The part of the calls after which memory is first looked at."""

IDLE_S, CALL_S, DEADLINE_S = 1.0, 4.0, 1.2
LATE_S_MAX = 2.0
SAFE_S = 30.0
"""After which a caller without a deadline gives up: far beyond what is allowed."""
SETTLE_S = 10.0
KEEPALIVE_S = 2.0
MEMORY_MORE_MIB_MAX = 30.0
DESCRIPTORS_MORE_MAX = 8
SETTINGS = {
    "call_timeout_s": CALL_S,
    "upstream__idle_timeout_s": IDLE_S,
    "upstream__keepalive_s": KEEPALIVE_S,
}
PIECE_BYTES = 65_536
WORDS = ("bridge", "river", "橋", '"quoted"', "{json}", "data:", "\\u0041", "🌉", "[DONE]", "finish_reason", "é\u2028")


async def run(options: Options) -> list[Finding]:
    """Trouble both lines."""
    counts = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as name:
        before = await troubled(Path(name), "upstream", counts["upstream"], options.seed)
        return [*before, *await troubled(Path(name), "caller", counts["caller"], options.seed)]


@dataclass(frozen=True)
class Tried:
    """A call over a troubled line: what it ended in, and what is wrong with that, if anything is."""

    kind: str
    end: str
    wrong: str
    took_s: float


@dataclass(frozen=True)
class Held:
    """What the bridge holds while no call goes on."""

    in_flight: float
    connections: int
    descriptors: int
    tasks: int


async def troubled(folder: Path, side: str, count: int, seed: int) -> list[Finding]:
    """Make calls over one troubled line, and look at the process before and after."""
    async with Emulator() as emulator, contextlib.AsyncExitStack() as stack:
        line = UpstreamLine(emulator)
        port = await stack.enter_async_context(line.listening()) if side == "upstream" else emulator.port
        counts = folder / "tasks"
        subject = await stack.enter_async_context(
            bridge(f"127.0.0.1:{port}", folder=folder, command=counting(counts), **SETTINGS)
        )
        caller = Bridge(subject.address, await stack.enter_async_context(own_channel(subject.address)))

        async def one(number: int) -> Tried:
            chance = Random(f"{seed}:{side}:{number}")
            if side == "upstream":
                return await over_upstream_line(line, caller, f"call-{number}", chance)
            return await over_caller_line(emulator, subject.address, f"call-{number}", chance)

        await answer_good_call(caller)
        before = await settled(subject, emulator, counts)
        warm = round(count * WARM)
        tries = await at_once(one, range(warm))
        warm_mib = subject.memory_mib
        tries += await at_once(one, range(warm, count))
        more_mib = subject.memory_mib - warm_mib
        await answer_good_call(caller)
        after = await settled(subject, emulator, counts, before)
        alive = subject.alive
        log = subject.said.splitlines()
    where = {"upstream": "bridge and upstream", "caller": "caller and bridge"}[side]
    return [*by_kind(tries, where), process_finding(where, count, before, after, more_mib, log, alive=alive)]


def own_channel(address: str) -> grpc.aio.Channel:
    """Give a channel with a connection of its own, that repeats nothing."""
    options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.insecure_channel(address, options=options)


async def at_once(one: Callable[[int], Awaitable[Tried]], numbers: Iterable[int]) -> list[Tried]:
    """Make the calls of these numbers, AT_ONCE at once, without a task for each: the collector would walk them all."""
    left = iter(numbers)
    tries: list[Tried] = []

    async def seat() -> None:
        for number in left:
            tries.append(await one(number))  # noqa: PERF401 - all seats share the list

    await asyncio.gather(*(seat() for _ in range(AT_ONCE)))
    return tries


async def settled(subject: Process, emulator: Emulator, counts: Path, before: Held | None = None) -> Held:
    """Wait until nothing more is held than before, or for as long as it may take, and give what is."""
    end = time.monotonic() + SETTLE_S
    while True:
        metrics = await subject.metrics()
        in_flight = sum(value for (name, _), value in metrics.items() if name == "ollm_bridge_calls_in_flight")
        held = Held(in_flight, len(emulator.connections), subject.descriptors, (await subject.counted(counts)).tasks)
        if not unreturned(before or held, held) or time.monotonic() > end:
            return held
        await asyncio.sleep(0.2)


def unreturned(before: Held, after: Held) -> str:
    """Say what is still held."""
    kept = [
        (after.in_flight, "calls in flight"),
        (after.connections, "upstream connections"),
        (max(0, after.descriptors - before.descriptors - DESCRIPTORS_MORE_MAX), "descriptors"),
        (max(0, after.tasks - before.tasks), "tasks"),
    ]
    return ", ".join(f"{count:g} {what}" for count, what in kept if count)


def by_kind(tries: Sequence[Tried], where: str) -> list[Finding]:
    groups: dict[str, list[Tried]] = defaultdict(list)
    for each in tries:
        groups[each.kind].append(each)
    findings = []
    for kind in sorted(groups):
        group = groups[kind]
        wrong = Counter(each.wrong for each in group if each.wrong)
        ends = Counter(each.end for each in group)
        said = wrong or ends
        outcome = ", ".join(f"{count} x {what}" for what, count in said.most_common(8))
        figures: dict[str, float | str] = {"longest, s": max(each.took_s for each in group)}
        findings.append(Finding("chaos", f"between {where}: {kind}", len(group), outcome, not wrong, figures))
    return findings


def process_finding(
    where: str, count: int, before: Held, after: Held, more_mib: float, log: Sequence[str], *, alive: bool
) -> Finding:
    faults = [line for line in log if not is_calls(line)]
    wrong = [
        "" if alive else "it died",
        unreturned(before, after),
        f"memory grew by {more_mib:.0f} MiB" if more_mib > MEMORY_MORE_MIB_MAX else "",
        f"{len(faults)} lines in the log that are no call's, such as {faults[0][:200]!r}" if faults else "",
    ]
    outcome = "; ".join(filter(None, wrong)) or "alive, answers in time, and holds what it held before"
    figures: dict[str, float | str] = {
        "memory, more MiB": more_mib,
        "tasks before": before.tasks,
        "tasks after": after.tasks,
        "descriptors before": before.descriptors,
        "descriptors after": after.descriptors,
    }
    return Finding("chaos", f"between {where}: the process after all", count, outcome, not any(wrong), figures)


_CORES = re.compile(
    r"E\d{4} .* hpack_parser\.cc:\d+\] Error parsing '[^']*' metadata: [a-z ]+"
    r"|I\d{4} .* chttp2_transport\.cc:\d+\] \S+: Got goaway .*"
)
"""What grpc's core says of a header that it can't read, its name and never its value, and of a GOAWAY with an error."""


def is_calls(line: str) -> bool:
    """Whether a line of the log is that of a call that ended without a fault of the bridge."""
    if is_expected(line) or _CORES.fullmatch(line):
        return True
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return record["event"] == "call" and "fault" not in record and record["code"] != "UNKNOWN"


# What the line does


@dataclass(frozen=True)
class Piece:
    """Bytes to pass on, and how long to wait before."""

    data: bytes
    wait_s: float = 0.0


CLOSINGS = ("", "reset", "half-close", "silence")


@dataclass(frozen=True)
class Plan:
    """What becomes of bytes that are known: the pieces that are passed on, and what is done then."""

    pieces: Sequence[Piece]
    closing: str = ""


def delayed(data: bytes, chance: Random) -> Plan:
    at = chance.randrange(len(data) + 1)
    return Plan([Piece(data[:at], chance.uniform(0, 0.2)), Piece(data[at:], chance.uniform(0, 0.2))])


def dripped(data: bytes, chance: Random) -> Plan:
    pieces, at = [], 0
    while at < len(data):
        size = chance.choice((1, 2, 3, 7, 50))
        pieces.append(Piece(data[at : at + size], 0.001 if chance.random() < 0.2 else 0))
        at += size
    return Plan(pieces)


def broken(closing: str) -> Callable[[bytes, Random], Plan]:
    def plan(data: bytes, chance: Random) -> Plan:
        return Plan([Piece(data[: chance.randrange(len(data))])], closing)

    return plan


REGIONS: dict[str, Callable[[bytes], list[tuple[int, int]]]] = {
    "head": lambda data: [(0, data.find(b"\r\n\r\n"))],
    "chunk size": lambda data: [found.span() for found in re.finditer(rb"(?<=\r\n)[0-9A-F]+(?=\r\n)", data)],
    "JSON": lambda data: [found.span() for found in re.finditer(rb'\{"id".*\}', data)],
    "SSE": lambda data: [found.span() for found in re.finditer(rb"data: |\n\n|\[DONE\]", data)],
}


def flipped(region: str) -> Callable[[bytes, Random], Plan]:
    """Flip bits of one to three bytes there."""

    def plan(data: bytes, chance: Random) -> Plan:
        spans = [span for span in REGIONS[region](data) if span[1] > span[0]] or [(0, len(data))]
        bad = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 3))):
            at = chance.randrange(*chance.choice(spans))
            bad[at] ^= 1 << chance.randrange(8)
        return Plan([Piece(bytes(bad))])

    return plan


def garbled(data: bytes, chance: Random) -> Plan:
    """Leave a part out, say it twice, or put others' bytes between."""
    at = chance.randrange(len(data))
    to = min(len(data), at + chance.choice((1, 2, 10, 200)))
    between = chance.choice((b"", data[at:to] * 2, chance.randbytes(to - at) + data[at:to], b"\r\n" + data[at:to]))
    return Plan([Piece(data[:at] + between + data[to:])])


ANSWER_PLANS: dict[str, Callable[[bytes, Random], Plan]] = {
    "delay": delayed,
    "drip": dripped,
    "reset within the answer": broken("reset"),
    "half-close within the answer": broken("half-close"),
    "silence within the answer": broken("silence"),
    "bits flipped in the head": flipped("head"),
    "bits flipped in chunk sizes": flipped("chunk size"),
    "bits flipped in JSON": flipped("JSON"),
    "bits flipped in the events' frame": flipped("SSE"),
    "bytes left out, doubled, put between": garbled,
}
SOUND = {"delay", "drip", "request delayed", "request dripped"}
"""After which the answer must be OK."""
REQUEST_PLANS: dict[str, Callable[[bytes, Random], Plan]] = {
    "request delayed": delayed,
    "request dripped": dripped,
    "reset within the request": broken("reset"),
    "half-close within the request": broken("half-close"),
    "silence within the request": broken("silence"),
    "bits flipped in the request": lambda data, chance: flipped("head" if chance.random() < 0.5 else "JSON")(
        data, chance
    ),
}


def reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def play(plan: Plan, writer: asyncio.StreamWriter, passed: bytearray) -> None:
    """Pass on what is to be, and note it."""
    for piece in plan.pieces:
        if piece.wait_s:
            await asyncio.sleep(piece.wait_s)
        passed += piece.data
        writer.write(piece.data)
        await writer.drain()
    if plan.closing == "reset":
        reset(writer)
    elif plan.closing == "half-close" and writer.can_write_eof():
        writer.write_eof()


# Between bridge and upstream


@dataclass
class Record:
    """What the line did with one call: how often it came, what was passed on, whether all of it and unchanged."""

    kind: str
    chance: Random
    came: int = 0
    passed: bytearray = field(default_factory=bytearray)
    closing: str = ""
    intact: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)


class UpstreamLine:
    """A line to the upstream: takes a request whole, asks the upstream, and passes the answer on by a call's plan."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator
        self.records: dict[str, Record] = {}

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        """Take connections, and give the port."""
        server = await asyncio.start_server(self._served, "127.0.0.1", 0, limit=PIECE_BYTES)
        async with server:
            yield server.sockets[0].getsockname()[1]

    async def _served(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while request := await _request(reader):
                named = re.search(rb"x-request-id: ([\w-]+)", request)
                record = self.records.get(named[1].decode()) if named else None
                record = record or Record("", Random(0))
                try:
                    if not await self._exchanged(request, record, writer):
                        await _until_closed(reader)
                        break
                finally:
                    record.over.set()
        writer.close()

    async def _exchanged(self, request: bytes, record: Record, writer: asyncio.StreamWriter) -> bool:
        """Pass a request and its answer on; False where the line says no more."""
        record.came += 1
        asked, asking = await asyncio.open_connection("127.0.0.1", self._emulator.port)
        try:
            plan = REQUEST_PLANS.get(record.kind, _unchanged)(request, record.chance)
            await play(plan, asking, bytearray())
            if plan.closing and plan.closing != "silence":
                record.closing = plan.closing
                await play(Plan([], plan.closing), writer, record.passed)
                return False
            answer = await _answer(asked)
        finally:
            asking.transport.abort()
        plan = ANSWER_PLANS.get(record.kind, _unchanged)(answer, record.chance) if answer else Plan([], "silence")
        record.closing = plan.closing
        await play(plan, writer, record.passed)
        record.intact = bool(answer) and bytes(record.passed) == answer and not plan.closing
        return not plan.closing


def _unchanged(data: bytes, _chance: Random) -> Plan:
    return Plan([Piece(data)])


async def _request(reader: asyncio.StreamReader) -> bytes:
    """Give a whole request of the bridge's; nothing at the end."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return head + await reader.readexactly(int(length[1]) if length else 0)


ANSWER_S_MAX = 1.0
"""How long the upstream may be silent before its answer counts as over: it waits for a request that was cut."""


async def _answer(asked: asyncio.StreamReader) -> bytes:
    answer = b""
    with contextlib.suppress(TimeoutError, ConnectionError):
        while not is_whole_response(answer):
            async with asyncio.timeout(ANSWER_S_MAX):
                data = await asked.read(PIECE_BYTES)
            if not data:
                break
            answer += data
    return answer


async def _until_closed(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        while await reader.read(PIECE_BYTES):
            pass


async def over_upstream_line(line: UpstreamLine, caller: Bridge, name: str, chance: Random) -> Tried:
    kind = chance.choice((*ANSWER_PLANS, *REQUEST_PLANS))
    stream, deadline = chance.random() < 0.6, chance.random() < 0.5
    record = line.records[name] = Record(kind, Random(chance.random()))
    text = f"{name} " + " ".join(chance.choices(WORDS, k=chance.randrange(1, 60)))
    deadline_s = deadline_of(must_be_ok=kind in SOUND) if deadline else None
    began_at = time.monotonic()
    answer, end = await ended(caller, chat(text), name, SAFE_S, stream=stream, deadline_s=deadline_s)
    took_s = time.monotonic() - began_at
    wrong = ""
    try:
        async with asyncio.timeout(LATE_S_MAX):
            await record.over.wait()
    except TimeoutError:
        wrong = "the line was left open"
    if answer is not None:
        wrong = wrong or judged(answer, record, stream=stream, deadline=deadline)
    elif end != CROSSED:
        wrong = end
    if not wrong and took_s > (deadline_s or CALL_S) + LATE_S_MAX:
        wrong = f"it took {took_s:.1f} s"
    del line.records[name]
    return Tried(kind, end, f"{name}: {wrong}" if wrong else "", took_s)


def deadline_of(*, must_be_ok: bool) -> float:
    """Give a deadline: far off where the answer must be OK, since it is no matter how slow this machine is."""
    return SAFE_S if must_be_ok else DEADLINE_S


LEFT, UNREADABLE = "left by the caller", "a status that can't be read"
CROSSED = "DEADLINE_EXCEEDED, said by the caller's own client while another status came"
"""Then the client gives its own code and the other's trailers, and grpc_status raises."""


async def ended(
    caller: Bridge,
    request: CreateChatCompletionRequest,
    name: str,
    patience_s: float,
    *,
    stream: bool,
    deadline_s: float | None,
) -> tuple[Answer | None, str]:
    """Make a call, with a deadline or none at all; give what came of it, if that can be read, and its end in words."""
    try:
        async with asyncio.timeout(patience_s):
            answer = await caller.ask(request, stream=stream, timeout=deadline_s, metadata=[("x-request-id", name)])
    except TimeoutError:
        return None, LEFT
    except (DecodeError, ValueError, AssertionError, RuntimeError) as error:  # of decoding a status, see `decoded`
        status = error.__context__
        late = isinstance(status, grpc.aio.AioRpcError) and status.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        return None, CROSSED if late and deadline_s else f"{UNREADABLE}: {error!r}"
    return answer, end_of(answer)


def end_of(answer: Answer) -> str:
    if answer.failure is None:
        return "OK"
    info = answer.failure.details.get("ErrorInfo")
    return f"{answer.failure.code} {info.reason if info else ''}".rstrip()


UNAVAILABLE = {502, 503, *range(520, 524), *range(525, 528), 529, 530}


def judged(answer: Answer, record: Record, *, stream: bool, deadline: bool) -> str:
    """Say what is wrong with an answer, given what was passed on of the upstream's; nothing where it is right."""
    if record.came > 1:
        return f"it came {record.came} times"
    found = read(bytes(record.passed), closed=record.closing in {"reset", "half-close"}, stream=stream)
    for number, message in enumerate(answer.messages):
        if number >= len(found.values):
            return f"message {number + 1} is none of the upstream's"
        if fault := same(message, found.values[number]):
            return f"message {number + 1} is not the upstream's: {fault}"
    if answer.failure is None:
        if not found.whole:
            return f"a wrong OK: the completion is not whole {found.lenient}".rstrip()
        return "" if len(answer.messages) == len(found.values) else "a wrong OK: chunks are missing"
    return judged_failure(answer, record, found.status, deadline=deadline)


def judged_failure(answer: Answer, record: Record, status: int, *, deadline: bool) -> str:
    failed = answer.failure
    end = end_of(answer)
    if record.kind in SOUND and record.intact:
        return f"{end}, though nothing was amiss"
    if end == "DEADLINE_EXCEEDED":
        return "" if deadline else "DEADLINE_EXCEEDED without a deadline or a reason"
    if "ErrorInfo" not in failed.details or failed.reason == "BRIDGE_FAULT" or failed.code in {"UNKNOWN", "CANCELLED"}:
        return f"{end}: {failed.message[:200]}"
    if failed.code == "UNAVAILABLE" and (answer.messages or status not in UNAVAILABLE):
        return f"{end}, though the request may have run"
    upstream = failed.details.get("UpstreamError")
    if upstream is not None and upstream.chunks_delivered != len(answer.messages):
        return f"{end} tells of {upstream.chunks_delivered} chunks, of which {len(answer.messages)} came"
    return ""


# Between caller and bridge

FLIPPED = "bits flipped"
LINE_KINDS = ("delay", "drip", "reset", "half-close", "silence", FLIPPED)
UP_BYTES, DOWN_BYTES = 1_000, 3_000
"""Within so many bytes of a direction something happens; most calls have about as many."""
SILENT = "scenario::stall?after=2"
MODELS = ("echo", "echo", "scenario::pace?chunks=20&interval_ms=10", "scenario::slow", SILENT)


@dataclass
class Direction:
    """One direction of a line: what happens from which byte on, and what was passed."""

    kind: str
    at: int
    chance: Random
    passed: bytearray = field(default_factory=bytearray)
    closed: bool = False


class CallerLine:
    """A line to the bridge for one caller's connection."""

    def __init__(self, address: str, kind: str, *, up: bool, chance: Random) -> None:
        host, _, port = address.rpartition(":")
        self._bridge = (host, int(port))
        at = chance.randrange(UP_BYTES if up else DOWN_BYTES)
        self.up = Direction(kind if up else "", at, chance)
        self.down = Direction("" if up else kind, at, chance)
        self.connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Take connections; the first is troubled, others, which a client makes by itself, are closed at once."""
        server = await asyncio.start_server(self._served, "127.0.0.1", 0)
        async with server:
            yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _served(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.connections > 1:
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection(*self._bridge)
        pumps = (pump(reader, far_writer, self.up), pump(far_reader, writer, self.down))
        for each in pumps:
            task = asyncio.create_task(each)
            self._tasks.add(task)
        try:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        finally:
            writer.transport.abort()
            far_writer.transport.abort()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Direction) -> None:
    """Pass on what comes, and do what the direction's kind says once its byte has come."""
    with contextlib.suppress(OSError):
        while data := await reader.read(PIECE_BYTES):
            reached = len(way.passed) + len(data) > way.at
            if way.closed:
                continue
            match way.kind if reached else "":
                case "delay":
                    await asyncio.sleep(way.chance.uniform(0, 0.05))
                    await play(Plan([Piece(data)]), writer, way.passed)
                case "drip":
                    await play(dripped(data, way.chance), writer, way.passed)
                case "bits flipped":
                    bad = bytearray(data)
                    if way.chance.random() < 0.5:
                        bad[way.chance.randrange(len(bad))] ^= 1 << way.chance.randrange(8)
                    await play(Plan([Piece(bytes(bad))]), writer, way.passed)
                case "reset" | "half-close" | "silence" as closing:
                    way.closed = True
                    await play(Plan([Piece(data[: max(0, way.at - len(way.passed))])], closing), writer, way.passed)
                    if closing == "reset":
                        return
                case _:
                    await play(Plan([Piece(data)]), writer, way.passed)
        if writer.can_write_eof():
            writer.write_eof()


async def over_caller_line(emulator: Emulator, address: str, name: str, chance: Random) -> Tried:
    kind, up = chance.choice(LINE_KINDS), chance.random() < 0.6
    stream, deadline, model = chance.random() < 0.6, chance.random() < 0.5, chance.choice(MODELS)
    words = " ".join(chance.choices(WORDS, k=chance.randrange(1, 60)))
    line = CallerLine(address, kind, up=up, chance=chance)
    must_be_ok = kind in SOUND and model != SILENT
    deadline_s = deadline_of(must_be_ok=must_be_ok) if deadline else None
    began_at = time.monotonic()
    async with line.listening() as near, own_channel(near) as channel:
        request = chat(f"{name} {words}", model=model)
        patience_s = SAFE_S if must_be_ok else CALL_S
        answer, end = await ended(
            Bridge(near, channel), request, name, patience_s, stream=stream, deadline_s=deadline_s
        )
        took_s = time.monotonic() - began_at
        # The line stays as it is: the bridge must come to an end by itself.
        wrong = await ended_upstream(emulator, name, began_at + (deadline_s or CALL_S) + LATE_S_MAX)
    if end.startswith(UNREADABLE) and line.down.kind == FLIPPED:
        end = UNREADABLE  # so are its trailers
    elif end.startswith(UNREADABLE):
        wrong = wrong or end
    elif end == "OK" and model == SILENT:
        wrong = wrong or "a wrong OK: the upstream never ended"
    elif end == "OK" and model == "echo":
        wrong = wrong or wrong_ok(answer, line, stream=stream)
    elif end != "OK" and must_be_ok:
        wrong = wrong or f"{end}, though nothing was amiss"
    where = "towards the bridge" if up else "towards the caller"
    end = f"{end} of a silent upstream" if model == SILENT else end
    return Tried(f"{kind} {where}", end, f"{name}: {wrong}" if wrong else "", took_s)


async def ended_upstream(emulator: Emulator, name: str, end_at: float) -> str:
    """Say whether the upstream's part of a call is over in time, where it had one."""
    for exchange in [each for each in emulator.exchanges if each.headers.get("x-request-id") == name]:
        while not (exchange.finished or exchange.closed.is_set()):
            left_s = end_at - time.monotonic()
            if left_s <= 0:
                return "the upstream was left open"
            with contextlib.suppress(TimeoutError):
                await exchange.wait_closed(min(left_s, 0.05))
    return ""


def wrong_ok(answer: Answer, line: CallerLine, *, stream: bool) -> str:
    """Say what is wrong with an OK, given what the line passed on both ways."""
    if line.down.kind == FLIPPED:
        return ""  # what a caller reads of that is its own client's matter
    kind = StreamChatCompletionResponse if stream else CreateChatCompletionResponse
    if list(answer.messages) not in parsed(kind, grpc_messages(bytes(line.down.passed), preface=False)):
        return "a wrong OK: the caller's messages are none that were passed on"
    asked = parsed(CreateChatCompletionRequest, grpc_messages(bytes(line.up.passed), preface=True))
    texts = {f"You said: {request.messages[0].text}" for [request, *_] in asked if request.messages}
    return "" if answer.text in texts else "a wrong OK: it answers another request"
