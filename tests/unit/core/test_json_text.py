import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.json_text import JsonError, Source, find_json_error, measure_depth, parse
from tests.unit.core import documents
from tests.unit.core.documents import repair, spell

# Texts of a caller


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "{",
            "}",
            "1 2",
            "{} {}",
            "{}x",
            "nul",
            "NaN",
            "Infinity",
            "-Infinity",
            "[NaN]",
            "01",
            "+1",
            "1.",
            ".5",
        ),
        *("'a'", '{"a":1,}', "[1,]", "{a:1}", "\ufeff{}", '"\n"', '"a', r'"\x"', "\x00", "1\x00", "٣", "[" * 100_000),
        "[" * 65 + "]" * 65,
        '{"a":' * 65 + "1" + "}" * 65,
        "[" * 1100 + "]" * 1100,
    ],
    ids=lambda text: repr(text[:12]) + (f" of {len(text)}" if len(text) > 12 else ""),
)
def test_text_that_is_no_json_document_is_an_error(text):
    assert find_json_error(text) is not None


@pytest.mark.parametrize("text", ["[" * 64 + "]" * 64, '{"a":' * 64 + "1" + "}" * 64], ids=["lists", "objects"])
def test_64_levels_are_no_error(text):
    assert find_json_error(text) is None


@given(documents.ANYTHING)
def test_any_json_text_is_no_error(value):
    assert find_json_error(spell(value)) is None


@given(st.text(max_size=20))
def test_any_text_is_an_error_if_the_standard_library_refuses_it(text):
    try:
        json.loads(text, parse_constant=_refuse)
    except ValueError:
        assert find_json_error(text) is not None
    else:
        assert find_json_error(text) is None


def _refuse(word: str) -> Any:
    raise ValueError(word)


@pytest.mark.parametrize(("value", "depth"), [(1, 0), ([], 1), ({}, 1), ([[], {"a": [1]}], 3), ({"a": 1, "b": [2]}, 2)])
def test_depth_counts_arrays_and_objects(value, depth):
    assert measure_depth(value) == depth


# The parser


@pytest.mark.parametrize("text", [b"[" * 1100 + b"]" * 1100, b'{"a":' * 1100 + b"1" + b"}" * 1100, b"[" * 1100])
def test_depth_of_1100_is_a_json_error(text):
    with pytest.raises(JsonError):
        parse(text)


@given(st.text(alphabet=st.sampled_from("\ud83d\ude00\udfffa\\u😀\ufffd"), max_size=8))
def test_any_surrogates_are_repaired_as_utf16_is(text):
    value, _ = parse(json.dumps([text]).encode())
    assert value == [repair(text)]


@pytest.mark.parametrize(
    "text",
    [b"", b"nul", b"NaN", b"[Infinity]", b"{} {}", b'"\xff"', b'"\xed\xa0\x80"', b'{"a":1}\x00', b"\xef\xbb\xbf{}"],
)
def test_bytes_that_are_no_json_are_a_json_error(text):
    with pytest.raises(JsonError):
        parse(text)


@given(st.binary(max_size=30))
def test_any_bytes_are_json_or_a_json_error(text):
    try:
        value, source_text = parse(text)
    except JsonError:
        return
    assert parse(source_text)[0] == value or value != value  # noqa: PLR0124 - NaN is not JSON


# Slices


@given(documents.ANYTHING)
def test_any_value_of_a_document_is_cut_as_it_is_spelled(value):
    value = repair(value)
    source = Source(spell(value).encode())
    for path, item in walk(value):
        assert source.cut(path) == spell(item)


def walk(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[tuple[str | int, ...], Any]]:
    """Return every value in a document with its path."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(path, value), *(found for key, item in items for found in walk(item, (*path, key)))]


def test_white_space_around_a_value_is_not_cut_with_it():
    source = Source(b' { "a" : [ 1.10 , { "b" : -0 } ] } ')
    assert source.cut(("a",)) == '[ 1.10 , { "b" : -0 } ]'
    assert source.cut(("a", 1)) == '{ "b" : -0 }'
    assert source.cut(("a", 1, "b")) == "-0"


def test_value_too_deep_to_be_sliced_is_a_json_error():
    deep = b"[" * 1010 + b"]" * 1010
    with pytest.raises(JsonError, match="can't be sliced"):
        Source(b'{"x": ' + deep + b"}").cut(("x",))
