"""Write a message of the bridge as the dict that OpenAI's API has, by descriptor, as the bridge writes JSON."""

import json
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from ollmbridge_client.openai_reader import EXTRA, MODES, NO_KEYS, OLLM, RAW, TAGGED, is_repeated


def to_openai(message: Message) -> Any:
    """Return a request, a response, a chunk or a part of one as the value that OpenAI's API has in its JSON."""
    kind = message.DESCRIPTOR
    fields = {field.name: (field, value) for field, value in message.ListFields()}
    _, texts = fields.pop(EXTRA, (None, {}))
    extra = {key: json.loads(text) for key, text in texts.items()}
    if kind.name == "ContentParts":
        return [to_openai(part) for _, parts in fields.values() for part in parts]
    if kind.name in TAGGED or kind.name == "ToolChoice":
        return _write_union(fields, extra)
    out: dict[str, Any] = {}
    for name, (field, value) in fields.items():
        if name == "ollm":
            out |= {f"{OLLM}{key}": item for key, item in to_openai(value).items()}
        elif name in NO_KEYS:
            out["content"] = _write(value, field)
        else:
            key = name.removesuffix("_json")
            out[f"ollm_{key}" if name.startswith("raw_") else key] = _write(value, field)
    required = {each.name: each.default_value for each in kind.fields if not (each.has_presence or is_repeated(each))}
    return required | extra | out


def _write_union(fields: dict[str, Any], extra: dict[str, Any]) -> Any:
    for name, (field, value) in fields.items():
        if name == "mode":
            return next((word for word, number in MODES.items() if number == value), None)
        if name == RAW:
            return _write(value, field)
        if name == "function_name":
            return {"type": "function", "function": {"name": value}} | extra
        is_bare = field.message_type is not None and not field.message_type.fields
        return {"type": name} | ({} if is_bare else {name: _write(value, field)}) | extra
    return None


def _write(value: Any, field: FieldDescriptor) -> Any:
    if field.message_type is None:
        return _load(value) if field.name.endswith("_json") else list(value) if is_repeated(field) else value
    if field.message_type.GetOptions().map_entry:
        return dict(value)
    return [to_openai(item) for item in value] if is_repeated(field) else to_openai(value)


def _load(text: str) -> Any:
    """Return the value of JSON text; what a provider sent may be other text, which is itself then."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except ValueError:
        return text


def _refuse(word: str) -> Any:
    """Refuse what Python takes for a number: NaN and Infinity are no JSON."""
    raise ValueError(word)
