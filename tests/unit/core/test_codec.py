import json
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bridge.core import chat
from bridge.core.codec import Codec, Rules
from bridge.core.dialect import CHUNK, REPLY, REQUEST, RULES
from bridge.core.errors import Violation
from bridge.core.json_text import JSON_DEPTH_MAX, JsonError, parse
from bridge.core.source import Source
from ollmbridge.v1 import chat_completion_service_pb2 as service_pb2
from ollmbridge.v1 import chat_pb2, error_details_pb2, ollm_options_pb2
from tests.kit import documents, vectors
from tests.kit.documents import Number, canonicalize, read_spelled, repair, spell
from tests.unit.core.descriptors import define_message

FILES = (chat_pb2, service_pb2, ollm_options_pb2, error_details_pb2)
ROOTS = {
    "request": (REQUEST, service_pb2.CreateChatCompletionRequest),
    "reply": (REPLY, service_pb2.CreateChatCompletionResponse),
    "chunk": (CHUNK, service_pb2.StreamChatCompletionResponse),
}
NOT_JSON = {"UpstreamError"}  # a status detail: http_errors.py fills it, key by key

EXTRA = ("extra_json", {"x": "1.10", "a.b": "[null]"}, '{"x": 1.10, "a.b": [null]}')
USAGE = [
    ("prompt_tokens", 9007199254740993, '{"prompt_tokens": 9007199254740993}'),
    ("completion_tokens", 0, '{"completion_tokens": 0}'),
    ("total_tokens", -1, '{"total_tokens": -1}'),
    ("prompt_tokens_details", {"cached_tokens": 1}, '{"prompt_tokens_details": {"cached_tokens": 1}}'),
    ("completion_tokens_details", {}, '{"completion_tokens_details": {}}'),
    ("cost", 0.0012, '{"cost": 0.0012}'),
    EXTRA,
]
HEAD = [
    ("id", "i", '{"id": "i"}'),
    ("object", "chat.completion", '{"object": "chat.completion"}'),
    ("created", 1795400429, '{"created": 1795400429}'),
    ("model", "m", '{"model": "m"}'),
    ("usage", {"total_tokens": 3}, '{"usage": {"total_tokens": 3}}'),
    ("episode_id", "", '{"episode_id": ""}'),
    ("system_fingerprint", "f", '{"system_fingerprint": "f"}'),
    ("service_tier", "flex", '{"service_tier": "flex"}'),
    ("raw_usage_json", '[{"a": 1.0}]', '{"ollm_raw_usage": [{"a": 1.0}]}'),
    ("raw_response_json", "[]", '{"ollm_raw_response": []}'),
    EXTRA,
]
REASONING = [
    ("reasoning_content", "", '{"reasoning_content": ""}'),
    ("reasoning", "r", '{"reasoning": "r"}'),
    ("annotations", [{"type": "t"}, {}], '{"annotations": [{"type": "t"}, {}]}'),
]
LOGPROB = [
    ("token", "a", '{"token": "a"}'),
    ("logprob", -0.0, '{"logprob": -0.0}'),
    ("bytes", [0, 255], '{"bytes": [0, 255]}'),
]
CASES: dict[str, list[tuple[str, Any, str]]] = {
    "ChatMessage": [
        ("role", "user", '{"role": "user"}'),
        ("text", "", '{"content": ""}'),
        ("parts", {"parts": []}, '{"content": []}'),
        ("raw_json", '{"a": 1.0}', '{"content": {"a": 1.0}}'),
        ("name", "n", '{"name": "n"}'),
        ("tool_calls", [{"id": "c"}], '{"tool_calls": [{"id": "c"}]}'),
        ("tool_call_id", "", '{"tool_call_id": ""}'),
        ("refusal", "no", '{"refusal": "no"}'),
        *REASONING,
        EXTRA,
    ],
    "Annotation": [
        ("type", "url_citation", '{"type": "url_citation"}'),
        ("url_citation", {"url": "u"}, '{"url_citation": {"url": "u"}}'),
        EXTRA,
    ],
    "UrlCitation": [
        ("url", "", '{"url": ""}'),
        ("title", "t", '{"title": "t"}'),
        ("start_index", 0, '{"start_index": 0}'),
        ("end_index", 9, '{"end_index": 9}'),
        EXTRA,
    ],
    "ContentParts": [("parts", [{"text": "a"}], '[{"type": "text", "text": "a"}]')],
    "ContentPart": [
        ("text", "", '{"type": "text", "text": ""}'),
        ("image_url", {"url": "u"}, '{"type": "image_url", "image_url": {"url": "u"}}'),
        (
            "input_audio",
            {"data": "d", "format": "wav"},
            '{"type": "input_audio", "input_audio": {"data": "d", "format": "wav"}}',
        ),
        ("file", {}, '{"type": "file", "file": {}}'),
        ("raw_json", '{"type": "video", "n": 1.0}', '{"type": "video", "n": 1.0}'),
        ("extra_json", {"x": "1.10"}, '{"type": "text", "text": "t", "x": 1.10}'),
    ],
    "ImageUrl": [("url", "u", '{"url": "u"}'), ("detail", "low", '{"detail": "low"}'), EXTRA],
    "InputAudio": [("data", "d", '{"data": "d"}'), ("format", "wav", '{"format": "wav"}'), EXTRA],
    "File": [
        ("file_data", "data:,", '{"file_data": "data:,"}'),
        ("filename", "f", '{"filename": "f"}'),
        ("file_id", "i", '{"file_id": "i"}'),
        EXTRA,
    ],
    "Tool": [
        ("function", {"name": "f"}, '{"type": "function", "function": {"name": "f"}}'),
        ("raw_json", '{"type": "custom", "custom": {}}', '{"type": "custom", "custom": {}}'),
        ("extra_json", {"x": "1.10"}, '{"type": "function", "function": {"name": "f"}, "x": 1.10}'),
    ],
    "FunctionTool": [
        ("name", "f", '{"name": "f"}'),
        ("description", "", '{"description": ""}'),
        ("parameters_json", '{"z": 1.0, "a": {}}', '{"parameters": {"z": 1.0, "a": {}}}'),
        ("strict", False, '{"strict": false}'),
        EXTRA,
    ],
    "ToolChoice": [
        ("mode", chat_pb2.ToolChoice.MODE_REQUIRED, '"required"'),
        ("function_name", "f", '{"type": "function", "function": {"name": "f"}}'),
        ("raw_json", '{"type": "allowed_tools"}', '{"type": "allowed_tools"}'),
        ("extra_json", {"x": "1.10"}, '{"type": "function", "function": {"name": "f"}, "x": 1.10}'),
    ],
    "ResponseFormat": [
        ("text", {}, '{"type": "text"}'),
        ("json_object", {}, '{"type": "json_object"}'),
        ("json_schema", {"name": "s"}, '{"type": "json_schema", "json_schema": {"name": "s"}}'),
        ("raw_json", '{"type": "grammar"}', '{"type": "grammar"}'),
        ("extra_json", {"x": "1.10"}, '{"type": "json_object", "x": 1.10}'),
    ],
    "ResponseFormat.Text": [],
    "ResponseFormat.JsonObject": [],
    "ResponseFormat.JsonSchema": [
        ("name", "s", '{"name": "s"}'),
        ("description", "d", '{"description": "d"}'),
        ("schema_json", "{}", '{"schema": {}}'),
        ("strict", True, '{"strict": true}'),
        EXTRA,
    ],
    "StreamOptions": [("include_usage", False, '{"include_usage": false}'), EXTRA],
    "ToolCall": [
        ("id", "c", '{"id": "c"}'),
        ("type", "function", '{"type": "function"}'),
        (
            "function",
            {"name": "f", "arguments": "{"},
            '{"function": {"name": "f", "arguments": "{"}}',
        ),
        ("index", 0, '{"index": 0}'),
        EXTRA,
    ],
    "FunctionCall": [("name", "f", '{"name": "f"}'), ("arguments", '{"a":', '{"arguments": "{\\"a\\":"}'), EXTRA],
    "Choice": [
        ("index", 1, '{"index": 1}'),
        ("message", {"role": "assistant"}, '{"message": {"role": "assistant"}}'),
        ("finish_reason", "stop", '{"finish_reason": "stop"}'),
        ("logprobs", {"content": [{"token": "a"}]}, '{"logprobs": {"content": [{"token": "a"}]}}'),
        EXTRA,
    ],
    "ChoiceDelta": [
        ("index", 2147483647, '{"index": 2147483647}'),
        ("delta", {}, '{"delta": {}}'),
        ("finish_reason", "", '{"finish_reason": ""}'),
        ("logprobs", {}, '{"logprobs": {}}'),
        EXTRA,
    ],
    "Logprobs": [
        ("content", [{"logprob": -0.5}], '{"content": [{"logprob": -0.5}]}'),
        ("refusal", [{"token": ""}], '{"refusal": [{"token": ""}]}'),
        EXTRA,
    ],
    "TokenLogprob": [
        *LOGPROB,
        ("top_logprobs", [{"token": "b"}, {}], '{"top_logprobs": [{"token": "b"}, {}]}'),
        EXTRA,
    ],
    "TopLogprob": [*LOGPROB, EXTRA],
    "MessageDelta": [
        ("role", "assistant", '{"role": "assistant"}'),
        ("content", "", '{"content": ""}'),
        ("tool_calls", [{"index": 1}], '{"tool_calls": [{"index": 1}]}'),
        ("refusal", "no", '{"refusal": "no"}'),
        *REASONING,
        EXTRA,
    ],
    "ToolCallDelta": [
        ("index", 1, '{"index": 1}'),
        ("id", "", '{"id": ""}'),
        ("type", "function", '{"type": "function"}'),
        ("function", {}, '{"function": {}}'),
        EXTRA,
    ],
    "FunctionCallDelta": [("name", "", '{"name": ""}'), ("arguments", "{", '{"arguments": "{"}'), EXTRA],
    "Usage": USAGE,
    "PromptTokensDetails": [
        ("cached_tokens", 1, '{"cached_tokens": 1}'),
        ("audio_tokens", 0, '{"audio_tokens": 0}'),
        ("cache_write_tokens", 3, '{"cache_write_tokens": 3}'),
        ("text_tokens", 4, '{"text_tokens": 4}'),
        ("image_tokens", 5, '{"image_tokens": 5}'),
        EXTRA,
    ],
    "CompletionTokensDetails": [
        ("reasoning_tokens", 1, '{"reasoning_tokens": 1}'),
        ("audio_tokens", 2, '{"audio_tokens": 2}'),
        ("accepted_prediction_tokens", 3, '{"accepted_prediction_tokens": 3}'),
        ("rejected_prediction_tokens", 4, '{"rejected_prediction_tokens": 4}'),
        ("text_tokens", 5, '{"text_tokens": 5}'),
        ("image_tokens", 6, '{"image_tokens": 6}'),
        EXTRA,
    ],
    "CreateChatCompletionRequest": [
        ("model", "m", '{"model": "m"}'),
        ("messages", [{"role": "user"}], '{"messages": [{"role": "user"}]}'),
        ("temperature", 0.7, '{"temperature": 0.7}'),
        ("top_p", 1e-7, '{"top_p": 1e-7}'),
        ("max_tokens", 0, '{"max_tokens": 0}'),
        ("max_completion_tokens", 40, '{"max_completion_tokens": 40}'),
        ("n", 1, '{"n": 1}'),
        ("stop", ["a", ""], '{"stop": ["a", ""]}'),
        ("presence_penalty", 0.0, '{"presence_penalty": 0.0}'),
        ("frequency_penalty", -2.5, '{"frequency_penalty": -2.5}'),
        ("seed", -9223372036854775808, '{"seed": -9223372036854775808}'),
        ("reasoning_effort", "high", '{"reasoning_effort": "high"}'),
        ("verbosity", "", '{"verbosity": ""}'),
        ("service_tier", "auto", '{"service_tier": "auto"}'),
        ("stream_options", {}, '{"stream_options": {}}'),
        ("tools", [{"raw_json": "{}"}], '{"tools": [{}]}'),
        ("tool_choice", {"mode": 1}, '{"tool_choice": "none"}'),
        ("parallel_tool_calls", False, '{"parallel_tool_calls": false}'),
        ("response_format", {"text": {}}, '{"response_format": {"type": "text"}}'),
        ("ollm", {"dryrun": False}, '{"ollm::dryrun": false}'),
        ("user", "u", '{"user": "u"}'),
        ("prompt_cache_key", "k", '{"prompt_cache_key": "k"}'),
        ("safety_identifier", "", '{"safety_identifier": ""}'),
        ("store", False, '{"store": false}'),
        ("logprobs", True, '{"logprobs": true}'),
        ("top_logprobs", 0, '{"top_logprobs": 0}'),
        ("metadata", {"b": "1", "a": ""}, '{"metadata": {"a": "", "b": "1"}}'),
        ("logit_bias", {"50256": -100.0, "1": 0.5}, '{"logit_bias": {"1": 0.5, "50256": -100.0}}'),
        EXTRA,
    ],
    "CreateChatCompletionResponse": [*HEAD, ("choices", [{"index": 1}], '{"choices": [{"index": 1}]}')],
    "StreamChatCompletionResponse": [
        *HEAD,
        ("choices", [{"index": 1}], '{"choices": [{"index": 1}]}'),
        ("raw_chunk_json", "7", '{"ollm_raw_chunk": 7}'),
    ],
    "OllmOptions": [
        ("tags", {"b": "1", "a": ""}, '{"ollm::tags": {"a": "", "b": "1"}}'),
        ("cache_options", {"enabled": "on"}, '{"ollm::cache_options": {"enabled": "on"}}'),
        ("dryrun", True, '{"ollm::dryrun": true}'),
        ("variant_name", "v", '{"ollm::variant_name": "v"}'),
        ("episode_id", "e", '{"ollm::episode_id": "e"}'),
        ("deny_unknown_fields", False, '{"ollm::deny_unknown_fields": false}'),
        ("include_raw_usage", True, '{"ollm::include_raw_usage": true}'),
        ("include_raw_response", True, '{"ollm::include_raw_response": true}'),
        ("extra_json", {"x": "1.10"}, '{"ollm::x": 1.10}'),
    ],
    "CacheOptions": [("enabled", "", '{"enabled": ""}'), ("max_age_s", 60, '{"max_age_s": 60}'), EXTRA],
}


def find_messages() -> dict[str, type[Message]]:
    found: dict[str, type[Message]] = {}

    def add(owner: Any, descriptor: Descriptor) -> None:
        message_type = getattr(owner, descriptor.name)
        found[descriptor.full_name.removeprefix("ollmbridge.v1.")] = message_type
        for nested in descriptor.nested_types:
            if not nested.GetOptions().map_entry:
                add(message_type, nested)

    for file in FILES:
        for descriptor in file.DESCRIPTOR.message_types_by_name.values():
            add(file, descriptor)
    return found


MESSAGES = find_messages()
FIELDS = [(message, case) for message, cases in CASES.items() for case in cases]
CODEC = Codec(RULES)


def has_shape_of_json_format(name: str, case: tuple[str, Any, str]) -> bool:
    owners = {"Usage", "Choice", "ChoiceDelta", "MessageDelta", "ToolCall", "ToolCallDelta", "FunctionCall", "File"}
    return name in owners and case[0] != "extra_json"


def read_message(message: type[Message], plan: Any, text: str | bytes) -> Message:
    value, source_text = parse(text if isinstance(text, bytes) else text.encode())
    return message(**plan.read(value, Source(source_text), ()))


def write_message(plan: Any, message: Message) -> tuple[bytes, list[Violation]]:
    violations: list[Violation] = []
    return orjson.dumps(plan.write(message, None, violations)), violations


# Every field

BESIDE_EXTRA: dict[str, dict[str, Any]] = {
    "ContentPart": {"text": "t"},
    "Tool": {"function": {"name": "f"}},
    "ToolChoice": {"function_name": "f"},
    "ResponseFormat": {"json_object": {}},
}


def test_every_field_of_every_message_has_a_case():
    fields = {
        f"{name}.{each.name}"
        for name, message in MESSAGES.items()
        if name not in NOT_JSON
        for each in message.DESCRIPTOR.fields
    }
    assert fields == {f"{name}.{field}" for name, (field, _, _) in FIELDS}
    assert set(MESSAGES) - NOT_JSON == set(CASES)


@pytest.mark.parametrize(("name", "case"), FIELDS, ids=[f"{name}.{case[0]}" for name, case in FIELDS])
def test_field_crosses_both_ways(name, case):
    field, value, text = case
    message_type = MESSAGES[name]
    beside = BESIDE_EXTRA.get(name, {}) if field == "extra_json" else {}
    message = message_type(**{field: value}, **beside)
    assert message.ListFields()
    plan = CODEC.get_plan(message_type.DESCRIPTOR)

    body, violations = write_message(plan, message)
    assert violations == []
    assert canonicalize(read_spelled(body), message_type.DESCRIPTOR) == canonicalize(
        read_spelled(text), message_type.DESCRIPTOR
    )
    assert read_message(message_type, plan, text) == message
    assert read_message(message_type, plan, body) == message


@pytest.mark.parametrize("name", ["ResponseFormat.Text", "ResponseFormat.JsonObject"])
def test_message_without_fields_has_nothing_to_cross(name):
    assert not MESSAGES[name].DESCRIPTOR.fields


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param(name, case[2], id=f"{name}.{case[0]}")
        for name, case in FIELDS
        if has_shape_of_json_format(name, case)
    ],
)
def test_reading_agrees_with_json_format(name, text):
    message_type = MESSAGES[name]
    oracle = json_format.Parse(text, message_type())
    assert read_message(message_type, CODEC.get_plan(message_type.DESCRIPTOR), text) == oracle


# Any document


def find_extras(kept: dict[str, Any], value: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every text of an extra_json that was read, with the value that it stands for."""
    for name, item in kept.items():
        if name == "extra_json":
            yield from ((text, value[key] if key in value else value[f"ollm::{key}"]) for key, text in item.items())
        elif name == "ollm":
            yield from find_extras(item, {key: of for key, of in value.items() if key.startswith("ollm::")})
        elif isinstance(item, dict) and isinstance(value.get(name), dict) and "extra_json" in item:
            yield from find_extras(item, value[name])
        elif name in {"choices", "messages", "tool_calls"}:
            for inner, of in zip(item, value[name], strict=True):
                yield from find_extras(inner, of)
        elif name in {"message", "delta", "usage"}:
            yield from find_extras(item, value[name])


@pytest.mark.parametrize("root", ROOTS)
@settings(max_examples=80, suppress_health_check=[HealthCheck.data_too_large])
@given(data=st.data())
def test_any_object_decodes_and_encodes_to_an_equal_document(root, data):
    plan, message_type = ROOTS[root]
    document = data.draw(documents.objects(message_type.DESCRIPTOR))
    text = spell(document).encode()

    message = read_message(message_type, plan, text)
    if root != "request":  # a string there is given as its content, which is no JSON text
        for each in message.DESCRIPTOR.fields:
            if each.name.startswith("raw_"):
                message.ClearField(each.name)
    body, _ = write_message(plan, message)  # some keys, such as "", are violations in a request
    before = canonicalize(read_spelled(spell(repair(document))), message_type.DESCRIPTOR)
    assert canonicalize(read_spelled(body), message_type.DESCRIPTOR) == before


@pytest.mark.parametrize("root", ROOTS)
@settings(max_examples=50, suppress_health_check=[HealthCheck.data_too_large])
@given(data=st.data())
def test_extra_json_keeps_spelling_and_order(root, data):
    plan, message_type = ROOTS[root]
    document = repair(data.draw(documents.objects(message_type.DESCRIPTOR)))
    text = spell(document).encode()
    kept = plan.read(parse(text)[0], Source(text), ())
    for kept_text, value in find_extras(kept, document):
        assert kept_text == spell(value)


@pytest.mark.parametrize("root", ROOTS)
@given(value=documents.ANYTHING)
def test_any_value_is_read_or_is_no_object(root, value):
    plan, message_type = ROOTS[root]
    parsed, source_text = parse(spell(value).encode())
    kept = plan.read(parsed, Source(source_text), ())
    assert (kept is not None) == isinstance(value, dict)
    message_type(**(kept or {}))


@pytest.mark.parametrize(
    ("text", "extra"),
    [
        pytest.param('{"id": 5}', {"id": "5"}, id="a number for a string"),
        pytest.param('{"created": "now"}', {"created": '"now"'}, id="a string for a number"),
        pytest.param('{"created": 1.0}', {"created": "1.0"}, id="a fraction for an integer"),
        pytest.param('{"created": true}', {"created": "true"}, id="a truth value for an integer"),
        pytest.param('{"created": 9223372036854775808}', {"created": "9223372036854775808"}, id="2**63"),
        pytest.param('{"created": 1e400}', {"created": "1e400"}, id="beyond a double"),
        pytest.param('{"usage": []}', {"usage": "[]"}, id="a list for a message"),
        pytest.param('{"choices": {}}', {"choices": "{}"}, id="an object for a list"),
        pytest.param('{"choices": [1, null]}', {"choices": "[1, null]"}, id="a list of others"),
        pytest.param('{"x": {"b": 1, "a": [1.10, -0, 1E+2]}}', {"x": '{"b": 1, "a": [1.10, -0, 1E+2]}'}, id="new"),
        pytest.param('{"": 1, "extra_json": 2}', {"": "1", "extra_json": "2"}, id="odd keys"),
        pytest.param(r'{"x": "\/\u0041\ud83d\ude00"}', {"x": r'"\/\u0041\ud83d\ude00"'}, id="escapes"),
        pytest.param('{"x": 1, "x": 2}', {"x": "2"}, id="a key twice: the last"),
        pytest.param('{"x": null, "id": null, "usage": null}', {}, id="nulls"),
        pytest.param(" {\n} ", {}, id="white space"),
    ],
)
def test_misfit_goes_to_extra_json_of_its_level(text, extra):
    for plan, message_type in (ROOTS["reply"], ROOTS["chunk"]):
        assert read_message(message_type, plan, text) == message_type(extra_json=extra)


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        *(
            (text, True)
            for text in ("1", "-0.0", "1e300", "9007199254740992", "9223372036854775808.0", "0.1234567890123")
        ),
        *(
            (text, False)
            for text in ("9007199254740993", "9223372036854775808", "-123456789012345678901", "1e400", '"1"')
        ),
    ],
)
def test_integer_that_a_double_can_not_hold_is_a_misfit(text, fits):
    request = read_message(service_pb2.CreateChatCompletionRequest, REQUEST, f'{{"temperature": {text}}}')
    assert request.HasField("temperature") == fits
    assert request.extra_json == ({} if fits else {"temperature": text})


def test_misfit_deep_down_stays_at_its_level():
    text = """{"choices": [{"index": "x", "delta": {"content": 5, "tool_calls": [
        {"index": 0, "function": {"name": 1}}, {"index": 1.5, "function": {"arguments": "a", "new": 0}}]}}],
        "usage": {"prompt_tokens": -1e3, "prompt_tokens_details": {"cached_tokens": "1"}}}"""
    chunk = read_message(service_pb2.StreamChatCompletionResponse, CHUNK, text)
    (choice,) = chunk.choices
    assert choice.extra_json == {"index": '"x"'}
    assert choice.delta.extra_json == {"content": "5"}
    first, second = choice.delta.tool_calls
    assert first.function.extra_json == {"name": "1"}
    assert second.extra_json == {"index": "1.5"}
    assert second.function.arguments == "a"
    assert second.function.extra_json == {"new": "0"}
    assert chunk.usage.extra_json == {"prompt_tokens": "-1e3"}
    assert chunk.usage.prompt_tokens_details.extra_json == {"cached_tokens": '"1"'}


def test_null_is_unset_and_empty_is_set():
    text = '{"choices": [{"delta": {"tool_calls": [{"id": null, "function": {"name": "", "arguments": null}}]}}]}'
    (choice,) = read_message(service_pb2.StreamChatCompletionResponse, CHUNK, text).choices
    (call,) = choice.delta.tool_calls
    assert not call.HasField("id")
    assert call.function.HasField("name")
    assert not call.function.HasField("arguments")


# Any request

JSON_TEXTS = documents.ANYTHING.map(repair).filter(lambda value: value is not None).map(spell)
KEYS = st.one_of(
    st.sampled_from(["extra_json", "ollm", "a.b", "x", "ключ", "0", "raw_json", "parts"]),
    st.text(min_size=1, max_size=5).map("x_".__add__),
)
UNIONS = {
    "ChatMessage.raw_json": documents.NUMBERS | st.dictionaries(st.text(max_size=3), documents.ANYTHING, max_size=3),
    "ContentPart.raw_json": st.fixed_dictionaries({"type": st.just("video")}, optional={"x": documents.ANYTHING}),
    "Tool.raw_json": st.fixed_dictionaries({"type": st.just("custom")}, optional={"x": documents.ANYTHING}),
    "ToolChoice.raw_json": st.fixed_dictionaries({"type": st.just("allowed_tools")}),
    "ResponseFormat.raw_json": st.fixed_dictionaries({"type": st.just("grammar")}),
}
FINITE = st.floats(allow_nan=False, allow_infinity=False)
INTEGERS = {"int32": st.integers(-(2**31), 2**31 - 1), "int64": st.integers(-(2**63), 2**63 - 1)}
RULED = {  # what validate.py asks for
    "model": st.text(min_size=1, max_size=5),
    "role": st.text(min_size=1, max_size=5),
    "n": st.just(1),
    "max_tokens": st.integers(0, 2**31 - 1),
    "max_completion_tokens": st.integers(0, 2**31 - 1),
    "episode_id": st.uuids().map(str),
    "include_raw_usage": st.just(False),
    "include_usage": st.just(True),
}


@st.composite
def messages(draw: st.DrawFn, message_type: type[Message], depth: int = 0) -> Message:
    """Valid messages of a type, from its descriptor."""
    kept = {}
    name = message_type.DESCRIPTOR.full_name.removeprefix("ollmbridge.v1.")
    unions = {
        each.name: draw(st.sampled_from([member.name for member in each.fields]))
        for each in message_type.DESCRIPTOR.oneofs
        if not each.name.startswith("_") and (each.name != "content" or draw(st.booleans()))
    }
    for each in message_type.DESCRIPTOR.fields:
        union = each.real_containing_oneof if hasattr(each, "real_containing_oneof") else each.containing_oneof
        if union is not None and not union.name.startswith("_"):
            if unions.get(union.name) != each.name:
                continue
        elif each.name not in {"model", "messages", "role", "name"} and not draw(st.booleans()):
            continue
        if each.name == "extra_json":
            if ("raw_json" not in kept or name == "ChatMessage") and (name != "ToolChoice" or "function_name" in kept):
                kept[each.name] = draw(st.dictionaries(KEYS, JSON_TEXTS, max_size=2))
            continue
        item = draw_field(each, name, depth)
        if each.is_repeated and not (each.message_type and each.message_type.GetOptions().map_entry):
            item = st.lists(item, min_size=int(each.name == "messages"), max_size=2)
        kept[each.name] = draw(item)
    return message_type(**kept)


def draw_field(each: Any, owner: str, depth: int) -> st.SearchStrategy[Any]:
    if each.message_type is not None:
        if each.message_type.GetOptions().map_entry:
            is_double = each.message_type.fields_by_name["value"].type == each.TYPE_DOUBLE
            values = st.floats(-100, 100) if is_double else st.text(max_size=3)
            return st.dictionaries(st.text(max_size=3), values, max_size=2)
        return messages(MESSAGES[each.message_type.full_name.removeprefix("ollmbridge.v1.")], depth + 1)
    if each.name.endswith("_json"):
        raw = UNIONS.get(f"{owner}.{each.name}")
        return JSON_TEXTS if raw is None else raw.map(repair).map(spell)
    if each.enum_type is not None:
        return st.sampled_from([value.number for value in each.enum_type.values if value.number])
    if each.name in RULED:
        return RULED[each.name]
    if each.name in {"name", "function_name"}:
        return st.text(min_size=1, max_size=5)
    kinds = {each.TYPE_DOUBLE: FINITE, each.TYPE_BOOL: st.booleans(), each.TYPE_STRING: st.text(max_size=5)}
    return kinds[each.type] if each.type in kinds else INTEGERS["int32" if each.type == each.TYPE_INT32 else "int64"]


@settings(max_examples=80, suppress_health_check=[HealthCheck.data_too_large])
@given(request=messages(service_pb2.CreateChatCompletionRequest))
@example(service_pb2.CreateChatCompletionRequest(model="m", messages=[{"role": "r"}], temperature=1e300))
@example(service_pb2.CreateChatCompletionRequest(model="m", messages=[{"role": "r"}], temperature=-(2.0**63)))
def test_any_valid_request_encodes_to_json_that_decodes_to_the_same(request):
    body = chat.encode_request(request, stream=True)
    assert json.loads(body)["stream"] is True
    again = read_message(type(request), REQUEST, body)
    assert again.extra_json.pop("stream") == "true"
    assert again == drop_empty_ollm(request)


def drop_empty_ollm(request: Any) -> Any:
    """Return the request less what JSON has no place for: an `ollm` without a key."""
    sent = type(request)()
    sent.CopyFrom(request)
    if sent.HasField("ollm") and not sent.ollm.ListFields():
        sent.ClearField("ollm")
    return sent


@pytest.mark.parametrize(("name", "body"), vectors.read_requests().items(), ids=vectors.read_requests())
def test_recorded_request_is_written_as_an_equal_document(name, body):
    document = read_spelled(body)
    document.pop("stream", None)
    request = read_message(service_pb2.CreateChatCompletionRequest, REQUEST, spell(document))
    encoded, violations = write_message(REQUEST, request)
    assert violations == []
    descriptor = request.DESCRIPTOR
    assert canonicalize(read_spelled(encoded), descriptor) == canonicalize(document, descriptor), name


# JSON text on the way out


@pytest.mark.parametrize(
    "text",
    [
        '{"b": 1.10, "a": 1e400}',
        " \n[ 1 ,2 ]\t",
        r'"\ud83d\u0041\/"',
        "123456789012345678901234567890",
        "-0.0",
        "null",
        '""',
        "[" * 64 + "]" * 64,
        '"' + "[" * 100 + '"',
    ],
    ids=[
        "numbers",
        "white space",
        "escapes",
        "big",
        "minus zero",
        "null",
        "empty",
        "64 levels",
        "brackets in a string",
    ],
)
def test_json_text_is_spliced_byte_for_byte(text):
    request = service_pb2.CreateChatCompletionRequest(
        model="m",
        messages=[{"role": "u", "raw_json": text}],
        tools=[{"function": {"name": "f", "parameters_json": text}}],
        extra_json={"x": text},
    )
    tool = '{"type":"function","function":{"name":"f","parameters":' + text + "}}"
    assert chat.encode_request(request, stream=False).decode() == (
        '{"model":"m","messages":[{"role":"u","content":' + text + '}],"tools":[' + tool + '],"x":' + text + "}"
    )


# Documents


@pytest.mark.parametrize("depth", [1_000, 1_023, 1_100, 100_000])
@pytest.mark.parametrize("root", ROOTS)
def test_document_too_deep_to_be_read_is_a_json_error(root, depth):
    plan, message_type = ROOTS[root]
    for text in (b'{"x":' + b"[" * depth + b"]" * depth + b"}", b'{"x":' * depth + b"1" + b"}" * depth):
        try:
            value, source_text = parse(text)
            message_type(**plan.read(value, Source(source_text), ()))
        except JsonError:
            pass


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (rb'"a\ud83d"', "a\ufffd"),
        (rb'"\ude00a"', "\ufffda"),
        (rb'"\uD83D\uD83D\uDE00"', "\ufffd😀"),
        (rb'"\ud83d\ude00\ude00"', "😀\ufffd"),
        (rb'"\\ud83d"', r"\ud83d"),
        (rb'"\\\ud83d"', "\\\ufffd"),
        (rb'"\ud83d\n"', "\ufffd\n"),
        (rb'"\ud83d\\ude00"', "\ufffd\\ude00"),
    ],
)
def test_lone_surrogate_becomes_a_replacement_character(text, content):
    chunk = read_message(service_pb2.StreamChatCompletionResponse, CHUNK, b'{"id": ' + text + b', "x": ' + text + b"}")
    assert chunk.id == content
    assert json.loads(chunk.extra_json["x"]) == content


def test_number_of_a_million_digits_is_kept():
    digits = "9" * 1_000_000
    chunk = read_message(service_pb2.StreamChatCompletionResponse, CHUNK, f'{{"created": {digits}, "x": [{digits}]}}')
    assert chunk.extra_json == {"created": digits, "x": f"[{digits}]"}


def test_large_document_is_cut_in_linear_time():
    # Slicing the document anew for each value would read 20 GB, and meet the time that a test may take.
    count = 1000
    text = "x" * 10_000
    items = ", ".join(
        f'{{"index": {index}, "x": 1.10, "delta": {{"y": 1, "content": "{text}"}}}}' for index in range(count)
    )
    chunk = read_message(service_pb2.StreamChatCompletionResponse, CHUNK, f'{{"choices": [{items}]}}')
    assert len(chunk.choices) == count
    assert chunk.choices[-1].extra_json == {"x": "1.10"}


def test_number_without_a_field_keeps_its_spelling():
    chunk = read_message(
        service_pb2.StreamChatCompletionResponse, CHUNK, '{"cost": 1.10, "big": 12345678901234567890123}'
    )
    assert chunk.extra_json == {"cost": "1.10", "big": "12345678901234567890123"}
    assert read_spelled(chunk.extra_json["cost"]) == Number("1.10")


def test_message_without_extra_json_is_refused():
    with pytest.raises(TypeError, match=r"expected a field extra_json in test\.Bare, found none"):
        Codec(Rules()).get_plan(define_message("Bare", {"name": "string"}).DESCRIPTOR)


# A message type that holds itself, which the protos do not have yet

TREE = define_message(
    "Tree",
    {
        "name": "optional string",
        "child": "Tree",
        "children": "repeated Tree",
        "extra_json": "map<string>",
    },
)


def read_tree(value: Any) -> Message:
    return read_message(TREE, Codec(Rules()).get_plan(TREE.DESCRIPTOR), json.dumps(value))


def test_recursive_message_crosses_both_ways():
    leaf = {"name": "leaf"}
    value = {"name": "root", "child": {"name": "a", "child": leaf}, "children": [leaf, {"children": [leaf], "x": 1}]}
    plan = Codec(Rules()).get_plan(TREE.DESCRIPTOR)
    tree = read_tree(value)
    assert tree.child.child.name == tree.children[1].children[0].name == "leaf"
    assert tree.children[1].extra_json == {"x": "1"}
    body, violations = write_message(plan, tree)
    assert violations == []
    assert json.loads(body) == value


def test_recursive_message_has_one_plan():
    codec = Codec(Rules())
    assert codec.get_plan(TREE.DESCRIPTOR) is codec.get_plan(TREE.DESCRIPTOR.fields_by_name["child"].message_type)


@pytest.mark.parametrize("key", ["child", "children"])
def test_recursive_message_of_any_depth_is_read_and_keeps_what_is_too_deep_as_text(key):
    depth = 200
    value: Any = {"name": "leaf"}
    for _ in range(depth):
        value = {key: [value] if key == "children" else value}
    tree = TREE.FromString(read_tree(value).SerializeToString())  # as a peer does, to 100 levels
    levels = 0
    while not tree.extra_json:
        tree = tree.children[0] if key == "children" else tree.child
        levels += 1
    assert levels <= JSON_DEPTH_MAX
    rest = json.loads(tree.extra_json[key])
    while key in (rest[0] if key == "children" else rest):
        rest = rest[0][key] if key == "children" else rest[key]
        levels += 1
    assert levels == depth - 1


TREES = st.recursive(
    st.fixed_dictionaries({}, optional={"name": st.text(max_size=3), "x": st.integers(0, 9)}),
    lambda inner: st.fixed_dictionaries({}, optional={"child": inner, "children": st.lists(inner, min_size=1)}),
)


@given(TREES)
def test_any_recursive_message_crosses_both_ways(value):
    body, violations = write_message(Codec(Rules()).get_plan(TREE.DESCRIPTOR), read_tree(value))
    assert violations == []
    assert json.loads(body) == value
