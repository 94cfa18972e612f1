"""Join the chunks of a stream to the response that a unary call would return. clients/CASES.md has the rules."""

from collections.abc import Iterable, Iterator
from typing import Final

from google.protobuf.message import Message

from ollmbridge.v1 import chat_completion_service_pb2 as pb
from ollmbridge.v1 import chat_pb2

_FIRST: Final = {"id", "created", "model", "role", "type", "name"}  # a later value replaces nothing
_TEXTS: Final = {"content", "refusal", "reasoning_content", "reasoning"}
_APART: Final = {"object", "choices", "tool_calls", "function", "arguments"} | _TEXTS


def accumulate(chunks: Iterable[pb.StreamChatCompletionResponse]) -> pb.CreateChatCompletionResponse:
    """Return the response that the chunks of a stream make up."""
    accumulator = Accumulator()
    for chunk in chunks:
        accumulator.add(chunk)
    return accumulator.build()


class Accumulator:
    """The same chunk by chunk: for asyncio, for a program that shows text as it comes, or if the stream fails."""

    def __init__(self) -> None:
        self._reply = pb.CreateChatCompletionResponse(object="chat.completion")
        self._choices: dict[int, _Choice] = {}

    def add(self, chunk: pb.StreamChatCompletionResponse) -> None:
        """Add the next chunk."""
        _merge(self._reply, chunk)
        for choice in chunk.choices:
            self._choices.setdefault(choice.index, _Choice()).add(choice)

    def read(self, chunks: Iterable[pb.StreamChatCompletionResponse]) -> Iterator[pb.StreamChatCompletionResponse]:
        """Yield chunks as they come, and add each."""
        for chunk in chunks:
            self.add(chunk)
            yield chunk

    def build(self) -> pb.CreateChatCompletionResponse:
        """Return the response as it is so far."""
        reply = pb.CreateChatCompletionResponse()
        reply.CopyFrom(self._reply)
        reply.choices.extend(self._choices[index].build() for index in sorted(self._choices))
        return reply


class _Choice:
    """One choice. Texts are lists until the end: each of many thousand chunks may add to them."""

    def __init__(self) -> None:
        self._choice = chat_pb2.Choice(message=chat_pb2.ChatMessage())
        self._texts: dict[str, list[str]] = {}
        self._calls: list[tuple[chat_pb2.ToolCall, list[str]]] = []  # with their index
        self._places: dict[int, int] = {}  # of the last call at each index
        self._place = -1  # of the fragment before

    def add(self, added: chat_pb2.ChoiceDelta) -> None:
        _merge(self._choice, added)
        _merge(self._choice.message, added.delta)
        for field, value in added.delta.ListFields():
            if field.name in _TEXTS:
                self._texts.setdefault(field.name, []).append(value)
        for fragment in added.delta.tool_calls:
            self._place = self._find_call(fragment)
            call, arguments = self._calls[self._place]
            _merge(call, fragment)
            if fragment.HasField("function"):
                _merge(call.function, fragment.function)
                call.function.SetInParent()
                arguments.append(fragment.function.arguments)

    def _find_call(self, fragment: chat_pb2.ToolCallDelta) -> int:
        """Return the place of the fragment's call: the last one at its index, or the one before; or of a new one."""
        is_indexed, new = fragment.HasField("index"), fragment.id
        place = self._places.get(fragment.index, -1) if is_indexed else self._place
        known = self._calls[place][0].id if place >= 0 else ""
        is_other = bool(fragment.function.name) and (new != known if new and known else not is_indexed)
        if place >= 0 and not is_other:
            return place
        index = fragment.index if is_indexed else len(self._calls)
        self._calls.append((chat_pb2.ToolCall(index=index), []))
        self._places[index] = len(self._calls) - 1
        return self._places[index]

    def build(self) -> chat_pb2.Choice:
        choice = chat_pb2.Choice()
        choice.CopyFrom(self._choice)
        message = choice.message
        for name, parts in self._texts.items():
            setattr(message, "text" if name == "content" else name, "".join(parts))
        for call, arguments in sorted(self._calls, key=lambda each: each[0].index):
            added = message.tool_calls.add()
            added.CopyFrom(call)
            added.ClearField("index")
            added.type = added.type or "function"
            if arguments:
                added.function.arguments = "".join(arguments)
        if message.tool_calls and not message.text:
            message.ClearField("text")
        message.role = message.role or "assistant"
        return choice


def _merge(kept: Message, added: Message) -> None:
    """Merge the fields that are set into those of the same name; those of _APART are left to the caller."""
    for field, value in added.ListFields():
        name = field.name
        if name in _APART or name not in kept.DESCRIPTOR.fields_by_name:
            continue
        if name in _FIRST:
            setattr(kept, name, getattr(kept, name) or value)
        elif value or name != "finish_reason":  # sets the field, appends to a list, or puts the keys of a map
            kept.MergeFrom(type(kept)(**{name: value}))
