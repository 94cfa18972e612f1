"""A call over a damaged line: its limits of time, its end in words, and what is wrong with that."""

import asyncio
from dataclasses import dataclass

import grpc
from google.protobuf.message import DecodeError

from ollmbridge.v1.chat_completion_service_pb2 import (
    CreateChatCompletionRequest,
)
from tests.kit.client import Answer, Bridge

__all__ = [
    "ABANDONED",
    "CALL_S",
    "CROSSED",
    "DEADLINE_S",
    "IDLE_S",
    "LATE_S_MAX",
    "SAFE_S",
    "UNREADABLE",
    "WORDS",
    "Attempt",
    "choose_deadline_s",
    "describe_end",
    "make_call",
    "open_channel",
]

IDLE_S, CALL_S, DEADLINE_S = 1.0, 4.0, 1.2
LATE_S_MAX = 2.0
SAFE_S = 30.0
"""After which a caller without a deadline gives up: far beyond the limit."""
WORDS = ("bridge", "river", "橋", '"quoted"', "{json}", "data:", "\\u0041", "🌉", "[DONE]", "finish_reason", "é\u2028")


@dataclass(frozen=True)
class Attempt:
    """A call over a damaged line: its end, and what is wrong with that, if anything."""

    kind: str
    end: str
    wrong: str
    took_s: float


def open_channel(address: str) -> grpc.aio.Channel:
    """Return a channel with a connection of its own that retries nothing."""
    options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.insecure_channel(address, options=options)


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
