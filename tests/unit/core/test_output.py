"""Tests of bridge/core/output.py: which chunks have output of the model."""

import json

import pytest

from bridge.core.dialect import CHUNK
from bridge.core.output import has_output
from bridge.core.source import Source
from ollmbridge.v1.chat_completion_service_pb2 import StreamChatCompletionResponse


def decode(*deltas: dict) -> StreamChatCompletionResponse:
    value = {"choices": [{"index": index, "delta": delta} for index, delta in enumerate(deltas)]}
    return StreamChatCompletionResponse(**CHUNK.read(value, Source(json.dumps(value).encode()), ()))


OUTPUT = [
    {"content": "a"},
    {"content": " "},
    {"content": [{"type": "text", "text": "a"}]},
    {"refusal": "no"},
    {"reasoning_content": "hm"},
    {"reasoning": "hm"},
    {"reasoning_details": [{"text": "hm"}]},
    {"tool_calls": [{"index": 0, "function": {"name": "f"}}]},
    {"function_call": {"name": "f"}},
    {"audio": {"data": "aGk="}},
]
NO_OUTPUT = [
    {},
    {"role": "assistant"},
    {"role": "assistant", "content": ""},
    {"content": None},
    {"reasoning_content": ""},
    {"reasoning": None, "tool_calls": []},
    {"annotations": [1]},
]


@pytest.mark.parametrize("delta", OUTPUT)
def test_text_reasoning_and_tool_calls_are_output(delta):
    assert has_output(decode(delta))
    assert has_output(decode({"role": "assistant"}, delta))


@pytest.mark.parametrize("delta", NO_OUTPUT)
def test_role_and_what_is_empty_are_no_output(delta):
    assert not has_output(decode(delta))


def test_chunk_without_choices_has_no_output():
    assert not has_output(decode())
