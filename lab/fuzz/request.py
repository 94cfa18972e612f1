"""A request message's bytes: JSON with all that the message has, by an independent reader, or a BridgeError.

The first byte of an input chooses method and tags; the rest is the message as protobuf.
"""

import json
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from bridge.core.chat import decode_request_json, encode_request, requested_resource
from bridge.core.dialect import OLLM_PREFIX
from bridge.core.errors import BridgeError, Code
from bridge.core.json_text import JSON_DEPTH_MAX
from bridge.core.status import to_grpc_status
from lab.fuzz.mutate import change_message
from ollmbridge.v1 import error_details_pb2 as details_pb2
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest
from tests.kit import oracle, vectors
from tests.kit.documents import canonicalize, read_spelled, repair

__all__ = ["check", "mutate", "seeds"]

mutate = change_message

TAGS = {"team": "search"}


def seeds() -> Iterator[bytes]:
    for number, body in enumerate(vectors.read_requests().values()):
        request = decode_request_json(body)
        request.extra_json.pop("stream", None)
        yield bytes([number]) + request.SerializeToString(deterministic=True)
    request = CreateChatCompletionRequest(model="a", extra_json={"ollm::tags": '{"a": {"b": 1}}'})
    request.messages.add(role="user", text="tags of a shape that the protos do not model")
    yield b"\3" + request.SerializeToString()


def check(data: bytes) -> None:
    streamed, tags = bool(data[:1] and data[0] & 1), TAGS if data[:1] and data[0] & 2 else {}
    try:
        request = CreateChatCompletionRequest.FromString(data[1:])
    except DecodeError:
        return
    requested_resource(request)
    try:
        body = encode_request(request, stream=streamed, tags=tags)
    except BridgeError as error:
        assert error.code is Code.INVALID_ARGUMENT
        assert error.reason == details_pb2.ERROR_REASON_INVALID_REQUEST
        assert error.violations
        assert all(violation.field and violation.description for violation in error.violations)
        to_grpc_status(error)
        return
    document = json.loads(body.decode(), parse_constant=_reject_constant)
    assert document["model"] == request.model
    assert len(document["messages"]) == len(request.messages)
    assert [message["role"] for message in document["messages"]] == [message.role for message in request.messages]
    assert document.get("stream") is (True if streamed else None)
    for key, text in request.extra_json.items():
        assert text.encode() in body
        assert repair(read_spelled(text)) == repair(read_spelled(body)[key])
    for message, sent in zip(request.messages, document["messages"], strict=True):
        assert not message.HasField("text") or sent["content"] == message.text
    _check_fields(request, document)
    if "ollm::tags" not in request.extra_json:  # else they are the caller's own, of any form
        assert document.get("ollm::tags", {}) == {**tags, **request.ollm.tags}
    _check_round_trip(request, body)


def _check_fields(message: Message, document: dict[str, Any], prefix: str = "") -> None:
    """Every field of one value, at all levels, must be in the JSON under its name; a union's, if "type" names it."""
    for each, value in message.ListFields():
        key = prefix + each.name
        if each.name.endswith("_json") or (is_union(each) and document.get("type") != each.name):
            continue
        if each.name == "ollm":
            _check_fields(value, document, OLLM_PREFIX)
        elif each.message_type is None:
            assert document[key] == (list(value) if each.is_repeated else value)
        elif each.message_type.GetOptions().map_entry:
            assert {**document[key], **value} == document[key]
        elif each.is_repeated:
            for item, inner in zip(value, document[key], strict=True):
                _check_fields(item, inner)
        elif isinstance(document.get(key), dict) and each.message_type.name not in UNIONS:
            _check_fields(value, document[key])


def is_union(each: FieldDescriptor) -> bool:
    one = each.containing_oneof
    return one is not None and len(one.fields) > 1


UNIONS = {"ToolChoice", "ContentParts"}


def _check_round_trip(request: CreateChatCompletionRequest, body: bytes) -> None:
    """Read the JSON as a message and write it again: it must be an equal document."""
    again = decode_request_json(body)
    streamed = again.extra_json.pop("stream", None)
    try:
        again_body = encode_request(again, stream=streamed == "true")
    except BridgeError as error:
        assert _has_json_text(request)  # which may say what a field must not
        is_deep = oracle.measure_depth(body) > JSON_DEPTH_MAX  # a part that is text has the depth of what it is in, too
        assert is_deep or not any(" levels, found " in each.description for each in error.violations)
        return
    descriptor = request.DESCRIPTOR
    assert canonicalize(repair(read_spelled(again_body)), descriptor) == canonicalize(
        repair(read_spelled(body)), descriptor
    )


def _has_json_text(message: Message) -> bool:
    for each, value in message.ListFields():
        if each.name.endswith("_json"):
            return True
        if each.message_type is None or each.message_type.GetOptions().map_entry:
            continue
        if any(_has_json_text(item) for item in (value if each.is_repeated else [value])):
            return True
    return False


def _reject_constant(word: str) -> None:
    raise AssertionError(f"{word} is not JSON")
