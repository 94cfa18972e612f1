"""Tests of bridge/cli/chat.py: the request from the options, and tool calls joined from fragments."""

from itertools import pairwise

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.cli.chat import ToolCallJoiner, build_request, decode_request_json
from bridge.cli.defaults import UsageError
from ollmbridge.v1.chat_pb2 import FunctionCallDelta, ToolCallDelta


def test_request_is_decoded_from_the_json():
    request = build_request(
        {
            "model": "m",
            "messages": [{"role": "user", "content": "Hi"}],
            "temperature": 0.5,
            "ollm::tags": {"team": "a"},
            "top_k": 40,
        }
    )
    assert request.model == "m"
    assert request.messages[0].text == "Hi"
    assert request.temperature == 0.5
    assert dict(request.ollm.tags) == {"team": "a"}
    assert dict(request.extra_json) == {"top_k": "40"}


@pytest.mark.parametrize("text", [b"", b"{", b"nan", b'{"a": 1} {}'], ids=repr)
def test_text_that_is_not_json_is_an_error(text):
    with pytest.raises(ValueError, match=r"JSON|line"):
        decode_request_json(text)


def test_json_that_is_not_a_request_is_a_usage_error():
    with pytest.raises(UsageError, match="the request is not JSON of this API"):
        build_request({"model": _nest(2000)})


def _nest(levels: int) -> str:
    return orjson.Fragment("[" * levels + "]" * levels)


def make_fragment(index: int, id_: str = "", name: str = "", arguments: str = "") -> ToolCallDelta:
    return ToolCallDelta(index=index, id=id_, function=FunctionCallDelta(name=name, arguments=arguments))


def test_fragments_are_joined_by_index():
    joiner = ToolCallJoiner()
    joiner.add([make_fragment(1, "b", "g", "{"), make_fragment(0, "a", "f", "[")])
    joiner.add([make_fragment(0, arguments="]")])
    joiner.add([make_fragment(1, arguments="}")])
    calls = [(call.id, call.function.name, call.function.arguments) for call in joiner.join()]
    assert calls == [("a", "f", "[]"), ("b", "g", "{}")]


def test_empty_id_and_name_are_ignored():
    joiner = ToolCallJoiner()
    joiner.add([make_fragment(0, "a", "f"), make_fragment(0, "", "", "{}")])
    assert joiner.join()[0].id == "a"
    assert joiner.join()[0].function.name == "f"
    assert joiner.join()[0].type == "function"


@given(arguments=st.text(), cuts=st.lists(st.integers(0, 40)))
def test_arguments_cut_at_any_place_are_joined(arguments, cuts):
    places = [0, *sorted(min(cut, len(arguments)) for cut in cuts), len(arguments)]
    joiner = ToolCallJoiner()
    for begin, end in pairwise(places):
        joiner.add([make_fragment(0, arguments=arguments[begin:end])])
    assert joiner.join()[0].function.arguments == arguments
