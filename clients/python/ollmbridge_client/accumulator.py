"""Join the chunks of a stream to the response that a unary call would return. clients/CASES.md has the rules."""

from collections.abc import Iterable, Iterator
from typing import Final

from google.protobuf.message import Message

from ollmbridge.v1 import chat_completion_service_pb2 as pb
from ollmbridge.v1 import chat_pb2

_FIRST: Final = ("id", "created", "model")
_LAST: Final = ("episode_id", "system_fingerprint", "service_tier", "raw_usage_json", "raw_response_json")
_TEXTS: Final = ("content", "refusal", "reasoning_content", "reasoning")


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
        _keep_first(self._reply, chunk, _FIRST)
        for field, value in chunk.ListFields():
            if field.name in _LAST:
                setattr(self._reply, field.name, value)
        if chunk.HasField("usage"):
            self._reply.usage.MergeFrom(chunk.usage)
        self._reply.extra_json.update(chunk.extra_json)
        for choice in chunk.choices:
            self._choices.setdefault(choice.index, _Choice(choice.index)).add(choice)

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

    def __init__(self, index: int) -> None:
        self._choice = chat_pb2.Choice(index=index, message=chat_pb2.ChatMessage())
        self._texts: dict[str, list[str]] = {}
        self._calls: list[tuple[int, chat_pb2.ToolCall, list[str]]] = []
        self._places: dict[int, int] = {}  # of the last call at each index
        self._place = -1  # of the fragment before

    def add(self, added: chat_pb2.ChoiceDelta) -> None:
        delta, message = added.delta, self._choice.message
        if added.finish_reason:
            self._choice.finish_reason = added.finish_reason
        if added.HasField("logprobs"):
            self._choice.logprobs.MergeFrom(added.logprobs)
        self._choice.extra_json.update(added.extra_json)
        _keep_first(message, delta, ("role",))
        for field, value in delta.ListFields():
            if field.name in _TEXTS:
                self._texts.setdefault(field.name, []).append(value)
        message.annotations.extend(delta.annotations)
        message.extra_json.update(delta.extra_json)
        for fragment in delta.tool_calls:
            self._place = self._find_call(fragment)
            _, call, arguments = self._calls[self._place]
            _keep_first(call, fragment, ("id", "type"))
            call.extra_json.update(fragment.extra_json)
            if fragment.HasField("function"):
                _keep_first(call.function, fragment.function, ("name",))
                call.function.extra_json.update(fragment.function.extra_json)
                call.function.SetInParent()
                arguments.append(fragment.function.arguments)

    def _find_call(self, fragment: chat_pb2.ToolCallDelta) -> int:
        """Return the place of the fragment's call: the last one at its index, or the one before; or of a new one."""
        is_indexed, new = fragment.HasField("index"), fragment.id
        place = self._places.get(fragment.index, -1) if is_indexed else self._place
        known = self._calls[place][1].id if place >= 0 else ""
        is_other = bool(fragment.function.name) and (new != known if new and known else not is_indexed)
        if place >= 0 and not is_other:
            return place
        index = fragment.index if is_indexed else len(self._calls)
        self._calls.append((index, chat_pb2.ToolCall(), []))
        self._places[index] = len(self._calls) - 1
        return self._places[index]

    def build(self) -> chat_pb2.Choice:
        choice = chat_pb2.Choice()
        choice.CopyFrom(self._choice)
        message = choice.message
        for name, parts in self._texts.items():
            setattr(message, "text" if name == "content" else name, "".join(parts))
        for _, call, arguments in sorted(self._calls, key=lambda each: each[0]):
            added = message.tool_calls.add()
            added.CopyFrom(call)
            added.type = added.type or "function"
            if arguments:
                added.function.arguments = "".join(arguments)
        if message.tool_calls and not message.text:
            message.ClearField("text")
        message.role = message.role or "assistant"
        return choice


def _keep_first(kept: Message, source: Message, names: Iterable[str]) -> None:
    """Set what is unset or empty; an empty value replaces nothing."""
    for name in names:
        if not getattr(kept, name) and (value := getattr(source, name)):
            setattr(kept, name, value)
