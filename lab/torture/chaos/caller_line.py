"""The damaged line between a caller and the bridge, and the judgment of a call over it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from random import Random

from bridge.emulator import Emulator
from lab.torture.chaos.calls import (
    CALL_S,
    LATE_S_MAX,
    SAFE_S,
    UNREADABLE,
    WORDS,
    Attempt,
    choose_deadline_s,
    make_call,
    open_channel,
)
from lab.torture.chaos.plans import PIECE_BYTES, SOUND, Piece, Plan, drip, play
from ollmbridge.v1.chat_completion_service_pb2 import (
    CreateChatCompletionRequest,
    CreateChatCompletionResponse,
    StreamChatCompletionResponse,
)
from tests.kit.client import Answer, Bridge, chat
from tests.kit.http2 import parse_streams, split_messages

__all__ = ["call_over_caller_line"]

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
