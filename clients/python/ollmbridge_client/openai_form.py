"""Between the bridge's messages and the dicts of OpenAI's API, by descriptor, as the bridge reads and writes JSON.

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

_EXTRA: Final = "extra_json"
_RAW: Final = "raw_json"
_OLLM: Final = "ollm::"
_TAGGED: Final = {"ContentPart", "ResponseFormat", "Tool"}  # messages whose "type" names the member that is set
_NO_KEYS: Final = {"text", "parts", _RAW, _EXTRA, "ollm"}  # fields with another key, or none, in any other message
_MODES: Final = {name.removeprefix("MODE_").lower(): number for name, number in ToolChoice.Mode.items() if number}
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
    if kind.name in _TAGGED:
        return _read_tagged(value, kind)
    if not isinstance(value, Mapping):
        return None
    out: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for key, item in value.items():
        if item is None:
            continue
        if key.startswith(_OLLM) and "ollm" in kind.fields_by_name:
            options[key.removeprefix(_OLLM)] = item
        elif key == "content" and kind.name == "ChatMessage":
            out |= _read_content(item, kind)
        elif key not in _NO_KEYS and f"{key}_json" not in _NO_KEYS and f"{key}_json" in kind.fields_by_name:
            out[f"{key}_json"] = _dump(item)
        else:
            field = None if key in _NO_KEYS or key.endswith("_json") else kind.fields_by_name.get(key)
            found = None if field is None else _read_field(item, field)
            if found is None:
                out.setdefault(_EXTRA, {})[key] = _dump(item)
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
    return {_RAW: _dump(value)} if found is None else {"parts": {"parts": found}}


def _read_choice(value: Any) -> dict[str, Any]:
    match value:
        case str() if value in _MODES:
            return {"mode": _MODES[value]}
        case {"type": "function", "function": {"name": str(name), **others}, **rest} if not others:
            return {
                "function_name": name,
                _EXTRA: {str(key): _dump(item) for key, item in rest.items() if item is not None},
            }
        case _:
            return {_RAW: _dump(value)}


def _read_tagged(value: Any, kind: Any) -> dict[str, Any]:
    tag = value.get("type") if isinstance(value, Mapping) else None
    field = kind.fields_by_name.get(tag) if isinstance(tag, str) and tag not in {_RAW, _EXTRA} else None
    if isinstance(tag, str) and field is not None:
        is_bare = field.message_type is not None and not field.message_type.fields
        found = {} if is_bare else _read_field(value.get(tag), field)
        if found is not None:
            own = {"type"} if is_bare else {"type", tag}
            return {tag: found, _EXTRA: _dump_items({key: item for key, item in value.items() if key not in own})}
    return {_RAW: _dump(value)}


def _read_field(value: Any, field: FieldDescriptor) -> Any:
    """Return the value that a field gets, or None if it can't hold this one."""
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        if not isinstance(value, Mapping):
            return None
        found = {key: _read_one(item, kind.fields_by_name["value"]) for key, item in value.items()}
        return None if None in found.values() else found
    if not _is_repeated(field):
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


def to_openai(message: Message) -> Any:
    """Return a request, a response, a chunk or a part of one as the value that OpenAI's API has in its JSON."""
    kind = message.DESCRIPTOR
    fields = {field.name: (field, value) for field, value in message.ListFields()}
    _, texts = fields.pop(_EXTRA, (None, {}))
    extra = {key: json.loads(text) for key, text in texts.items()}
    if kind.name in _TAGGED or kind.name in {"ContentParts", "ToolChoice"}:
        return _write_union(fields, extra)
    out: dict[str, Any] = {}
    for name, (field, value) in fields.items():
        if name == "ollm":
            out |= {f"{_OLLM}{key}": item for key, item in to_openai(value).items()}
        elif name in _NO_KEYS:
            out["content"] = _write(value, field)
        else:
            key = name.removesuffix("_json")
            out[f"ollm_{key}" if name.startswith("raw_") else key] = _write(value, field)
    required = {each.name: each.default_value for each in kind.fields if not (each.has_presence or _is_repeated(each))}
    return required | extra | out


def _write_union(fields: dict[str, Any], extra: dict[str, Any]) -> Any:
    for name, (field, value) in fields.items():
        if name == "mode":
            return next((word for word, number in _MODES.items() if number == value), None)
        if name in {"parts", _RAW}:
            return _write(value, field)
        if name == "function_name":
            return {"type": "function", "function": {"name": value}} | extra
        is_bare = field.message_type is not None and not field.message_type.fields
        return {"type": name} | ({} if is_bare else {name: _write(value, field)}) | extra
    return None


def _write(value: Any, field: FieldDescriptor) -> Any:
    if field.message_type is None:
        return _load(value) if field.name.endswith("_json") else list(value) if _is_repeated(field) else value
    if field.message_type.GetOptions().map_entry:
        return dict(value)
    return [to_openai(item) for item in value] if _is_repeated(field) else to_openai(value)


def _load(text: str) -> Any:
    """Return the value of JSON text; what a provider sent may be other text, which is itself then."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _is_repeated(field: Any) -> bool:
    found = getattr(field, "is_repeated", None)  # protobuf has it since 6.31
    return bool(field.label == field.LABEL_REPEATED if found is None else found)
