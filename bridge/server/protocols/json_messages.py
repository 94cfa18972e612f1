"""Messages as JSON, by protobuf's rules (https://protobuf.dev/programming-guides/json/), bounded as they are in bytes.

A key that no field has is an error with its path, as a misspelt option would be no option; so is a key that is there
twice, as one of its values would be lost. Values are counted before they are parsed, since each takes some microseconds
to become a field.
"""

import json
import re
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.message import Message

from bridge.core.errors import BridgeError, Code, Violation, invalid_request
from bridge.core.json_text import JSON_DEPTH_MAX, JsonError, count_values, measure_depth, parse
from ollmbridge.v1 import error_details_pb2 as details_pb2

__all__ = ["VALUES_MAX", "decode_json", "encode_json"]

VALUES_MAX: Final = 50_000
"""Values of a request: as many take a tenth of a second."""

_UNKNOWN: Final = re.compile(r'has no field named "(?P<name>.*?)" at "(?P<place>[^"]*)"', re.DOTALL)
_PLACE: Final = re.compile(r" at \"?(?P<place>\w[\w.\[\]]*?)\"?\.*$")
_SEVERAL: Final = re.compile(r'multiple "_?(?P<name>\w+)" (?:oneof )?fields')
_NESTED: Final = re.compile(r"Failed to parse (\w+) field: ")


def decode_json(text: bytes, kind: type[Message]) -> bytes:
    """Return the bytes of the message that a JSON text is. Raises BridgeError."""
    if len(text) > VALUES_MAX and count_values(text, VALUES_MAX) > VALUES_MAX:
        raise _undecodable(kind, f"JSON with more than {VALUES_MAX} values")
    try:
        value, _ = parse(text)
    except JsonError as error:
        raise _undecodable(kind, f"no JSON: {error}") from None
    if not isinstance(value, dict):
        raise _undecodable(kind, "JSON that is no object")
    if (depth := measure_depth(value)) > JSON_DEPTH_MAX:
        raise _undecodable(kind, f"JSON of {depth} levels, more than {JSON_DEPTH_MAX}")
    try:
        json.loads(text, object_pairs_hook=_check_keys, parse_int=len, parse_float=len)
    except _RepeatedKeyError as error:
        raise _undecodable(kind, f"an object that has the key {str(error)[:100]!a} more than once") from None
    message = kind()
    try:
        json_format.ParseDict(value, message)
    except json_format.ParseError as error:
        raise invalid_request([_explain(str(error), kind)]) from None
    except (TypeError, ValueError, AttributeError, RecursionError) as error:  # of json_format, for values of odd types
        raise _undecodable(kind, f"JSON that can't be one ({type(error).__name__})") from error
    return message.SerializeToString()


class _RepeatedKeyError(Exception):
    """Raised with the key."""


def _check_keys(members: list[tuple[str, Any]]) -> None:
    """Refuse an object that has a key more than once, which a parser may read in either way."""
    seen = set()
    for key, _ in members:
        if key in seen:
            raise _RepeatedKeyError(key)
        seen.add(key)


def encode_json(message: bytes, kind: type[Message]) -> bytes:
    """Return a message as JSON text."""
    return json_format.MessageToJson(kind.FromString(message), indent=None, ensure_ascii=False).encode()


def _explain(text: str, kind: type[Message]) -> Violation:
    """Return what json_format says, as a place in the message and what is wrong there."""
    if (unknown := _UNKNOWN.search(text)) is not None:
        place = unknown["place"].partition(".")[2]
        field = f"{place}.{unknown['name']}" if place else unknown["name"]
        return Violation(field, f"expected one of {_list_fields(kind, place)}; found another key")
    outer = ".".join(_NESTED.findall(text))
    rest = _NESTED.sub("", text).strip().rstrip(".")
    found = _PLACE.search(rest)
    place = found["place"].partition(".")[2] if found is not None else outer
    if (several := _SEVERAL.search(rest)) is not None:
        name = several["name"]
        return Violation(f"{place}.{name}" if place else name, "expected one value, found several")
    return Violation(place or outer, f"expected a value of the field's type: {rest}")


def _list_fields(kind: type[Message], place: str) -> str:
    """Return the names of the fields of the message at a place."""
    descriptor = kind.DESCRIPTOR
    for name in re.sub(r"\[.*?\]", "", place).split(".") if place else ():
        field = descriptor.fields_by_camelcase_name.get(name) or descriptor.fields_by_name.get(name)
        if field is None or field.message_type is None:
            return "the fields of its message"
        descriptor = field.message_type
    return ", ".join(field.name for field in descriptor.fields)


def _undecodable(kind: type[Message], found: str) -> BridgeError:
    message = f"expected the JSON of an {kind.DESCRIPTOR.full_name}, found {found}"
    return BridgeError(Code.INVALID_ARGUMENT, details_pb2.ERROR_REASON_UNDECODABLE_REQUEST, message)
