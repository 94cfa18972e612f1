import json
from typing import Any

import orjson
import pytest
from hypothesis import given

from bridge.core.chat import decode_request_json
from bridge.core.dialect import CHUNK, REPLY, REQUEST
from bridge.core.errors import Violation
from bridge.core.json_text import parse
from bridge.core.source import Source
from ollmbridge.v1.chat_completion_service_pb2 import (
    CreateChatCompletionRequest,
    CreateChatCompletionResponse,
    StreamChatCompletionResponse,
)
from ollmbridge.v1.chat_pb2 import ToolChoice
from tests.kit.documents import TOOL_CHOICES, read_spelled, repair, spell


def read(key: str, text: str) -> CreateChatCompletionRequest:
    return decode_request_json(f'{{"{key}": {text}}}')


def write(request: CreateChatCompletionRequest) -> tuple[dict[str, Any], list[Violation]]:
    violations: list[Violation] = []
    body = json.loads(orjson.dumps(REQUEST.write(request, None, violations)))
    del body["model"]  # always there
    return body, violations


def read_content(text: str) -> Any:
    (message,) = read("messages", f'[{{"role": "u", "content": {text}}}]').messages
    return message


# ToolChoice


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ('"none"', {"mode": ToolChoice.MODE_NONE}),
        ('"auto"', {"mode": ToolChoice.MODE_AUTO}),
        ('"required"', {"mode": ToolChoice.MODE_REQUIRED}),
        ('{"type": "function", "function": {"name": "f"}}', {"function_name": "f"}),
        ('{"function": {"name": "f"}, "type": "function"}', {"function_name": "f"}),
        (
            '{"type": "function", "function": {"name": "f"}, "x": 1.0}',
            {"function_name": "f", "extra_json": {"x": "1.0"}},
        ),
        *(
            (text, {"raw_json": text})
            for text in (
                '"unspecified"',
                '"AUTO"',
                '""',
                "1.0",
                "[]",
                "{}",
                '{"type": "function"}',
                '{"type": "function", "function": {}}',
                '{"type": "function", "function": {"name": 1}}',
                '{"type": "function", "function": {"name": "f", "x": 1}}',
                '{"type": "function", "function": {"name": "f"}, "x": null}',
                '{"type": "custom", "custom": {"name": "f"}}',
                '{"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": []}}',
            )
        ),
    ],
)
def test_tool_choice_crosses_both_ways(text, choice):
    request = read("tool_choice", text)
    assert request == CreateChatCompletionRequest(tool_choice=choice)
    assert write(request) == ({"tool_choice": json.loads(text)}, [])


@given(TOOL_CHOICES)
def test_any_tool_choice_crosses_both_ways(value):
    request = read("tool_choice", spell(value))
    body, _ = write(request)  # a function without a name is a violation
    assert body == ({} if value is None else {"tool_choice": json.loads(spell(repair(value)))})


@pytest.mark.parametrize(
    ("choice", "field"),
    [
        ({}, "tool_choice"),
        ({"mode": ToolChoice.MODE_UNSPECIFIED}, "tool_choice.mode"),
        ({"mode": 99}, "tool_choice.mode"),
        ({"function_name": ""}, "tool_choice.function_name"),
        ({"raw_json": "{"}, "tool_choice.raw_json"),
        ({"raw_json": "{}", "extra_json": {"x": "1"}}, "tool_choice.extra_json"),
        ({"mode": ToolChoice.MODE_AUTO, "extra_json": {"x": "1"}}, "tool_choice.extra_json"),
        ({"function_name": "f", "extra_json": {"type": "1"}}, 'tool_choice.extra_json["type"]'),
    ],
)
def test_tool_choice_that_says_nothing_is_a_violation(choice, field):
    violations: list[Violation] = []
    REQUEST.write(CreateChatCompletionRequest(tool_choice=choice), None, violations)
    assert [violation.field for violation in violations] == [field]


# Prefixed keys


def test_options_stand_at_the_top_under_their_prefix():
    body, violations = write(
        CreateChatCompletionRequest(ollm={"dryrun": False, "extra_json": {"x": "1", "ollm::y": "2"}})
    )
    assert (body, violations) == ({"ollm::dryrun": False, "ollm::x": 1, "ollm::ollm::y": 2}, [])


def test_options_without_a_value_send_nothing():
    assert write(CreateChatCompletionRequest(ollm={"tags": {}})) == ({}, [])


@pytest.mark.parametrize(
    ("key", "text", "kept"),
    [
        ("ollm::tags", '{"b": "1", "a": "2"}', {"ollm": {"tags": {"b": "1", "a": "2"}}}),
        ("ollm::tags", '{"a": 1}', {"ollm": {"extra_json": {"tags": '{"a": 1}'}}}),
        ("ollm::episode_id", "5", {"ollm": {"extra_json": {"episode_id": "5"}}}),
        ("ollm::params", '{"a": 1.0}', {"ollm": {"extra_json": {"params": '{"a": 1.0}'}}}),
        ("ollm::", "1", {"ollm": {"extra_json": {"": "1"}}}),
        ("ollm", "1", {"extra_json": {"ollm": "1"}}),
        ("ollm:dryrun", "true", {"extra_json": {"ollm:dryrun": "true"}}),
        ("dryrun", "true", {"extra_json": {"dryrun": "true"}}),
        ("OLLM::dryrun", "true", {"extra_json": {"OLLM::dryrun": "true"}}),
    ],
)
def test_prefixed_key_is_read_into_the_options(key, text, kept):
    assert read(key, text) == CreateChatCompletionRequest(**kept)


@pytest.mark.parametrize(
    ("extra", "field"),
    [
        ({"extra_json": {"ollm::dryrun": "1"}, "ollm": {"dryrun": True}}, 'extra_json["ollm::dryrun"]'),
        ({"ollm": {"extra_json": {"dryrun": "1"}, "dryrun": True}}, 'ollm.extra_json["dryrun"]'),
        ({"extra_json": {"ollm::x": "1"}, "ollm": {"extra_json": {"x": "2"}}}, 'extra_json["ollm::x"]'),
    ],
)
def test_key_of_the_options_that_is_set_twice_is_a_violation(extra, field):
    _, violations = write(CreateChatCompletionRequest(**extra))
    assert [violation.field for violation in violations] == [field]


# Unions


@pytest.mark.parametrize(
    ("text", "member"),
    [
        ('"a"', "text"),
        ('""', "text"),
        ("[]", "parts"),
        ('[{"type": "text", "text": "a"}]', "parts"),
        ("{}", "raw_json"),
        ("70", "raw_json"),
        ("1.0", "raw_json"),
        ("false", "raw_json"),
        ("[null]", "raw_json"),
        ("null", None),
    ],
)
def test_content_is_distinguished_by_its_kind(text, member):
    message = read_content(text)
    assert message.WhichOneof("content") == member
    body, violations = write(CreateChatCompletionRequest(messages=[message]))
    assert violations == []
    sent = {} if member is None else {"content": json.loads(text)}
    assert body == {"messages": [{"role": "u", **sent}]}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"type": "text", "text": ""}', {"text": ""}),
        ('{"text": "a", "type": "text", "n": null}', {"text": "a"}),
        ('{"type": "text", "text": "a", "cache": {"b": 1.0}}', {"text": "a", "extra_json": {"cache": '{"b": 1.0}'}}),
        (
            '{"type": "image_url", "image_url": {"url": "u", "detail": "low"}}',
            {"image_url": {"url": "u", "detail": "low"}},
        ),
        ('{"type": "input_audio", "input_audio": {"data": "", "format": ""}}', {"input_audio": {}}),
        ('{"type": "file", "file": {"file_id": "i"}}', {"file": {"file_id": "i"}}),
        (
            '{"type": "image_url", "image_url": {"url": "u", "mime": "x"}}',
            {"image_url": {"url": "u", "extra_json": {"mime": '"x"'}}},
        ),
        *(
            (text, {"raw_json": text})
            for text in (
                '{"type": "text"}',
                '{"type": "text", "text": null}',
                '{"type": "text", "text": 1}',
                '{"type": "image_url", "image_url": "u"}',
                '{"type": "raw_json", "raw_json": "1"}',
                '{"type": "extra_json"}',
                '{"type": "video", "video": {}}',
                '{"type": ["text"], "text": "a"}',
                '{"text": "a"}',
                "{}",
                "[]",
                '"a"',
                "1.0",
            )
        ),
    ],
)
def test_part_is_distinguished_by_its_type(text, part):
    message = read_content(f"[{text}]")
    assert message.parts.parts[0] == type(message.parts.parts[0])(**part)
    body, violations = write(CreateChatCompletionRequest(messages=[message]))
    assert violations == []
    (sent,) = body["messages"][0]["content"]
    value = json.loads(text)
    if isinstance(value, dict) and "raw_json" not in part:
        value = {key: item for key, item in value.items() if item is not None}
    assert sent == value


@pytest.mark.parametrize(
    ("text", "member"),
    [
        ('{"type": "text"}', "text"),
        ('{"type": "json_object"}', "json_object"),
        ('{"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": true}}', "json_schema"),
        ('{"type": "text", "x": 1}', "text"),
        ('{"type": "text", "text": {}}', "text"),
        ('{"type": "json_schema"}', "raw_json"),
        ('{"type": "json_schema", "json_schema": {"name": "n", "x": 1}}', "json_schema"),
        ('{"type": "json_schema", "json_schema": [1]}', "raw_json"),
        ('{"type": "grammar", "grammar": "g"}', "raw_json"),
        ('"auto"', "raw_json"),
    ],
)
def test_response_format_is_distinguished_by_its_type(text, member):
    request = read("response_format", text)
    assert request.response_format.WhichOneof("format") == member
    assert write(request) == ({"response_format": json.loads(text)}, [])


@pytest.mark.parametrize(
    ("text", "member"),
    [
        ('{"type": "function", "function": {"name": "f", "parameters": {"b": 1.0, "a": []}}}', "function"),
        ('{"type": "function", "function": {"name": "f", "x": 1}}', "function"),
        ('{"type": "function", "function": {"name": "f"}, "x": 1}', "function"),
        ('{"type": "function"}', "raw_json"),
        ('{"type": "custom", "custom": {"name": "c"}}', "raw_json"),
    ],
)
def test_tool_is_distinguished_by_its_type(text, member):
    request = read("tools", f"[{text}]")
    assert request.tools[0].WhichOneof("tool") == member
    assert write(request) == ({"tools": [json.loads(text)]}, [])


# Keys of several names

PREFIXES = ["ollm_", "ollm::", "tensorzero_", ""]
NAMES = [
    (plan, message, name)
    for plan, message, names in (
        (REPLY, CreateChatCompletionResponse, ["raw_usage", "raw_response"]),
        (CHUNK, StreamChatCompletionResponse, ["raw_usage", "raw_response", "raw_chunk"]),
    )
    for name in names
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(("plan", "message", "name"), NAMES, ids=[f"{message.__name__}.{n}" for _, message, n in NAMES])
@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('[{"b": 1.10, "a": 1}]', '[{"b": 1.10, "a": 1}]'),
        (r'"{\"a\": 1}"', '{"a": 1}'),
        ('""', ""),
        ("1.0", "1.0"),
        ("[]", "[]"),
    ],
    ids=["json", "a string", "an empty string", "a number", "an empty list"],
)
def test_raw_data_is_read_from_every_likely_key(prefix, plan, message, name, text, kept):
    value, source_text = parse(f'{{"{prefix}{name}": {text}}}'.encode())
    assert message(**plan.read(value, Source(source_text), ())) == message(**{f"{name}_json": kept})


def test_raw_data_under_a_second_key_goes_to_extra_json():
    text = '{"raw_usage": null, "tensorzero_raw_usage": [1.0], "ollm_raw_usage": [2.0]}'
    value, source_text = parse(text.encode())
    reply = CreateChatCompletionResponse(**REPLY.read(value, Source(source_text), ()))
    assert reply == CreateChatCompletionResponse(raw_usage_json="[1.0]", extra_json={"ollm_raw_usage": "[2.0]"})


def test_raw_chunk_is_no_key_of_a_reply():
    value, source_text = parse(b'{"ollm_raw_chunk": "x"}')
    reply = CreateChatCompletionResponse(**REPLY.read(value, Source(source_text), ()))
    assert reply == CreateChatCompletionResponse(extra_json={"ollm_raw_chunk": '"x"'})


COSTS = {
    "a double": ('{"cost": 0.0012}', 0.0012, {}),
    "a double spelled otherwise": ('{"cost": 1.20e-3}', 0.0012, {}),
    "an integer": ('{"cost": 0}', 0.0, {}),
    "the gateway's key": ('{"ollm_cost": 0.5}', 0.5, {}),
    "TensorZero's key": ('{"tensorzero_cost": 0.5}', 0.5, {}),
    "more digits than a double has": (
        '{"ollm_cost": 0.12345678901234567890}',
        0.12345678901234568,
        {"ollm_cost": "0.12345678901234567890"},
    ),
    "smaller than a double can be": ('{"cost": 1e-99999999999999999999}', 0.0, {"cost": "1e-99999999999999999999"}),
    "two keys": ('{"cost": 1.5, "ollm_cost": 1.50}', 1.5, {"ollm_cost": "1.50"}),
    "no number": ('{"cost": "0.5"}', None, {"cost": '"0.5"'}),
}


@pytest.mark.parametrize(("text", "cost", "extra"), COSTS.values(), ids=COSTS)
def test_cost_is_read_from_every_likely_key_and_loses_no_digit(text, cost, extra):
    value, source_text = parse(f'{{"usage": {text}}}'.encode())
    usage = CreateChatCompletionResponse(**REPLY.read(value, Source(source_text), ())).usage
    assert (usage.cost if usage.HasField("cost") else None) == cost
    assert usage.extra_json == extra


# Keys that must not be given


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"extra_json": {"stream": "false"}}, 'extra_json["stream"]'),
        ({"extra_json": {"": "1"}}, 'extra_json[""]'),
        ({"extra_json": {"n": "1"}, "n": 1}, 'extra_json["n"]'),
        ({"extra_json": {"stop": "1"}, "stop": [""]}, 'extra_json["stop"]'),
        ({"ollm": {"extra_json": {"": "1"}}}, 'ollm.extra_json[""]'),
        (
            {"ollm": {"cache_options": {"enabled": "", "extra_json": {"enabled": "1"}}}},
            'ollm.cache_options.extra_json["enabled"]',
        ),
        (
            {"stream_options": {"include_usage": False, "extra_json": {"include_usage": "1"}}},
            'stream_options.extra_json["include_usage"]',
        ),
        ({"messages": [{"extra_json": {"role": "1"}, "role": "u"}]}, 'messages[0].extra_json["role"]'),
        ({"messages": [{"extra_json": {"content": "1"}, "text": ""}]}, 'messages[0].extra_json["content"]'),
        (
            {"messages": [{}, {"parts": {"parts": [{"text": "", "extra_json": {"type": "1"}}]}}]},
            'messages[1].parts.parts[0].extra_json["type"]',
        ),
        (
            {"messages": [{"parts": {"parts": [{"raw_json": "{}", "extra_json": {"x": "1"}}]}}]},
            "messages[0].parts.parts[0].extra_json",
        ),
        (
            {"messages": [{"tool_calls": [{"id": "a", "extra_json": {"id": "1"}}]}]},
            'messages[0].tool_calls[0].extra_json["id"]',
        ),
        ({"extra_json": {'q"\n': "1 2"}}, 'extra_json["q\\"\\n"]'),
    ],
)
def test_reserved_or_doubled_key_is_a_violation(request_, field):
    violations: list[Violation] = []
    REQUEST.write(CreateChatCompletionRequest(**request_), None, violations)
    assert [violation.field for violation in violations] == [field]


def test_extra_json_may_send_null_or_another_shape_for_an_unset_field():
    extra = {"temperature": "null", "stop": '"x"', "ollm::tags": "[]", "tool_choice": "1.0"}
    body, violations = write(
        CreateChatCompletionRequest(extra_json=extra, messages=[{"extra_json": {"content": "null"}}])
    )
    assert violations == []
    assert body == {
        "messages": [{"role": "", "content": None}],
        "temperature": None,
        "stop": "x",
        "ollm::tags": [],
        "tool_choice": 1.0,
    }
    assert read_spelled(extra["tool_choice"]) == "1.0"
