"""A caller of mixed calls with a stock client, in a process of its own, which records the outcome of each.

`python -m lab.torture.caller ADDRESS FILE --seed N --seconds S (--rate R | --concurrency N)`. A line is JSON, see
`Outcome`. The seed draws the kind of the next call; each has an id of its own, sent as `x-request-id` and within its
message.
"""

import argparse
import asyncio
import contextlib
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import grpc
import uvloop

from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest
from ollmbridge.v1.chat_completion_service_pb2_grpc import ChatCompletionServiceStub
from tests.kit.client import decode_failure
from tests.kit.hostile import connect
from tests.kit.http2 import OPENING, SERVICE, encode_call, encode_message
from tests.kit.upstreams import reset_on_close

__all__ = ["KINDS", "LOST", "Kind", "Outcome", "read"]

WORDS = "a bridge carries its load to its piers and the piers carry it into the ground below "
MESSAGE_BYTES_MAX = 64 * 1024 * 1024


LOST = "LOST"
"""The code of a call that grpc.aio's client never ends, which happens now and then: it waits for its core beyond the
call's deadline, whatever the server does."""
LOST_AFTER_S = 20.0
"""Beyond the call's deadline."""


class Outcome(NamedTuple):
    """What a caller knows of a call. `reason` is "" if it had none; `is_consistent`: it was all this call's."""

    request_id: str
    kind: str
    code: str
    reason: str
    messages: int
    is_consistent: bool
    took_ms: float


def read(file: Path) -> list[Outcome]:
    return [Outcome(*json.loads(line)) for line in file.read_text().splitlines()]


@dataclass(frozen=True)
class Kind:
    """A kind of call, and its required end.

    `share` is its part of all calls. `http_status` is the status that the upstream writes, None if it writes none.
    `is_finished` is whether the upstream writes its answer to the end, None if either may be.
    """

    name: str
    share: float
    model: str = "echo"
    stream: bool = False
    size: int = 60
    tools: bool = False
    code: str = "OK"
    reason: str = ""
    http_status: int | None = 200
    is_finished: bool | None = True
    cancel_within_s: float | None = None
    """The caller cancels within this time, at a random moment."""
    resets_connection: bool = False
    """It cancels by a reset of the call's connection, which is one of its own."""
    pause_s: float = 0.0
    """How long the caller waits after each message."""
    timeout_s: float = 60.0

    @property
    def is_ended_by_caller(self) -> bool:
        """Whether the caller ends the call."""
        return self.cancel_within_s is not None or self.code == "DEADLINE_EXCEEDED"


def make_fault(
    name: str,
    scenario: str,
    code: str,
    reason: str,
    *,
    stream: bool = False,
    http_status: int | None = 200,
    is_finished: bool | None = True,
) -> Kind:
    return Kind(
        f"fault: {name}",
        0.05 / 14,
        f"scenario::{scenario}",
        stream,
        code=code,
        reason=reason,
        http_status=http_status,
        is_finished=is_finished,
    )


def list_faults() -> Iterator[Kind]:
    yield make_fault("500", "error?status=500", "INTERNAL", "UPSTREAM_INTERNAL", http_status=500)
    yield make_fault("429", "rate_limited", "RESOURCE_EXHAUSTED", "UPSTREAM_RATE_LIMITED", http_status=429)
    yield make_fault("503", "overloaded", "UNAVAILABLE", "UPSTREAM_UNAVAILABLE", http_status=503)
    yield make_fault("502", "provider_failed", "UNAVAILABLE", "UPSTREAM_PROVIDER_FAILED", http_status=502)
    yield make_fault("closed", "close", "ABORTED", "UPSTREAM_DISCONNECTED", http_status=None, is_finished=False)
    yield make_fault("reset", "reset?after=-1", "ABORTED", "UPSTREAM_DISCONNECTED", http_status=None, is_finished=False)
    yield make_fault("no JSON", "garbage", "INTERNAL", "INVALID_UPSTREAM_RESPONSE")
    yield make_fault("error in a 200", "error_event", "INTERNAL", "UPSTREAM_STREAM_ERROR")
    yield make_fault("stream cut", "cut", "ABORTED", "INCOMPLETE_COMPLETION", stream=True)
    yield make_fault(
        "stream reset", "reset?after=3", "ABORTED", "UPSTREAM_DISCONNECTED", stream=True, is_finished=False
    )
    yield make_fault("stream without finish", "no_finish", "ABORTED", "INCOMPLETE_COMPLETION", stream=True)
    yield make_fault("error event", "error_event", "INTERNAL", "UPSTREAM_STREAM_ERROR", stream=True, is_finished=None)
    yield make_fault("event no JSON", "garbage", "INTERNAL", "INVALID_UPSTREAM_RESPONSE", stream=True, is_finished=None)
    yield make_fault(
        "stream refused", "rate_limited", "RESOURCE_EXHAUSTED", "UPSTREAM_RATE_LIMITED", stream=True, http_status=429
    )


_CANCELLED = {"code": "CANCELLED", "http_status": None, "is_finished": None}
KINDS = (
    Kind("unary", 0.39),
    Kind("unary, 2 KB", 0.08, size=2_000),
    Kind("unary, 50 KB", 0.02, size=50_000),
    Kind("unary, 1 MB", 0.001, size=1_000_000),
    Kind("unary, slow", 0.06, "scenario::slow?delay_s=0.2"),
    Kind("tool call", 0.09, tools=True),
    Kind("stream", 0.119, stream=True),
    Kind("stream of a tool call", 0.03, stream=True, tools=True),
    Kind("stream of 200 chunks", 0.01, "scenario::many?chunks=200&bytes=50", stream=True),
    Kind("stream, paced", 0.04, "scenario::pace?chunks=20&interval_ms=20", stream=True),
    Kind("stream, read slowly", 0.01, "scenario::many?chunks=100&bytes=5000", stream=True, pause_s=0.01),
    *list_faults(),
    Kind("cancelled unary", 0.02, "scenario::slow?delay_s=0.2", cancel_within_s=0.25, **_CANCELLED),
    Kind("cancelled at once", 0.02, cancel_within_s=0.002, **_CANCELLED),
    Kind(
        "cancelled stream",
        0.04,
        "scenario::pace?chunks=20&interval_ms=20",
        stream=True,
        cancel_within_s=0.4,
        **_CANCELLED,
    ),
    Kind(
        "connection reset",
        0.01,
        "scenario::pace?chunks=20&interval_ms=20",
        stream=True,
        cancel_within_s=0.4,
        resets_connection=True,
        **_CANCELLED,
    ),
    Kind(
        "deadline exceeded",
        0.01,
        "scenario::stall",
        stream=True,
        timeout_s=0.15,
        **(_CANCELLED | {"code": "DEADLINE_EXCEEDED"}),
    ),
)
"""5 % faults, 10 % that their callers end."""


def build_text(kind: Kind, request_id: str) -> str:
    return f"{request_id} " + (WORDS * (kind.size // len(WORDS) + 1))[: kind.size]


def request(kind: Kind, request_id: str) -> CreateChatCompletionRequest:
    request = CreateChatCompletionRequest(model=kind.model)
    request.messages.add(role="user", text=build_text(kind, request_id))
    if kind.tools:  # the emulator calls a tool with the constants of its schema
        function = request.tools.add().function
        function.name = "weather"
        function.parameters_json = json.dumps({"type": "object", "properties": {"city": {"const": request_id}}})
    return request


async def make_call(stub: ChatCompletionServiceStub, kind: Kind, request_id: str, cancel_s: float) -> Outcome:
    """Make a call and return its outcome."""
    started_at = time.monotonic()
    options: dict[str, Any] = {"metadata": (("x-request-id", request_id),), "timeout": kind.timeout_s}
    body = request(kind, request_id)
    messages: list[Any] = []
    call = stub.StreamChatCompletion(body, **options) if kind.stream else stub.CreateChatCompletion(body, **options)
    cancelling = (
        asyncio.get_running_loop().call_later(cancel_s, call.cancel) if kind.cancel_within_s is not None else None
    )
    code, reason, is_consistent = "OK", "", True
    try:
        if kind.stream:
            async for chunk in call:
                messages.append(chunk)
                if kind.pause_s:
                    await asyncio.sleep(kind.pause_s)
        else:
            messages.append(await call)
        returned = await (call.initial_metadata() if kind.stream else call.trailing_metadata())
        is_consistent = dict(returned).get("x-request-id") == request_id
        is_consistent = is_consistent and is_whole(kind, request_id, messages)
    except grpc.aio.AioRpcError as error:
        code = error.code().name
        reason, is_consistent = read_failure(error, request_id, len(messages))
    except asyncio.CancelledError:
        code = "CANCELLED"
    finally:
        if cancelling is not None:
            cancelling.cancel()
    return Outcome(
        request_id, kind.name, code, reason, len(messages), is_consistent, (time.monotonic() - started_at) * 1000
    )


async def make_reset_call(address: str, kind: Kind, request_id: str, reset_s: float) -> Outcome:
    """Make a streamed call over a connection of its own, and reset that while nobody reads it."""
    message = encode_message(request(kind, request_id).SerializeToString())
    call = encode_call(message, (b"x-request-id", request_id.encode()), path=SERVICE + b"StreamChatCompletion")
    connected = await connect(address)
    try:
        await asyncio.get_running_loop().sock_sendall(connected, OPENING + call)
        await asyncio.sleep(reset_s)
    finally:
        reset_on_close(connected)
        connected.close()
    return Outcome(request_id, kind.name, "CANCELLED", "", 0, is_consistent=True, took_ms=reset_s * 1000)


def is_whole(kind: Kind, request_id: str, messages: list[Any]) -> bool:
    """Whether an answer is to this call, and whole."""
    choices = [choice for message in messages for choice in message.choices]
    if choices[-1].finish_reason not in {"stop", "tool_calls"}:
        return False
    if "pace" in kind.model or "many" in kind.model:
        chunks = int(dict(pair.split("=") for pair in kind.model.partition("?")[2].split("&"))["chunks"])
        return len(messages) == chunks + 2 and all(choice.delta.content for choice in choices[1:-1])
    parts = [choice.delta if kind.stream else choice.message for choice in choices]
    if kind.tools:
        arguments = "".join(call.function.arguments for part in parts for call in part.tool_calls)
        return bool(json.loads(arguments) == {"city": request_id})
    content = "".join(part.content if kind.stream else part.text for part in parts)
    return content == f"You said: {build_text(kind, request_id)}"


def read_failure(error: grpc.aio.AioRpcError, request_id: str, messages: int) -> tuple[str, bool]:
    """Return a failure's reason, and whether its details are this call's, with the right number of chunks."""
    try:
        failure = decode_failure(error)
    except ValueError:  # the caller's deadline passed as the trailers of another status came
        return "", error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    if "ErrorInfo" not in failure.details:
        return "", error.code() in {grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED}
    chunks = failure.upstream.chunks_delivered if "UpstreamError" in failure.details else 0
    # A call that was refused before it was looked at has no id.
    info = failure.details.get("RequestInfo")
    is_its_own = info.request_id == request_id if info is not None else failure.reason == "OVERLOADED"
    return failure.reason, is_its_own and chunks == messages


class Caller:
    """Random calls over one channel, and over connections that are reset."""

    def __init__(self, address: str, stub: ChatCompletionServiceStub, seed: int, file: TextIO) -> None:
        self._address = address
        self._stub = stub
        self._seed = seed
        self._file = file
        self._chance = random.Random(seed)
        self._count = 0

    async def call(self) -> None:
        self._count += 1
        kind = self._chance.choices(KINDS, [kind.share for kind in KINDS])[0]
        cancel_s = self._chance.uniform(0, kind.cancel_within_s or 0)
        request_id = f"{self._seed}-{self._count}"
        started_at = time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(kind.timeout_s + LOST_AFTER_S) as limit:
                if kind.resets_connection:
                    outcome = await make_reset_call(self._address, kind, request_id, cancel_s)
                else:
                    outcome = await make_call(self._stub, kind, request_id, cancel_s)
        if limit.expired():
            took_ms = (time.monotonic() - started_at) * 1000
            outcome = Outcome(request_id, kind.name, LOST, "", 0, is_consistent=True, took_ms=took_ms)
        self._file.write(json.dumps(outcome) + "\n")

    async def call_at_rate(self, rate: float, seconds: float) -> None:
        """Start calls at a fixed rate, however many are in flight, and wait for the last."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        running: set[asyncio.Task[None]] = set()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, start + number / rate - loop.time()))
            task = asyncio.create_task(self.call())
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)

    async def call_concurrently(self, count: int, seconds: float) -> None:
        """Keep this number of calls in flight."""
        end = time.monotonic() + seconds

        async def call_in_turn() -> None:
            while time.monotonic() < end:
                await self.call()

        await asyncio.gather(*(call_in_turn() for _ in range(count)))


async def run(options: argparse.Namespace) -> None:
    # Windows do not grow, so that a stream that is read slowly fills its own.
    channel_options = [
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.per_rpc_retry_buffer_size", MESSAGE_BYTES_MAX),  # a request above 256 KiB else ends with its connection
        ("grpc.http2.bdp_probe", 0),
    ]
    with options.file.open("w") as file:
        async with grpc.aio.insecure_channel(options.address, options=channel_options) as channel:
            caller = Caller(options.address, ChatCompletionServiceStub(channel), options.seed, file)
            await (
                caller.call_at_rate(options.rate, options.seconds)
                if options.rate
                else caller.call_concurrently(options.concurrency, options.seconds)
            )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lab.torture.caller")
    parser.add_argument("address")
    parser.add_argument("file", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--rate", type=float, default=0.0)
    how.add_argument("--concurrency", type=int, default=0)
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
