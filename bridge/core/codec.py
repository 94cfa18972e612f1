"""JSON to protobuf and back, by plans compiled from the descriptors.

The schema is the source: a field added to the protos crosses without a line of code here. The rule is one. A JSON key
is a field's name; what the message can't hold (a key that no field has, a value that does not fit its field) goes to
the `extra_json` of its level as JSON text, cut out of the source byte for byte; a null counts as absent. A message
without `extra_json` that would have to drop something does not fit as a whole, and so the next level up keeps it.
Reading is therefore total: every JSON object becomes a message and loses nothing but nulls.

Where JSON's shape differs from the message's (unions, prefixed keys, keys of several names), `dialect.py` gives the
rule; this module only knows the kinds of rule there are.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import msgspec
import orjson
from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor
from google.protobuf.message import Message

__all__ = [
    "Aliased",
    "Codec",
    "Fault",
    "Form",
    "JsonError",
    "Rules",
    "Source",
    "json_depth",
    "json_fault",
    "parse",
    "spliced",
]

JSON_DEPTH_MAX: Final = 64
"""Deepest nesting of a JSON text that a caller gives. Deeper ones are refused by gateways, some by crashing."""

_EXTRA: Final = "extra_json"
_JSON_SUFFIX: Final = "_json"

_INT_RANGES: Final[Mapping[int, tuple[int, int]]] = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
}


class JsonError(ValueError):
    """The bytes are no JSON, or nest deeper than a parser can follow. The text says which and where."""


class Fault(NamedTuple):
    """One thing wrong with a request: the proto path of the field, and what was expected and found there."""

    field: str
    description: str


class At(NamedTuple):
    """A place in a message, as a chain to its root: cheap to extend, rendered only for a fault."""

    parent: "At | None"
    name: str
    item: int | None = None

    def __str__(self) -> str:
        """Give the proto path, such as `messages[2].parts.parts[0]`."""
        own = self.name if self.item is None else f"{self.name}[{self.item}]"
        return own if self.parent is None else f"{self.parent}.{own}"


Path: TypeAlias = tuple[str | int, ...]
"""A place in a JSON document: keys and indices from the root."""

Read: TypeAlias = Callable[[Any, dict[str, Any], "Source", Path], bool]
"""Puts a JSON value, found at a path, into a message's keyword arguments; says whether it fits."""

Write: TypeAlias = Callable[[Any, dict[str, Any], At | None, list[Fault]], None]
"""Puts a field's value into the JSON object; appends what is wrong with it."""


# JSON text


def parse(text: bytes) -> tuple[Any, bytes]:
    r"""Parse one JSON document: its value, and the text that the value stands in.

    The text differs from the one given only where that has a lone surrogate (`"\ud83d"`, as when a delta is cut inside
    an escaped pair), which becomes U+FFFD: protobuf strings can't hold one. Raises JsonError.
    """
    try:
        return orjson.loads(text), text
    except orjson.JSONDecodeError:
        return _parse_slowly(_LONE_SURROGATE.sub(_repaired_escape, text))


# orjson refuses lone surrogates and numbers beyond a double's range; both are JSON, so the standard library decides.
def _parse_slowly(text: bytes) -> tuple[Any, bytes]:
    try:
        value = json.loads(text.decode(), parse_constant=_refused_constant, parse_int=_integer)
    except RecursionError:
        raise JsonError("nests too deeply") from None
    except ValueError as error:
        raise JsonError(str(error)) from None
    return value, text


# Every escape is matched in turn, so that a match never begins inside one: `\\ud83d` is a backslash and text.
_LONE_SURROGATE: Final = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)


def _repaired_escape(match: re.Match[bytes]) -> bytes:
    return b"\\ufffd" if match[1] else match[0]


def _refused_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < 4000 else float(digits)  # int() refuses more than 4300 digits


def json_fault(text: str) -> str | None:
    """Say what keeps a text from being exactly one JSON document of bounded depth; None where nothing does."""
    try:
        value, _ = parse(text.encode())
    except JsonError as error:
        return f"expected one JSON document, found {_excerpt(text)}: {error}"
    if text.count("[") + text.count("{") > JSON_DEPTH_MAX and json_depth(value) > JSON_DEPTH_MAX:
        return f"expected JSON of at most {JSON_DEPTH_MAX} levels, found {json_depth(value)}"
    return None


def json_depth(value: Any) -> int:
    """Count the levels of arrays and objects; a scalar has none."""
    depth, level = 0, [value]
    while level := [child for child in level if isinstance(child, (dict, list))]:
        depth += 1
        level = [leaf for child in level for leaf in (child.values() if isinstance(child, dict) else child)]
    return depth


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")


class Source:
    """A JSON document's text, from which values are cut byte for byte.

    A level is sliced only when something of it is asked for, once, and its slices are kept.
    """

    __slots__ = ("_levels", "_text")

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._levels: dict[Path, Any] = {}

    def cut(self, path: Path) -> str:
        """Give the text of the value at a path. Raises JsonError where it nests too deeply to be sliced."""
        return str(memoryview(self._slice(path)), "utf-8")

    def _slice(self, path: Path) -> bytes | msgspec.Raw:
        if not path:
            return self._text
        level = self._levels.get(path[:-1])
        if level is None:
            kind: Any = list[msgspec.Raw] if isinstance(path[-1], int) else dict[str, msgspec.Raw]
            try:
                level = msgspec.json.decode(self._slice(path[:-1]), type=kind)
            except (RecursionError, msgspec.MsgspecError) as error:
                raise JsonError(f"can't be sliced: {error}") from None
            self._levels[path[:-1]] = level
        raw: msgspec.Raw = level[path[-1]]
        return raw


# Rules: what a descriptor can't say


class Form(Protocol):
    """How messages of one type look as JSON."""

    def write(self, message: Message, at: At | None, faults: list[Fault]) -> Any:
        """Give the JSON value that a message stands for; append what is wrong with it."""
        ...

    def read(self, value: Any, source: Source, path: Path) -> dict[str, Any] | None:
        """Give the keyword arguments of the message that a JSON value makes; None where it does not fit."""
        ...


class Aliased(NamedTuple):
    """A `*_json` field that several keys can bear, the first of them being ours."""

    keys: tuple[str, ...]


@dataclass(frozen=True)
class Rules:
    """The exceptions, by full name of message, field or oneof."""

    tagged: Mapping[str, str] = field(default_factory=dict)
    """Message -> its member for everything else: the object's "type" names the member of its oneof that is set."""
    untagged: Mapping[str, Mapping[type, str]] = field(default_factory=dict)
    """Oneof -> Python type of the JSON value -> member; `object` stands for every other type. The oneof is the key."""
    listed: Mapping[str, str] = field(default_factory=dict)
    """Message -> its one repeated field: the message is a JSON array."""
    prefixed: Mapping[str, str] = field(default_factory=dict)
    """Message -> prefix of its keys, which stand in the parent's object."""
    aliased: Mapping[str, Aliased] = field(default_factory=dict)
    """Field -> its keys. A string is given as its content, anything else as JSON text."""
    forms: Mapping[str, Callable[["Codec"], Form]] = field(default_factory=dict)
    """Message -> a form of its own."""
    reserved: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Message -> keys that extra_json must not have, set or not."""


# Forms


class Codec:
    """Every message type's form, compiled on first use and kept."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._forms: dict[str, Form] = {}

    def form(self, descriptor: Descriptor) -> Form:
        """Give the form of a message type."""
        name = descriptor.full_name
        if (found := self._forms.get(name)) is None:
            found = self._forms[name] = self._compiled(descriptor)
        return found

    def _compiled(self, descriptor: Descriptor) -> Form:
        name = descriptor.full_name
        if (made := self.rules.forms.get(name)) is not None:
            return made(self)
        if (raw := self.rules.tagged.get(name)) is not None:
            return TaggedForm(self, descriptor, raw)
        if (repeated := self.rules.listed.get(name)) is not None:
            return ListForm(self, descriptor, repeated)
        return ObjectForm(self, descriptor, self.rules.prefixed.get(name, ""))


class _Key(NamedTuple):
    """What reading knows of one JSON key: `read` decides; a value of exactly `plain` type is the field's unasked."""

    name: str
    plain: type | None
    read: Read


class ObjectForm:
    """The ordinary form: a JSON object with a key a field."""

    def __init__(self, codec: Codec, descriptor: Descriptor, prefix: str = "") -> None:
        rules = codec.rules
        self._prefix = prefix
        self._reserved = rules.reserved.get(descriptor.full_name, ())
        self._holds_extra = _EXTRA in descriptor.fields_by_name
        self._keys: dict[str, _Key] = {}
        self._writes: dict[int, Write] = {}
        # Without presence, unset and "" look alike: such a field is a key that the API requires, and is always sent.
        self._required: dict[str, Any] = {}
        self._flattened: list[tuple[str, str, Form]] = []

        for one in descriptor.oneofs:
            if (members := rules.untagged.get(one.full_name)) is not None:
                self._keys[one.name] = _Key("", None, _union_reader(codec, one, members))
                self._writes.update((each.number, _writer(codec, each, one.name)) for each in one.fields)
        for each in descriptor.fields:
            if each.name == _EXTRA or each.number in self._writes:
                continue
            if each.message_type is not None and each.message_type.full_name in rules.prefixed:
                self._add_flattened(codec, each, each.message_type)
            elif (alias := rules.aliased.get(each.full_name)) is not None:
                self._writes[each.number] = _writer(codec, each, alias.keys[0])
                self._keys.update((key, _Key(each.name, None, _alias_reader(each.name, key))) for key in alias.keys)
            else:
                self._add(codec, each)

    def _add(self, codec: Codec, each: FieldDescriptor) -> None:
        key = self._prefix + (each.name.removesuffix(_JSON_SUFFIX) if _is_json(each) else each.name)
        self._keys[key] = _reader(codec, each, key)
        self._writes[each.number] = _writer(codec, each, key)
        if not each.has_presence and not each.is_repeated:
            self._required[key] = each.default_value

    def _add_flattened(self, codec: Codec, each: FieldDescriptor, message_type: Descriptor) -> None:
        form = codec.form(message_type)
        name = each.name

        def write(value: Message, out: dict[str, Any], at: At | None, faults: list[Fault]) -> None:
            out.update(form.write(value, At(at, name), faults))

        self._flattened.append((codec.rules.prefixed[message_type.full_name], name, form))
        self._writes[each.number] = write

    def write(self, message: Message, at: At | None, faults: list[Fault]) -> dict[str, Any]:
        """Give the JSON object; append what is wrong with it. Keys stand in the order of the fields' numbers."""
        out: dict[str, Any] = {}
        for each, value in message.ListFields():
            if (write := self._writes.get(each.number)) is not None:
                write(value, out, at, faults)
        if self._holds_extra:
            _splice(getattr(message, _EXTRA), out, self._prefix, self._reserved, At(at, _EXTRA), faults)
        for key, default in self._required.items():
            out.setdefault(key, default)
        return out

    def read(self, value: Any, source: Source, path: Path) -> dict[str, Any] | None:
        """Give the message's keyword arguments; None where it can't hold all that the value says."""
        if type(value) is not dict:
            return None
        out: dict[str, Any] = {}
        for prefix, name, form in self._flattened:
            if own := {key: item for key, item in value.items() if key.startswith(prefix)}:
                out[name] = form.read(own, source, path)
                value = {key: item for key, item in value.items() if not key.startswith(prefix)}
        extra: list[str] = []
        for key, item in value.items():
            if item is None:
                continue
            known = self._keys.get(key)
            if known is None:
                extra.append(key)
            elif type(item) is known.plain:
                out[known.name] = item
            elif not known.read(item, out, source, path):
                extra.append(key)
        if extra:
            if not self._holds_extra:
                return None
            out[_EXTRA] = {key.removeprefix(self._prefix): source.cut((*path, key)) for key in extra}
        return out


class TaggedForm:
    """A union told by "type": `{"type": member, member: value}`; a member of an empty message is the tag alone."""

    def __init__(self, codec: Codec, descriptor: Descriptor, raw: str) -> None:
        (self._oneof,) = (one.name for one in descriptor.oneofs)
        self._raw = raw
        self._holds_extra = _EXTRA in descriptor.fields_by_name
        members = [each for each in descriptor.oneofs[0].fields if each.name != raw]
        self._bare = {each.name for each in members if each.message_type is not None and not each.message_type.fields}
        self._writes = {each.name: _writer(codec, each, each.name) for each in members}
        self._reads = {each.name: _reader(codec, each, each.name) for each in members}

    def write(self, message: Message, at: At | None, faults: list[Fault]) -> Any:
        """Give the JSON value; a message with no member set is a fault."""
        member = message.WhichOneof(self._oneof)
        extra_at = At(at, _EXTRA)
        if member is None:
            faults.append(Fault(str(at), f"expected one of {', '.join((*self._writes, self._raw))}, found none"))
            return None
        if member == self._raw:
            if self._holds_extra and getattr(message, _EXTRA):
                faults.append(Fault(str(extra_at), f"expected no extra_json beside {self._raw}, which is the whole"))
            return spliced(getattr(message, member), At(at, member), faults)
        out: dict[str, Any] = {"type": member}
        if member not in self._bare:
            self._writes[member](getattr(message, member), out, at, faults)
        if self._holds_extra:
            _splice(getattr(message, _EXTRA), out, "", (), extra_at, faults)
        return out

    def read(self, value: Any, source: Source, path: Path) -> dict[str, Any] | None:
        """Give the keyword arguments; what fits no member is taken whole as JSON text."""
        return self._read_member(value, source, path) or {self._raw: source.cut(path)}

    def _read_member(self, value: Any, source: Source, path: Path) -> dict[str, Any] | None:
        tag = value.get("type") if type(value) is dict else None
        known = self._reads.get(tag) if type(tag) is str else None
        if known is None:
            return None
        out: dict[str, Any] = {}
        own = {"type"}
        if known.name in self._bare:
            out[known.name] = {}
        else:
            own.add(known.name)
            item = value.get(known.name)
            if item is None or not known.read(item, out, source, path):
                return None
        extra = [key for key, item in value.items() if key not in own and item is not None]
        if extra:
            if not self._holds_extra:
                return None
            out[_EXTRA] = {key: source.cut((*path, key)) for key in extra}
        return out


class ListForm:
    """A message of one repeated field that is a JSON array: protobuf has no repeated member of a oneof."""

    def __init__(self, codec: Codec, descriptor: Descriptor, repeated: str) -> None:
        self._name = repeated
        (item,) = (each.message_type for each in descriptor.fields if each.message_type is not None)
        self._form = codec.form(item)

    def write(self, message: Message, at: At | None, faults: list[Fault]) -> Any:
        """Give the JSON array."""
        items = enumerate(getattr(message, self._name))
        return [self._form.write(item, At(at, self._name, index), faults) for index, item in items]

    def read(self, value: Any, source: Source, path: Path) -> dict[str, Any] | None:
        """Give the keyword arguments; None where the value is no array or an item does not fit."""
        items = _read_items(self._form, value, source, path)
        return None if items is None else {self._name: items}


# Fields


def _is_json(each: FieldDescriptor) -> bool:
    return each.type == FieldDescriptor.TYPE_STRING and each.name.endswith(_JSON_SUFFIX)


def _is_map(each: FieldDescriptor) -> bool:
    return each.message_type is not None and each.message_type.GetOptions().map_entry


def _writer(codec: Codec, each: FieldDescriptor, key: str) -> Write:
    if _is_map(each):
        return _converted_writer(key, lambda value: dict(sorted(value.items())))
    if each.message_type is not None:
        form = codec.form(each.message_type)
        return _items_writer(form, each.name, key) if each.is_repeated else _message_writer(form, each.name, key)
    if each.is_repeated:
        return _converted_writer(key, list)
    if _is_json(each):
        return _json_writer(each.name, key)
    if each.type == FieldDescriptor.TYPE_DOUBLE:
        return _double_writer(each.name, key)
    return _plain_writer(key)


def _plain_writer(key: str) -> Write:
    def write(value: Any, out: dict[str, Any], _at: At | None, _faults: list[Fault]) -> None:
        out[key] = value

    return write


def _converted_writer(key: str, convert: Callable[[Any], Any]) -> Write:
    def write(value: Any, out: dict[str, Any], _at: At | None, _faults: list[Fault]) -> None:
        out[key] = convert(value)

    return write


def _message_writer(form: Form, name: str, key: str) -> Write:
    def write(value: Any, out: dict[str, Any], at: At | None, faults: list[Fault]) -> None:
        out[key] = form.write(value, At(at, name), faults)

    return write


def _items_writer(form: Form, name: str, key: str) -> Write:
    def write(value: Any, out: dict[str, Any], at: At | None, faults: list[Fault]) -> None:
        out[key] = [form.write(item, At(at, name, index), faults) for index, item in enumerate(value)]

    return write


def _json_writer(name: str, key: str) -> Write:
    def write(value: Any, out: dict[str, Any], at: At | None, faults: list[Fault]) -> None:
        out[key] = spliced(value, At(at, name), faults)

    return write


def _double_writer(name: str, key: str) -> Write:
    def write(value: Any, out: dict[str, Any], at: At | None, faults: list[Fault]) -> None:
        if not math.isfinite(value):
            faults.append(Fault(str(At(at, name)), f"expected a finite number, found {value}"))
        out[key] = value

    return write


def spliced(text: str, at: At, faults: list[Fault]) -> orjson.Fragment:
    """Give a JSON text to be spliced in byte for byte; text that is none is a fault."""
    if (fault := json_fault(text)) is not None:
        faults.append(Fault(str(at), fault))
    return orjson.Fragment(text)


def _splice(
    extra: Mapping[str, str], out: dict[str, Any], prefix: str, reserved: tuple[str, ...], at: At, faults: list[Fault]
) -> None:
    for key in sorted(extra):
        place = At(at.parent, f"{at.name}[{json.dumps(key, ensure_ascii=False)}]")
        if not key:
            faults.append(Fault(str(place), "expected a key, found an empty one"))
        elif key in reserved:
            faults.append(Fault(str(place), f"expected a key of the caller's, found {key!r}, which the bridge sets"))
        elif prefix + key in out:
            faults.append(Fault(str(place), f"expected a key that no field sends, found {prefix + key!r}, set too"))
        out.setdefault(prefix + key, spliced(extra[key], place, faults))


def _reader(codec: Codec, each: FieldDescriptor, key: str) -> _Key:
    if _is_map(each):
        return _Key(each.name, None, _fitting_reader(each.name, _is_string_map))
    if each.message_type is not None:
        form = codec.form(each.message_type)
        read = _items_reader(form, each.name, key) if each.is_repeated else _message_reader(form, each.name, key)
        return _Key(each.name, None, read)
    if each.is_repeated:
        return _Key(each.name, None, _fitting_reader(each.name, _is_string_list))
    if _is_json(each):
        return _Key(each.name, None, _json_reader(each.name, key))
    if each.type == FieldDescriptor.TYPE_DOUBLE:
        return _Key(each.name, None, _double_reader(each.name, key))
    if (bounds := _INT_RANGES.get(each.type)) is not None:
        return _Key(each.name, None, _fitting_reader(each.name, _is_int_within(*bounds)))
    plain = {FieldDescriptor.TYPE_STRING: str, FieldDescriptor.TYPE_BOOL: bool}[each.type]
    return _Key(each.name, plain, _fitting_reader(each.name, _is_exactly(plain)))


def _fitting_reader(name: str, fits: Callable[[Any], bool]) -> Read:
    def read(value: Any, out: dict[str, Any], _source: Source, _path: Path) -> bool:
        if fits(value):
            out[name] = value
            return True
        return False

    return read


def _message_reader(form: Form, name: str, key: str) -> Read:
    def read(value: Any, out: dict[str, Any], source: Source, path: Path) -> bool:
        made = form.read(value, source, (*path, key))
        if made is not None:
            out[name] = made
        return made is not None

    return read


def _items_reader(form: Form, name: str, key: str) -> Read:
    def read(value: Any, out: dict[str, Any], source: Source, path: Path) -> bool:
        items = _read_items(form, value, source, (*path, key))
        if items is not None:
            out[name] = items
        return items is not None

    return read


def _json_reader(name: str, key: str) -> Read:
    def read(_value: Any, out: dict[str, Any], source: Source, path: Path) -> bool:
        out[name] = source.cut((*path, key))
        return True

    return read


def _is_exactly(plain: type) -> Callable[[Any], bool]:
    return lambda value: type(value) is plain


def _is_string_map(value: Any) -> bool:
    return type(value) is dict and all(type(item) is str for item in value.values())


def _is_string_list(value: Any) -> bool:
    return type(value) is list and all(type(item) is str for item in value)


def _is_int_within(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _double_reader(name: str, key: str) -> Read:
    def read(value: Any, out: dict[str, Any], source: Source, path: Path) -> bool:
        if type(value) is float and math.isfinite(value):
            # orjson gives a float for an integer beyond 64 bits too, whose digits may be more than a double holds.
            fits = abs(value) < 2**63 or not source.cut((*path, key)).removeprefix("-").isdigit()
        else:
            fits = type(value) is int and abs(value) <= 2**53
        if fits:
            out[name] = value
        return fits

    return read


def _read_items(form: Form, value: Any, source: Source, path: Path) -> list[dict[str, Any]] | None:
    if type(value) is not list:
        return None
    items: list[dict[str, Any]] = []
    for index, item in enumerate(value):
        made = None if item is None else form.read(item, source, (*path, index))
        if made is None:
            return None
        items.append(made)
    return items


def _union_reader(codec: Codec, one: OneofDescriptor, members: Mapping[type, str]) -> Read:
    types = {each.name: each.message_type for each in one.fields}
    reads: dict[type, Callable[[Any, Source, Path], Any]] = {}
    for kind, member in members.items():
        if kind is not object:
            message_type = types[member]
            reads[kind] = _itself if message_type is None else codec.form(message_type).read
    key = one.name
    rest = members[object]

    def read(value: Any, out: dict[str, Any], source: Source, path: Path) -> bool:
        kind = type(value)
        place = (*path, key)
        made = reads[kind](value, source, place) if kind in reads else None
        if made is None:
            out[rest] = source.cut(place)
        else:
            out[members[kind]] = made
        return True

    return read


def _itself(value: Any, _source: Source, _path: Path) -> Any:
    return value


def _alias_reader(name: str, key: str) -> Read:
    def read(value: Any, out: dict[str, Any], source: Source, path: Path) -> bool:
        if name in out:
            return False
        out[name] = value if type(value) is str else source.cut((*path, key))
        return True

    return read
