import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.envelope import Envelope, find_error, read_envelope
from bridge.core.json_text import parse
from bridge.core.source import Source
from tests.kit import documents

CHOICES = [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]


def make_source(value: Any) -> Source:
    return Source(json.dumps(value).encode())


def find(value: Any) -> Envelope | None:
    return find_error(value, make_source(value))


def read(value: Any, *, named: bool = False) -> Envelope | None:
    return read_envelope(value, make_source(value), named=named)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"error": {"message": "m"}}, "m"),
        ({"error": "m"}, "m"),
        ({"error": "m", "choices": CHOICES}, "m"),
        ([{"error": {"message": "m"}}], "m"),
        ({"error": [{"message": "m"}]}, "m"),
        ({"error": {"error": {"message": "m"}}}, "m"),
        ({"error": {"error": {"error": "m"}}}, "m"),
        ({"error": {"type": "error", "error": {"type": "overloaded_error", "message": "m"}}}, "m"),
        ({"type": "error", "error": {"message": "m"}}, "m"),
        ({"type": "error", "message": "m"}, "m"),
        ({"object": "error", "message": "m", "code": 400}, "m"),
        ({"object": "error", "message": "m", "choices": []}, "m"),
        ({"errors": [{"message": "m"}, {"message": "n"}]}, "m"),
        ({"errors": ["m"]}, '["m"]'),
        ({"detail": "m"}, "m"),
        ({"detail": [{"loc": ["body"], "msg": "m"}]}, '[{"loc": ["body"], "msg": "m"}]'),
        ({"code": 500, "message": "m"}, "m"),
        ({"code": 500, "msg": "m"}, "m"),
        ({"status": "error", "Message": "m"}, "m"),
        ({"error_msg": "m", "error_code": 18}, "m"),
        ({"error_description": "m"}, "m"),
        ({"base_resp": {"status_code": 1008, "status_msg": "m"}, "choices": None}, "m"),
        ({"base_resp": {"status_code": 1008, "status_msg": "m"}, "choices": CHOICES}, "m"),
        ({"choices": [{"error": {"message": "m"}, "finish_reason": "stop"}]}, "m"),
        ({"choices": [*CHOICES, {"delta": {"error": {"message": "m"}}}]}, "m"),
        ({"choices": [{"message": {"content": "a", "error": "m"}}]}, "m"),
        ({"choices": [None, {"error": {"error": {"message": "m"}}}]}, "m"),
        ({"error": {"message": ["m", "n"]}}, "m; n"),
        ({"error": {"message": {"a": 1}}}, '{"a": 1}'),
        ({"error": {"code": 429}, "message": "m"}, "m"),
        ({"error": {"details": {"reason": "m"}}}, ""),
        ({"error": True}, "true"),
        ({"error": ["m"]}, '["m"]'),
    ],
)
def test_error_of_a_successful_answer_is_found_at_each_place(value, message):
    found = find(value)
    assert found is not None
    assert found.upstream.message == message
    again = read(value)
    assert again is not None
    assert again.upstream == found.upstream


@pytest.mark.parametrize(
    "value",
    [
        *({}, [], None, "text", 5, ["a"], [[]], [{}], {"id": "1"}, {"usage": {}}, {"message": "m"}, {"msg": "m"}),
        *({"title": "m"}, {"choices": CHOICES}, {"choices": CHOICES, "detail": "m", "code": 500, "message": "m"}),
        *({"message": {"role": "assistant", "content": "a"}, "code": 1}, {"object": "chat.completion.chunk"}),
        {"base_resp": {"status_code": 0, "status_msg": "success"}},
        {"choices": [{"error": None, "delta": {"error": {}}, "message": {"error": ""}}]},
        *({"choices": "error"}, {"choices": [1, "error"]}, {"detail": ""}, {"errors": []}),
    ],
    ids=repr,
)
def test_answer_without_an_error_has_none(value):
    assert find(value) is None


NOTHING = st.recursive(
    st.sampled_from([None, "", 0, 0.0, False]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(NOTHING)
def test_error_in_which_every_value_is_nothing_is_none(error):
    assert find({"error": error, "choices": CHOICES}) is None
    assert find({"choices": [{"error": error, "delta": {"error": error}}]}) is None


@given(NOTHING, st.sampled_from(["a", 1, True, -0.5]))
def test_error_in_which_a_value_is_something_is_one(error, value):
    assert find({"error": {"x": [error, value]}, "choices": CHOICES}) is not None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"msg": "m"}, "m"),
        ({"Message": "m"}, "m"),
        ({"message": "m"}, "m"),
        ({"title": "t", "detail": "m", "status": 404}, "m"),
        ({"title": "m", "type": "about:blank"}, "m"),
        ({"title": "m", "errors": {"field": ["bad"]}}, '{"field": ["bad"]}'),
        ({"success": False, "errors": [{"code": 7003, "message": "m"}], "messages": []}, "m"),
        ({"statusCode": 404, "message": "m", "error": "Not Found"}, "m"),
        ({"timestamp": "1", "status": 404, "error": "m", "path": "/"}, "m"),
        ({"error": {}}, ""),
    ],
)
def test_words_of_a_failed_answer_are_found_under_each_key(value, message):
    found = read(value)
    assert found is not None
    assert found.upstream.message == message


@pytest.mark.parametrize(
    "value", [{}, [], None, 5, "text", {"ok": 1}, {"error": None}, {"error": ""}, {"detail": None}]
)
def test_failed_answer_of_another_form_is_no_envelope_unless_its_event_is_named_error(value):
    assert read(value) is None
    assert read(value, named=True) is not None


def test_every_other_key_is_kept():
    found = find({"error": {"error": {"message": "m", "code": 7, "x": 1.0}, "x": 2}, "x": 3, "y": None, "id": "r"})
    assert found is not None
    assert (found.upstream.message, found.upstream.code) == ("m", "7")
    assert dict(found.upstream.extra_json) in (
        {"x": "1.0", "$.x": "2", "id": '"r"'},
        {"x": "1.0", "$.x": "3", "id": '"r"'},
    )


def test_further_errors_of_a_list_are_kept():
    found = find({"errors": [{"message": "m"}, {"message": "n"}]})
    assert found is not None
    assert json.loads(found.upstream.extra_json["errors"]) == [{"message": "m"}, {"message": "n"}]


def test_completion_around_an_error_of_a_choice_is_no_word_of_it():
    found = find({"id": "1", "choices": [{"message": {"content": "a"}, "error": {"message": "m"}}]})
    assert found is not None
    assert not found.upstream.extra_json
    assert [*found.layers] == [{"message": "m"}]


@pytest.mark.parametrize("keys", [100, 9_000, 50_000])
def test_keys_of_an_envelope_are_bounded_and_its_words_are_not_lost(keys):
    found = find({"error": {**{str(number): number for number in range(keys)}, "message": "m", "type": "t"}})
    assert found is not None
    assert (found.upstream.message, found.upstream.type, found.upstream.truncated) == ("m", "t", True)
    assert len(found.upstream.extra_json) in range(65 if keys < 10_000 else 1)


def test_errors_in_errors_are_opened_to_a_bound():
    value: dict[str, Any] = {"message": "m"}
    for _ in range(50):
        value = {"error": value}
    assert find(value) is not None


@pytest.mark.parametrize("words", [1, 10_000])
@pytest.mark.parametrize(
    ("choice", "is_error"),
    [({}, False), ({"error": {"message": "m"}}, True), ({"message": {"error": "m"}}, True), ({"error": ""}, False)],
)
def test_error_in_a_choice_is_found_in_short_and_in_long_texts(words, choice, is_error):
    value = {"choices": [{"finish_reason": "stop", "delta": {"content": "word " * words}, **choice}]}
    text = json.dumps(value).encode()
    assert (find_error(value, Source(text), text) is not None) == is_error


@given(documents.ANYTHING.map(documents.spell), st.booleans())
def test_any_value_is_an_error_or_none(text, named):
    value, source_text = parse(text.encode())
    find_error(value, Source(source_text))
    assert read_envelope(value, Source(source_text), named=named) is not None or not named
