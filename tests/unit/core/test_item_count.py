"""Tests of bridge/core/item_count.py: lists are counted in the bytes as the decoder would; any bytes are counted."""

from typing import Any

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.item_count import find_overfull_key, find_overfull_list
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest
from ollmbridge.v1.chat_pb2 import ChatMessage, ContentPart, ContentParts, FunctionCall, Tool, ToolCall

DESCRIPTOR = CreateChatCompletionRequest.DESCRIPTOR
PARTS = ContentParts(parts=[ContentPart(text="x")] * 3)
REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "messages": ({"messages": [ChatMessage()] * 9}, "messages"),
    "tools": ({"tools": [Tool()] * 9}, "tools"),
    "tool calls": ({"messages": [ChatMessage(tool_calls=[ToolCall()] * 9)]}, "messages"),
    "parts": ({"messages": [ChatMessage(parts=PARTS)] * 3}, "messages"),
    "entries of extra_json": ({"extra_json": {str(number): "1" for number in range(9)}}, "extra_json"),
    "entries of an inner extra_json": (
        {"messages": [ChatMessage(extra_json={str(number): "1" for number in range(9)})]},
        "messages",
    ),
    "stop": ({"stop": ["x"] * 9}, "stop"),
    "tags": ({"ollm": {"tags": {str(number): "1" for number in range(9)}}}, "ollm"),
}


def count_in(request: CreateChatCompletionRequest, items_max: int) -> str | None:
    return find_overfull_list(request.SerializeToString(), DESCRIPTOR, items_max=items_max)


def count_items(message: Message) -> int:
    """Return how many entries all lists and maps of a message have: the other opinion, from what was decoded."""
    items = 0
    for field, value in message.ListFields():
        if field.is_repeated:
            items += len(value)
            if field.message_type is not None and not field.message_type.GetOptions().map_entry:
                items += sum(map(count_items, value))
        elif field.message_type is not None:
            items += count_items(value)
    return items


@pytest.mark.parametrize(("fields", "name"), REQUESTS.values(), ids=REQUESTS)
def test_list_of_each_kind_is_counted_and_named(fields, name):
    request = CreateChatCompletionRequest(**fields)
    items = count_items(request)
    assert items >= 9
    assert count_in(request, items) is None
    assert count_in(request, items - 1) == name


@pytest.mark.parametrize(
    ("value", "items"),
    [
        ({"stop": [""] * 9}, 9),
        ({"messages": [{}] * 9}, 9),
        ({"messages": [{"toolCalls": [{}, {}]}] * 3}, 9),
        ({"messages": {"parts": {"parts": [[]] * 9}}}, 9),
        ({"model": "a", "n": 1, "stop": [], "ollm": {"tags": {str(number): "" for number in range(300)}}}, 300),
    ],
)
def test_items_of_json_are_counted_in_its_arrays_and_in_objects_that_are_maps(value, items):
    assert find_overfull_key(value, items_max=items) is None
    assert find_overfull_key(value, items_max=items - 1) == list(value)[-1]


@pytest.mark.parametrize("descriptor", [DESCRIPTOR, *DESCRIPTOR.file.message_types_by_name.values()])
def test_object_that_may_be_a_message_counts_as_none(descriptor):
    assert find_overfull_key({"x": {each.name: "" for each in descriptor.fields}}, items_max=0) is None


def test_short_message_is_not_looked_at():
    assert find_overfull_list(b"\xff" * 20_000, DESCRIPTOR) is None


def test_fields_that_are_no_lists_are_bounded_too():
    data = CreateChatCompletionRequest(n=1).SerializeToString() * 50
    assert find_overfull_list(data, DESCRIPTOR, items_max=1, fields_max=100) is None
    assert find_overfull_list(data, DESCRIPTOR, items_max=1, fields_max=10) is not None


MESSAGES = st.builds(
    ChatMessage,
    role=st.text(max_size=3),
    text=st.text(max_size=3),
    tool_calls=st.lists(
        st.builds(ToolCall, id=st.text(max_size=2), function=st.builds(FunctionCall, name=st.text(max_size=2))),
        max_size=3,
    ),
    extra_json=st.dictionaries(st.text(max_size=2), st.text(max_size=2), max_size=3),
)
ANY_REQUEST = st.builds(
    CreateChatCompletionRequest,
    model=st.text(max_size=3),
    messages=st.lists(MESSAGES, max_size=4),
    n=st.integers(-5, 5),
    temperature=st.floats(allow_nan=False, width=32),
    extra_json=st.dictionaries(st.text(max_size=2), st.text(max_size=2), max_size=3),
)


@given(ANY_REQUEST)
def test_count_of_any_request_is_that_of_its_decoded_lists(request):
    items = count_items(request)
    assert count_in(request, items) is None
    if items > 1:
        assert count_in(request, items - 1) is not None or len(request.SerializeToString()) <= 2 * (items - 1)


@given(st.lists(st.one_of(ANY_REQUEST.map(CreateChatCompletionRequest.SerializeToString), st.binary(max_size=30))))
def test_any_bytes_are_counted_and_none_that_decode_have_more_items_than_counted(pieces):
    data = b"".join(pieces)
    within = find_overfull_list(data, DESCRIPTOR, items_max=3) is None
    try:
        request = CreateChatCompletionRequest.FromString(data)
    except DecodeError:
        return
    if within:
        assert count_items(request) <= max(3, len(data) // 2)
        assert count_items(request) <= 3 or len(data) <= 6
