"""A stock grpc.aio client of a bridge: make a call, and return all that came of it, decoded."""

import asyncio
import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import grpc
from google.rpc import error_details_pb2 as rpc_pb2
from grpc_status import rpc_status

from bridge.telemetry import CallRecord, Observer
from ollmbridge.v1 import error_details_pb2 as details_pb2
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest
from ollmbridge.v1.chat_completion_service_pb2_grpc import ChatCompletionServiceStub
from ollmbridge.v1.chat_pb2 import ChatMessage
from tests.kit.statuses import unpack_details
from tests.kit.waiting import WAIT_S

__all__ = [
    "Answer",
    "Bridge",
    "Failure",
    "Records",
    "build_deadline",
    "chat",
    "decode_failure",
    "read_to_the_end",
    "scenario",
]


class Failure(NamedTuple):
    """A status that is not OK, decoded. `details` are by message name, such as `details["RetryInfo"]`.

    `chunks` are the messages that came before it.
    """

    code: str
    message: str
    details: dict[str, Any]
    trailers: dict[str, Any]
    chunks: list[Any]

    @property
    def reason(self) -> str:
        return self.info.reason

    @property
    def verdict(self) -> tuple[str, str]:
        """The code, and the reason."""
        return self.code, self.reason

    @property
    def pushback_ms(self) -> str | None:
        return self.trailers.get("grpc-retry-pushback-ms")

    @property
    def info(self) -> rpc_pb2.ErrorInfo:
        return self.details["ErrorInfo"]

    @property
    def upstream(self) -> details_pb2.UpstreamError:
        return self.details["UpstreamError"]


def decode_failure(error: grpc.aio.AioRpcError, chunks: Iterable[Any] = ()) -> Failure:
    """Return a failed call's status, which must be the same in both its forms."""
    details = unpack_details(rpc_status.from_call(error))
    return Failure(error.code().name, error.details() or "", details, dict(error.trailing_metadata()), list(chunks))


class Answer(NamedTuple):
    """All that came of a call: messages, metadata, and the failure that it ended with, if it did not end with OK."""

    messages: list[Any]
    initial: dict[str, Any]
    trailers: dict[str, Any]
    failure: Failure | None

    @property
    def reply(self) -> Any:
        """The one message of a unary call that ended with OK."""
        assert self.failure is None, self.failure
        return self.messages[0]

    @property
    def chunks(self) -> list[Any]:
        """The messages of a stream that ended with OK."""
        assert self.failure is None, self.failure
        return self.messages

    @property
    def text(self) -> str:
        """The content of the first choice, unary or streamed."""
        choices = [choice for message in self.messages for choice in message.choices if choice.index == 0]
        return "".join(choice.delta.content if hasattr(choice, "delta") else choice.message.text for choice in choices)


class Records(Observer):
    """An observer that keeps the records, and counts the calls that have started."""

    def __init__(self) -> None:
        self.started = 0
        self.all: list[CallRecord] = []
        self._pending: asyncio.Queue[CallRecord] = asyncio.Queue()

    def start(self, method: str) -> None:
        self.started += 1

    def end(self, record: CallRecord) -> None:
        self.all.append(record)
        self._pending.put_nowait(record)

    async def next(self) -> CallRecord:
        """Wait for the oldest record that has not been returned yet."""
        async with asyncio.timeout(WAIT_S):
            return await self._pending.get()


@dataclass(eq=False)
class Bridge:
    """A running bridge and a client of it. `web_address` is "" without a web port."""

    address: str
    channel: grpc.aio.Channel
    records: Records = field(default_factory=Records)
    web_address: str = ""

    @property
    def stub(self) -> ChatCompletionServiceStub:
        return ChatCompletionServiceStub(self.channel)

    async def ask(self, request: CreateChatCompletionRequest, *, stream: bool = False, **options: Any) -> Answer:
        """Make a call and wait for its end. `options` are the stub's: metadata, timeout and so on."""
        messages = []
        try:
            if stream:
                call = self.stub.StreamChatCompletion(request, **options)
                async for chunk in call:
                    messages.append(chunk)  # noqa: PERF401 - what came before a failure counts
            else:
                call = self.stub.CreateChatCompletion(request, **options)
                messages.append(await call)
        except grpc.aio.AioRpcError as error:
            return Answer(
                messages,
                dict(error.initial_metadata() or ()),
                dict(error.trailing_metadata()),
                decode_failure(error, messages),
            )
        return Answer(messages, dict(await call.initial_metadata()), dict(await call.trailing_metadata()), None)


async def read_to_the_end(call: Any) -> None:
    """Read the chunks of a stream that a slow reader has not read, after which its status comes."""
    with contextlib.suppress(grpc.aio.AioRpcError):
        while await call.read() is not grpc.aio.EOF:
            pass


def build_deadline(limit_s: float) -> tuple[tuple[str, str], ...]:
    """Return the metadata of a deadline that the bridge alone keeps.

    With the stub's `timeout` the client keeps it too. Its reset may come first, by more than `find_expiry` allows for
    if the bridge was late to see the call: to the bridge that is a cancel.
    """
    return (("grpc-timeout", f"{round(limit_s * 1000)}m"),)


def chat(content: str = "hello there", model: str = "echo", **fields: Any) -> CreateChatCompletionRequest:
    """Return a request of one user message."""
    messages = fields.pop("messages", [ChatMessage(role="user", text=content)])
    return CreateChatCompletionRequest(model=model, messages=messages, **fields)


def scenario(text: str, **fields: Any) -> CreateChatCompletionRequest:
    """Return a request that meets one of the emulator's scenarios, `NAME?key=value&key=value`."""
    return chat(model=f"scenario::{text}", **fields)
