"""How many items a message's lists and maps have, counted in its bytes before they are decoded.

Two bytes of protobuf can be an item of a hundred bytes in memory, which is then walked. So the items of a message are
counted first: all entries of repeated fields and maps, at every level that the descriptor knows. A message too short to
have more than ITEMS_MAX items is not looked at. Bytes that are no message are left for the decoder to refuse. Of JSON
the items are counted in its values, before they become fields.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, Final, NamedTuple

from google.protobuf.descriptor import Descriptor

from bridge.core.errors import BridgeError, Violation, invalid_request

__all__ = ["FIELDS_FEW", "FIELDS_MAX", "ITEMS_MAX", "find_overfull_key", "find_overfull_list", "too_many_items_error"]

ITEMS_MAX: Final = 10_000
"""Of a message: far more than any conversation has, and what a walk takes tens of milliseconds for."""
FIELDS_MAX: Final = 100_000
"""Fields of any kind, which bounds the count itself: to 0.1 s."""
FIELDS_FEW: Final = 4000
"""As many are counted in 4 ms."""

_ITEM_BYTES_MIN: Final = 2
"""A tag and an empty length."""
_MEMBERS_MAX: Final = 200
"""Of a JSON object that may be a message: none has as many fields."""
_VARINT_BYTES_MAX: Final = 10
_VARINT, _FIXED64, _BYTES, _START_GROUP, _END_GROUP, _FIXED32 = range(6)


class _Field(NamedTuple):
    """A field whose entries are counted, or looked into: `inner` is the type of its messages, None for others."""

    name: str
    is_list: bool
    inner: Descriptor | None


@cache
def _list_fields(descriptor: Descriptor) -> dict[int, _Field]:
    return {
        each.number: _Field(each.name, each.is_repeated, each.message_type)
        for each in descriptor.fields
        if each.is_repeated or each.message_type is not None
    }


def find_overfull_list(
    data: bytes, descriptor: Descriptor, *, items_max: int = ITEMS_MAX, fields_max: int = FIELDS_MAX
) -> str | None:
    """Return the top-level field in which a message exceeds a limit; None if it is within both."""
    if len(data) <= items_max * _ITEM_BYTES_MIN:
        return None
    items = fields = 0
    stack = [(0, len(data), descriptor, "")]
    while stack:
        at, end, kind, top = stack.pop()
        known = _list_fields(kind)
        while at < end:
            tag, at = _read_varint(data, at, end)
            fields += 1
            field = known.get(tag >> 3)
            name = top or (field.name if field else "")
            if field is not None and field.is_list:
                items += 1
            if items > items_max or fields > fields_max:
                return name
            wire_type = tag & 7
            if wire_type == _BYTES:
                length, at = _read_varint(data, at, end)
                if field is not None and field.inner is not None and length:
                    stack.append((at, min(at + length, end), field.inner, name))
                at += length
            else:
                at = _skip(data, at, end, wire_type)
    return None


def find_overfull_key(value: Mapping[str, Any], *, items_max: int = ITEMS_MAX) -> str | None:
    """Return the top-level key with which the JSON of a message exceeds the limit; None if it is within it.

    Each value in an array is an item, and so is each member of an object that has too many for a message: it is a map.
    Smaller maps are left for `find_overfull_list`.
    """
    items = 0
    for key, child in value.items():
        level = [child]
        while level := [each for each in level if isinstance(each, (dict, list))]:
            items += sum(len(each) for each in level if isinstance(each, list) or len(each) > _MEMBERS_MAX)
            if items > items_max:
                return key
            level = [leaf for each in level for leaf in (each.values() if isinstance(each, dict) else each)]
    return None


def too_many_items_error(name: str) -> BridgeError:
    """Return the error of a request that exceeds the limit in the top-level field of this name."""
    return invalid_request([Violation(name, f"expected at most {ITEMS_MAX} items in a request, found more")])


def _skip(data: bytes, at: int, end: int, wire_type: int) -> int:
    """Return where a value that is no bytes ends. What stands in a group counts as if it stood outside."""
    if wire_type == _VARINT:
        return _read_varint(data, at, end)[1]
    return at + {_FIXED64: 8, _FIXED32: 4}.get(wire_type, 0)


def _read_varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Return a number and where it ends; 0 and the end of all if it does not end."""
    if at < end and data[at] < 0x80:  # nearly all have one byte: they need no loop
        return data[at], at + 1
    value = shift = 0
    for place in range(at, min(end, at + _VARINT_BYTES_MAX)):
        byte = data[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place + 1
        shift += 7
    return 0, end
