"""A line that delays, drips, resets, half-closes, stalls and corrupts: in front of the upstream and of the bridge.

The seed draws a plan for each call. The line records the bytes that it passes on, and readers that share no code with
the bridge (`wire.py`) judge the call by them: an OK must be the completion of those bytes; the chunks delivered before
a failure must be its beginning; a failure must have a reason; and each call must end in time, on both sides. Plain HTTP
has no checksum, so a flipped bit may produce another valid answer: then that is the answer.
"""

import asyncio
import contextlib
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
from tests.kit.health import answer_good_call, is_expected
from tests.torture.report import Finding, Options
from tests.torture.subject import Process, build_holdings_command, run_bridge
from tests.torture.wire import find_difference, is_whole_response, parse_streams, read, split_messages

__all__ = ["run"]

FULL = {"upstream": 50_000, "caller": 10_000}
QUICK = {"upstream": 1_000, "caller": 300}
CONCURRENCY = 48
WARM = 0.1
"""The part of the calls after which memory is first measured."""

IDLE_S, CALL_S, DEADLINE_S = 1.0, 4.0, 1.2
LATE_S_MAX = 2.0
SAFE_S = 30.0
"""After which a caller without a deadline gives up: far beyond the limit."""
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
    """Damage both lines."""
    counts = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as name:
        before = await attack_line(Path(name), "upstream", counts["upstream"], options.seed)
        return [*before, *await attack_line(Path(name), "caller", counts["caller"], options.seed)]


@dataclass(frozen=True)
class Attempt:
    """A call over a damaged line: its end, and what is wrong with that, if anything."""

    kind: str
    end: str
    wrong: str
    took_s: float


@dataclass(frozen=True)
class Resources:
    """What the bridge holds while no call is in flight."""

    in_flight: float
    connections: int
    descriptors: int
    tasks: int


async def attack_line(folder: Path, side: str, count: int, seed: int) -> list[Finding]:
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
    return [*list_findings(attempts, where), judge_process(where, count, before, after, growth_mib, log, alive=alive)]


def open_channel(address: str) -> grpc.aio.Channel:
    """Return a channel with a connection of its own that retries nothing."""
    options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.insecure_channel(address, options=options)


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


def list_findings(attempts: Sequence[Attempt], where: str) -> list[Finding]:
    groups: dict[str, list[Attempt]] = defaultdict(list)
    for each in attempts:
        groups[each.kind].append(each)
    findings = []
    for kind in sorted(groups):
        group = groups[kind]
        wrong = Counter(each.wrong for each in group if each.wrong)
        ends = Counter(each.end for each in group)
        counts_by_text = wrong or ends
        outcome = ", ".join(f"{count} x {what}" for what, count in counts_by_text.most_common(8))
        figures: dict[str, float | str] = {"longest, s": max(each.took_s for each in group)}
        findings.append(Finding("chaos", f"between {where}: {kind}", len(group), outcome, not wrong, figures))
    return findings


def judge_process(
    where: str, count: int, before: Resources, after: Resources, growth_mib: float, log: Sequence[str], *, alive: bool
) -> Finding:
    faults = [line for line in log if not is_call_line(line)]
    wrong = [
        "" if alive else "it died",
        describe_leaks(before, after),
        f"memory grew by {growth_mib:.0f} MiB" if growth_mib > MEMORY_MORE_MIB_MAX else "",
        f"{len(faults)} lines in the log that are no call's, such as {faults[0][:200]!r}" if faults else "",
    ]
    outcome = "; ".join(filter(None, wrong)) or "alive, answers in time, and holds no more than before"
    figures: dict[str, float | str] = {
        "memory growth, MiB": growth_mib,
        "tasks before": before.tasks,
        "tasks after": after.tasks,
        "descriptors before": before.descriptors,
        "descriptors after": after.descriptors,
    }
    return Finding("chaos", f"between {where}: the process afterwards", count, outcome, not any(wrong), figures)


def is_call_line(line: str) -> bool:
    """Whether a line of the log is that of a call that ended without a fault of the bridge."""
    return is_expected(line, unexpected_codes=("UNKNOWN",))


# What the line does


@dataclass(frozen=True)
class Piece:
    """Bytes to pass on, and the wait before them."""

    data: bytes
    wait_s: float = 0.0


CLOSINGS = ("", "reset", "half-close", "stall")


@dataclass(frozen=True)
class Plan:
    """What to do with known bytes: the pieces to pass on, and how to close then."""

    pieces: Sequence[Piece]
    closing: str = ""


def delay(data: bytes, chance: Random) -> Plan:
    at = chance.randrange(len(data) + 1)
    return Plan([Piece(data[:at], chance.uniform(0, 0.2)), Piece(data[at:], chance.uniform(0, 0.2))])


def drip(data: bytes, chance: Random) -> Plan:
    pieces, at = [], 0
    while at < len(data):
        size = chance.choice((1, 2, 3, 7, 50))
        pieces.append(Piece(data[at : at + size], 0.001 if chance.random() < 0.2 else 0))
        at += size
    return Plan(pieces)


def break_off(closing: str) -> Callable[[bytes, Random], Plan]:
    def plan(data: bytes, chance: Random) -> Plan:
        return Plan([Piece(data[: chance.randrange(len(data))])], closing)

    return plan


REGIONS: dict[str, Callable[[bytes], list[tuple[int, int]]]] = {
    "head": lambda data: [(0, data.find(b"\r\n\r\n"))],
    "chunk size": lambda data: [found.span() for found in re.finditer(rb"(?<=\r\n)[0-9A-F]+(?=\r\n)", data)],
    "JSON": lambda data: [found.span() for found in re.finditer(rb'\{"id".*\}', data)],
    "SSE": lambda data: [found.span() for found in re.finditer(rb"data: |\n\n|\[DONE\]", data)],
}


def flip_bits(region: str) -> Callable[[bytes, Random], Plan]:
    """Flip bits of one to three bytes there."""

    def plan(data: bytes, chance: Random) -> Plan:
        spans = [span for span in REGIONS[region](data) if span[1] > span[0]] or [(0, len(data))]
        bad = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 3))):
            at = chance.randrange(*chance.choice(spans))
            bad[at] ^= 1 << chance.randrange(8)
        return Plan([Piece(bytes(bad))])

    return plan


def garble(data: bytes, chance: Random) -> Plan:
    """Drop a part, repeat it, or insert other bytes."""
    at = chance.randrange(len(data))
    to = min(len(data), at + chance.choice((1, 2, 10, 200)))
    between = chance.choice((b"", data[at:to] * 2, chance.randbytes(to - at) + data[at:to], b"\r\n" + data[at:to]))
    return Plan([Piece(data[:at] + between + data[to:])])


ANSWER_PLANS: dict[str, Callable[[bytes, Random], Plan]] = {
    "delay": delay,
    "drip": drip,
    "reset within the answer": break_off("reset"),
    "half-close within the answer": break_off("half-close"),
    "stall within the answer": break_off("stall"),
    "bits flipped in the head": flip_bits("head"),
    "bits flipped in chunk sizes": flip_bits("chunk size"),
    "bits flipped in JSON": flip_bits("JSON"),
    "bits flipped in the events' frame": flip_bits("SSE"),
    "bytes dropped, repeated, inserted": garble,
}
SOUND = {"delay", "drip", "request delayed", "request dripped"}
"""After which the answer must be OK."""
REQUEST_PLANS: dict[str, Callable[[bytes, Random], Plan]] = {
    "request delayed": delay,
    "request dripped": drip,
    "reset within the request": break_off("reset"),
    "half-close within the request": break_off("half-close"),
    "stall within the request": break_off("stall"),
    "bits flipped in the request": lambda data, chance: flip_bits("head" if chance.random() < 0.5 else "JSON")(
        data, chance
    ),
}


def reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def play(plan: Plan, writer: asyncio.StreamWriter, passed: bytearray) -> None:
    """Pass on the plan's bytes, and record them."""
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
    answer, end = await make_call(caller, chat(text), name, SAFE_S, stream=stream, deadline_s=deadline_s)
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


def choose_deadline_s(*, is_ok_required: bool) -> float:
    """Return a deadline: a far one if the answer must be OK, since the speed of this machine must not matter."""
    return SAFE_S if is_ok_required else DEADLINE_S


ABANDONED, UNREADABLE = "abandoned by the caller", "a status that can't be read"
CROSSED = "DEADLINE_EXCEEDED by the caller's own client while another status came"
"""Then the client reports its own code with the other's trailers, and grpc_status raises."""


async def make_call(
    caller: Bridge,
    request: CreateChatCompletionRequest,
    name: str,
    wait_s: float,
    *,
    stream: bool,
    deadline_s: float | None,
) -> tuple[Answer | None, str]:
    """Make a call, with or without a deadline; return its answer, if that can be read, and its end in words."""
    try:
        async with asyncio.timeout(wait_s):
            answer = await caller.ask(request, stream=stream, timeout=deadline_s, metadata=[("x-request-id", name)])
    except TimeoutError:
        return None, ABANDONED
    except (
        DecodeError,
        ValueError,
        AssertionError,
        RuntimeError,
    ) as error:  # of decoding a status, see `decode_failure`
        status = error.__context__
        late = isinstance(status, grpc.aio.AioRpcError) and status.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        return None, CROSSED if late and deadline_s else f"{UNREADABLE}: {error!r}"
    return answer, describe_end(answer)


def describe_end(answer: Answer) -> str:
    if answer.failure is None:
        return "OK"
    info = answer.failure.details.get("ErrorInfo")
    return f"{answer.failure.code} {info.reason if info else ''}".rstrip()


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


# Between caller and bridge

FLIPPED = "bits flipped"
LINE_KINDS = ("delay", "drip", "reset", "half-close", "stall", FLIPPED)
UP_BYTES, DOWN_BYTES = 1_000, 3_000
"""The damage is within so many bytes of a direction; most calls have about as many."""
STALLED = "scenario::stall?after=2"
MODELS = ("echo", "echo", "scenario::pace?chunks=20&interval_ms=10", "scenario::slow", STALLED)


@dataclass
class Direction:
    """One direction of a line: its damage, the byte from which it starts, and the bytes passed on."""

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
    async def listen(self) -> AsyncIterator[str]:
        """Accept connections; the first is damaged, others, which a client makes by itself, are closed at once."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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
    """Pass on the bytes that come, and damage the direction from its byte on."""
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
                    await play(drip(data, way.chance), writer, way.passed)
                case "bits flipped":
                    bad = bytearray(data)
                    if way.chance.random() < 0.5:
                        bad[way.chance.randrange(len(bad))] ^= 1 << way.chance.randrange(8)
                    await play(Plan([Piece(bytes(bad))]), writer, way.passed)
                case "reset" | "half-close" | "stall" as closing:
                    way.closed = True
                    await play(Plan([Piece(data[: max(0, way.at - len(way.passed))])], closing), writer, way.passed)
                    if closing == "reset":
                        return
                case _:
                    await play(Plan([Piece(data)]), writer, way.passed)
        if writer.can_write_eof():
            writer.write_eof()


async def call_over_caller_line(emulator: Emulator, address: str, name: str, chance: Random) -> Attempt:
    kind, up = chance.choice(LINE_KINDS), chance.random() < 0.6
    stream, deadline, model = chance.random() < 0.6, chance.random() < 0.5, chance.choice(MODELS)
    words = " ".join(chance.choices(WORDS, k=chance.randrange(1, 60)))
    line = CallerLine(address, kind, up=up, chance=chance)
    is_ok_required = kind in SOUND and model != STALLED
    deadline_s = choose_deadline_s(is_ok_required=is_ok_required) if deadline else None
    began_at = time.monotonic()
    async with line.listen() as near, open_channel(near) as channel:
        request = chat(f"{name} {words}", model=model)
        wait_s = SAFE_S if is_ok_required else CALL_S
        answer, end = await make_call(
            Bridge(near, channel), request, name, wait_s, stream=stream, deadline_s=deadline_s
        )
        took_s = time.monotonic() - began_at
        # The line stays as it is: the bridge must end the call by itself.
        wrong = await judge_upstream_end(emulator, name, began_at + (deadline_s or CALL_S) + LATE_S_MAX)
    if end.startswith(UNREADABLE) and line.down.kind == FLIPPED:
        end = UNREADABLE  # so are its trailers
    elif end.startswith(UNREADABLE):
        wrong = wrong or end
    elif end == "OK" and model == STALLED:
        wrong = wrong or "a wrong OK: the upstream never ended"
    elif end == "OK" and model == "echo":
        wrong = wrong or judge_ok(answer, line, stream=stream)
    elif end != "OK" and is_ok_required:
        wrong = wrong or f"{end}, though nothing was damaged"
    where = "towards the bridge" if up else "towards the caller"
    end = f"{end} of a stalled upstream" if model == STALLED else end
    return Attempt(f"{kind} {where}", end, f"{name}: {wrong}" if wrong else "", took_s)


async def judge_upstream_end(emulator: Emulator, name: str, end_at: float) -> str:
    """Return what is wrong with the upstream's part of a call; "" if it is over in time or there was none."""
    for exchange in [each for each in emulator.exchanges if each.headers.get("x-request-id") == name]:
        while not (exchange.finished or exchange.closed.is_set()):
            left_s = end_at - time.monotonic()
            if left_s <= 0:
                return "the upstream connection stayed open"
            with contextlib.suppress(TimeoutError):
                await exchange.wait_closed(min(left_s, 0.05))
    return ""


def judge_ok(answer: Answer, line: CallerLine, *, stream: bool) -> str:
    """Return what is wrong with an OK, given the bytes that the line passed on both ways; "" if nothing is."""
    if line.down.kind == FLIPPED:
        return ""  # the caller's own client decides how it reads that
    kind = StreamChatCompletionResponse if stream else CreateChatCompletionResponse
    if list(answer.messages) not in parse_streams(kind, split_messages(bytes(line.down.passed), preface=False)):
        return "a wrong OK: the caller's messages are not those passed on"
    requests = parse_streams(CreateChatCompletionRequest, split_messages(bytes(line.up.passed), preface=True))
    texts = {f"You said: {request.messages[0].text}" for [request, *_] in requests if request.messages}
    return "" if answer.text in texts else "a wrong OK: it answers another request"
