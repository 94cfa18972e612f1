"""A caller of mixed calls with a stock client, in a process of its own, which writes down what it was told of each.

`python -m tests.torture.caller ADDRESS FILE --seed N --seconds S (--rate R | --at-once N)`. A line is JSON, see `Told`.
Which call comes next is drawn by the seed; each has an id of its own, sent as `x-request-id` and within its message.
"""

import argparse
import asyncio
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import grpc
import uvloop
from google.rpc import error_details_pb2 as rpc_pb2
from grpc_status import rpc_status

from ollmbridge.v1 import error_details_pb2 as details_pb2
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest
from ollmbridge.v1.chat_completion_service_pb2_grpc import ChatCompletionServiceStub

__all__ = ["KINDS", "Kind", "Told", "read"]

WORDS = "a bridge carries its load to its piers and the piers carry it into the ground below "
MESSAGE_BYTES_MAX = 64 * 1024 * 1024


class Told(NamedTuple):
    """What a caller knows of a call. `reason` is "" where it had none; `good`: all that came belongs to this call."""

    request_id: str
    kind: str
    code: str
    reason: str
    messages: int
    good: bool
    took_ms: float


def read(file: Path) -> list[Told]:
    return [Told(*json.loads(line)) for line in file.read_text().splitlines()]


@dataclass(frozen=True)
class Kind:
    """A kind of call, and what it must end in.

    `share` is its part of all calls. `upstream` is the status that the upstream writes, None where it writes none.
    `ends` is whether the upstream writes its answer to the end, None where that is open.
    """

    name: str
    share: float
    model: str = "echo"
    stream: bool = False
    size: int = 60
    tools: bool = False
    code: str = "OK"
    reason: str = ""
    upstream: int | None = 200
    ends: bool | None = True
    leaves_s: float | None = None
    """The caller cancels within this time, at a moment drawn."""
    timeout_s: float = 60.0

    @property
    def leaves(self) -> bool:
        """Whether the call is ended by its caller."""
        return self.leaves_s is not None or self.code == "DEADLINE_EXCEEDED"


def _fault(
    name: str,
    scenario: str,
    code: str,
    reason: str,
    *,
    stream: bool = False,
    upstream: int | None = 200,
    ends: bool | None = True,
) -> Kind:
    return Kind(
        f"fault: {name}",
        0.05 / 14,
        f"scenario::{scenario}",
        stream,
        code=code,
        reason=reason,
        upstream=upstream,
        ends=ends,
    )


def _faults() -> Iterator[Kind]:
    yield _fault("500", "error?status=500", "INTERNAL", "UPSTREAM_INTERNAL", upstream=500)
    yield _fault("429", "rate_limited", "RESOURCE_EXHAUSTED", "UPSTREAM_RATE_LIMITED", upstream=429)
    yield _fault("503", "overloaded", "UNAVAILABLE", "UPSTREAM_UNAVAILABLE", upstream=503)
    yield _fault("502", "provider_failed", "UNAVAILABLE", "UPSTREAM_PROVIDER_FAILED", upstream=502)
    yield _fault("closed", "close", "ABORTED", "UPSTREAM_DISCONNECTED", upstream=None, ends=False)
    yield _fault("reset", "reset?after=-1", "ABORTED", "UPSTREAM_DISCONNECTED", upstream=None, ends=False)
    yield _fault("no JSON", "garbage", "INTERNAL", "INVALID_UPSTREAM_RESPONSE")
    yield _fault("error in a 200", "error_event", "INTERNAL", "UPSTREAM_STREAM_ERROR")
    yield _fault("stream cut", "cut", "ABORTED", "INCOMPLETE_STREAM", stream=True)
    yield _fault("stream reset", "reset?after=3", "ABORTED", "UPSTREAM_DISCONNECTED", stream=True, ends=False)
    yield _fault("stream without finish", "no_finish", "ABORTED", "INCOMPLETE_STREAM", stream=True)
    yield _fault("error event", "error_event", "INTERNAL", "UPSTREAM_STREAM_ERROR", stream=True, ends=None)
    yield _fault("event no JSON", "garbage", "INTERNAL", "INVALID_UPSTREAM_RESPONSE", stream=True, ends=None)
    yield _fault(
        "stream refused", "rate_limited", "RESOURCE_EXHAUSTED", "UPSTREAM_RATE_LIMITED", stream=True, upstream=429
    )


_LEFT = {"code": "CANCELLED", "upstream": None, "ends": None}
KINDS = (
    Kind("unary", 0.40),
    Kind("unary, 2 KB", 0.08, size=2_000),
    Kind("unary, 50 KB", 0.02, size=50_000),
    Kind("unary, 1 MB", 0.001, size=1_000_000),
    Kind("unary, slow", 0.06, "scenario::slow?delay_s=0.2"),
    Kind("tool call", 0.09, tools=True),
    Kind("stream", 0.119, stream=True),
    Kind("stream of a tool call", 0.03, stream=True, tools=True),
    Kind("stream of 200 chunks", 0.01, "scenario::many?chunks=200&bytes=50", stream=True),
    Kind("stream, paced", 0.04, "scenario::pace?chunks=20&interval_ms=20", stream=True),
    *_faults(),
    Kind("cancelled unary", 0.03, "scenario::slow?delay_s=0.2", leaves_s=0.25, **_LEFT),
    Kind("cancelled at once", 0.02, leaves_s=0.002, **_LEFT),
    Kind("cancelled stream", 0.04, "scenario::pace?chunks=20&interval_ms=20", stream=True, leaves_s=0.4, **_LEFT),
    Kind(
        "past its deadline",
        0.01,
        "scenario::stall",
        stream=True,
        timeout_s=0.15,
        **(_LEFT | {"code": "DEADLINE_EXCEEDED"}),
    ),
)
"""5 % faults, 10 % that their callers end."""


def text_of(kind: Kind, request_id: str) -> str:
    return f"{request_id} " + (WORDS * (kind.size // len(WORDS) + 1))[: kind.size]


def request(kind: Kind, request_id: str) -> CreateChatCompletionRequest:
    made = CreateChatCompletionRequest(model=kind.model)
    made.messages.add(role="user", text=text_of(kind, request_id))
    if kind.tools:  # the emulator calls a tool with what its schema asks for
        function = made.tools.add().function
        function.name = "weather"
        function.parameters_json = json.dumps({"type": "object", "properties": {"city": {"const": request_id}}})
    return made


async def made(stub: ChatCompletionServiceStub, kind: Kind, request_id: str, leave_s: float) -> Told:
    """Make a call and say what came of it."""
    began = time.monotonic()
    options: dict[str, Any] = {"metadata": (("x-request-id", request_id),), "timeout": kind.timeout_s}
    body = request(kind, request_id)
    messages: list[Any] = []
    call = stub.StreamChatCompletion(body, **options) if kind.stream else stub.CreateChatCompletion(body, **options)
    leaving = asyncio.get_running_loop().call_later(leave_s, call.cancel) if kind.leaves_s is not None else None
    code, reason, good = "OK", "", True
    try:
        if kind.stream:
            async for chunk in call:
                messages.append(chunk)  # noqa: PERF401 - what came before a failure counts
        else:
            messages.append(await call)
        returned = await (call.initial_metadata() if kind.stream else call.trailing_metadata())
        good = dict(returned).get("x-request-id") == request_id
        good = good and is_whole(kind, request_id, messages)
    except grpc.aio.AioRpcError as error:
        code = error.code().name
        reason, good = explained(error, request_id, len(messages))
    except asyncio.CancelledError:
        code = "CANCELLED"
    finally:
        if leaving is not None:
            leaving.cancel()
    return Told(request_id, kind.name, code, reason, len(messages), good, (time.monotonic() - began) * 1000)


def is_whole(kind: Kind, request_id: str, messages: list[Any]) -> bool:
    """Whether an answer is the one to this call, and all of it."""
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
    said = "".join(part.content if kind.stream else part.text for part in parts)
    return said == f"You said: {text_of(kind, request_id)}"


def explained(error: grpc.aio.AioRpcError, request_id: str, messages: int) -> tuple[str, bool]:
    """Give a failure's reason, and whether its details are this call's and tell how many chunks there were."""
    status = rpc_status.from_call(error)
    found: dict[str, Any] = {}
    for kind in (rpc_pb2.ErrorInfo, rpc_pb2.RequestInfo, details_pb2.UpstreamError):
        for packed in status.details if status is not None else ():
            if packed.Is(kind.DESCRIPTOR):
                found[kind.DESCRIPTOR.name] = kind.FromString(packed.value)
    if "ErrorInfo" not in found:
        return "", error.code() in {grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED}
    chunks = found["UpstreamError"].chunks_delivered if "UpstreamError" in found else 0
    return found["ErrorInfo"].reason, found["RequestInfo"].request_id == request_id and chunks == messages


class Caller:
    """Calls drawn by a seed, over one channel."""

    def __init__(self, stub: ChatCompletionServiceStub, seed: int, file: TextIO) -> None:
        self._stub = stub
        self._seed = seed
        self._file = file
        self._chance = random.Random(seed)
        self._count = 0

    async def call(self) -> None:
        self._count += 1
        kind = self._chance.choices(KINDS, [kind.share for kind in KINDS])[0]
        leave_s = self._chance.uniform(0, kind.leaves_s or 0)
        told = await made(self._stub, kind, f"{self._seed}-{self._count}", leave_s)
        self._file.write(json.dumps(told) + "\n")

    async def at_rate(self, rate: float, seconds: float) -> None:
        """Begin calls at a fixed rate, however many go on, and wait for the last."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        going: set[asyncio.Task[None]] = set()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, start + number / rate - loop.time()))
            task = asyncio.create_task(self.call())
            going.add(task)
            task.add_done_callback(going.discard)
        await asyncio.gather(*going)

    async def at_once(self, count: int, seconds: float) -> None:
        """Keep so many calls going."""
        end = time.monotonic() + seconds

        async def again() -> None:
            while time.monotonic() < end:
                await self.call()

        await asyncio.gather(*(again() for _ in range(count)))


async def run(asked: argparse.Namespace) -> None:
    options = [("grpc.max_receive_message_length", MESSAGE_BYTES_MAX)]
    with asked.file.open("w") as file:
        async with grpc.aio.insecure_channel(asked.address, options=options) as channel:
            caller = Caller(ChatCompletionServiceStub(channel), asked.seed, file)
            await (
                caller.at_rate(asked.rate, asked.seconds)
                if asked.rate
                else caller.at_once(asked.at_once, asked.seconds)
            )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.torture.caller")
    parser.add_argument("address")
    parser.add_argument("file", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--rate", type=float, default=0.0)
    how.add_argument("--at-once", type=int, default=0)
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
