"""`chat`: a prompt to a bridge, and the answer as it comes.

The answer goes to standard output; the model's reasoning, the usage and failures go to standard error. With --json the
messages go to standard output instead, a line each, as the gateway's API writes them.
"""

import argparse
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import grpc
import orjson
from google.protobuf import text_format
from google.protobuf.message import Message

from bridge.cli.channels import open_channel
from bridge.cli.chat_request import list_hints, read_request
from bridge.cli.explain import describe_error
from bridge.cli.interrupts import run_interruptibly
from bridge.cli.options import settings_errors_as_usage
from bridge.cli.terminal import dim, make_json_safe, make_safe, warn
from bridge.core.dialect import CHUNK, REPLY
from bridge.core.json_text import find_json_error
from bridge.settings import client_key
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest
from ollmbridge.v1.chat_completion_service_pb2_grpc import ChatCompletionServiceStub
from ollmbridge.v1.chat_pb2 import ChatMessage, ChoiceDelta, FunctionCall, MessageDelta, ToolCall, ToolCallDelta, Usage

if TYPE_CHECKING:
    from bridge.core.fields import Plan
    from ollmbridge.v1.chat_completion_service_pb2_grpc import ChatCompletionServiceAsyncStub

__all__ = ["EXIT_CODES", "StreamPrinter", "ToolCallJoiner", "call", "run"]

_Stub: TypeAlias = "ChatCompletionServiceAsyncStub"

EXIT_CODES: Final = {
    **dict.fromkeys(("INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "OUT_OF_RANGE", "UNIMPLEMENTED"), 3),
    **dict.fromkeys(("UNAUTHENTICATED", "PERMISSION_DENIED"), 4),
    **dict.fromkeys(("RESOURCE_EXHAUSTED", "UNAVAILABLE"), 5),
    "DEADLINE_EXCEEDED": 6,
    "ABORTED": 7,
}
"""By gRPC code: the request is wrong, the key is, retry later, out of time, broken off. Any other code is 1."""
_RAW_FIELDS: Final = frozenset({"raw_usage_json", "raw_response_json", "raw_chunk_json"})
"""What a provider sent may be other text than JSON: it is printed as a string then."""


def run(options: argparse.Namespace) -> int:
    """Make the call, and return the exit code. Raises UsageError if an option can't be used."""
    return run_interruptibly(call(read_request(options), options))


async def call(request: CreateChatCompletionRequest, options: argparse.Namespace) -> int:
    """Make the call, print what comes, return the exit code. Raises UsageError if a file or the key can't be used."""
    for hint in list_hints(options.options):
        print(hint, file=sys.stderr)
    with settings_errors_as_usage():
        key = client_key()
    named = {"metadata": (("authorization", f"Bearer {key}"),) if key else (), "timeout": options.timeout}
    show = _show_reply if options.no_stream else _show_stream
    async with open_channel(options) as channel:
        try:
            usage = await show(ChatCompletionServiceStub(channel), request, named, as_json=options.json)
        except grpc.aio.AioRpcError as error:
            status, *details = describe_error(error)
            print("\n".join([warn(status, sys.stderr), *details]), file=sys.stderr)
            return EXIT_CODES.get(error.code().name, 1)
    if usage is not None and not options.json:
        counts = {field.name.removesuffix("_tokens"): n for field, n in usage.ListFields() if isinstance(n, int)}
        line = "tokens: " + ", ".join(f"{name} {count}" for name, count in counts.items())
        print(dim(line, sys.stderr), file=sys.stderr)
    return 0


async def _show_reply(
    stub: _Stub, request: CreateChatCompletionRequest, named: dict[str, Any], *, as_json: bool
) -> Usage | None:
    """Print a unary reply, and return its usage."""
    reply = await stub.CreateChatCompletion(request, **named)
    if as_json:
        _print_json(reply, REPLY)
    else:
        for choice in reply.choices:
            if _print_reasoning(choice.message):
                print(file=sys.stderr, flush=True)
            _print_message(choice.message)
    return reply.usage if reply.HasField("usage") else None


async def _show_stream(
    stub: _Stub, request: CreateChatCompletionRequest, named: dict[str, Any], *, as_json: bool
) -> Usage | None:
    """Print a stream as it comes, and return its usage."""
    if not request.stream_options.HasField("include_usage"):
        request.stream_options.include_usage = True
    usage = None
    printer = StreamPrinter()
    try:
        async for chunk in stub.StreamChatCompletion(request, **named):
            if as_json:
                _print_json(chunk, CHUNK)
            else:
                printer.add(chunk.choices)
            usage = chunk.usage if chunk.HasField("usage") else usage
    finally:
        printer.end()
    return usage


class StreamPrinter:
    """Prints the choices of a stream in turn: the first as it comes, each other one once those before it are over."""

    def __init__(self) -> None:
        self._waiting: dict[int, list[ChoiceDelta]] = {}
        self._current: int | None = None
        self._joiner = ToolCallJoiner()
        self._is_reasoning = self._has_text = False

    def add(self, choices: Iterable[ChoiceDelta]) -> None:
        """Print what belongs to the choice in turn, and keep the rest."""
        for choice in choices:
            if self._current is None:
                self._current = choice.index
            if choice.index == self._current:
                self._print(choice)
            else:
                self._waiting.setdefault(choice.index, []).append(choice)

    def end(self) -> None:
        """Print the choices that waited."""
        self._end_choice()
        for index in sorted(self._waiting):
            for choice in self._waiting[index]:
                self._print(choice)
            self._end_choice()

    def _print(self, choice: ChoiceDelta) -> None:
        if _print_reasoning(choice.delta):
            self._is_reasoning = True
        if choice.delta.content:
            self._end_reasoning()
            print(make_safe(choice.delta.content, sys.stdout), end="", flush=True)
            self._has_text = True
        self._joiner.add(choice.delta.tool_calls)

    def _end_reasoning(self) -> None:
        if self._is_reasoning:
            print(file=sys.stderr, flush=True)
        self._is_reasoning = False

    def _end_choice(self) -> None:
        self._end_reasoning()
        if self._has_text:
            print(flush=True)
        for call in self._joiner.join():
            _print_tool_call(call)
        self._joiner, self._has_text = ToolCallJoiner(), False


def _print_reasoning(message: ChatMessage | MessageDelta) -> bool:
    """Print the model's reasoning, if there is some, and return whether there is."""
    text = message.reasoning_content or message.reasoning
    if text:
        print(dim(make_safe(text, sys.stderr), sys.stderr), end="", flush=True, file=sys.stderr)
    return bool(text)


def _print_message(message: ChatMessage) -> None:
    if message.HasField("text"):
        print(make_safe(message.text, sys.stdout))
    elif message.WhichOneof("content"):
        print(make_safe(text_format.MessageToString(message, as_utf8=True).rstrip(), sys.stdout))
    for call in message.tool_calls:
        _print_tool_call(call)


def _print_tool_call(call: ToolCall) -> None:
    print(make_safe(f"{call.function.name}({call.function.arguments})", sys.stdout))


def _print_json(message: Message, plan: "Plan") -> None:
    for field, value in message.ListFields():
        if field.name in _RAW_FIELDS and find_json_error(value) is not None:
            setattr(message, field.name, orjson.dumps(value).decode())
    print(make_json_safe(orjson.dumps(plan.write(message, None, [])).decode(), sys.stdout), flush=True)


class ToolCallJoiner:
    """Joins the fragments of a stream's tool calls, by the rules of clients/CASES.md, as every client's kit does.

    A fragment belongs to the last call at its index; without an index, to the call of the fragment before. An unset or
    empty id or name replaces nothing. Another id with a name begins another call: some servers send all at index 0.
    """

    def __init__(self) -> None:
        self._calls: list[tuple[int, ToolCall, list[str]]] = []
        self._places: dict[int, int] = {}
        self._place = -1

    def add(self, fragments: Iterable[ToolCallDelta]) -> None:
        """Add fragments in the order in which they come."""
        for fragment in fragments:
            self._place = self._find(fragment)
            _, call, arguments = self._calls[self._place]
            call.id = call.id or fragment.id
            call.function.name = call.function.name or fragment.function.name
            arguments.append(fragment.function.arguments)

    def _find(self, fragment: ToolCallDelta) -> int:
        """Return the place of a fragment's call, which may be a new one."""
        is_indexed, new = fragment.HasField("index"), fragment.id
        place = self._places.get(fragment.index, -1) if is_indexed else self._place
        known = self._calls[place][1].id if place >= 0 else ""
        is_other = bool(fragment.function.name) and (new != known if new and known else not is_indexed)
        if place >= 0 and not is_other:
            return place
        index = fragment.index if is_indexed else len(self._calls)
        self._calls.append((index, ToolCall(type="function", function=FunctionCall()), []))
        self._places[index] = len(self._calls) - 1
        return self._places[index]

    def join(self) -> list[ToolCall]:
        """Return the calls as they are so far, in the order of their indices."""
        for _, call, arguments in self._calls:
            call.function.arguments = "".join(arguments)
        return [call for _, call, _ in sorted(self._calls, key=lambda each: each[0])]
