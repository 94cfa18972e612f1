"""`chat`: a prompt to a bridge, and the answer as it comes. The answer goes to standard output, the usage to error."""

import argparse
import asyncio
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
import orjson
from google.protobuf import text_format

from bridge.cli.defaults import UsageError
from bridge.cli.explain import describe_error, escape_controls
from bridge.core.chat import decode_request_json
from bridge.core.json_text import JsonError, parse
from bridge.settings import client_key
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest
from ollmbridge.v1.chat_completion_service_pb2_grpc import ChatCompletionServiceStub
from ollmbridge.v1.chat_pb2 import FunctionCall, ToolCall, ToolCallDelta, Usage

if TYPE_CHECKING:
    from ollmbridge.v1.chat_completion_service_pb2_grpc import ChatCompletionServiceAsyncStub

__all__ = ["Stub", "ToolCallJoiner", "build_request", "run"]

Stub: TypeAlias = "ChatCompletionServiceAsyncStub"


def run(options: argparse.Namespace) -> int:
    """Make the call, and return the exit code. Raises UsageError if an option can't be used."""
    request = build_request(dict(_request_items(options)))
    return asyncio.run(_call(request, options))


def _request_items(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Yield the request's JSON, item by item. Raises UsageError."""
    system = [{"role": "system", "content": options.system}] if options.system is not None else []
    yield "model", options.model
    yield "messages", [*system, {"role": "user", "content": options.prompt}]
    for option in options.options:
        key, equals, text = option.partition("=")
        if not (key and equals):
            raise UsageError(f"-o: expected KEY=JSON, found {option!r}")
        try:
            parse(text.encode())
        except JsonError as error:
            raise UsageError(f"-o {key}: expected JSON (a text in quotes), found {text!r}: {error}") from None
        yield key, orjson.Fragment(text)


def build_request(document: dict[str, Any]) -> CreateChatCompletionRequest:
    """Return the request that a JSON object of the gateway's API stands for. Raises UsageError."""
    try:
        return decode_request_json(orjson.dumps(document))
    except ValueError as error:
        raise UsageError(f"the request is not JSON of this API: {error}") from None


async def _call(request: CreateChatCompletionRequest, options: argparse.Namespace) -> int:
    key = client_key()
    named = {"metadata": (("authorization", f"Bearer {key}"),) if key else (), "timeout": options.timeout}
    show = _show_reply if options.no_stream else _show_stream
    async with grpc.aio.insecure_channel(options.address) as channel:
        try:
            usage = await show(ChatCompletionServiceStub(channel), request, named)
        except grpc.aio.AioRpcError as error:
            print("\n".join(describe_error(error)), file=sys.stderr)
            return 1
    if usage is not None:
        counts = {field.name: value for field, value in usage.ListFields() if isinstance(value, int)}
        print("usage: " + ", ".join(f"{name} {value}" for name, value in counts.items()), file=sys.stderr)
    return 0


async def _show_reply(stub: Stub, request: CreateChatCompletionRequest, named: dict[str, Any]) -> Usage | None:
    """Print a unary reply, and return its usage."""
    reply = await stub.CreateChatCompletion(request, **named)
    for choice in reply.choices:
        message = choice.message
        text = message.text if message.HasField("text") else text_format.MessageToString(message).rstrip()
        print(_make_safe(text))
    return reply.usage if reply.HasField("usage") else None


async def _show_stream(stub: Stub, request: CreateChatCompletionRequest, named: dict[str, Any]) -> Usage | None:
    """Print a stream as it comes, then its tool calls, and return its usage."""
    if not request.stream_options.HasField("include_usage"):
        request.stream_options.include_usage = True
    usage = None
    joiner = ToolCallJoiner()
    end = ""
    try:
        async for chunk in stub.StreamChatCompletion(request, **named):
            for choice in chunk.choices:
                print(_make_safe(choice.delta.content), end="", flush=True)
                joiner.add(choice.delta.tool_calls)
                end = end or ("\n" if choice.delta.content else "")
            usage = chunk.usage if chunk.HasField("usage") else usage
    finally:
        print(end, end="")
    for call in joiner.join():
        print(_make_safe(f"{call.function.name}({call.function.arguments})"))
    return usage


def _make_safe(text: str) -> str:
    """Return a model's text as standard output may get it: a terminal, without control characters; others, as it is."""
    return escape_controls(text) if sys.stdout.isatty() else text


class ToolCallJoiner:
    """Joins the fragments of a stream's tool calls, by index. An unset or empty id or name replaces nothing."""

    def __init__(self) -> None:
        self._calls: dict[int, ToolCall] = {}

    def add(self, fragments: Iterable[ToolCallDelta]) -> None:
        """Add fragments in the order in which they come."""
        for fragment in fragments:
            call = self._calls.setdefault(fragment.index, ToolCall(type="function", function=FunctionCall()))
            call.id = fragment.id or call.id
            call.function.name = fragment.function.name or call.function.name
            call.function.arguments += fragment.function.arguments

    def join(self) -> list[ToolCall]:
        """Return the calls as they are so far, in the order of their indices."""
        return [self._calls[index] for index in sorted(self._calls)]
