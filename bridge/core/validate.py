"""The contract's own rules for a request, which are checked before the upstream is asked.

They are only what the API states for certain. Words from open vocabularies (role, service_tier, detail, …) are the
upstream's to judge. The codec refuses a message that has no JSON form at all: a union with no member, broken JSON text,
two values for one key.
"""

import re
from collections.abc import Iterator
from typing import Final

from bridge.core.errors import Violation
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest

__all__ = ["validate"]

# The forms that parsers of UUIDs take; Python's own takes hyphens, spaces and underscores anywhere.
_HYPHENATED: Final = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_UUID: Final = re.compile(rf"(?:urn:uuid:)?{_HYPHENATED}|\{{{_HYPHENATED}\}}|[0-9a-f]{{32}}", re.IGNORECASE | re.ASCII)


def validate(request: CreateChatCompletionRequest, *, stream: bool) -> list[Violation]:
    """Return every violation of the request, by proto path."""
    return [Violation(field, description) for field, description in _find_violations(request, stream=stream)]


def _find_violations(request: CreateChatCompletionRequest, *, stream: bool) -> Iterator[tuple[str, str]]:
    if not request.model:
        yield "model", "expected a model's name or a selector, found an empty string"
    if not request.messages:
        yield "messages", "expected at least one message, found none"
    for index, message in enumerate(request.messages):
        if not message.role:
            yield f"messages[{index}].role", "expected a role, found an empty string"
        for at, call in enumerate(message.tool_calls):
            if call.HasField("function") and not call.function.name:
                yield f"messages[{index}].tool_calls[{at}].function.name", "expected a name, found an empty string"
    for index, tool in enumerate(request.tools):
        if tool.HasField("function") and not tool.function.name:
            yield f"tools[{index}].function.name", "expected a name, found an empty string"
    if request.HasField("n") and request.n != 1:
        yield "n", f"expected 1 or no value, found {request.n}"
    if request.max_tokens < 0:
        yield "max_tokens", f"expected 0 or more, found {request.max_tokens}"
    if request.max_completion_tokens < 0:
        yield "max_completion_tokens", f"expected 0 or more, found {request.max_completion_tokens}"
    if request.ollm.HasField("episode_id") and not _UUID.fullmatch(request.ollm.episode_id):
        yield "ollm.episode_id", f"expected a UUID, found {request.ollm.episode_id[:64]!r}"
    options = request.stream_options
    if stream and request.ollm.include_raw_usage and options.HasField("include_usage") and not options.include_usage:
        yield "stream_options.include_usage", "expected true or no value beside ollm.include_raw_usage, found false"
