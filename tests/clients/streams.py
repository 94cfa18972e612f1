"""Streams of arbitrary chunks, to compare the kits by: fields that are set, empty and absent, in any order.

They are more odd than any upstream's. Few different values, so that indices, ids and keys meet again.
"""

import random
from collections.abc import Iterator
from typing import Any

from ollmbridge.v1.chat_completion_service_pb2 import StreamChatCompletionResponse
from ollmbridge.v1.chat_pb2 import ChoiceDelta, Logprobs, MessageDelta, ToolCallDelta, Usage

__all__ = ["build_stream"]

TEXTS = ("", "a", "b", "é😀", "null")
KEYS = ("x", "id", "content", "index")
"""Keys of extra_json, of which some have the names of fields."""


def build_stream(chance: random.Random) -> list[StreamChatCompletionResponse]:
    """Return up to eight chunks."""
    return [_build_chunk(chance) for _ in range(chance.randrange(9))]


def _set_some(chance: random.Random, message: Any, values: dict[str, tuple[Any, ...]], share: float) -> None:
    """Set some fields, each to one of its values, and some of extra_json."""
    for name, choices in values.items():
        if chance.random() < share:
            setattr(message, name, chance.choice(choices))
    for _ in range(chance.choice((0, 0, 0, 1, 2))):
        message.extra_json[chance.choice(KEYS)] = chance.choice(("1", '"a"', "[1.0]"))


def _repeat(chance: random.Random, *counts: int) -> Iterator[None]:
    return (None for _ in range(chance.choice(counts)))


def _build_chunk(chance: random.Random) -> StreamChatCompletionResponse:
    chunk = StreamChatCompletionResponse(object="chat.completion.chunk")
    _set_some(chance, chunk, {"id": TEXTS, "model": TEXTS, "created": (0, 1, 2)}, 0.7)
    _set_some(chance, chunk, dict.fromkeys(("episode_id", "system_fingerprint", "service_tier"), TEXTS), 0.2)
    raw = dict.fromkeys(("raw_usage_json", "raw_response_json", "raw_chunk_json"), ("1", "[2]"))
    _set_some(chance, chunk, raw, 0.2)
    for _ in _repeat(chance, 0, 0, 1):
        chunk.usage.CopyFrom(_build_usage(chance))
    chunk.choices.extend(_build_choice(chance) for _ in _repeat(chance, 0, 1, 1, 1, 2))
    return chunk


def _build_usage(chance: random.Random) -> Usage:
    usage = Usage()
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    _set_some(chance, usage, dict.fromkeys(counts, (0, 5, 2**40)) | {"cost": (0.0, 0.5, 1e-9)}, 0.4)
    for _ in _repeat(chance, 0, 1):
        usage.prompt_tokens_details.SetInParent()
        _set_some(chance, usage.prompt_tokens_details, dict.fromkeys(("cached_tokens", "audio_tokens"), (0, 1, 2)), 0.4)
    for _ in _repeat(chance, 0, 1):
        usage.completion_tokens_details.SetInParent()
        _set_some(chance, usage.completion_tokens_details, {"reasoning_tokens": (0, 1, 2)}, 0.6)
    return usage


def _build_choice(chance: random.Random) -> ChoiceDelta:
    choice = ChoiceDelta(index=chance.choice((0, 0, 0, 1, 5, -1)))
    _set_some(chance, choice, {"finish_reason": ("", "stop", "length")}, 0.2)
    for _ in _repeat(chance, 0, 0, 0, 1):
        choice.logprobs.CopyFrom(_build_logprobs(chance))
    for _ in _repeat(chance, 0, 1, 1, 1, 1, 1):
        choice.delta.CopyFrom(_build_delta(chance))
    return choice


def _build_logprobs(chance: random.Random) -> Logprobs:
    logprobs = Logprobs()
    _set_some(chance, logprobs, {}, 0)
    for tokens in (logprobs.content, logprobs.refusal):
        for _ in _repeat(chance, 0, 0, 1, 2):
            token = tokens.add(token=chance.choice(TEXTS), logprob=-chance.random(), bytes=[1, 2])
            for _ in _repeat(chance, 0, 1):
                token.top_logprobs.add(token="q")
    return logprobs


def _build_delta(chance: random.Random) -> MessageDelta:
    delta = MessageDelta()
    texts = dict.fromkeys(("content", "refusal", "reasoning_content", "reasoning"), TEXTS)
    _set_some(chance, delta, texts | {"role": ("", "assistant", "tool")}, 0.3)
    for _ in _repeat(chance, 0, 0, 0, 1):
        delta.annotations.add(type=chance.choice(TEXTS))
    delta.tool_calls.extend(_build_fragment(chance) for _ in _repeat(chance, 0, 0, 1, 1, 2))
    return delta


def _build_fragment(chance: random.Random) -> ToolCallDelta:
    fragment = ToolCallDelta()
    values = {"index": (0, 0, 1, 2, 7), "id": ("", "i", "j", "k"), "type": ("", "function", "custom")}
    _set_some(chance, fragment, values, 0.5)
    for _ in _repeat(chance, 0, 1, 1, 1):
        fragment.function.SetInParent()
        _set_some(chance, fragment.function, {"name": ("", "f", "g"), "arguments": ("", "{", "}")}, 0.6)
    return fragment
