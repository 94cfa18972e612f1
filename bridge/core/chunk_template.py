"""An optional fast path: an event that differs from an earlier one in its text alone.

A thousand chunks repeat the same id, model and so on a thousand times, and reading them is most of what a chunk costs.
So an event that equals an earlier one, byte for byte, outside of one string (`"content": "…"`, a reasoning text, or a
fragment of a tool call's arguments) becomes that event's chunk with another text, and only the text is read.

This is not assumed but verified, once for each template: the earlier event is decoded again with a text that it did not
have, and the result must be its own chunk with that text in it. JSON decides the rest. The text begins behind a key, a
colon and a quote, and has neither quote nor backslash; it is a string's whole inside, then, since outside of a string
the verification's text would be no JSON. Any other inside of a string can stand there without a change to what is
around it.
"""

from collections.abc import Callable
from typing import Final, TypeAlias

import orjson

from ollmbridge.v1.chat_completion_service_pb2 import StreamChatCompletionResponse
from ollmbridge.v1.chat_pb2 import MessageDelta

__all__ = ["ChunkTemplate"]

_PROBE: Final = b'"template"'
_EVENT_BYTES_MAX: Final = 16 * 1024
"""Of an event that is remembered; those of a text's few letters have a few hundred."""

_SetText: TypeAlias = Callable[[MessageDelta, str, bytes], None]
"""Puts a text into a delta, from its value and from its JSON text."""


def _build_setter(key: str) -> _SetText:
    def set_field(delta: MessageDelta, text: str, _quoted: bytes) -> None:
        setattr(delta, key, text)

    def set_extra(delta: MessageDelta, _text: str, quoted: bytes) -> None:
        delta.extra_json[key] = quoted.decode()

    return set_field if key in MessageDelta.DESCRIPTOR.fields_by_name else set_extra


def _set_arguments(delta: MessageDelta, text: str, _quoted: bytes) -> None:
    delta.tool_calls[0].function.arguments = text


_SETTERS: Final[tuple[tuple[bytes, _SetText], ...]] = (
    *((f'"{key}":'.encode(), _build_setter(key)) for key in ("content", "reasoning_content", "reasoning")),
    (b'"arguments":', _set_arguments),
)


class ChunkTemplate:
    """One stream's template: `remember` each event that was decoded, and `render` the next one.

    `decode` returns the chunk of an event's data, and raises ValueError if it has none.
    """

    def __init__(self, decode: Callable[[bytes], StreamChatCompletionResponse]) -> None:
        self._decode = decode
        self._chunk: StreamChatCompletionResponse | None = None
        self._is_verified = False
        self._before = self._after = b""  # of the event, up to the text and from it on, both with its quote
        self._set_text: _SetText = _set_arguments

    def remember(self, data: bytes, chunk: StreamChatCompletionResponse) -> None:
        """Take an event that was decoded, and its chunk, as the template."""
        self._chunk, self._is_verified = None, False
        if len(data) > _EVENT_BYTES_MAX or len(chunk.choices) != 1:
            return
        for key, set_text in _SETTERS:
            if (place := _find_text(data, key)) is not None:
                start, end = place
                self._chunk, self._set_text = chunk, set_text
                self._before, self._after = data[:start], data[end:]
                if start < end:  # else another key may have the text: "content" is "" while a model reasons
                    return

    def render(self, data: bytes) -> StreamChatCompletionResponse | None:
        """Return the event's chunk if it is the template with another text, or None if it may not be."""
        before, after = self._before, self._after
        if self._chunk is None or not (data.startswith(before) and data.endswith(after, len(before))):
            return None
        quoted = data[len(before) - 1 : len(data) - len(after) + 1]
        try:
            text = orjson.loads(quoted)
        except orjson.JSONDecodeError:
            return None
        if not self._is_verified:
            self._chunk, self._is_verified = self._verify(self._chunk), True
        return None if self._chunk is None else self._copy(self._chunk, text, quoted)

    def _verify(self, chunk: StreamChatCompletionResponse) -> StreamChatCompletionResponse | None:
        """Return what the template gives its chunks by, or None if its text is not the text of the chunk."""
        try:
            decoded = self._decode(self._before[:-1] + _PROBE + self._after[1:])
            expected = self._copy(chunk, orjson.loads(_PROBE), _PROBE)
        except (ValueError, IndexError):
            return None
        return decoded if decoded == expected and expected != chunk else None

    def _copy(self, chunk: StreamChatCompletionResponse, text: str, quoted: bytes) -> StreamChatCompletionResponse:
        copy = StreamChatCompletionResponse()
        copy.CopyFrom(chunk)
        self._set_text(copy.choices[0].delta, text, quoted)
        return copy


def _find_text(data: bytes, key: bytes) -> tuple[int, int] | None:
    """Return where the text behind a key begins and ends, if it is a string without a backslash."""
    if (at := data.find(key)) < 0:
        return None
    start = at + len(key) + data.startswith(b" ", at + len(key)) + 1
    end = data.find(b'"', start)
    return (start, end) if data.startswith(b'"', start - 1) and end >= 0 and b"\\" not in data[start:end] else None
