import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.codec import Codec, Rules
from bridge.core.field_readers import compile_alias_reader, compile_reader
from bridge.core.json_text import parse
from bridge.core.source import Source
from tests.unit.core.descriptors import define_message


def read(kind: str, text: str) -> Any:
    """Return what a field of a kind reads from a JSON text; None if it does not fit."""
    message_type = define_message("Owner", {"field": kind, "extra_json": "map<string>"})
    value, source_text = parse(b'{"key": ' + text.encode() + b"}")
    read_field = compile_reader(Codec(Rules()).get_plan, message_type.DESCRIPTOR.fields_by_name["field"], "key")
    found = read_field(value["key"], Source(source_text), ())
    if found is None:
        return None
    name, argument = found
    message_type(**{name: argument})  # which protobuf must accept
    return argument


RANGES = {
    **dict.fromkeys(("int32", "sint32", "sfixed32"), (-(2**31), 2**31 - 1)),
    **dict.fromkeys(("int64", "sint64", "sfixed64"), (-(2**63), 2**63 - 1)),
    **dict.fromkeys(("uint32", "fixed32"), (0, 2**32 - 1)),
    **dict.fromkeys(("uint64", "fixed64"), (0, 2**64 - 1)),
}


@pytest.mark.parametrize(("kind", "bounds"), RANGES.items(), ids=RANGES)
def test_integer_fits_within_its_range(kind, bounds):
    low, high = bounds
    assert [read(kind, str(value)) for value in (low, 1, high)] == [low, 1, high]
    for text in (str(low - 1), str(high + 1), "1.0", "true", '"1"', "1e0"):
        assert read(kind, text) is None
    assert read(f"repeated {kind}", f"[{low}, {high}]") == [low, high]
    assert read(f"repeated {kind}", f"[1, {high + 1}]") is None


@pytest.mark.parametrize(
    ("kind", "fitting", "misfits"),
    [
        ("string", ['""', '"a"'], ["1", "true", "[]", "{}"]),
        ("bool", ["true", "false"], ["0", '"true"', "[]"]),
        ("double", ["1", "-1.5", "1e300", "9223372036854775808.0"], ["1e400", "9007199254740993", '"1"', "true"]),
        ("repeated string", ["[]", '["a", ""]'], ['["a", 1]', '["a", null]', '"a"', "{}"]),
        ("repeated bool", ["[true]"], ["[0]", "true"]),
        ("repeated double", ["[1, 1.5]"], ['["1"]', "[1e400]", "[9007199254740993]"]),
        ("map<string>", ["{}", '{"a": ""}'], ['{"a": 1}', '{"a": null}', "[]"]),
        ("map<double>", ['{"a": 1, "b": 0.5}'], ['{"a": "1"}', '{"a": 1e400}']),
        ("map<int32>", ['{"a": 1}'], ['{"a": 1.0}', '{"a": 2147483648}']),
        ("Owner", ["{}", '{"key": null}'], ["[]", '"a"', "1"]),
        ("repeated Owner", ["[]", "[{}, {}]"], ["{}", "[null]", "[1]", "[{}, []]"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_value_fits_only_if_nothing_of_it_is_lost(kind, fitting, misfits):
    for text in fitting:
        value = json.loads(text)
        assert read(kind, text) == ({} if value == {"key": None} else value)
    for text in misfits:
        assert read(kind, text) is None


@given(st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers()))
def test_any_number_fits_a_double_only_if_it_is_the_same_number(value):
    found = read("double", repr(value))
    if found is None:
        assert isinstance(value, int)
        assert abs(value) > 2**53
    else:
        assert found == value


@pytest.mark.parametrize("kind", ["bytes", "float", "repeated bytes", "map<float>", "map<Owner>"])
def test_kind_without_a_form_in_json_is_refused_when_it_is_compiled(kind):
    with pytest.raises(TypeError, match=r"test\.Owner"):
        read(kind, "{}")


def test_json_text_is_cut_as_it_stands():
    field = define_message("Raw", {"schema_json": "string"}).DESCRIPTOR.fields_by_name["schema_json"]
    source = Source(b'{"schema": { "b" : 1.10 }}')
    assert compile_reader(Codec(Rules()).get_plan, field, "schema")({"b": 1.1}, source, ()) == (
        "schema_json",
        '{ "b" : 1.10 }',
    )


def test_alias_reads_a_string_as_its_content_and_other_values_as_text():
    read_alias = compile_alias_reader("raw_json", "raw")
    assert read_alias('{"a"', Source(b""), ()) == ("raw_json", '{"a"')
    assert read_alias([1.1], Source(b'{"raw": [1.10]}'), ()) == ("raw_json", "[1.10]")
