"""Whether a chunk has output of the model: text, reasoning, a refusal or a tool call. Role and finish reason are none.

The time to the first token is the time to the first such chunk.
"""

from typing import Final

from ollmbridge.v1.chat_completion_service_pb2 import StreamChatCompletionResponse
from ollmbridge.v1.chat_pb2 import MessageDelta

__all__ = ["has_output"]

_KEYS: Final = (
    *("content", "tool_calls", "refusal", "reasoning_content", "reasoning", "reasoning_details", "thinking"),
    *("function_call", "audio"),
)
_FIELDS: Final = tuple(key for key in _KEYS if key in MessageDelta.DESCRIPTOR.fields_by_name)
_EMPTY: Final = frozenset({"", '""', "[]", "{}", "null"})


def has_output(chunk: StreamChatCompletionResponse) -> bool:
    """Whether a delta of the chunk has any of it that is not empty."""
    for choice in chunk.choices:
        delta = choice.delta
        if any(getattr(delta, key) for key in _FIELDS):
            return True
        extra = delta.extra_json
        if extra and any(extra.get(key, "").strip() not in _EMPTY for key in _KEYS):
            return True
    return False
