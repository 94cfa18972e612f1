import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core import json_text
from bridge.core.json_text import (
    JSON_VALUES_MAX,
    SLOW_BYTES_MAX,
    JsonError,
    JsonTooLargeError,
    count_values,
    find_json_error,
    measure_depth,
    parse,
    replace_lone_surrogates,
)
from tests.kit import documents
from tests.kit.documents import repair, spell

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


# Bounds


def count_leaves(value: Any) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(count_leaves, children))


@given(documents.ANYTHING, st.integers(0, 20))
def test_count_is_enough_if_there_are_more_values_than_that(value, enough):
    count = count_values(spell(value).encode(), enough)
    assert count > enough or count_leaves(value) <= enough


TEXTS = [",,,,", "[{[{", r"a\",\"b", "\\\\", r"\\", '\\",', 'say "a, b", [c]', "ü, é"]


@pytest.mark.parametrize("text", TEXTS)
def test_what_stands_in_strings_is_not_counted_if_it_matters(text):
    document = json.dumps({"a": text * 100, text * 100: [1, 2], "b": {"c": text}}, ensure_ascii=False).encode()
    assert 6 <= count_values(document, 50) <= 10


@given(documents.ANYTHING, st.integers(1, 30))
def test_count_is_the_same_whatever_is_searched_in_one_go(value, step_bytes):
    text = spell([value, ",,,,,,,", "[[[["]).encode()
    enough = count_leaves(value)
    in_one, in_steps = count_values(text, enough), count_values(text, enough, step_bytes)
    assert in_steps == in_one or min(in_steps, in_one) > enough


def test_many_strings_are_many_values():
    assert count_values(b"[" + b'"",' * 1000 + b"1]", 100) > 100
    assert count_values(b"{" + b'"a":"",' * 1000 + b'"b":1}', 100) > 100


MANY = {
    "numbers": b"[" + b"1," * JSON_VALUES_MAX + b"1]",
    "arrays": b"[" + b"[]," * JSON_VALUES_MAX + b"1]",
    "objects": b"[" + b'{"x":1},' * JSON_VALUES_MAX + b"1]",
    "keys": b"{" + b",".join(b'"%d":1' % n for n in range(JSON_VALUES_MAX + 1)) + b"}",
    "strings": b"[" + b'"\\"",' * JSON_VALUES_MAX + b"1]",
    "levels": b"[" * (JSON_VALUES_MAX + 1),
}


@pytest.mark.parametrize("text", MANY.values(), ids=MANY)
def test_text_of_too_many_values_is_refused_before_it_is_parsed(text, monkeypatch):
    def refuse(_text: bytes) -> None:
        raise AssertionError("it was parsed")

    monkeypatch.setattr(json_text.orjson, "loads", refuse)
    with pytest.raises(JsonTooLargeError, match=f"more than {JSON_VALUES_MAX} values"):
        parse(text)


def test_text_of_just_so_many_values_is_parsed():
    value, _ = parse(b"[" + b"1," * (JSON_VALUES_MAX - 2) + b"1]")
    assert len(value) == JSON_VALUES_MAX - 1


@pytest.mark.parametrize("words", ["word, and [another], ", "字、", "\n\t", "🔑", '"quoted", \\ '])
def test_long_text_is_parsed_whatever_it_says(words):
    text = words * (3_000_000 // len(words.encode()))
    for is_ascii in (True, False):
        value, _ = parse(json.dumps({"a": text}, ensure_ascii=is_ascii).encode())
        assert value == {"a": text}


ESCAPES = [
    r"\\",
    r"\n",
    r"\u0041",
    r"\ud83d",
    r"\ude00",
    r"\ud83d\ude00",
    r"\uD83D",
    r"\udE00",
    "ud83d",
    "x",
    "\\u00e9",
]


@given(st.lists(st.sampled_from(ESCAPES), max_size=30), st.integers(12, 60))
def test_lone_surrogates_are_replaced_whatever_is_searched_in_one_go(escapes, step_bytes):
    text = '"' + "".join(escapes) + '"'
    expected = json.loads(text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert json.loads(replace_lone_surrogates(text.encode(), step_bytes)) == expected
    assert parse(text.encode())[0] == expected


def test_many_lone_surrogates_in_a_large_text_are_replaced():
    text = b'"' + rb"\n\ud83d\ud83d\ude00" * 100_000 + b'"'
    assert parse(text)[0] == "\n\ufffd🔑".replace("🔑", "😀") * 100_000


def test_large_text_that_is_no_json_is_not_parsed_by_the_standard_library(monkeypatch):
    monkeypatch.setattr(json_text.json, "loads", None)
    for text in (b'{"a":"' + b"x" * SLOW_BYTES_MAX, b'{"b":1e999,"a":"' + b"x" * SLOW_BYTES_MAX + b'"}'):
        with pytest.raises(JsonError):
            parse(text)
