"""Golden bytes of the contract: how each field of each message, and each value of each enum, goes over the wire.

They are in tests/vectors/wire/v1.txt: a type's full name, and below it, indented, a line for each of its fields (the
bytes in hex of the message with this field alone, and its text) or of its values (number and name).

`python -m tests.package.golden`, or `make golden`, adds the lines that are missing. It changes no line: if one
does not match the generated code any more, it reports that and writes nothing.
"""

import sys
from importlib import import_module
from pathlib import Path

from google.protobuf import message_factory, text_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from ollmbridge.v1 import chat_pb2

GOLDEN = Path(__file__).parents[1] / "vectors" / "wire" / "v1.txt"
MODULES = [import_module(f"ollmbridge.v1.{path.stem}") for path in Path(chat_pb2.__file__).parent.glob("*_pb2.py")]

Kind = Descriptor | EnumDescriptor
Entries = dict[str, dict[str, str]]
"""By a type's full name: text to bytes in hex, or a value's name to its number."""


def list_types() -> dict[str, Kind]:
    """Return every message and enum of the contract, nested ones too, by full name."""
    found: dict[str, Kind] = {}
    waiting: list[Kind] = []
    for file in (module.DESCRIPTOR for module in MODULES):
        waiting += [*file.message_types_by_name.values(), *file.enum_types_by_name.values()]
    while waiting:
        kind = waiting.pop()
        found[kind.full_name] = kind
        if isinstance(kind, Descriptor):
            waiting += [*kind.enum_types, *(each for each in kind.nested_types if not each.GetOptions().map_entry)]
    return dict(sorted(found.items()))


# The file


def parse(page: str) -> Entries:
    entries: Entries = {}
    for line in page.splitlines():
        if line.startswith("  "):
            data, _, text = line.strip().partition("  ")
            entries[next(reversed(entries))][text] = data
        elif line and not line.startswith("#"):
            entries[line] = {}
    return entries


def render(entries: Entries) -> str:
    known = list_types()
    page = ["# Written by `make golden`, which only adds. What a line means is in README.md of the folder above."]
    for name, lines in sorted(entries.items()):
        page += ["", name]
        page += [
            f"  {data}  {text}"
            for text, data in sorted(lines.items(), key=lambda line: _find_number(known[name], line[0]))
        ]
    return "\n".join(page) + "\n"


def _find_number(kind: Kind, text: str) -> int:
    return kind.values_by_name[text].number if isinstance(kind, EnumDescriptor) else _find_field(kind, text).number


# What does not match, and what is missing


def find_mismatches(entries: Entries) -> list[str]:
    """Return a line for each entry that does not match the generated code."""
    found = []
    for name, lines in entries.items():
        match list_types().get(name):
            case None:
                found.append(f"{name}: this type does not exist any more")
            case EnumDescriptor() as kind:
                now = {value.name: str(value.number) for value in kind.values}
                changed = [text for text, number in lines.items() if now.get(text) != number]
                found += [f"{name}: {text} was {lines[text]}, is {now.get(text, 'missing')}" for text in changed]
            case kind:
                wrong = [each for line in lines.items() for each in _compare_line(kind, *line)]
                found += wrong or _compare_whole(kind, lines)
    return found


def _compare_line(kind: Descriptor, text: str, data: str) -> list[str]:
    place = f"{kind.full_name}: {text}"
    try:
        message = _parse_message(kind, text)
    except text_format.ParseError as error:
        return [f"{place}: {error}"]
    if not data or len(message.ListFields()) != 1:
        return [f"{place}: expected one field that is set"]
    return _compare(place, message, bytes.fromhex(data))


def _compare_whole(kind: Descriptor, lines: dict[str, str]) -> list[str]:
    """Compare the message with all its fields set: of each oneof the first member, then the second, and so on."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for text, data in sorted(lines.items(), key=lambda line: _find_number(kind, line[0])):
        field = _find_field(kind, text)
        groups.setdefault(field.containing_oneof.name if field.containing_oneof else field.name, []).append(
            (text, data)
        )
    found = []
    for turn in range(max(map(len, groups.values()), default=0)):
        chosen = [members[min(turn, len(members) - 1)] for members in groups.values()]
        chosen.sort(key=lambda line: _find_number(kind, line[0]))
        message = _parse_message(kind, " ".join(text for text, _ in chosen))
        found += _compare(f"{kind.full_name} whole", message, bytes.fromhex("".join(data for _, data in chosen)))
    return found


def _compare(place: str, message: Message, data: bytes) -> list[str]:
    found = []
    encoded = message.SerializeToString(deterministic=True)
    if encoded != data:
        found.append(f"{place}: expected the bytes {data.hex()}, found {encoded.hex()}")
    try:
        if type(message).FromString(data) != message:
            found.append(f"{place}: the bytes {data.hex()} decode to another message")
    except DecodeError:
        found.append(f"{place}: the bytes {data.hex()} can't be decoded")
    return found


def find_missing(entries: Entries) -> Entries:
    """Return an entry for each type, field and value of the generated code that has none."""
    found: Entries = {}
    for name, kind in list_types().items():
        lines = entries.get(name, {})
        if isinstance(kind, EnumDescriptor):
            new = {value.name: str(value.number) for value in kind.values if value.name not in lines}
        else:
            known = {_find_field(kind, text).name for text in lines}
            examples = [_set_only(field) for field in kind.fields if field.name not in known]
            new = {_render_text(example): example.SerializeToString(deterministic=True).hex() for example in examples}
        if new or name not in entries:
            found[name] = new
    return found


def _set_only(field: FieldDescriptor) -> Message:
    """Return a message with one field, set to a value that shows which field it is."""
    message = message_factory.GetMessageClass(field.containing_type)()
    value = getattr(message, field.name)
    if field.message_type is None:
        if field.is_repeated:
            value.extend([_choose_value(field)] * 2)
        else:
            setattr(message, field.name, _choose_value(field))
    elif field.message_type.GetOptions().map_entry:
        kind = field.message_type.fields_by_name["value"]
        is_text = kind.type == FieldDescriptor.TYPE_STRING
        value[f"{field.name}_key"] = f"{field.name}_value" if is_text else _choose_value(kind)
    else:
        first = field.message_type.fields[:1]
        inner = _set_only(first[0]) if first else message_factory.GetMessageClass(field.message_type)()
        if field.is_repeated:
            value.extend([inner, inner])
        else:
            value.CopyFrom(inner)
            value.SetInParent()
    return message


def _choose_value(field: FieldDescriptor) -> object:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return field.name.encode()
        case FieldDescriptor.CPPTYPE_STRING:
            return field.name
        case FieldDescriptor.CPPTYPE_BOOL:
            return True
        case FieldDescriptor.CPPTYPE_ENUM:
            return field.enum_type.values[-1].number
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return field.number + 0.5
        case FieldDescriptor.CPPTYPE_INT64 | FieldDescriptor.CPPTYPE_UINT64:
            return 2**53 + field.number
        case _:
            return 1000 + field.number


def _parse_message(kind: Descriptor, text: str) -> Message:
    return text_format.Parse(text, message_factory.GetMessageClass(kind)())


def _render_text(message: Message) -> str:
    return text_format.MessageToString(message, as_one_line=True)


def _find_field(kind: Descriptor, text: str) -> FieldDescriptor:
    return kind.fields_by_name[text.partition(" ")[0].rstrip(":")]


def main() -> int:
    """Add what is missing."""
    entries = parse(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else {}
    mismatches = find_mismatches(entries)
    for mismatch in mismatches:
        print(mismatch)
    if mismatches:
        print("nothing was written: what the wire carried yesterday must stay valid")
        return 1
    added = find_missing(entries)
    for name, lines in added.items():
        entries.setdefault(name, {}).update(lines)
        print(f"{name}: added {', '.join(lines) or 'the type'}")
    GOLDEN.write_text(render(entries), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
