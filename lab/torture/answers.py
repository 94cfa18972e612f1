"""An upstream that sends unrequested bytes: does any caller get an answer that is not to its own question?

Each answer names its question. The upstream sends second answers, late 408s and other bytes after an answer and on
idle connections, and resets and closes connections before, within and after answers, all at random. A call may fail,
but it must never get the answer of another, and once the upstream is calm every call must be answered.

The upstream shares the loop with the engine, since in HTTP/1.1 an unrequested answer that comes after the next request
is an answer to it. So before the upstream writes on an idle connection it checks, in the same turn, that no request
waits.
"""

import asyncio
import contextlib
import json
import re
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from random import Random

import grpc

from bridge.server.server import run_server
from bridge.settings import Settings
from lab.report import Result
from lab.torture.options import Options
from ollmbridge.v1.chat_completion_service_pb2_grpc import ChatCompletionServiceStub
from tests.kit.client import chat
from tests.kit.upstreams import reset_on_close

__all__ = ["ENGINES", "Tally", "Upstream", "ask_all", "run"]

ENGINES = ("native", "httpx")
CALLERS = 32
FULL_S = 120.0
QUICK_S = 10.0
CALM_QUESTIONS = 100
CALL_S = 30.0
_ANSWER = re.compile(rb"answer (\d+)\.")
_QUESTION = re.compile(rb"question (\d+)\.")
_STRAY = 0
"""The question that nobody asks."""

Ask = Callable[[int], Awaitable[bytes | None]]
"""Asks a question by its number, and returns the body of the answer, or nothing if the call fails."""


# The upstream


@dataclass(eq=False)
class Upstream:
    """A raw server. `url` is set while it runs; if `is_calm`, it only answers."""

    seed: int
    is_calm: bool = False
    url: str = ""
    connections: int = 0
    actions: Counter[str] = field(default_factory=Counter)

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Serve until the block ends."""
        tasks: set[asyncio.Task[None]] = set()

        async def accept(listener: socket.socket) -> None:
            while True:
                connection, _ = await asyncio.get_running_loop().sock_accept(listener)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what is sent is there at once
                self.connections += 1
                chance = Random(self.seed * 1_000_003 + self.connections)
                tasks.add(task := asyncio.create_task(self._serve(connection, chance)))
                task.add_done_callback(tasks.discard)

        with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
            listener.setblocking(False)
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            accepting = asyncio.create_task(accept(listener))
            try:
                yield
            finally:
                pending = [accepting, *tasks]
                for task in pending:
                    task.cancel()
                await asyncio.wait(pending)

    async def _serve(self, connection: socket.socket, chance: Random) -> None:
        with connection, contextlib.suppress(OSError, EOFError):
            while True:
                request = await read_request(connection)
                answer = build_answer(request)
                action = "answer" if self.is_calm else chance.choice(tuple(ACTIONS))
                self.actions[action] += 1
                await ACTIONS[action](connection, answer, chance)


async def read_request(connection: socket.socket) -> bytes:
    """Return the body of the next request. Raises EOFError at the connection's end."""
    data = b""
    while True:
        head, end, body = data.partition(b"\r\n\r\n")
        if end and len(body) >= int(re.search(rb"(?i)content-length: (\d+)", head)[1]):
            return body
        piece = await asyncio.get_running_loop().sock_recv(connection, 65536)
        if not piece:
            raise EOFError
        data += piece


def build_answer(request: bytes) -> bytes:
    return build_http_answer(int(_QUESTION.search(request)[1]), stream=b'"stream":true' in request)


def build_http_answer(question: int, *, stream: bool = False) -> bytes:
    """Return the whole answer to a question, a stream in chunks."""
    content = f"answer {question}."
    if not stream:
        choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
        body = json.dumps({"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]})
        return (
            f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()
        )
    choices = ({"delta": {"content": content}}, {"delta": {}, "finish_reason": "stop"})
    events = [
        f"data: {json.dumps({'id': 'c', 'created': 1, 'model': 'm', 'choices': [{'index': 0, **choice}]})}\n\n"
        for choice in choices
    ]
    chunks = "".join(f"{len(event):x}\r\n{event}\r\n" for event in (*events, "data: [DONE]\n\n"))
    fields = "content-type: text/event-stream\r\ntransfer-encoding: chunked"
    return f"HTTP/1.1 200 OK\r\n{fields}\r\n\r\n{chunks}0\r\n\r\n".encode()


LATE_408 = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 9\r\n\r\nanswer 0."


def build_unrequested(answer: bytes, chance: Random) -> bytes:
    """Return unrequested bytes: the answer to another question, the same again, a part of one, or no HTTP at all."""
    whole = chance.choice((build_http_answer(_STRAY), build_http_answer(_STRAY, stream=True), answer, LATE_408))
    return chance.choice((whole, whole, whole * 2, whole[: chance.randrange(1, len(whole))], b"\r\n", b"\0\xff" * 5))


async def send(connection: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(connection, data)


async def send_cut(connection: socket.socket, answer: bytes, chance: Random) -> None:
    at = 0
    while at < len(answer):
        size = chance.choice((1, 7, 60, 5000))
        await send(connection, answer[at : at + size])
        await asyncio.sleep(0)
        at += size


async def send_with_unrequested(connection: socket.socket, answer: bytes, chance: Random) -> None:
    await send(connection, answer + build_unrequested(answer, chance))


async def send_then_unrequested(connection: socket.socket, answer: bytes, chance: Random) -> None:
    """Send unrequested bytes after it on the idle connection, if it is still idle then."""
    await send(connection, answer)
    for _ in range(chance.randrange(8)):
        await asyncio.sleep(0)
    if is_idle(connection):
        connection.send(build_unrequested(answer, chance))


async def send_then_408(connection: socket.socket, answer: bytes, chance: Random) -> None:
    await send(connection, answer)
    for _ in range(chance.randrange(8)):
        await asyncio.sleep(0)
    if is_idle(connection):
        connection.send(LATE_408)
        raise EOFError


def is_idle(connection: socket.socket) -> bool:
    """Whether no request waits. Raises EOFError at the connection's end."""
    try:
        waiting = connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    if not waiting:
        raise EOFError
    return False


async def break_off(connection: socket.socket, answer: bytes, chance: Random) -> None:
    """Send a part of the answer, none of it or all, and close or reset the connection."""
    await send(connection, answer[: chance.choice((0, chance.randrange(len(answer)), len(answer)))])
    for _ in range(chance.randrange(4)):
        await asyncio.sleep(0)
    if chance.random() < 0.5:
        reset_on_close(connection)
    raise EOFError


ACTIONS: dict[str, Callable[[socket.socket, bytes, Random], Awaitable[None]]] = {
    "answer": send_cut,
    "answer with unrequested bytes": send_with_unrequested,
    "answer, then unrequested bytes": send_then_unrequested,
    "answer, then a late 408": send_then_408,
    "break off": break_off,
}


# The callers


@dataclass
class Tally:
    """The outcomes of the questions. `wrong` are answers with the name of another question, or of several."""

    questions: int = 0
    right: int = 0
    failed: int = 0
    wrong: list[str] = field(default_factory=list)


async def ask_all(ask: Ask, *, callers: int, until: Callable[[int], bool], first: int = 1) -> Tally:
    """Let callers ask one question after another, numbered from `first`, until `until` returns true."""
    tally = Tally()

    async def call() -> None:
        while not until(tally.questions):
            question = first + tally.questions
            tally.questions += 1
            body = await ask(question)
            if body is None:
                tally.failed += 1
            elif _ANSWER.findall(body) == [b"%d" % question]:
                tally.right += 1
            else:
                tally.wrong.append(f"question {question} got {body[:200]!r}")

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(call())
    return tally


async def run(options: Options) -> list[Result]:
    """Ask through a whole bridge with each engine, unary calls and streams by turns."""
    return [await soak(kind, options) for kind in ENGINES]


async def soak(kind: str, options: Options) -> Result:
    seconds = QUICK_S if options.quick else FULL_S
    upstream = Upstream(options.seed)
    async with upstream.run(), run_bridge(upstream.url, kind) as ask:
        end = time.monotonic() + seconds
        wild = await ask_all(ask, callers=CALLERS, until=lambda _: time.monotonic() > end)
        upstream.is_calm = True
        calm = await ask_all(
            ask, callers=CALLERS, until=lambda questions: questions >= CALM_QUESTIONS, first=wild.questions + 1
        )
    wrong = [*wild.wrong, *calm.wrong]
    outcome = f"{len(wrong)} wrong answers, such as: {wrong[0]}" if wrong else "no answer went to another question"
    if calm.failed:
        outcome += f"; {calm.failed} of {calm.questions} calls failed with a calm upstream"
    return Result(
        f"engine {kind}: unrequested bytes, late answers and resets before, within and after answers",
        wild.questions + calm.questions,
        outcome,
        ok=not wrong and not calm.failed and wild.right > 0,
        figures={
            "answered": wild.right + calm.right,
            "failed": wild.failed + calm.failed,
            "connections": upstream.connections,
            **{f"upstream: {action}": count for action, count in sorted(upstream.actions.items())},
        },
    )


@contextlib.asynccontextmanager
async def run_bridge(url: str, kind: str) -> AsyncIterator[Ask]:
    """Run a bridge with an engine, and yield a function that asks it by gRPC."""
    upstream = {"base_url": url, "engine": kind, "connect_timeout_s": CALL_S}
    settings = Settings(listen="127.0.0.1:0", drain_grace_s=0, upstream=upstream)
    async with run_server(settings) as address, grpc.aio.insecure_channel(address) as channel:
        stub = ChatCompletionServiceStub(channel)

        async def ask(question: int) -> bytes | None:
            request = chat(f"question {question}.")
            try:
                if question % 2:
                    reply = await stub.CreateChatCompletion(request, timeout=CALL_S)
                    return "".join(choice.message.text for choice in reply.choices).encode()
                chunks = [chunk async for chunk in stub.StreamChatCompletion(request, timeout=CALL_S)]
                return "".join(choice.delta.content for chunk in chunks for choice in chunk.choices).encode()
            except grpc.aio.AioRpcError:
                return None

        yield ask
