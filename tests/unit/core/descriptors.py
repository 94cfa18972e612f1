"""Message types that a test defines for itself, by a descriptor and not by a file of protos."""

from collections.abc import Mapping

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FieldDescriptorProto
from google.protobuf.message import Message

PACKAGE = "test"


def define_message(name: str, fields: Mapping[str, str]) -> type[Message]:
    """Return a message type whose fields have the given kinds.

    A kind is a scalar type as in protos, `map<TYPE>` (from strings) or the name of the message itself; `repeated` and
    `optional` stand before it.
    """
    file = descriptor_pb2.FileDescriptorProto(name=f"{name}.proto", package=PACKAGE, syntax="proto3")
    message = file.message_type.add(name=name)
    for number, (field_name, kind) in enumerate(fields.items(), 1):
        _add_field(message, field_name, number, kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))


def _add_field(message: descriptor_pb2.DescriptorProto, name: str, number: int, kind: str) -> None:
    label, _, plain = kind.rpartition(" ")
    field = message.field.add(name=name, number=number, label=FieldDescriptorProto.LABEL_OPTIONAL)
    if label == "repeated" or plain.startswith("map<"):
        field.label = FieldDescriptorProto.LABEL_REPEATED
    if label == "optional":
        field.proto3_optional = True
        field.oneof_index = len(message.oneof_decl)
        message.oneof_decl.add(name=f"_{name}")
    if plain.startswith("map<"):
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add_field(entry, "key", 1, "string")
        _add_field(entry, "value", 2, plain.removeprefix("map<").removesuffix(">"))
        plain = f"{message.name}.{entry.name}"
    scalar = FieldDescriptorProto.Type.DESCRIPTOR.values_by_name.get(f"TYPE_{plain.upper()}")
    if scalar is not None:
        field.type = scalar.number
    else:
        field.type = FieldDescriptorProto.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{plain}"
