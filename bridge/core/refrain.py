"""What the chunks of a stream repeat: all of an event but the text of its one delta.

A thousand chunks tell the same id, model and so on a thousand times, and reading them is most of what a chunk costs. So
an event that equals the one before, byte for byte, outside of its `"content":"…"`, is that event's chunk with another
text, and only the text is read.

That this is so is not assumed but tried, once for what is repeated: the event before is decoded anew with a text that
it did not have, and must give its own chunk with that text in it. JSON decides the rest. The text begins behind a colon
and a quote and holds neither quote nor backslash; it is a string's whole inside, then, since outside of one the trial's
text would be no JSON. Any other inside of a string can stand there without a change to what is around it.
"""

from collections.abc import Callable
from typing import Final

import orjson

from ollmbridge.v1.chat_completion_service_pb2 import StreamChatCompletionResponse

__all__ = ["Refrain"]

_OPENING: Final = b'"content":"'
_TRIAL: Final = "refrain"
_NOTED_BYTES_MAX: Final = 16 * 1024
"""Of an event that is kept for the next; those of a text's few letters have a few hundred."""


class Refrain:
    """One stream's: `note` each event that was decoded, and ask for the `chunk` of the next.

    `decode` gives the chunk of an event's data, and raises ValueError where it is none.
    """

    def __init__(self, decode: Callable[[bytes], StreamChatCompletionResponse]) -> None:
        self._decode = decode
        self._chunk: StreamChatCompletionResponse | None = None
        self._proven = False
        self._before = self._after = b""

    def note(self, data: bytes, chunk: StreamChatCompletionResponse) -> None:
        """Take note of an event that was decoded, and of its chunk."""
        self._chunk, self._proven = None, False
        if len(data) > _NOTED_BYTES_MAX or len(chunk.choices) != 1:
            return
        start = data.find(_OPENING) + len(_OPENING)
        end = data.find(b'"', start)
        if len(_OPENING) <= start <= end and b"\\" not in data[start:end]:
            self._chunk, self._before, self._after = chunk, data[:start], data[end:]

    def chunk(self, data: bytes) -> StreamChatCompletionResponse | None:
        """Give the event's chunk if it is the noted one with another text; None where it may not be."""
        before, after = self._before, self._after
        if self._chunk is None or not (data.startswith(before) and data.endswith(after, len(before))):
            return None
        try:
            text = orjson.loads(b'"%b"' % data[len(before) : len(data) - len(after)])
        except orjson.JSONDecodeError:
            return None
        if not self._proven:
            self._chunk, self._proven = self._tried(self._chunk), True
        return None if self._chunk is None else _with_text(self._chunk, text)

    def _tried(self, chunk: StreamChatCompletionResponse) -> StreamChatCompletionResponse | None:
        try:
            tried = self._decode(self._before + _TRIAL.encode() + self._after)
        except ValueError:
            return None
        return tried if chunk.choices[0].delta.content != _TRIAL and tried == _with_text(chunk, _TRIAL) else None


def _with_text(chunk: StreamChatCompletionResponse, text: str) -> StreamChatCompletionResponse:
    made = StreamChatCompletionResponse()
    made.CopyFrom(chunk)
    made.choices[0].delta.content = text
    return made
