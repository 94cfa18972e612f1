"""Changes to an input that keep its form, so that more of them come through the parser than of libFuzzer's own.

`json_within` changes a JSON document somewhere within the bytes, `message_within` the protobuf message behind the first
byte. Each makes one change; libFuzzer's own changes are made as often.
"""

import json
from random import Random
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from bridge.core.dialect import OLLM_PREFIX
from ollmbridge.v1 import error_details_pb2 as details_pb2
from ollmbridge.v1.chat_completion_service_pb2 import (
    CreateChatCompletionRequest,
    CreateChatCompletionResponse,
    StreamChatCompletionResponse,
)

__all__ = ["json_within", "message_within"]

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30),
    *(0.5, 1.1, 1e300, 5e-324, "", "a", "stop", "function", "error", "\ud83d", "😀", "\x00", "a\nb", "[DONE]"),
    *([], {}, [None], [[]], {"": 0}, {"type": "text", "text": "a"}, {"type": "function", "function": {"name": "f"}}),
)
TEXTS = (
    *("", "a", "1.10", "-0", "1e400", "null", "{}", "[", "NaN", '"a"', '{"a":{"b":[1,2]}}', "[" * 64 + "]" * 64),
    *("[" * 65 + "]" * 65, "é", "\x00", "stream", "model", f"{OLLM_PREFIX}tags", "0" * 300),
)
NUMBERS = (0, 1, -1, 2, 2**31 - 1, -(2**31))


def _keys(descriptor: Descriptor, seen: set[str]) -> set[str]:
    """Give the names of the fields of a message and of those in it, as JSON keys."""
    if descriptor.full_name in seen:
        return set()
    seen.add(descriptor.full_name)
    inner = (_keys(each.message_type, seen) for each in descriptor.fields if each.message_type)
    return {each.name.removesuffix("_json") for each in descriptor.fields}.union(*inner)


KEYS = sorted(
    {"error", "message", "detail", "type", "ollm_raw_usage", "content", "x", ""}.union(
        *(
            _keys(kind.DESCRIPTOR, set())
            for kind in (CreateChatCompletionResponse, StreamChatCompletionResponse, details_pb2.UpstreamError)
        )
    )
)


def json_within(data: bytes, chance: Random) -> bytes:
    """Change one value of one of the documents that begin at a brace; the bytes as they were where there is none."""
    starts = [at for at, byte in enumerate(data) if byte == ord("{")]
    if not starts:
        return data
    start = chance.choice(starts)
    try:
        text = data[start:].decode()
        value, length = json.JSONDecoder().raw_decode(text)
        changed = json.dumps(_changed(value, chance), ensure_ascii=chance.random() < 0.1, separators=(",", ":"))
        return data[:start] + changed.encode("utf-8", "surrogatepass") + text[length:].encode()
    except (ValueError, RecursionError):
        return data


def _changed(value: Any, chance: Random) -> Any:
    if isinstance(value, dict) and value and chance.random() < 0.8:
        key = chance.choice(list(value))
        return {**value, key: _changed(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.8:
        at = chance.randrange(len(value))
        return [*value[:at], _changed(value[at], chance), *value[at + 1 :]]
    if isinstance(value, dict) and chance.random() < 0.7:
        kept = {key: item for key, item in value.items() if chance.random() < 0.9}
        return {**kept, chance.choice(KEYS): chance.choice(VALUES)}
    if isinstance(value, list) and chance.random() < 0.7:
        return [*value, chance.choice([*value, *VALUES])]
    return chance.choice(VALUES)


def message_within(data: bytes, chance: Random) -> bytes:
    """Change one field of the request, or of a message in it."""
    try:
        request = CreateChatCompletionRequest.FromString(data[1:])
    except DecodeError:
        return data
    _change(request, chance)
    return bytes([chance.randrange(4)]) + request.SerializeToString()


def _change(message: Message, chance: Random) -> None:
    present = [
        each for each, _ in message.ListFields() if each.message_type and not each.message_type.GetOptions().map_entry
    ]
    if present and chance.random() < 0.7:
        each = chance.choice(present)
        inner = getattr(message, each.name)
        _change(chance.choice(inner) if each.is_repeated else inner, chance)
        return
    each = chance.choice(message.DESCRIPTOR.fields) if message.DESCRIPTOR.fields else None
    if each is None:
        return
    if chance.random() < 0.3:
        message.ClearField(each.name)
    elif each.message_type and each.message_type.GetOptions().map_entry:
        getattr(message, each.name)[chance.choice([*TEXTS, *KEYS])] = chance.choice(TEXTS)
    elif each.message_type and each.is_repeated:
        getattr(message, each.name).add()
    elif each.message_type:
        getattr(message, each.name).SetInParent()
    elif each.is_repeated:
        getattr(message, each.name).append(chance.choice(TEXTS))
    else:
        setattr(message, each.name, _scalar(each, chance))


def _scalar(each: FieldDescriptor, chance: Random) -> Any:
    match each.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            return chance.choice(TEXTS)
        case FieldDescriptor.CPPTYPE_BOOL:
            return chance.random() < 0.5
        case FieldDescriptor.CPPTYPE_DOUBLE:
            return chance.choice((0.0, 0.7, -0.0, 1e300, float("nan"), float("inf"), float(2**63)))
        case FieldDescriptor.CPPTYPE_ENUM:
            return chance.randrange(6)
        case _:
            return chance.choice(NUMBERS)
