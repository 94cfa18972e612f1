"""A stream's usage: the bridge asks for it, and hides it from a caller who did not ask.

The upstream sends usage only if `stream_options.include_usage` is true, and the metrics, the log and `partial_usage`
need it from every stream. So the bridge asks for it in the place of a caller who did not, and takes out of the chunks
what only that brought: the field, and the chunk without choices that has it. Several usages of a stream are merged.
"""

from typing import Final

from bridge.core.fields import EXTRA
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest, StreamChatCompletionResponse
from ollmbridge.v1.chat_pb2 import CompletionTokensDetails, PromptTokensDetails, Usage

__all__ = ["has_usage_request", "merge_usage", "take_out_usage"]

USAGE_BYTES_MAX: Final = 64 * 1024
"""Of a stream's merged usage; of a larger one only the counts are kept. It has about a hundred bytes."""

_KEY: Final = "usage"
_OPTIONS: Final = "stream_options"
_ASK: Final = "include_usage"
_ENVELOPE: Final = frozenset({"id", "object", "created", "model", "episode_id", "system_fingerprint", "service_tier"})
"""Fields that each chunk of a completion has."""
_PADDING: Final = "obfuscation"
"""OpenAI's, in each chunk: random letters that hide the size of the text."""


def has_usage_request(request: CreateChatCompletionRequest) -> bool:
    """Whether a caller asks for usage, or says something of it that the bridge does not read."""
    if request.ollm.include_raw_usage or request.stream_options.include_usage:
        return True
    return _ASK in request.stream_options.extra_json or _OPTIONS in request.extra_json


def take_out_usage(chunk: StreamChatCompletionResponse) -> bool:
    """Remove the usage of a chunk. Return whether there is anything left to deliver."""
    is_typed = chunk.HasField("usage")
    if not is_typed and (not chunk.extra_json or _KEY not in chunk.extra_json):
        return True
    chunk.ClearField("usage")
    chunk.extra_json.pop(_KEY, None)
    return any(field.name not in _ENVELOPE and field.name != EXTRA for field, _ in chunk.ListFields()) or any(
        key != _PADDING for key in chunk.extra_json
    )


def merge_usage(known: Usage | None, found: Usage) -> Usage:
    """Return a usage with the fields of both; a field that both have is the one that was found."""
    merged = Usage()
    if known is not None:
        merged.CopyFrom(known)
    merged.MergeFrom(found)
    if merged.ByteSize() > USAGE_BYTES_MAX:
        _drop_texts(merged)
    return merged


def _drop_texts(usage: Usage) -> None:
    parts: list[Usage | PromptTokensDetails | CompletionTokensDetails] = [usage]
    if usage.HasField("prompt_tokens_details"):
        parts.append(usage.prompt_tokens_details)
    if usage.HasField("completion_tokens_details"):
        parts.append(usage.completion_tokens_details)
    for part in parts:
        part.ClearField("extra_json")
