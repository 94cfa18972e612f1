"""From a JSON value to a field, by the field's kind.

A reader takes a JSON value and returns the name of the field that holds it with the value that the field gets, or None
if no field can hold it without a loss; the level above then keeps the value as text. Readers are closures, compiled
once for each field, since every chunk calls a dozen of them.

A kind that JSON has no form for (bytes, an enum, a 32-bit float) is a TypeError when it is compiled.
"""

import decimal
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor

from bridge.core.fields import FieldReader, GetPlan, Plan, is_json, is_map
from bridge.core.json_text import JSON_DEPTH_MAX
from bridge.core.source import Path, Source

__all__ = ["compile_alias_reader", "compile_items_reader", "compile_reader", "compile_union_reader", "loses_digits"]


def compile_reader(get_plan: GetPlan, field: FieldDescriptor, key: str) -> FieldReader:
    """Return the reader of a field whose value stands at a key."""
    name = field.name
    if field.message_type is not None:
        if is_map(field):
            return _compile_map_reader(field, field.message_type)
        plan = get_plan(field.message_type)
        return compile_items_reader(plan, name, key) if field.is_repeated else _compile_message_reader(plan, name, key)
    if is_json(field):
        return lambda _value, source, path: (name, source.cut((*path, key)))
    check = _compile_check(field)
    if field.is_repeated:
        return lambda value, _source, _path: (name, value) if type(value) is list and all(map(check, value)) else None
    if field.type in _INT_RANGES:
        return _compile_integer_reader(name, *_INT_RANGES[field.type])
    if field.type == FieldDescriptor.TYPE_DOUBLE:
        return _compile_double_reader(check, name, key)
    return lambda value, _source, _path: (name, value) if check(value) else None


def _compile_map_reader(field: FieldDescriptor, entry: Descriptor) -> FieldReader:
    name = field.name
    keys, values = (entry.fields_by_name[part] for part in ("key", "value"))
    if keys.type != FieldDescriptor.TYPE_STRING or values.message_type is not None:
        raise TypeError(f"expected a map from strings to scalars, found {field.full_name}")
    check = _compile_check(values)

    def read(value: Any, _source: Source, _path: Path) -> tuple[str, Any] | None:
        return (name, value) if type(value) is dict and all(map(check, value.values())) else None

    return read


def _compile_message_reader(plan: Plan, name: str, key: str) -> FieldReader:
    read_message = plan.read
    step = (key,)

    def read(value: Any, source: Source, path: Path) -> tuple[str, Any] | None:
        if len(path) >= JSON_DEPTH_MAX:  # of a message type that holds itself
            return None
        arguments = read_message(value, source, path + step)
        return None if arguments is None else (name, arguments)

    return read


def compile_items_reader(plan: Plan, name: str, key: str | None) -> FieldReader:
    """Return the reader of a repeated message field. Without a key, the path is that of the array itself."""
    read_message = plan.read
    step = () if key is None else (key,)

    def read_items(value: list[Any], source: Source, place: Path) -> tuple[str, Any] | None:
        items = []
        for index, item in enumerate(value):
            arguments = None if item is None else read_message(item, source, (*place, index))
            if arguments is None:
                return None
            items.append(arguments)
        return name, items

    def read(value: Any, source: Source, path: Path) -> tuple[str, Any] | None:
        if type(value) is not list or len(path) >= JSON_DEPTH_MAX:
            return None
        return source.read_array(len(value), lambda: read_items(value, source, path + step))

    return read


def _compile_integer_reader(name: str, low: int, high: int) -> FieldReader:
    # Without a call of the check, since every chunk has two of these.
    return lambda value, _source, _path: (name, value) if type(value) is int and low <= value <= high else None


def _compile_double_reader(check: Callable[[Any], bool], name: str, key: str) -> FieldReader:
    def read(value: Any, source: Source, path: Path) -> tuple[str, Any] | None:
        if check(value):
            return name, value
        if type(value) is not float or not math.isfinite(value):
            return None
        is_integer = source.cut((*path, key)).removeprefix("-").isdigit()
        return None if is_integer else (name, value)

    return read


def compile_union_reader(get_plan: GetPlan, oneof: OneofDescriptor, members: Mapping[type, str]) -> FieldReader:
    """Return the reader of a union that the type of the JSON value tells; `members` as in Rules.untagged."""
    key = oneof.name
    rest = members[object]
    plans = {field.name: get_plan(field.message_type) for field in oneof.fields if field.message_type is not None}
    scalars = {kind: name for kind, name in members.items() if name not in plans and kind is not object}
    messages = {kind: (name, plans[name].read) for kind, name in members.items() if name in plans}

    def read(value: Any, source: Source, path: Path) -> tuple[str, Any]:
        kind = type(value)
        if kind in scalars:
            return scalars[kind], value
        if kind in messages and len(path) < JSON_DEPTH_MAX:
            name, read_message = messages[kind]
            arguments = read_message(value, source, (*path, key))
            if arguments is not None:
                return name, arguments
        return rest, source.cut((*path, key))

    return read


def compile_alias_reader(name: str, key: str) -> FieldReader:
    """Return the reader of a `*_json` field with keys of its own: a string is its content, anything else JSON text."""
    return lambda value, source, path: (name, value if type(value) is str else source.cut((*path, key)))


def loses_digits(value: Any, source: Source, path: Path) -> bool:
    """Return whether the double that was read is another number than its text says: the text has more digits."""
    if type(value) is not float:
        return False
    try:
        return _DECIMAL.create_decimal(source.cut(path)) != decimal.Decimal(repr(value))
    except decimal.DecimalException:  # an exponent beyond even its range
        return True


_DECIMAL: Final = decimal.Context(
    prec=decimal.MAX_PREC,
    Emax=decimal.MAX_EMAX,
    Emin=decimal.MIN_EMIN,
    traps=[decimal.InvalidOperation, decimal.Overflow, decimal.Underflow],
)


# Scalars


_INT32: Final = (-(2**31), 2**31 - 1)
_INT64: Final = (-(2**63), 2**63 - 1)
_INT_RANGES: Final[Mapping[int, tuple[int, int]]] = {
    **dict.fromkeys((FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_SINT32, FieldDescriptor.TYPE_SFIXED32), _INT32),
    **dict.fromkeys((FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_SINT64, FieldDescriptor.TYPE_SFIXED64), _INT64),
    **dict.fromkeys((FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_FIXED32), (0, 2**32 - 1)),
    **dict.fromkeys((FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_FIXED64), (0, 2**64 - 1)),
}


def _compile_check(field: FieldDescriptor) -> Callable[[Any], bool]:
    """Return the function that says whether a JSON value fits a scalar field without a loss."""
    if (bounds := _INT_RANGES.get(field.type)) is not None:
        low, high = bounds
        return lambda value: type(value) is int and low <= value <= high
    if field.type == FieldDescriptor.TYPE_DOUBLE:
        # orjson reads an integer beyond 64 bits as a float too, whose digits may be more than a double holds.
        return lambda value: _is_exact_integer(value) or (type(value) is float and abs(value) < 2**63)
    plain = {FieldDescriptor.TYPE_STRING: str, FieldDescriptor.TYPE_BOOL: bool}.get(field.type)
    if plain is None:
        raise TypeError(f"expected a string, a bool, an integer or a double, found the type of {field.full_name}")
    return lambda value: type(value) is plain


def _is_exact_integer(value: Any) -> bool:
    return type(value) is int and abs(value) <= 2**53
