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
from bridge.core.item_count import find_overfull_key, too_many_items_error
from bridge.core.json_text import JSON_DEPTH_MAX, JsonError, count_values, measure_depth, parse
from ollmbridge.v1 import error_details_pb2 as details_pb2

__all__ = ["VALUES_MAX", "decode_json", "encode_json"]

VALUES_MAX: Final = 50_000
"""Values of a request: as many take a tenth of a second."""

_EXPLANATION_CHARS_MAX: Final = 300
"""Of a key, or of json_format's message about a value, since both repeat the caller's text."""

# A message of json_format begins and ends with its own words; between them stands a key or a value of any kind.
# So it is parsed from both ends and never searched.
_OUTER: Final = re.compile(r"(?:Failed to parse \w+ field: )*")
_OF_TYPE: Final = 'Message type "'
_UNKNOWN: Final = 'has no field named "'
_SEVERAL: Final = 'should not have multiple "'


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
    if (overfull := find_overfull_key(value)) is not None:
        field = kind.DESCRIPTOR.fields_by_camelcase_name.get(overfull)
        raise too_many_items_error(field.name if field else overfull[:100])
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
    """Return json_format's message as a place in the request and what is wrong there."""
    prefix = match[0] if (match := _OUTER.match(text)) else ""
    outer = ".".join(prefix.split()[3::5])  # of five words each has one name
    message = text[len(prefix) :]
    fault = message.partition('" ')[2] if message.startswith(_OF_TYPE) else ""
    if fault.startswith(_UNKNOWN):
        sentence = fault.removeprefix(_UNKNOWN).rpartition("\n")[0]  # behind it stand the names of the fields
        key, place = sentence.rpartition('" at "')[0][:_EXPLANATION_CHARS_MAX], _find_place(sentence, kind)
        return Violation(_join(place, key), f"expected one of {_list_fields(kind, place)}; found another key")
    place = _find_place(message, kind)
    if fault.startswith(_SEVERAL):
        name = fault.removeprefix(_SEVERAL).partition('"')[0].removeprefix("_")
        return Violation(_join(place, name), "expected one value, found several")
    found = message.strip().rstrip(".")[:_EXPLANATION_CHARS_MAX]
    return Violation(place or outer, f"expected a value of the field's type: {found}")


def _find_place(message: str, kind: type[Message]) -> str:
    """Return the path that stands at the end, behind the message's name, or "" if there is none."""
    before, _, path = message.rstrip('".').rpartition(kind.DESCRIPTOR.name)
    return path[1 : _EXPLANATION_CHARS_MAX + 1] if before.endswith((" at ", ' at "')) else ""


def _join(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _list_fields(kind: type[Message], place: str) -> str:
    """Return the names of the fields of the message at a place."""
    descriptor = kind.DESCRIPTOR
    for part in place.split(".") if place else ():
        name = part.partition("[")[0]
        field = descriptor.fields_by_camelcase_name.get(name) or descriptor.fields_by_name.get(name)
        if field is None or field.message_type is None:
            return "the fields of its message"
        descriptor = field.message_type
    return ", ".join(field.name for field in descriptor.fields)


def _undecodable(kind: type[Message], found: str) -> BridgeError:
    message = f"expected the JSON of an {kind.DESCRIPTOR.full_name}, found {found}"
    return BridgeError(Code.INVALID_ARGUMENT, details_pb2.ERROR_REASON_UNDECODABLE_REQUEST, message)
