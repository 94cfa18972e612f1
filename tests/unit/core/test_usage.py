"""Tests of bridge/core/usage.py: who asks for usage, what is taken out of chunks, and how usages are merged."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.chat import ChatStream, encode_request
from bridge.core.usage import USAGE_BYTES_MAX, has_usage_request, merge_usage, take_out_usage
from ollmbridge.v1.chat_completion_service_pb2 import StreamChatCompletionResponse
from ollmbridge.v1.chat_pb2 import Usage
from tests.kit.client import chat

ASKS = [
    {"stream_options": {"include_usage": True}},
    {"ollm": {"include_raw_usage": True}},
    {"stream_options": {"extra_json": {"include_usage": "true"}}},
    {"extra_json": {"stream_options": '{"include_usage":true}'}},
]
DOES_NOT_ASK = [
    {},
    {"stream_options": {}},
    {"stream_options": {"include_usage": False}},
    {"stream_options": {"extra_json": {"include_obfuscation": "false"}}},
]


@pytest.mark.parametrize("fields", ASKS)
def test_caller_who_asks_for_usage_has_a_usage_request(fields):
    assert has_usage_request(chat(**fields))


@pytest.mark.parametrize("fields", DOES_NOT_ASK)
def test_usage_is_asked_for_in_the_place_of_a_caller_who_does_not(fields):
    request = chat(**fields)
    assert not has_usage_request(request)
    before = request.SerializeToString()
    body = json.loads(encode_request(request, stream=True, include_usage=True))
    others = {key: json.loads(text) for key, text in request.stream_options.extra_json.items()}
    assert body["stream_options"] == {"include_usage": True} | others
    assert request.SerializeToString() == before


TOKENS = {"prompt_tokens": 3, "completion_tokens": 2}
CHOICES = [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]
HEAD = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "service_tier": "x"}


def play(*events: dict, **options) -> tuple[list[StreamChatCompletionResponse], ChatStream]:
    stream = ChatStream(hides_usage=True, **options)
    data = b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events)
    return list(stream.feed(data)), stream


@pytest.mark.parametrize(
    "event",
    [
        HEAD | {"choices": [], "usage": TOKENS},
        {"usage": TOKENS},
        HEAD | {"choices": [], "usage": TOKENS, "obfuscation": "x7"},
        HEAD | {"choices": [], "usage": "three"},
    ],
)
def test_chunk_that_only_usage_brought_is_not_delivered(event):
    chunks, stream = play(HEAD | {"choices": CHOICES}, event)
    assert (len(chunks), stream.chunks) == (1, 1)


@pytest.mark.parametrize(
    "event",
    [
        HEAD | {"choices": CHOICES, "usage": TOKENS},
        HEAD | {"choices": CHOICES, "usage": None},
        HEAD | {"choices": CHOICES, "usage": [1]},
        HEAD | {"choices": [], "usage": TOKENS, "citations": ["a"]},
        HEAD | {"choices": [], "usage": TOKENS, "raw_response": "{}"},
        HEAD | {"choices": []},
    ],
)
def test_all_of_a_chunk_but_its_usage_is_delivered(event):
    (chunk,), _ = play(event)
    (expected,) = list(ChatStream().feed(b"data: %b\n\n" % json.dumps(event | {"usage": None}).encode()))
    assert chunk == expected


@pytest.mark.parametrize("use_templates", [True, False])
def test_hidden_usage_is_known_whether_templates_are_used_or_not(use_templates):
    events = [HEAD | {"choices": [{"index": 0, "delta": {"content": str(n)}}], "usage": None} for n in range(5)]
    usages = [HEAD | {"choices": CHOICES, "usage": TOKENS | {"completion_tokens": n}} for n in range(5)]
    chunks, stream = play(*events, *usages, *events, use_templates=use_templates)
    assert len(chunks) == 15
    assert not any(chunk.HasField("usage") or chunk.extra_json for chunk in chunks)
    assert (stream.usage.prompt_tokens, stream.usage.completion_tokens) == (3, 4)


def test_chunk_without_usage_is_left_as_it_is():
    chunk = StreamChatCompletionResponse(id="c", extra_json={"a": "1"})
    assert take_out_usage(chunk)
    assert chunk == StreamChatCompletionResponse(id="c", extra_json={"a": "1"})


def test_usages_are_merged_by_field():
    first = Usage(prompt_tokens=10, completion_tokens=0, prompt_tokens_details={"cached_tokens": 4})
    second = Usage(completion_tokens=5, completion_tokens_details={"reasoning_tokens": 2}, extra_json={"cost": "1"})
    third = Usage(completion_tokens=7, prompt_tokens_details={"audio_tokens": 1})
    merged = merge_usage(merge_usage(merge_usage(None, first), second), third)
    assert merged == Usage(
        prompt_tokens=10,
        completion_tokens=7,
        prompt_tokens_details={"cached_tokens": 4, "audio_tokens": 1},
        completion_tokens_details={"reasoning_tokens": 2},
        extra_json={"cost": "1"},
    )
    assert first.completion_tokens == 0


@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=40_000), max_size=3), max_size=5))
def test_merged_usage_is_bounded_whatever_comes(extras):
    merged = None
    for extra in extras:
        found = Usage(prompt_tokens=1, extra_json=extra, completion_tokens_details={"extra_json": extra})
        merged = merge_usage(merged, found)
        assert merged.ByteSize() <= USAGE_BYTES_MAX
        assert merged.prompt_tokens == 1
