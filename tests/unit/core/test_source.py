from typing import Any

import pytest
from hypothesis import given

from bridge.core.json_text import JsonError, JsonTooLargeError
from bridge.core.source import CUTS_MAX, CUTS_SPARE, OBJECTS_MAX, Source
from tests.kit import documents
from tests.kit.documents import repair, spell

CUTS, BYTES_A_CUT, MOST_CUTS = CUTS_MAX
OBJECTS, BYTES_AN_OBJECT, MOST_OBJECTS = OBJECTS_MAX


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


def read_all() -> str:
    return "all"


def refuse() -> str:
    raise JsonTooLargeError("too much")


def test_objects_of_a_document_are_counted_together():
    source = Source(b"{}")
    assert source.read_array(OBJECTS - 1, read_all) == "all"
    assert source.read_array(2, read_all) is None
    assert source.read_array(1, read_all) == "all"
    assert source.read_array(1, read_all) is None


def test_array_in_a_choice_that_has_too_much_is_text_and_so_are_those_behind_it():
    source = Source(b"{}")
    in_a_choice = [
        lambda: source.read_array(2, lambda: source.read_array(OBJECTS, read_all)),
        lambda: source.read_array(1, read_all),
        lambda: source.count_cuts(CUTS_SPARE),
    ]
    assert source.read_array(1, lambda: [read() for read in in_a_choice]) == [None, None, None]
    with pytest.raises(JsonTooLargeError):
        source.count_cuts(1)


def test_choices_that_have_too_much_of_their_own_are_too_large():
    with pytest.raises(JsonTooLargeError):
        Source(b"{}").read_array(1, refuse)


def test_cuts_of_a_document_are_counted_together():
    source = Source(b"{}")
    source.count_cuts(CUTS - 1)
    source.count_cuts(1)
    with pytest.raises(JsonTooLargeError, match=f"more than {CUTS} members that no field holds"):
        source.count_cuts(1)


@pytest.mark.parametrize("factor", [2, 100])
def test_a_large_document_may_have_more(factor):
    objects, cuts = min(factor * OBJECTS, MOST_OBJECTS), min(factor * CUTS, MOST_CUTS)
    source = Source(b" " * factor * CUTS * BYTES_A_CUT)
    source.count_cuts(cuts)
    with pytest.raises(JsonTooLargeError, match=f"more than {cuts} members"):
        source.count_cuts(1)
    source = Source(b" " * factor * OBJECTS * BYTES_AN_OBJECT)
    assert source.read_array(objects, read_all) == "all"
    assert source.read_array(1, read_all) is None
