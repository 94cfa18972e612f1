"""A request message's bytes: JSON that says all that the message says, by an independent reader, or a BridgeError.

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
from bridge.core.status import to_grpc_status
from ollmbridge.v1 import error_details_pb2 as details_pb2
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest
from tests.fuzz.mutate import message_within
from tests.unit.core import vectors
from tests.unit.core.documents import canonicalize, read_spelled, repair

__all__ = ["check", "mutate", "seeds"]

mutate = message_within

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
    said = json.loads(body.decode(), parse_constant=_refused)
    assert said["model"] == request.model
    assert len(said["messages"]) == len(request.messages)
    assert [message["role"] for message in said["messages"]] == [message.role for message in request.messages]
    assert said.get("stream") is (True if streamed else None)
    for key, text in request.extra_json.items():
        assert text.encode() in body
        assert repair(read_spelled(text)) == repair(read_spelled(body)[key])
    for message, spoken in zip(request.messages, said["messages"], strict=True):
        assert not message.HasField("text") or spoken["content"] == message.text
    _hold(request, said)
    if "ollm::tags" not in request.extra_json:  # else they are the caller's own, whatever they are
        assert said.get("ollm::tags", {}) == {**tags, **request.ollm.tags}
    _crosses_back(request, body)


def _hold(message: Message, said: dict[str, Any], prefix: str = "") -> None:
    """Every field of one value, at all levels, must be in the JSON under its name; a union's, where "type" tells it."""
    for each, value in message.ListFields():
        key = prefix + each.name
        if each.name.endswith("_json") or (is_union(each) and said.get("type") != each.name):
            continue
        if each.name == "ollm":
            _hold(value, said, OLLM_PREFIX)
        elif each.message_type is None:
            assert said[key] == (list(value) if each.is_repeated else value)
        elif each.message_type.GetOptions().map_entry:
            assert {**said[key], **value} == said[key]
        elif each.is_repeated:
            for item, inner in zip(value, said[key], strict=True):
                _hold(item, inner)
        elif isinstance(said.get(key), dict) and each.message_type.name not in UNIONS:
            _hold(value, said[key])


def is_union(each: FieldDescriptor) -> bool:
    one = each.containing_oneof
    return one is not None and len(one.fields) > 1


UNIONS = {"ToolChoice", "ContentParts"}


def _crosses_back(request: CreateChatCompletionRequest, body: bytes) -> None:
    """What was written must be read as a message that is written as an equal document again."""
    again = decode_request_json(body)
    streamed = again.extra_json.pop("stream", None)
    again_body = encode_request(again, stream=streamed == "true")
    descriptor = request.DESCRIPTOR
    assert canonicalize(repair(read_spelled(again_body)), descriptor) == canonicalize(
        repair(read_spelled(body)), descriptor
    )


def _refused(word: str) -> None:
    raise AssertionError(f"expected JSON, found {word}")
