"""Tests of bridge/server/protocols/json_messages.py: JSON that is a message, and JSON that is none."""

import json

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.errors import BridgeError, Violation
from bridge.core.item_count import ITEMS_MAX
from bridge.core.json_text import JSON_DEPTH_MAX
from bridge.server.protocols.json_messages import VALUES_MAX, decode_json, encode_json
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest, CreateChatCompletionResponse
from tests.kit.client import chat


def decode(value) -> CreateChatCompletionRequest:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return CreateChatCompletionRequest.FromString(decode_json(text, CreateChatCompletionRequest))


def refuse(value) -> BridgeError:
    with pytest.raises(BridgeError) as caught:
        decode(value)
    return caught.value


def test_names_may_be_of_either_form():
    expected = CreateChatCompletionRequest(max_tokens=1, top_p=0.5)
    assert decode({"max_tokens": 1, "topP": 0.5}) == decode({"maxTokens": 1, "top_p": 0.5}) == expected


def test_any_message_crosses_both_ways():
    request = chat("ä\U0001f600", extra_json={"top_k": "40"}, temperature=0.1)
    text = json_format.MessageToJson(request).encode()
    assert decode(text) == request
    reply = CreateChatCompletionResponse(id="ä", created=2**60)
    encoded = encode_json(reply.SerializeToString(), CreateChatCompletionResponse)
    assert json.loads(encoded) == {"id": "ä", "created": str(2**60)}
    assert "ä".encode() in encoded


PLACES = {
    "top": ({"model": "a", "foo": 1}, "foo"),
    "in a list": ({"messages": [{"role": "user"}, {"content": "x"}]}, "messages[1].content"),
    "deep": ({"messages": [{"parts": {"parts": [{"text": {"bogus": 1}}]}}]}, "messages.parts.text"),
    "wrong type": ({"temperature": "warm"}, "temperature"),
    "wrong type in a list": ({"messages": [{"role": 1}]}, "messages.role"),
    "no list": ({"messages": {"a": 1}}, "messages"),
    "no number": (b'{"max_tokens":1e400}', "max_tokens"),
    "in a map": ({"ollm": {"tags": {"a": 1}}}, "ollm.tags"),
    "in both forms of its name": ({"max_tokens": 1, "maxTokens": 2}, "max_tokens"),
    "of a map's value": ({"logitBias": {"a": "x"}}, "logitBias[a]"),
    "no map": ({"ollm": {"tags": 3}}, "ollm.tags"),
    "a value like an error": ({"seed": 'has no field named "n" at "M.n"'}, "seed"),
    "a value with a place": ({"seed": " at CreateChatCompletionRequest.n"}, "seed"),
    "a value with lines": ({"seed": "a\n\n at b"}, "seed"),
    "a value with outer fields": ({"seed": "Failed to parse model field: x"}, "seed"),
    "a key with a place": ({"messages": [{'x" at "M.n': 1}]}, 'messages[0].x" at "M.n'),
    "a key with lines": ({"x\n Available Fields": 1}, "x\n Available Fields"),
    "two of a kind": ({"messages": [{"text": "a", "parts": {}}]}, "messages[0].content"),
}


@pytest.mark.parametrize(("value", "field"), PLACES.values(), ids=PLACES)
def test_error_names_the_place(value, field):
    error = refuse(value)
    assert error.reason_name == "INVALID_REQUEST"
    (violation,) = error.violations
    assert violation.field == field
    assert violation.description.startswith("expected ")


def test_unknown_key_is_answered_with_the_known_ones():
    (violation,) = refuse({"messages": [{"content": "x"}]}).violations
    assert "role, text, parts" in violation.description


# At this size a search that takes the square of it takes hours.
LONG = {
    "dots": {"seed": " at a" + "." * 2**22 + " b"},
    "places": {"seed": " at CreateChatCompletionRequest." * 2**17},
    "brackets": {"seed": " at a" + "[" * 2**22},
    "outer fields": {"seed": "Failed to parse a field: " * 2**17},
    "keys of several": {"seed": 'multiple "' + "a" * 2**22},
    "a key with brackets": {'x" at "a.' + "[" * 2**22: 1},
    "a key with places": {'" at "' * 2**19: 1},
    "a key with unknown keys": {'has no field named "' * 2**17: 1},
    "a key with lines": {"\n" * 2**21: 1},
}


@pytest.mark.parametrize("value", LONG.values(), ids=LONG)
def test_error_of_a_long_text_is_short_and_takes_no_time(value):
    (violation,) = refuse(value).violations
    assert len(violation.field) + len(violation.description) < 1000


NONE = {
    "empty": b"",
    "cut": b'{"model": "a"',
    "a list": b"[1]",
    "a text": b'"model"',
    "a number": b"1",
    "no UTF-8": b'{"model": "\xff"}',
    "two documents": b"{}{}",
    "NaN": b'{"temperature": NaN}',
}


@pytest.mark.parametrize("text", NONE.values(), ids=NONE)
def test_text_that_is_no_object_is_undecodable(text):
    assert refuse(text).reason_name == "UNDECODABLE_REQUEST"


REPEATED = {
    "a field": (b'{"model":"a","messages":[],"model":"b"}', "model"),
    "an escaped one": (b'{"model":"a","\\u006dodel":"a"}', "model"),
    "of a map": (b'{"ollm":{"tags":{"team":"a","team":"b"}}}', "team"),
    "in a list": (b'{"messages":[{"role":"user"},{"role":"user","role":"system"}]}', "role"),
    "beside a long number": (b'{"seed":' + b"9" * 5000 + b',"n":1,"n":1}', "n"),
}


@pytest.mark.parametrize(("text", "key"), REPEATED.values(), ids=REPEATED)
def test_key_that_is_there_twice_is_refused(text, key):
    error = refuse(text)
    assert error.reason_name == "UNDECODABLE_REQUEST"
    assert f"has the key '{key}' more than once" in error.message


def test_depth_is_bounded():
    deep = b'{"ollm":' + b"[" * JSON_DEPTH_MAX + b"]" * JSON_DEPTH_MAX + b"}"
    assert refuse(deep).reason_name == "UNDECODABLE_REQUEST"
    assert f"more than {JSON_DEPTH_MAX}" in refuse(deep).message
    assert refuse(b"[" * 1_000_000).reason_name == "UNDECODABLE_REQUEST"


def test_values_are_bounded():
    assert str(VALUES_MAX) in refuse(b'{"stop":[' + b'"",' * VALUES_MAX + b'""]}').message
    assert len(decode(b'{"stop":[' + b'"",' * 1000 + b'""]}').stop) == 1001


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"stop": [""] * (ITEMS_MAX + 1)}, "stop"),
        ({"messages": [{"toolCalls": [{}]}] * ITEMS_MAX}, "messages"),
        ({"extraJson": {str(number): "" for number in range(ITEMS_MAX + 1)}}, "extra_json"),
        ({"extra_json": {str(number): "" for number in range(ITEMS_MAX + 1)}}, "extra_json"),
        ({"ollm": {"tags": {str(number): "" for number in range(ITEMS_MAX + 1)}}}, "ollm"),
    ],
)
def test_items_are_bounded_before_any_becomes_a_field(value, field):
    (violation,) = refuse({"model": 1} | value).violations
    assert violation == Violation(field, f"expected at most {ITEMS_MAX} items in a request, found more")


@pytest.mark.parametrize("value", [{"stop": [[1]]}, {"ollm": 1}, {"tools": [None]}, {"tools": ["x"]}])
def test_value_of_an_odd_type_is_refused(value):
    assert refuse(value).code.name == "INVALID_ARGUMENT"


def test_commas_in_a_text_are_no_values():
    assert decode({"model": "," * 2 * VALUES_MAX}).model == "," * 2 * VALUES_MAX


KEYS = ("model", "messages", "role", "text", "ollm", "tags", "stop", "maxTokens", "@type", "", "parts")
NAMES = st.sampled_from(KEYS)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=10,
)


def find_code(value) -> str | None:
    """Return the code of a refusal; None if there is none."""
    try:
        decode(value)
    except BridgeError as error:
        return error.code.name
    return None


@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_any_json_is_a_message_or_refused(value):
    assert find_code(value) in {None, "INVALID_ARGUMENT"}


@given(st.binary(max_size=60))
def test_any_bytes_are_a_message_or_refused(text):
    assert find_code(text) in {None, "INVALID_ARGUMENT"}
