import pytest

from bridge.core.fields import FieldPath, get_plain_type, is_json, is_map
from tests.unit.core.descriptors import define_message

FIELDS = define_message(
    "Kinds",
    {
        "text": "string",
        "flag": "bool",
        "count": "int64",
        "texts": "repeated string",
        "schema_json": "string",
        "bytes_json": "bytes",
        "labels": "map<string>",
        "child": "Kinds",
    },
).DESCRIPTOR.fields_by_name


def test_path_reads_as_the_proto_path():
    messages = FieldPath(None, "messages", 2)
    assert str(messages) == "messages[2]"
    assert str(FieldPath(FieldPath(messages, "parts"), "parts", 0)) == "messages[2].parts.parts[0]"


@pytest.mark.parametrize("name", FIELDS)
def test_kind_of_a_field_is_known(name):
    field = FIELDS[name]
    assert is_json(field) == (name == "schema_json")
    assert is_map(field) == (name == "labels")
    assert get_plain_type(field) == {"text": str, "flag": bool}.get(name)
