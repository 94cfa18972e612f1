"""Tests of bridge/emulator/model.py: what is said to which request."""

from typing import Any

import pytest

from bridge.emulator.model import SCHEMA_DEPTH_MAX, answer
from tests.unit.emulator.client import CLOCK, HELLO, WEATHER, request

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer", "minimum": 1},
        "kind": {"enum": ["a", "b"]},
        "other": {"type": "string"},
        "flags": {"type": "array"},
        "union": {"anyOf": [{"type": ["null", "string"]}]},
        "fixed": {"const": 7, "type": "string"},
        "half": {"type": "number"},
        "sure": {"type": "boolean"},
        "name": {"type": "string"},
    },
    "required": ["city", "days", "kind", "flags", "union", "fixed", "half", "sure", "name"],
}
FILLED = '{"city":"Paris","days":1,"kind":"a","flags":[],"union":null,"fixed":7,"half":0,"sure":false,"name":"text"}'


def fill(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}


@pytest.mark.parametrize(
    ("changes", "text", "finish_reason"),
    [
        ({}, "You said: Hello there", "stop"),
        ({"max_tokens": 3}, "You said: Hello", "length"),
        ({"max_tokens": 3, "max_completion_tokens": 1}, "You", "length"),
        ({"max_tokens": 0}, "", "length"),
        ({"max_tokens": 4}, "You said: Hello there", "stop"),
        ({"stop": ["there", ": He", ""]}, "You said", "stop"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "part"}]}]}, "You said: part", "stop"),
        ({"messages": [{"role": "system", "content": "x"}]}, "You said: ", "stop"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "x"}]}, "You said: Hello there", "stop"),
        ({"response_format": {"type": "json_object"}}, '{"text":"You said: Hello there"}', "stop"),
        (fill(SCHEMA), FILLED, "stop"),
        (fill(None), "{}", "stop"),
    ],
)
def test_answer_obeys_the_request(changes, text, finish_reason):
    said = answer(request(**changes))
    assert ("".join(said.words), said.finish_reason, said.tool_calls) == (text, finish_reason, [])


def test_schema_within_itself_is_filled_to_a_depth():
    schema: dict[str, Any] = {}
    schema |= {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    text = "".join(answer(request(**fill(schema))).words)
    assert text.count('"a"') == SCHEMA_DEPTH_MAX + 1


def test_usage_counts_words():
    messages = [{"role": "system", "content": "one two"}, {"role": "user", "content": "three"}]
    usage = answer(request(messages=messages)).usage
    assert usage == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, ["get_weather"]),
        ({"tool_choice": "required"}, ["get_weather"]),
        ({"tool_choice": "required", "parallel_tool_calls": True}, ["get_weather", "get_time"]),
        ({"tool_choice": "none"}, []),
        ({"tool_choice": CLOCK | {"function": {"name": "get_time"}}}, ["get_time"]),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [CLOCK]}}},
            ["get_time"],
        ),
    ],
)
def test_tools_are_called_as_the_choice_says(changes, names):
    said = answer(request(tools=[WEATHER, CLOCK], **changes))
    assert [call["function"]["name"] for call in said.tool_calls] == names
    assert (said.finish_reason, bool(said.words)) == (("tool_calls", False) if names else ("stop", True))
    arguments = {"get_weather": '{"location":"Paris"}', "get_time": "{}"}
    assert all(call["function"]["arguments"] == arguments[call["function"]["name"]] for call in said.tool_calls)
    assert [call["id"] for call in said.tool_calls] == [f"call_{number}" for number in range(1, len(names) + 1)]


def test_custom_tool_is_called_as_a_function():
    (call,) = answer(request(tools=[{"type": "custom", "custom": {"name": "run"}}])).tool_calls
    assert call == {"id": "call_1", "type": "function", "function": {"name": "run", "arguments": "Paris"}}


def test_answer_after_tool_messages_uses_their_results_in_order():
    calls = answer(request(tools=[WEATHER, CLOCK], tool_choice="required", parallel_tool_calls=True)).tool_calls
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": f"{at} degrees"} for at, call in enumerate(calls)
    ]
    messages = [*HELLO, {"role": "assistant", "tool_calls": calls}, *results]
    assert "".join(answer(request(tools=[WEATHER], messages=messages)).words) == "The tool said: 0 degrees, 1 degrees"
    again = answer(request(tools=[WEATHER], messages=[*messages, *HELLO])).tool_calls
    assert [call["id"] for call in again] == ["call_3"]
