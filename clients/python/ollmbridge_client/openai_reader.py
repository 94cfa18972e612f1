"""Read a dict of OpenAI's API into a request, by descriptor, as the bridge reads JSON.

A key is a field's name; what no field can hold goes to the `extra_json` of its level as JSON text; None is absent.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest
from ollmbridge.v1.chat_pb2 import ToolChoice

EXTRA: Final = "extra_json"
RAW: Final = "raw_json"
OLLM: Final = "ollm::"
TAGGED: Final = {"ContentPart", "ResponseFormat", "Tool"}  # messages whose "type" names the member that is set
NO_KEYS: Final = {"text", "parts", RAW, EXTRA, "ollm"}  # fields with another key, or none, in any other message
MODES: Final = {name.removeprefix("MODE_").lower(): number for name, number in ToolChoice.Mode.items() if number}
_BITS: Final = {FieldDescriptor.TYPE_INT32: 31, FieldDescriptor.TYPE_INT64: 63}
_TYPES: Final = {FieldDescriptor.TYPE_STRING: str, FieldDescriptor.TYPE_BOOL: bool}


def from_openai(body: Mapping[str, Any]) -> CreateChatCompletionRequest:
    """Return the request that the arguments of `client.chat.completions.create` stand for.

    Which method you call decides about `stream`. A message may also be one of the bridge's, as a response has it.
    """
    if found := {"extra_headers", "extra_query", "timeout"} & body.keys():
        raise ValueError(f"{', '.join(sorted(found))}: give the stub's method its own timeout and metadata instead")
    sent = {**body, **(body.get("extra_body") or {}), "stream": None, "extra_body": None}
    return CreateChatCompletionRequest(**_read(sent, CreateChatCompletionRequest.DESCRIPTOR))


def _read(value: Any, kind: Any) -> Any:
    """Return a message, or its arguments; None if the value does not fit."""
    if isinstance(value, Message):
        return value if value.DESCRIPTOR.full_name == kind.full_name else None
    if kind.name == "ToolChoice":
        return _read_choice(value)
    if kind.name in TAGGED:
        return _read_tagged(value, kind)
    if not isinstance(value, Mapping):
        return None
    out: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for key, item in value.items():
        if item is None:
            continue
        if key.startswith(OLLM) and "ollm" in kind.fields_by_name:
            options[key.removeprefix(OLLM)] = item
        elif key == "content" and kind.name == "ChatMessage":
            out |= _read_content(item, kind)
        elif key not in NO_KEYS and f"{key}_json" not in NO_KEYS and f"{key}_json" in kind.fields_by_name:
            out[f"{key}_json"] = _dump(item)
        else:
            field = None if key in NO_KEYS or key.endswith("_json") else kind.fields_by_name.get(key)
            found = None if field is None else _read_field(item, field)
            if found is None:
                out.setdefault(EXTRA, {})[key] = _dump(item)
            else:
                out[key] = found
    if options:
        out["ollm"] = _read(options, kind.fields_by_name["ollm"].message_type)
    return out


def _read_content(value: Any, kind: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"text": value}
    parts = kind.fields_by_name["parts"].message_type.fields_by_name["parts"]
    found = _read_field(value, parts)
    return {RAW: _dump(value)} if found is None else {"parts": {"parts": found}}


def _read_choice(value: Any) -> dict[str, Any]:
    match value:
        case str() if value in MODES:
            return {"mode": MODES[value]}
        case {"type": "function", "function": {"name": str(name), **others}, **rest} if not others:
            return {"function_name": name, EXTRA: _dump_items({str(key): item for key, item in rest.items()})}
        case _:
            return {RAW: _dump(value)}


def _read_tagged(value: Any, kind: Any) -> dict[str, Any]:
    tag = value.get("type") if isinstance(value, Mapping) else None
    field = kind.fields_by_name.get(tag) if isinstance(tag, str) and tag not in {RAW, EXTRA} else None
    if isinstance(tag, str) and field is not None:
        is_bare = field.message_type is not None and not field.message_type.fields
        found = {} if is_bare else _read_field(value.get(tag), field)
        if found is not None:
            own = {"type"} if is_bare else {"type", tag}
            return {tag: found, EXTRA: _dump_items({key: item for key, item in value.items() if key not in own})}
    return {RAW: _dump(value)}


def _read_field(value: Any, field: FieldDescriptor) -> Any:
    """Return the value that a field gets, or None if it can't hold this one."""
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        if not isinstance(value, Mapping):
            return None
        found = {key: _read_one(item, kind.fields_by_name["value"]) for key, item in value.items()}
        return None if None in found.values() else found
    if not is_repeated(field):
        return _read_one(value, field)
    items = [_read_one(item, field) for item in value] if isinstance(value, list | tuple) else [None]
    return None if None in items else items


def _read_one(value: Any, field: FieldDescriptor) -> Any:
    if field.message_type is not None:
        return _read(value, field.message_type)
    if field.type in _BITS:
        return value if type(value) is int and -(2 ** _BITS[field.type]) <= value < 2 ** _BITS[field.type] else None
    if field.type == FieldDescriptor.TYPE_DOUBLE:
        fits = (type(value) is int and abs(value) <= 2**53) or (type(value) is float and math.isfinite(value))
        return value if fits else None
    return value if type(value) is _TYPES[field.type] else None


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _dump_items(value: Mapping[str, Any]) -> dict[str, str]:
    return {key: _dump(item) for key, item in value.items() if item is not None}


def is_repeated(field: Any) -> bool:
    """Return whether a field is a list or a map."""
    found = getattr(field, "is_repeated", None)  # protobuf has it since 6.31
    return bool(field.label == field.LABEL_REPEATED if found is None else found)
