"""What the gateway refuses in the body of a chat completion: by its API page, and beyond it by TensorZero 2026.4.1.

It is a table: a field, what its value must be, and what may stand inside it. What a body names (a model, a function)
is looked up elsewhere.
"""

import base64
import binascii
import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from bridge.emulator.steps import JsonObject, RefusalError, encode_json

__all__ = ["FIELDS", "check_body", "list_chosen_names", "parse_body", "refuse_value"]


@dataclass(frozen=True)
class Field:
    """A key of an object: what its value must be, whether null counts as absent, whether it must be there."""

    expected: str
    fits: Callable[[Any], bool]
    null: bool = True
    required: bool = False
    inside: "Mapping[str, Field] | None" = None
    strict: bool = False  # refuse keys that are not in `inside`


def _is(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: type(value) in kinds


def _is_one_of(*words: str) -> Callable[[Any], bool]:
    return lambda value: value in words


def _is_integer(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _is_anything(_value: Any) -> bool:
    return True


def _is_uuid(value: Any) -> bool:
    try:
        uuid.UUID(value)
    except (ValueError, AttributeError, TypeError):
        return False
    return True


def _is_base64(value: Any) -> bool:
    try:
        return bool(base64.b64decode(value, validate=True))
    except (binascii.Error, ValueError, TypeError):
        return False


def _is_data_url(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("data:") and _is_base64(value.partition(";base64,")[2])


def _is_tool_choice(value: Any) -> bool:
    return type(value) is dict or value in ("none", "auto", "required")


def _is_string_list(value: Any) -> bool:
    return type(value) is list and _are_strings(value)


def _is_string_map(value: Any) -> bool:
    return type(value) is dict and _are_strings(value.values())


def _are_strings(values: Iterable[Any]) -> bool:
    return all(type(value) is str for value in values)


def _require(expected: str, fits: Callable[[Any], bool]) -> Field:
    return Field(expected, fits, null=False, required=True)


def _nest(inside: Mapping[str, Field], *, strict: bool = False, required: bool = True) -> Field:
    return Field("an object", _is(dict), null=not required, required=required, inside=inside, strict=strict)


_NUMBER = Field("a number", _is(int, float))
_BOOLEAN = Field("a boolean", _is(bool))
_FLAG = Field("a boolean", _is(bool), null=False)
_STRING = Field("a string", _is(str))
_LIMIT = Field("an integer from 0 to 2147483647", _is_integer(0, 2**31 - 1))
_INT32 = Field("a 32-bit integer", _is_integer(-(2**31), 2**31 - 1))
_NAME = _require("a string", _is(str))
_OBJECT = Field("an object", _is(dict))
_ARRAY = Field("an array", _is(list))
_REQUIRED_ARRAY = _require("an array", _is(list))
_ANY = Field("JSON", _is_anything)
_CACHE_MODE = Field("on, off, read_only or write_only", _is_one_of("on", "off", "read_only", "write_only"), null=False)

FIELDS: Mapping[str, Field] = {
    "model": _NAME,
    "messages": _REQUIRED_ARRAY,
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "presence_penalty": _NUMBER,
    "frequency_penalty": _NUMBER,
    "max_tokens": _LIMIT,
    "max_completion_tokens": _LIMIT,
    "n": _INT32,
    "stop": Field("an array of strings", _is_string_list),
    "seed": _INT32,
    "reasoning_effort": _STRING,
    "verbosity": _STRING,
    "service_tier": Field("auto, default, priority or flex", _is_one_of("auto", "default", "priority", "flex")),
    "stream": _BOOLEAN,
    "stream_options": _nest({"include_usage": _FLAG}, required=False),
    "tools": _ARRAY,
    "tool_choice": Field("none, auto, required or an object", _is_tool_choice),
    "parallel_tool_calls": _BOOLEAN,
    "response_format": _OBJECT,
    "ollm::tags": Field("an object of strings", _is_string_map, null=False),
    "ollm::cache_options": _nest({"enabled": _CACHE_MODE, "max_age_s": _LIMIT}, required=False),
    "ollm::dryrun": _BOOLEAN,
    "ollm::variant_name": _STRING,
    "ollm::episode_id": Field("a UUID", _is_uuid),
    "ollm::deny_unknown_fields": _FLAG,
    "ollm::include_raw_usage": _FLAG,
    "ollm::include_raw_response": _FLAG,
}

# Objects that a word distinguishes: a message's role, the type of a part, a tool, a tool choice, a response format. A
# table's row that has `type` among its fields refuses other keys, as TensorZero does for images, audio and files.
_Variants = Mapping[str, Mapping[str, Field]]
_TEXT_OR_PARTS = _require("a string or an array", _is(str, list))
_MESSAGES: _Variants = {
    "system": {"content": _TEXT_OR_PARTS},
    "developer": {"content": _TEXT_OR_PARTS},
    "user": {"content": _TEXT_OR_PARTS},
    "assistant": {"content": Field("a string or an array", _is(str, list)), "tool_calls": _ARRAY},
    "tool": {"tool_call_id": _NAME},
}
_TOOL_CALL = {"id": _NAME, "type": _NAME, "function": _nest({"name": _NAME, "arguments": _NAME})}
_IMAGE = {"url": _NAME, "detail": Field("low, high or auto", _is_one_of("low", "high", "auto"))}
_AUDIO = {"data": _require("base64", _is_base64), "format": _NAME}
_FILE = {"file_data": _require("a base64 data URL", _is_data_url), "filename": _STRING}
_PARTS: _Variants = {
    "text": {"text": _NAME},
    "image_url": {"type": _NAME, "image_url": _nest(_IMAGE, strict=True)},
    "input_audio": {"type": _NAME, "input_audio": _nest(_AUDIO, strict=True)},
    "file": {"type": _NAME, "file": _nest(_FILE, strict=True)},
}
_FUNCTION = {"name": _NAME, "description": _STRING, "parameters": _require("JSON", _is_anything), "strict": _FLAG}
_CUSTOM = {"name": _NAME, "description": _STRING, "format": _OBJECT}
_TOOLS: _Variants = {
    "function": {"function": _nest(_FUNCTION)},
    "custom": {"custom": _nest(_CUSTOM, strict=True)},
}
_ALLOWED = {"mode": _require("auto or required", _is_one_of("auto", "required")), "tools": _REQUIRED_ARRAY}
_CHOICES: _Variants = {
    "function": {"function": _nest({"name": _NAME})},
    "allowed_tools": {"allowed_tools": _nest(_ALLOWED)},
}
_SCHEMA = {"name": _NAME, "description": _STRING, "schema": _ANY, "strict": _FLAG}
_FORMATS: _Variants = {"text": {}, "json_object": {}, "json_schema": {"json_schema": _nest(_SCHEMA)}}
_KINDS = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", int: "an integer", float: "a float"}


def parse_body(body: bytes) -> JsonObject:
    """Return the body as a JSON object, or refuse it."""
    try:
        text = body.decode()
        value = json.loads(text, parse_constant=_refuse_constant)
        if "\\u" in text:
            encode_json(value)  # a lone surrogate cannot be encoded
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", type(error).__name__)
        raise RefusalError(400, f"Failed to parse the request body as JSON: {reason}") from error
    if not isinstance(value, dict):
        refuse_value("the body", "an object", value)
    return value


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(constant)


def check_body(body: JsonObject) -> None:
    """Refuse, in the gateway's order, all that can be refused without looking up a name."""
    _check(body, FIELDS)
    if body.get("n") not in (None, 1):
        raise RefusalError(400, "n: expected 1 or nothing", param="n")
    unknown = sorted(body.keys() - FIELDS.keys())
    if unknown and body.get("ollm::deny_unknown_fields"):
        raise RefusalError(400, f"unknown fields: {', '.join(unknown)}", param=unknown[0])
    options = body.get("stream_options")
    omits_usage = options is not None and not options.get("include_usage")
    if omits_usage and body.get("stream") and body.get("ollm::include_raw_usage"):
        message = "ollm::include_raw_usage in a stream requires stream_options.include_usage to be true"
        raise RefusalError(400, message, param="stream_options.include_usage")
    _check_messages(body["messages"])
    _check_tools(body)


def _check(value: JsonObject, fields: Mapping[str, Field], where: str = "", *, strict: bool = False) -> None:
    """Refuse an object whose keys do not fit."""
    for name, rule in fields.items():
        if name not in value:
            if rule.required:
                path = _join_path(where, name)
                raise RefusalError(400, f"{where or 'the body'}: missing field `{name}`", param=path)
        elif not (value[name] is None and rule.null):
            if not rule.fits(value[name]):
                refuse_value(_join_path(where, name), rule.expected, value[name])
            if rule.inside is not None:
                _check(value[name], rule.inside, _join_path(where, name), strict=rule.strict)
    if strict and (unknown := sorted(value.keys() - fields.keys())):
        raise RefusalError(400, f"{where}: unknown fields {', '.join(unknown)}", param=where)


def _join_path(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def refuse_value(where: str, expected: str, value: Any) -> NoReturn:
    """Refuse a value that does not fit."""
    found = f"`{value[:64]}`" if isinstance(value, str) and len(value) <= 64 else _KINDS.get(type(value), "null")
    raise RefusalError(400, f"{where}: expected {expected}, found {found}", param=where)


def _check_messages(messages: list[Any]) -> None:
    if not messages:
        raise RefusalError(400, "messages: expected at least 1 item", param="messages")
    call_ids: set[str] = set()
    for at, message in enumerate(messages):
        where = f"messages[{at}]"
        role = _check_variant(message, "role", _MESSAGES, where)
        for number, call in enumerate(message.get("tool_calls") or [] if role == "assistant" else []):
            if type(call) is not dict:
                refuse_value(f"{where}.tool_calls[{number}]", "an object", call)
            _check(call, _TOOL_CALL, f"{where}.tool_calls[{number}]")
            call_ids.add(call["id"])
        if role == "tool" and message["tool_call_id"] not in call_ids:
            text = f"{where}.tool_call_id: no earlier tool call has this id"
            raise RefusalError(400, text, param=f"{where}.tool_call_id")
        content = message.get("content")
        for number, part in enumerate(content if role != "tool" and type(content) is list else []):
            place = f"{where}.content[{number}]"
            kind = _check_variant(part, "type", _PARTS, place)
            if role not in ("user", "assistant") and kind != "text":
                refuse_value(f"{place}.type", "text", kind)


def _check_tools(body: JsonObject) -> None:
    names: list[str] = []
    for at, tool in enumerate(body.get("tools") or []):
        kind = _check_variant(tool, "type", _TOOLS, f"tools[{at}]")
        names.append(tool[kind]["name"])
    if len(set(names)) < len(names):
        raise RefusalError(400, "tools: expected different names", param="tools")
    choice = body.get("tool_choice")
    if type(choice) is dict:
        _check_variant(choice, "type", _CHOICES, "tool_choice")
        for name in list_chosen_names(choice):
            if name not in names:
                text = f"tool_choice: expected a tool that is defined, found `{name}`"
                raise RefusalError(400, text, param="tool_choice")
    if body.get("response_format") is not None:
        _check_variant(body["response_format"], "type", _FORMATS, "response_format")


def list_chosen_names(choice: JsonObject) -> list[str]:
    """Return the names of the tools that a tool choice lets the model call; refuse one of another form."""
    if choice["type"] == "function":
        return [choice["function"]["name"]]
    names = []
    for at, tool in enumerate(choice["allowed_tools"]["tools"]):
        _check_variant(tool, "type", _CHOICES, f"tool_choice.allowed_tools.tools[{at}]")
        names.append(tool["function"]["name"])
    return names


def _check_variant(value: Any, key: str, table: _Variants, where: str) -> str:
    """Refuse what is not one of a table's objects; return its value of `key`, which distinguishes them."""
    if type(value) is not dict:
        refuse_value(where, "an object", value)
    word = value.get(key)
    if type(word) is not str or word not in table:
        refuse_value(f"{where}.{key}", ", ".join(table), word)
    _check(value, table[word], where, strict="type" in table[word])
    return word
