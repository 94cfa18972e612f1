"""What the ways to JSON and back share: where a value stands, what a plan is, and the kinds of field.

A field's name is its JSON key; `*_json` holds JSON text of the key without that suffix, and `extra_json` what no other
field can hold. How a field is read is in `field_readers.py`, how it is written in `field_writers.py`.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from bridge.core.errors import Violation
from bridge.core.source import Path, Source

__all__ = ["EXTRA", "FieldPath", "FieldReader", "FieldWriter", "GetPlan", "Plan", "get_plain_type", "is_json", "is_map"]

EXTRA: Final = "extra_json"
"""The field of a message for what no other field of it can hold: JSON text by key."""


class FieldPath(NamedTuple):
    """A place in a message, as a chain to its root: cheap to extend, and only a violation renders it."""

    parent: "FieldPath | None"
    name: str
    item: int | None = None

    def __str__(self) -> str:
        """Return the proto path, such as `messages[2].parts.parts[0]`."""
        own = self.name if self.item is None else f"{self.name}[{self.item}]"
        return own if self.parent is None else f"{self.parent}.{own}"


FieldReader: TypeAlias = Callable[[Any, Source, Path], tuple[str, Any] | None]
"""From a JSON value, in the object at a path, to a message's keyword argument; None if no field can hold it."""

FieldWriter: TypeAlias = Callable[[Any, dict[str, Any], FieldPath | None, list[Violation]], None]
"""Puts a field's value into the JSON object; appends what is wrong with it."""


class Plan(Protocol):
    """How messages of one type look as JSON."""

    def write(self, message: Message, at: FieldPath | None, violations: list[Violation]) -> Any:
        """Return the JSON value that a message stands for; append what is wrong with it."""
        ...

    def read(self, value: Any, source: Source, path: Path) -> dict[str, Any] | None:
        """Return the keyword arguments of the message that a JSON value makes, or None if it does not fit."""
        ...


GetPlan: TypeAlias = Callable[[Descriptor], Plan]


def is_json(field: FieldDescriptor) -> bool:
    """Return whether a field holds JSON text: a string whose name ends in `_json`."""
    return field.type == FieldDescriptor.TYPE_STRING and field.name.endswith("_json")


def get_plain_type(field: FieldDescriptor) -> type | None:
    """Return the Python type whose every value a field can hold, or None if its reader must decide."""
    if field.is_repeated or is_json(field):
        return None
    return {FieldDescriptor.TYPE_STRING: str, FieldDescriptor.TYPE_BOOL: bool}.get(field.type)


def is_map(field: FieldDescriptor) -> bool:
    """Return whether a field is a map, which protobuf counts as a repeated message."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry
