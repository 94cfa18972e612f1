"""Tests of bridge/emulator/requests.py: which bodies are refused, and by the name of which field."""

from typing import Any

import pytest

from bridge.emulator.requests import FIELDS, check_body, parse_body, refuse_value
from bridge.emulator.steps import RefusalError
from tests.unit.emulator.client import HELLO, WEATHER, ollm, request

BAD_BODIES = {
    "empty": b"",
    "whitespace": b"  ",
    "not json": b"{",
    "trailing bytes": b"{} {}",
    "not utf-8": b'{"model":"\xff"}',
    "byte order mark": b"\xef\xbb\xbf{}",
    "nan": b'{"temperature":NaN}',
    "lone surrogate": b'{"model":"\\ud83d"}',
    "too deep": b"[" * 100_000,
    "array": b"[]",
    "null": b"null",
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES)
def test_body_that_is_no_json_object_is_refused(body):
    with pytest.raises(RefusalError) as caught:
        parse_body(body)
    assert (caught.value.status, caught.value.envelope["type"]) == (400, "invalid_request_error")


def test_last_of_a_duplicate_key_counts():
    assert parse_body(b'{"a":1,"b":"\\ud83d\\ude00","a":2}') == {"a": 2, "b": "😀"}


def user(*parts: Any) -> dict[str, Any]:
    return request(messages=[{"role": "user", "content": list(parts)}])


def tool(**function: Any) -> dict[str, Any]:
    return request(tools=[{"type": "function", "function": function}])


def choose(**choice: Any) -> dict[str, Any]:
    return request(tools=[WEATHER], tool_choice=choice)


def say(**message: Any) -> dict[str, Any]:
    return request(messages=[*HELLO, message])


def call(**call: Any) -> dict[str, Any]:
    return say(role="assistant", tool_calls=[{"id": "a", "type": "function"} | call])


def form(type_: str, **schema: Any) -> dict[str, Any]:
    return request(response_format={"type": type_} | schema)


IMAGE = {"url": "https://example.com/a.png"}
BAD_FIELDS = [
    ({"messages": HELLO}, "model"),
    (request(model=None), "model"),
    (request(model=1), "model"),
    ({"model": "echo"}, "messages"),
    (request(messages=None), "messages"),
    (request(messages="hi"), "messages"),
    (request(messages=[]), "messages"),
    (request(messages=["hi"]), "messages[0]"),
    (say(content="x"), "messages[1].role"),
    (say(role="robot", content="x"), "messages[1].role"),
    (say(role="function", content="x"), "messages[1].role"),
    (say(role=["user"], content="x"), "messages[1].role"),
    (say(role="user"), "messages[1].content"),
    (say(role="user", content=None), "messages[1].content"),
    (say(role="user", content={"text": "x"}), "messages[1].content"),
    (say(role="assistant", content=1), "messages[1].content"),
    (say(role="assistant", tool_calls={}), "messages[1].tool_calls"),
    (say(role="assistant", tool_calls=[1]), "messages[1].tool_calls[0]"),
    (call(), "messages[1].tool_calls[0].function"),
    (call(function={"name": "f", "arguments": {}}), "messages[1].tool_calls[0].function.arguments"),
    (say(role="tool", content="x"), "messages[1].tool_call_id"),
    (say(role="tool", content="x", tool_call_id="nobody"), "messages[1].tool_call_id"),
    (user("text"), "messages[0].content[0]"),
    (user({"text": "x"}), "messages[0].content[0].type"),
    (user({"type": "video", "video": {}}), "messages[0].content[0].type"),
    (user({"type": "text"}), "messages[0].content[0].text"),
    (user({"type": "text", "text": 1}), "messages[0].content[0].text"),
    (user({"type": "image_url"}), "messages[0].content[0].image_url"),
    (user({"type": "image_url", "image_url": IMAGE | {"detail": "best"}}), "messages[0].content[0].image_url.detail"),
    (user({"type": "image_url", "image_url": IMAGE | {"x": 1}}), "messages[0].content[0].image_url"),
    (user({"type": "image_url", "image_url": IMAGE, "x": 1}), "messages[0].content[0]"),
    (
        user({"type": "input_audio", "input_audio": {"data": "!", "format": "wav"}}),
        "messages[0].content[0].input_audio.data",
    ),
    (user({"type": "file", "file": {"file_data": "abc"}}), "messages[0].content[0].file.file_data"),
    (user({"type": "file", "file": {"file_id": "abc"}}), "messages[0].content[0].file.file_data"),
    (
        request(messages=[{"role": "system", "content": [{"type": "image_url", "image_url": IMAGE}]}]),
        "messages[0].content[0].type",
    ),
    (request(temperature="hot"), "temperature"),
    (request(top_p=True), "top_p"),
    (request(presence_penalty="x"), "presence_penalty"),
    (request(frequency_penalty=[]), "frequency_penalty"),
    *((request(max_tokens=value), "max_tokens") for value in (100.0, -1, 2**31, True)),
    *((request(max_completion_tokens=value), "max_completion_tokens") for value in (-1, 1.5)),
    *((request(n=value), "n") for value in (0, 2, -1, 1.0)),
    *((request(stop=value), "stop") for value in ("x", [1])),
    *((request(seed=value), "seed") for value in (1.0, 2**31)),
    (request(reasoning_effort=1), "reasoning_effort"),
    (request(verbosity=1), "verbosity"),
    *((request(service_tier=value), "service_tier") for value in ("scale", "Auto")),
    (request(stream="yes"), "stream"),
    (request(parallel_tool_calls=1), "parallel_tool_calls"),
    (request(stream_options=[]), "stream_options"),
    (request(stream_options={"include_usage": None}), "stream_options.include_usage"),
    (request(tools={}), "tools"),
    (request(tools=[1]), "tools[0]"),
    (request(tools=[{"type": "retrieval"}]), "tools[0].type"),
    (request(tools=[{"type": "function"}]), "tools[0].function"),
    (tool(parameters={}), "tools[0].function.name"),
    (tool(name="f"), "tools[0].function.parameters"),
    (tool(name="f", parameters={}, strict=None), "tools[0].function.strict"),
    (request(tools=[{"type": "custom", "custom": {"name": "f", "x": 1}}]), "tools[0].custom"),
    (request(tools=[WEATHER, WEATHER]), "tools"),
    *((request(tool_choice=value), "tool_choice") for value in ("invalid", 1, [])),
    (choose(), "tool_choice.type"),
    (choose(type="custom"), "tool_choice.type"),
    (choose(type="function", function={}), "tool_choice.function.name"),
    (choose(type="function", function={"name": "other"}), "tool_choice"),
    (choose(type="allowed_tools", allowed_tools={"mode": "none", "tools": []}), "tool_choice.allowed_tools.mode"),
    (
        choose(type="allowed_tools", allowed_tools={"mode": "auto", "tools": [{"type": "x"}]}),
        "tool_choice.allowed_tools.tools[0].type",
    ),
    (request(response_format="json"), "response_format"),
    (form("xml"), "response_format.type"),
    (form("json_schema"), "response_format.json_schema"),
    (form("json_schema", json_schema={}), "response_format.json_schema.name"),
    (form("json_schema", json_schema={"name": "a", "strict": None}), "response_format.json_schema.strict"),
    *((ollm("tags", value), "ollm::tags") for value in ({"a": 1}, None, [])),
    (ollm("cache_options", "on"), "ollm::cache_options"),
    (ollm("cache_options", {"enabled": "yes"}), "ollm::cache_options.enabled"),
    (ollm("cache_options", {"enabled": None}), "ollm::cache_options.enabled"),
    (ollm("cache_options", {"max_age_s": -1}), "ollm::cache_options.max_age_s"),
    (ollm("dryrun", "yes"), "ollm::dryrun"),
    (ollm("episode_id", "not-a-uuid"), "ollm::episode_id"),
    (ollm("episode_id", 1), "ollm::episode_id"),
    (ollm("variant_name", 1), "ollm::variant_name"),
    (ollm("deny_unknown_fields", None), "ollm::deny_unknown_fields"),
    (ollm("include_raw_usage", None), "ollm::include_raw_usage"),
    (ollm("include_raw_response", 1), "ollm::include_raw_response"),
    (ollm("deny_unknown_fields", True) | {"b": 1, "a": None}, "a"),
    *(
        (ollm("include_raw_usage", True) | {"stream": True, "stream_options": options}, "stream_options.include_usage")
        for options in ({"include_usage": False}, {})
    ),
]


@pytest.mark.parametrize(
    ("body", "param"), BAD_FIELDS, ids=[f"{at} {param}" for at, (_, param) in enumerate(BAD_FIELDS)]
)
def test_bad_field_is_refused_by_its_name(body, param):
    with pytest.raises(RefusalError) as caught:
        check_body(body)
    refusal = caught.value
    assert (refusal.status, refusal.envelope["type"]) == (400, "invalid_request_error")
    assert (refusal.envelope["param"], refusal.envelope["code"]) == (param, None)
    assert refusal.envelope["message"]


def test_every_field_has_a_bad_value():
    assert {param.partition(".")[0].partition("[")[0] for _, param in BAD_FIELDS} >= FIELDS.keys()


def test_unknown_fields_are_named_in_order_if_they_are_denied():
    with pytest.raises(RefusalError, match=r"unknown fields: a, b, ollm::tag$"):
        check_body(ollm("deny_unknown_fields", True) | {"b": 1, "a": 2, "ollm::tag": {}})


def test_raw_usage_without_usage_mentions_include_usage():
    with pytest.raises(RefusalError, match=r"requires stream_options.include_usage"):
        check_body(ollm("include_raw_usage", True) | {"stream": True, "stream_options": {}})


@pytest.mark.parametrize(
    ("value", "found"),
    [("x" * 64, f"`{'x' * 64}`"), ("x" * 65, "a string"), (1, "an integer"), (1.0, "a float"), (None, "null")],
)
def test_refusal_shows_a_short_value_and_the_kind_of_another(value, found):
    with pytest.raises(RefusalError) as caught:
        refuse_value("a", "b", value)
    assert str(caught.value) == f"a: expected b, found {found}"


NOT_NULL = {"model", "messages", *(f"ollm::{name}" for name in ("tags", "deny_unknown_fields"))}
NOT_NULL |= {"ollm::include_raw_usage", "ollm::include_raw_response"}
GOOD = {
    "nulls": dict.fromkeys(FIELDS.keys() - NOT_NULL),
    "edges": {"temperature": 99, "top_p": 1, "seed": -1, "n": 1, "stop": [], "service_tier": "flex", "max_tokens": 0},
    "unknown": {"unknown": {"nested": [None, 2**70, 1e300]}, "ollm::tag": {}},
    "empty": {"tools": [], "response_format": {"type": "text"}},
    "options": {
        "stream_options": {"include_usage": True, "include_obfuscation": False},
        "ollm::deny_unknown_fields": True,
    },
    "roles": {
        "messages": [
            *({"role": "developer", "content": "x", "name": "y"}, *HELLO, {"role": "assistant", "content": None}),
            {"role": "assistant", "tool_calls": [{"id": "a", "type": "b", "function": {"name": "c", "arguments": ""}}]},
            {"role": "tool", "tool_call_id": "a"},
        ]
    },
    "no parts": user(),
    "parts": user({"type": "text", "text": "x", "cache": 1}, {"type": "image_url", "image_url": IMAGE}),
    "media": user(
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "file", "file": {"file_data": "data:text/plain;base64,AAAA", "filename": "a"}},
    ),
}


@pytest.mark.parametrize("changes", GOOD.values(), ids=GOOD)
def test_body_that_the_gateway_accepts_is_accepted(changes):
    check_body(request(**changes))
