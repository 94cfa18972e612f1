"""Golden bytes of the contract: how each field of each message, and each value of each enum, goes over the wire.

They stand in tests/vectors/wire/v1.txt: a type's full name, and below it, indented, a line for each of its fields (the
bytes in hex of the message with this field alone, and its text) or of its values (number and name).

`python -m tests.golden`, or `make golden`, adds the lines that are missing. It changes none that stand there: where one
does not hold any more it says so, and writes nothing.
"""

import sys
from importlib import import_module
from pathlib import Path

from google.protobuf import message_factory, text_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from ollmbridge.v1 import chat_pb2

GOLDEN = Path(__file__).parent / "vectors" / "wire" / "v1.txt"
MODULES = [import_module(f"ollmbridge.v1.{path.stem}") for path in Path(chat_pb2.__file__).parent.glob("*_pb2.py")]

Kind = Descriptor | EnumDescriptor
Entries = dict[str, dict[str, str]]
"""By a type's full name: text to bytes in hex, or a value's name to its number."""


def kinds() -> dict[str, Kind]:
    """Give every message and enum of the contract, nested ones too, by full name."""
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


def read(page: str) -> Entries:
    entries: Entries = {}
    for line in page.splitlines():
        if line.startswith("  "):
            data, _, text = line.strip().partition("  ")
            entries[next(reversed(entries))][text] = data
        elif line and not line.startswith("#"):
            entries[line] = {}
    return entries


def written(entries: Entries) -> str:
    known = kinds()
    page = ["# Written by `make golden`, which only adds. What a line means is in README.md of the folder above."]
    for name, lines in sorted(entries.items()):
        page += ["", name]
        page += [
            f"  {data}  {text}" for text, data in sorted(lines.items(), key=lambda line: _number(known[name], line[0]))
        ]
    return "\n".join(page) + "\n"


def _number(kind: Kind, text: str) -> int:
    return kind.values_by_name[text].number if isinstance(kind, EnumDescriptor) else _field(kind, text).number


# What holds, and what is missing


def faults(entries: Entries) -> list[str]:
    """Say of each entry that does not hold of the generated code what is wrong with it."""
    found = []
    for name, lines in entries.items():
        match kinds().get(name):
            case None:
                found.append(f"{name}: there is no such type any more")
            case EnumDescriptor() as kind:
                now = {value.name: str(value.number) for value in kind.values}
                changed = [text for text, number in lines.items() if now.get(text) != number]
                found += [f"{name}: {text} was {lines[text]}, is {now.get(text, 'gone')}" for text in changed]
            case kind:
                wrong = [fault for line in lines.items() for fault in _line_faults(kind, *line)]
                found += wrong or _whole_faults(kind, lines)
    return found


def _line_faults(kind: Descriptor, text: str, data: str) -> list[str]:
    where = f"{kind.full_name}: {text}"
    try:
        message = _parsed(kind, text)
    except text_format.ParseError as error:
        return [f"{where}: {error}"]
    if not data or len(message.ListFields()) != 1:
        return [f"{where}: expected one field that is set"]
    return _differences(where, message, bytes.fromhex(data))


def _whole_faults(kind: Descriptor, lines: dict[str, str]) -> list[str]:
    """Look at the message with all its fields at once: of each oneof the first member, then the second, and so on."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for text, data in sorted(lines.items(), key=lambda line: _number(kind, line[0])):
        field = _field(kind, text)
        groups.setdefault(field.containing_oneof.name if field.containing_oneof else field.name, []).append(
            (text, data)
        )
    found = []
    for turn in range(max(map(len, groups.values()), default=0)):
        chosen = [members[min(turn, len(members) - 1)] for members in groups.values()]
        chosen.sort(key=lambda line: _number(kind, line[0]))
        message = _parsed(kind, " ".join(text for text, _ in chosen))
        found += _differences(f"{kind.full_name} whole", message, bytes.fromhex("".join(data for _, data in chosen)))
    return found


def _differences(where: str, message: Message, data: bytes) -> list[str]:
    found = []
    made = message.SerializeToString(deterministic=True)
    if made != data:
        found.append(f"{where}: expected the bytes {data.hex()}, found {made.hex()}")
    try:
        if type(message).FromString(data) != message:
            found.append(f"{where}: the bytes {data.hex()} are read as something else")
    except DecodeError:
        found.append(f"{where}: the bytes {data.hex()} can't be read")
    return found


def missing(entries: Entries) -> Entries:
    """Give the entries that the generated code should have and has not, made from it."""
    found: Entries = {}
    for name, kind in kinds().items():
        lines = entries.get(name, {})
        if isinstance(kind, EnumDescriptor):
            new = {value.name: str(value.number) for value in kind.values if value.name not in lines}
        else:
            known = {_field(kind, text).name for text in lines}
            examples = [_example(field) for field in kind.fields if field.name not in known]
            new = {_text(example): example.SerializeToString(deterministic=True).hex() for example in examples}
        if new or name not in entries:
            found[name] = new
    return found


def _example(field: FieldDescriptor) -> Message:
    """Give a message with one field, set to a value that shows which field it is."""
    message = message_factory.GetMessageClass(field.containing_type)()
    held = getattr(message, field.name)
    if field.message_type is None:
        if field.is_repeated:
            held.extend([_value(field)] * 2)
        else:
            setattr(message, field.name, _value(field))
    elif field.message_type.GetOptions().map_entry:
        held[f"{field.name}_key"] = f"{field.name}_value"
    else:
        first = field.message_type.fields[:1]
        inner = _example(first[0]) if first else message_factory.GetMessageClass(field.message_type)()
        if field.is_repeated:
            held.extend([inner, inner])
        else:
            held.CopyFrom(inner)
            held.SetInParent()
    return message


def _value(field: FieldDescriptor) -> object:
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


def _parsed(kind: Descriptor, text: str) -> Message:
    return text_format.Parse(text, message_factory.GetMessageClass(kind)())


def _text(message: Message) -> str:
    return text_format.MessageToString(message, as_one_line=True)


def _field(kind: Descriptor, text: str) -> FieldDescriptor:
    return kind.fields_by_name[text.partition(" ")[0].rstrip(":")]


def main() -> int:
    """Add what is missing."""
    entries = read(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else {}
    wrong = faults(entries)
    for fault in wrong:
        print(fault)
    if wrong:
        print("nothing was written: what went over the wire yesterday must go over it tomorrow")
        return 1
    added = missing(entries)
    for name, lines in added.items():
        entries.setdefault(name, {}).update(lines)
        print(f"{name}: added {', '.join(lines) or 'the type'}")
    GOLDEN.write_text(written(entries), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
