"""Changes to an input that keep its form, so that more of them pass the parser than of libFuzzer's own.

`change_json` changes a JSON document somewhere within the bytes, `change_message` the protobuf message after the first
byte. Each makes one change; libFuzzer's own changes are as frequent.
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

__all__ = ["change_json", "change_message"]

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


def _list_keys(descriptor: Descriptor, seen: set[str]) -> set[str]:
    """Return the names of the fields of a message and of its inner messages, as JSON keys."""
    if descriptor.full_name in seen:
        return set()
    seen.add(descriptor.full_name)
    inner = (_list_keys(each.message_type, seen) for each in descriptor.fields if each.message_type)
    return {each.name.removesuffix("_json") for each in descriptor.fields}.union(*inner)


KEYS = sorted(
    {"error", "message", "detail", "type", "ollm_raw_usage", "content", "x", ""}.union(
        *(
            _list_keys(kind.DESCRIPTOR, set())
            for kind in (CreateChatCompletionResponse, StreamChatCompletionResponse, details_pb2.UpstreamError)
        )
    )
)


def change_json(data: bytes, chance: Random) -> bytes:
    """Change one value of one of the documents that begin at a brace; return the bytes as they are if there is none."""
    starts = [at for at, byte in enumerate(data) if byte == ord("{")]
    if not starts:
        return data
    start = chance.choice(starts)
    try:
        text = data[start:].decode()
        value, length = json.JSONDecoder().raw_decode(text)
        changed = json.dumps(_change_value(value, chance), ensure_ascii=chance.random() < 0.1, separators=(",", ":"))
        return data[:start] + changed.encode("utf-8", "surrogatepass") + text[length:].encode()
    except (ValueError, RecursionError):
        return data


def _change_value(value: Any, chance: Random) -> Any:
    if isinstance(value, dict) and value and chance.random() < 0.8:
        key = chance.choice(list(value))
        return {**value, key: _change_value(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.8:
        at = chance.randrange(len(value))
        return [*value[:at], _change_value(value[at], chance), *value[at + 1 :]]
    if isinstance(value, dict) and chance.random() < 0.7:
        remaining = {key: item for key, item in value.items() if chance.random() < 0.9}
        return {**remaining, chance.choice(KEYS): chance.choice(VALUES)}
    if isinstance(value, list) and chance.random() < 0.7:
        return [*value, chance.choice([*value, *VALUES])]
    return chance.choice(VALUES)


def change_message(data: bytes, chance: Random) -> bytes:
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
        value = _choose_scalar(each.message_type.fields_by_name["value"], chance)
        getattr(message, each.name)[chance.choice([*TEXTS, *KEYS])] = value
    elif each.message_type and each.is_repeated:
        getattr(message, each.name).add()
    elif each.message_type:
        getattr(message, each.name).SetInParent()
    elif each.is_repeated:
        getattr(message, each.name).append(_choose_scalar(each, chance))
    else:
        setattr(message, each.name, _choose_scalar(each, chance))


def _choose_scalar(each: FieldDescriptor, chance: Random) -> Any:
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
