"""ollmbridge_client.from_openai and to_openai do with dicts what the bridge's codec does with JSON."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import assume, example, given

from bridge.core.chat import decode_reply, decode_request_json
from bridge.core.dialect import REPLY, REQUEST
from bridge.core.json_text import find_json_error, parse
from bridge.core.source import Source
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest, CreateChatCompletionResponse
from ollmbridge.v1.chat_pb2 import ChatMessage, ToolChoice
from ollmbridge_client import from_openai, to_openai
from tests.clients.vectors import write_json
from tests.kit import documents, vectors
from tests.kit.vectors import decode_chunks, read_client_vectors

SDK_KEYS = {"stream", "extra_body", "extra_headers", "extra_query", "timeout"}
REQUESTS = {name: json.loads(body) for name, body in vectors.read_requests().items()}


def write(request: CreateChatCompletionRequest) -> Any:
    """Return the body that the bridge sends, but for what it refuses."""
    return json.loads(orjson.dumps(REQUEST.write(request, None, [])))


@pytest.mark.parametrize("name", REQUESTS)
def test_recorded_request_becomes_what_the_codec_reads(name):
    body = {key: item for key, item in REQUESTS[name].items() if key != "stream"}
    request = from_openai(REQUESTS[name])
    assert request == decode_request_json(json.dumps(body, ensure_ascii=False))
    assert to_openai(request) == write(request)


@given(documents.objects(CreateChatCompletionRequest.DESCRIPTOR))
@example({"messages": [{"content": []}]})
def test_any_request_becomes_what_the_codec_reads(value):
    body = {key: item for key, item in value.items() if key not in SDK_KEYS}
    text = documents.spell(body)
    assume(documents.repair(body) == body)  # lone surrogates are no text
    assume("e400" not in text)  # a number that no float holds
    request = from_openai(json.loads(text))
    assert write(request) == write(decode_request_json(text))
    assert to_openai(request) == write(request)


@given(documents.objects(CreateChatCompletionResponse.DESCRIPTOR))
@example({"ollm_raw_usage": "NaN"})
def test_any_reply_is_written_as_the_codec_writes_it(value):
    text = documents.spell(documents.repair(value))
    assume("e400" not in text)  # a number that no float holds
    parsed, source = parse(text.encode())
    reply = CreateChatCompletionResponse(**(REPLY.read(parsed, Source(source), ()) or {}))
    raw = {}
    for name in ("raw_usage_json", "raw_response_json"):  # the one text of a response that need not be JSON
        if reply.HasField(name) and find_json_error(getattr(reply, name)):
            raw[f"ollm_{name.removesuffix('_json')}"] = getattr(reply, name)
    assume(not raw.keys() & reply.extra_json.keys())  # a second spelling of the same key
    found = to_openai(reply)
    assert raw.items() <= found.items()
    for name in raw:
        reply.ClearField(f"{name.removeprefix('ollm_')}_json")
    assert {key: item for key, item in found.items() if key not in raw} == write_json(reply)


@pytest.mark.parametrize("name", vectors.list_names("replies"))
def test_recorded_reply_is_written_as_the_codec_writes_it(name):
    reply = decode_reply(vectors.read_answer("replies", name).body)
    assert to_openai(reply) == write_json(reply)


def test_chunk_is_written_as_its_event():
    vector = next(vector for vector in read_client_vectors("accumulate") if vector["name"] == "tool-call-empty-id")
    chunk, event = decode_chunks(vector)[2], vector["events"][2]
    (choice,) = event["choices"]
    del choice["finish_reason"]  # a null
    assert to_openai(chunk) == event | {"choices": [choice]}


def test_extra_body_stands_at_the_top():
    request = from_openai({"model": "m", "messages": [], "extra_body": {"ollm::tags": {"team": "a"}, "top_k": 40}})
    assert request.ollm.tags == {"team": "a"}
    assert request.extra_json == {"top_k": "40"}


def test_stream_is_the_methods_business():
    assert from_openai({"model": "m", "stream": True}) == CreateChatCompletionRequest(model="m")


def test_message_of_a_response_goes_back_as_it_is():
    message = ChatMessage(role="assistant", text="Hi", reasoning_content="Hm", extra_json={"mark": "1.10"})
    request = from_openai({"model": "m", "messages": [{"role": "user", "content": "Hello"}, message]})
    assert list(request.messages) == [ChatMessage(role="user", text="Hello"), message]


def test_message_of_another_type_is_refused():
    with pytest.raises(TypeError):
        from_openai({"model": "m", "messages": [ToolChoice()]})


@pytest.mark.parametrize("key", ["timeout", "extra_headers", "extra_query"])
def test_option_of_the_sdk_is_refused_with_a_hint(key):
    with pytest.raises(ValueError, match=f"{key}: give the stub's method"):
        from_openai({"model": "m", "messages": [], key: 5})


def test_number_that_is_no_json_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        from_openai({"model": "m", "new": float("nan")})


@pytest.mark.parametrize("choice", [ToolChoice(), ToolChoice(mode=ToolChoice.MODE_UNSPECIFIED)])
def test_union_that_says_nothing_is_none(choice):
    assert to_openai(choice) is None
