import json
import math
from typing import Any

import orjson
import pytest

from bridge.core.codec import Codec, Rules
from bridge.core.errors import Violation
from bridge.core.field_writers import build_fragment, compile_writer, write_extra
from bridge.core.fields import FieldPath
from tests.unit.core.descriptors import define_message

AT = FieldPath(None, "at")


def write(kind: str, value: Any, name: str = "field") -> tuple[Any, list[Violation]]:
    """Return the JSON value that a field of a kind is written as, and the violations."""
    message_type = define_message("Owner", {name: kind})
    message = message_type(**{name: value})
    field = message_type.DESCRIPTOR.fields_by_name[name]
    out: dict[str, Any] = {}
    violations: list[Violation] = []
    write_field = compile_writer(Codec(Rules()).get_plan, field, "key")
    write_field(getattr(message, name), out, AT, violations)
    return json.loads(orjson.dumps(out))["key"], violations


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("string", "a"),
        ("bool", False),
        ("int64", -(2**63)),
        ("uint64", 2**64 - 1),
        ("double", 0.1),
        ("repeated string", ["a", ""]),
        ("repeated int32", [1, -1]),
        ("repeated double", [1.5, 2.0]),
        ("map<string>", {"b": "1", "a": ""}),
        ("map<double>", {"b": 0.5, "a": 1.0}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_value_is_written_as_it_is(kind, value):
    assert write(kind, value) == (value, [])


def test_keys_of_a_map_are_written_in_their_order():
    written, _ = write("map<string>", {"b": "1", "a": "2", "c": "3"})
    assert list(written) == ["a", "b", "c"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=repr)
@pytest.mark.parametrize(
    ("kind", "wrap", "path"),
    [
        ("double", lambda value: value, "at.field"),
        ("repeated double", lambda value: [0.5, value], "at.field[1]"),
        ("map<double>", lambda value: {"a": value}, 'at.field["a"]'),
    ],
    ids=["double", "list", "map"],
)
def test_number_that_json_has_no_form_for_is_a_violation(kind, wrap, path, value):
    _, violations = write(kind, wrap(value))
    assert violations == [Violation(path, f"expected a finite number, found {value}")]


def test_json_text_is_written_byte_for_byte():
    violations: list[Violation] = []
    assert orjson.dumps(build_fragment(' {"b": 1.10}', AT, violations)) == b' {"b": 1.10}'
    assert violations == []


def test_text_that_is_no_json_is_a_violation():
    violations: list[Violation] = []
    build_fragment("{", AT, violations)
    assert [violation.field for violation in violations] == ["at"]
    assert violations[0].description.startswith("expected one JSON document, found '{': ")


@pytest.mark.parametrize(
    ("key", "description"),
    [
        ("", "expected a key, found an empty one"),
        ("stream", "expected a key of the caller's, found 'stream': the bridge sets it"),
        ("model", "expected a key that no field sends, found 'model', set too"),
    ],
)
def test_key_of_extra_json_that_can_not_be_sent_is_a_violation(key, description):
    violations: list[Violation] = []
    out: dict[str, Any] = {"model": "m"}
    write_extra({key: "1", "x": "1"}, out, AT, violations, reserved=("stream",))
    assert violations == [Violation(f'at.extra_json["{key}"]', description)]
    assert out["model"] == "m"


def test_extra_keys_get_the_prefix_of_their_level():
    out: dict[str, Any] = {}
    write_extra({"b": "1", "a": "2"}, out, None, [], prefix="ollm::")
    assert orjson.dumps(out) == b'{"ollm::a":2,"ollm::b":1}'
