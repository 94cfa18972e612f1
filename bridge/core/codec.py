"""JSON to protobuf and back, by plans compiled from the descriptors.

The schema is the source: a field added to the protos crosses without a line of code here. The rule is one. A JSON key
is a field's name; what the message can't hold (a key that no field has, a value that does not fit its field) goes to
the `extra_json` of its level as JSON text, cut out of the source byte for byte; a null counts as absent. Every message
that is a JSON object has an `extra_json`. Reading is therefore total: every JSON object becomes a message and loses
nothing but nulls.

If JSON's shape differs from the message's (unions, prefixed keys, keys of several names), `dialect.py` has the rule;
this module only knows the kinds of rule there are, `fields.py` and its neighbours the kinds of field.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from bridge.core.errors import Violation
from bridge.core.field_readers import (
    compile_alias_reader,
    compile_items_reader,
    compile_reader,
    compile_union_reader,
    loses_digits,
)
from bridge.core.field_writers import build_fragment, compile_writer, write_extra
from bridge.core.fields import EXTRA, FieldPath, FieldReader, FieldWriter, Plan, get_plain_type, is_json
from bridge.core.source import Path, Source

__all__ = ["Codec", "Rules"]


@dataclass(frozen=True)
class Rules:
    """What a descriptor can't say: the exceptions, by full name of message, field or oneof."""

    tagged: Mapping[str, str] = field(default_factory=dict)
    """Message -> its member for everything else: the object's "type" names the member of its oneof that is set."""
    untagged: Mapping[str, Mapping[type, str]] = field(default_factory=dict)
    """Oneof -> Python type of the JSON value -> member; `object` stands for every other type. The oneof is the key."""
    listed: Mapping[str, str] = field(default_factory=dict)
    """Message -> its one repeated field: the message is a JSON array."""
    prefixed: Mapping[str, str] = field(default_factory=dict)
    """Message -> prefix of its keys, which stand in the parent's object."""
    aliased: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Field -> its keys, ours first. A string for a field `*_json` is read as its content."""
    exact: frozenset[str] = frozenset()
    """Fields of a double: if it would lose digits, `extra_json` has them too."""
    plans: Mapping[str, Plan] = field(default_factory=dict)
    """Message -> a plan of its own."""
    reserved: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Message -> keys that extra_json must not have, set or not."""


class Codec:
    """Every message type's plan, compiled on first use and kept."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._plans: dict[str, Plan] = dict(rules.plans)

    def get_plan(self, descriptor: Descriptor) -> Plan:
        """Return the plan of a message type. Raises TypeError if JSON has no form for one of its fields."""
        name = descriptor.full_name
        if name not in self._plans:
            plan = self._plans[name] = _choose_plan(descriptor, self.rules)
            plan.compile(self)  # only now, since a message may hold one of its own type
        return self._plans[name]


def _choose_plan(descriptor: Descriptor, rules: Rules) -> "_CompiledPlan":
    name = descriptor.full_name
    if (raw := rules.tagged.get(name)) is not None:
        return TaggedPlan(descriptor, raw)
    if (repeated := rules.listed.get(name)) is not None:
        return ListPlan(descriptor, repeated)
    return ObjectPlan(descriptor, rules.prefixed.get(name, ""))


class _Key(NamedTuple):
    """How one JSON key is read. A value of exactly the type `plain` needs no check: it is the value of field `name`."""

    name: str
    plain: type | None
    read: FieldReader
    is_exact: bool = False


class ObjectPlan:
    """The ordinary plan: a JSON object with a key for each field."""

    def __init__(self, descriptor: Descriptor, prefix: str = "") -> None:
        self._descriptor = descriptor
        self._prefix = prefix
        self._reserved: tuple[str, ...] = ()
        self._keys: dict[str, _Key] = {}
        self._writers: dict[int, FieldWriter] = {}
        # Without presence, unset and "" look alike: such a field is a key that the API requires, and is always sent.
        self._required: dict[str, Any] = {}
        self._flattened: list[tuple[str, str, Plan]] = []

    def compile(self, codec: Codec) -> None:
        """Make the readers and writers. Raises TypeError if the message has no field for what no other field holds."""
        if EXTRA not in self._descriptor.fields_by_name:
            raise TypeError(f"expected a field {EXTRA} in {self._descriptor.full_name}, found none")
        rules = codec.rules
        self._reserved = rules.reserved.get(self._descriptor.full_name, ())
        for oneof in self._descriptor.oneofs:
            if (members := rules.untagged.get(oneof.full_name)) is not None:
                self._keys[oneof.name] = _Key("", None, compile_union_reader(codec.get_plan, oneof, members))
                self._writers.update(
                    (member.number, compile_writer(codec.get_plan, member, oneof.name)) for member in oneof.fields
                )
        for each in self._descriptor.fields:
            if each.name == EXTRA or each.number in self._writers:
                continue
            if each.message_type is not None and each.message_type.full_name in rules.prefixed:
                self._add_flattened(codec, each, each.message_type)
            elif (keys := rules.aliased.get(each.full_name)) is not None:
                self._writers[each.number] = compile_writer(codec.get_plan, each, keys[0])
                self._keys.update((key, _compile_alias(codec, each, key)) for key in keys)
            else:
                self._add(codec, each)

    def _add(self, codec: Codec, each: FieldDescriptor) -> None:
        key = self._prefix + (each.name.removesuffix("_json") if is_json(each) else each.name)
        self._keys[key] = _Key(each.name, get_plain_type(each), compile_reader(codec.get_plan, each, key))
        self._writers[each.number] = compile_writer(codec.get_plan, each, key)
        if not each.has_presence and not each.is_repeated:
            self._required[key] = each.default_value

    def _add_flattened(self, codec: Codec, each: FieldDescriptor, message_type: Descriptor) -> None:
        plan = codec.get_plan(message_type)
        name = each.name

        def write(value: Message, out: dict[str, Any], at: FieldPath | None, violations: list[Violation]) -> None:
            out.update(plan.write(value, FieldPath(at, name), violations))

        self._flattened.append((codec.rules.prefixed[message_type.full_name], name, plan))
        self._writers[each.number] = write

    def write(self, message: Message, at: FieldPath | None, violations: list[Violation]) -> dict[str, Any]:
        """Return the JSON object; append what is wrong with it. Keys stand in the order of the fields' numbers."""
        out: dict[str, Any] = {}
        for each, value in message.ListFields():
            if (write := self._writers.get(each.number)) is not None:
                write(value, out, at, violations)
        write_extra(getattr(message, EXTRA), out, at, violations, prefix=self._prefix, reserved=self._reserved)
        for key, default in self._required.items():
            out.setdefault(key, default)
        return out

    def read(self, value: Any, source: Source, path: Path) -> dict[str, Any] | None:
        """Return the message's keyword arguments, or None if the value is no object."""
        if type(value) is not dict:
            return None
        out: dict[str, Any] = {}
        for prefix, name, plan in self._flattened:
            if own := {key: item for key, item in value.items() if key.startswith(prefix)}:
                out[name] = plan.read(own, source, path)
                value = {key: item for key, item in value.items() if not key.startswith(prefix)}
        extra: list[str] = []
        keys = self._keys
        for key, item in value.items():
            if item is None:
                continue
            if (known := keys.get(key)) is not None:
                if type(item) is known.plain:
                    out[known.name] = item
                    continue
                found = known.read(item, source, path)
                if found is not None and found[0] not in out:  # a field of several keys takes the first
                    out[found[0]] = found[1]
                    if not (known.is_exact and loses_digits(item, source, (*path, key))):
                        continue
            extra.append(key)
        if extra:
            source.count_cuts(len(extra))
            out[EXTRA] = {key.removeprefix(self._prefix): source.cut((*path, key)) for key in extra}
        return out


def _compile_alias(codec: Codec, each: FieldDescriptor, key: str) -> _Key:
    if is_json(each):
        return _Key(each.name, None, compile_alias_reader(each.name, key))
    is_exact = each.full_name in codec.rules.exact
    return _Key(each.name, get_plain_type(each), compile_reader(codec.get_plan, each, key), is_exact)


class TaggedPlan:
    """A union that "type" tells: `{"type": member, member: value}`; a member of an empty message is the tag alone."""

    def __init__(self, descriptor: Descriptor, raw: str) -> None:
        (oneof,) = descriptor.oneofs
        self._oneof = oneof.name
        self._raw = raw
        self._members = [each for each in oneof.fields if each.name != raw]
        self._bare = [each.name for each in self._members if each.message_type and not each.message_type.fields]
        self._writers: dict[str, FieldWriter] = {}
        self._readers: dict[str, FieldReader] = {}

    def compile(self, codec: Codec) -> None:
        """Make the readers and writers."""
        members = [each for each in self._members if each.name not in self._bare]
        self._writers = {each.name: compile_writer(codec.get_plan, each, each.name) for each in members}
        self._readers = {each.name: compile_reader(codec.get_plan, each, each.name) for each in members}

    def write(self, message: Message, at: FieldPath | None, violations: list[Violation]) -> Any:
        """Return the JSON value; a message with no member set is a violation."""
        member = message.WhichOneof(self._oneof)
        if member is None:
            names = ", ".join((*(each.name for each in self._members), self._raw))
            violations.append(Violation(str(at), f"expected one of {names}, found none"))
            return None
        extra = getattr(message, EXTRA)
        if member == self._raw:
            if extra:
                description = f"expected no extra_json beside {self._raw}, which is the whole"
                violations.append(Violation(str(FieldPath(at, EXTRA)), description))
            return build_fragment(getattr(message, member), FieldPath(at, member), violations)
        out: dict[str, Any] = {"type": member}
        if member not in self._bare:
            self._writers[member](getattr(message, member), out, at, violations)
        write_extra(extra, out, at, violations)
        return out

    def read(self, value: Any, source: Source, path: Path) -> dict[str, Any] | None:
        """Return the keyword arguments; a value that fits no member is JSON text as a whole."""
        return self._read_member(value, source, path) or {self._raw: source.cut(path)}

    def _read_member(self, value: Any, source: Source, path: Path) -> dict[str, Any] | None:
        tag = value.get("type") if type(value) is dict else None
        if not isinstance(tag, str):
            return None
        own = {"type"}
        found: tuple[str, Any] | None = None
        if tag in self._bare:
            found = tag, {}
        elif tag in self._readers and (item := value.get(tag)) is not None:
            own.add(tag)
            found = self._readers[tag](item, source, path)
        if found is None:
            return None
        out = dict([found])
        if extra := [key for key, item in value.items() if key not in own and item is not None]:
            source.count_cuts(len(extra))
            out[EXTRA] = {key: source.cut((*path, key)) for key in extra}
        return out


class ListPlan:
    """A message of one repeated field that is a JSON array: protobuf has no repeated member of a oneof."""

    def __init__(self, descriptor: Descriptor, repeated: str) -> None:
        self._name = repeated
        (self._item_type,) = (each.message_type for each in descriptor.fields if each.message_type is not None)

    def compile(self, codec: Codec) -> None:
        """Make the reader."""
        self._item = codec.get_plan(self._item_type)
        self._read = compile_items_reader(self._item, self._name, None)

    def write(self, message: Message, at: FieldPath | None, violations: list[Violation]) -> Any:
        """Return the JSON array."""
        items = enumerate(getattr(message, self._name))
        return [self._item.write(item, FieldPath(at, self._name, index), violations) for index, item in items]

    def read(self, value: Any, source: Source, path: Path) -> dict[str, Any] | None:
        """Return the keyword arguments, or None if the value is no array or an item does not fit."""
        found = self._read(value, source, path)
        return None if found is None else dict([found])


_CompiledPlan: TypeAlias = ObjectPlan | TaggedPlan | ListPlan
