"""Tests of bridge/upstream/coding.py: which codings a header names, and what bytes decode to."""

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.upstream.coding import Inflater, describe_coding, find_codings, is_inflatable, is_readable

NAMES_OF_NONE = [
    *("", ",", " , ,", "identity", "identity, identity", "IDENTITY", "none", "None", "null", "binary", "utf-8", "UTF8"),
    *("us-ascii", "iso-8859-1", "8bit", "aws-chunked", "identity, aws-chunked", "utf-8, identity", "application/json"),
]


@pytest.mark.parametrize("header", NAMES_OF_NONE)
def test_name_that_means_no_coding_is_identity(header):
    assert find_codings(header) == []


@pytest.mark.parametrize(
    ("header", "codings"),
    [
        ("gzip", ["gzip"]),
        (" X-GZip ", ["x-gzip"]),
        ("deflate, identity", ["deflate"]),
        ("aws-chunked, gzip", ["gzip"]),
        ('"gzip"', ["gzip"]),
        ("gzip;q=1.0", ["gzip"]),
        ("br", ["br"]),
        ("gzip, br", ["gzip", "br"]),
    ],
)
def test_codings_of_a_header_are_those_that_are_some(header, codings):
    assert find_codings(header) == codings


@pytest.mark.parametrize(
    ("codings", "expected"),
    [
        (["gzip"], True),
        (["x-gzip"], True),
        (["deflate"], True),
        (["br"], False),
        (["gzip", "gzip"], False),
        ([], False),
    ],
)
def test_one_coding_that_is_known_is_inflatable(codings, expected):
    assert is_inflatable(codings) is expected


@pytest.mark.parametrize(
    ("codings", "words"),
    [(["br"], "br"), (["gzip", "br"], "gzip, br"), (["<b>"], "unknown"), (["x" * 41], "unknown"), (["ä"], "unknown")],
)
def test_coding_is_described_only_if_it_is_a_name(codings, words):
    assert describe_coding(codings) == f"content-encoding {words}"


READABLE = [b"bad key", b'{"a":\r\n\t1}', "schlüssel 🔑".encode(), "🔑".encode() + "🔑".encode()[:3]]
UNREADABLE = [b"", b"\x0b\x02\x80{}\x03", b"a\x00b", b"\x1f\x8b\x08", b"a\x1b[31m", b"\xffabc", "🔑".encode()[:3]]


@pytest.mark.parametrize("data", READABLE)
def test_text_is_readable_also_if_it_is_cut_inside_a_character(data):
    assert is_readable(data)


@pytest.mark.parametrize("data", UNREADABLE)
def test_bytes_that_are_no_text_are_not_readable(data):
    assert not is_readable(data)


@given(st.binary(min_size=64), st.integers(1, 9))
def test_compressed_bytes_are_not_taken_for_a_text(data, level):
    assert not is_readable(gzip.compress(data, level))


@given(st.text(), st.integers(0, 200))
def test_any_text_without_control_characters_is_readable_at_any_cut(text, size):
    text = "a" + "".join(char for char in text if not (ord(char) < 32 or 127 <= ord(char) < 160))
    assert is_readable(text.encode()[: size + 1])


def test_step_is_decoded_when_it_is_asked_for():
    """A bomb costs no more than what its reader takes."""
    steps = Inflater("gzip").inflate(gzip.compress(bytes(50_000_000)), 1000)
    assert [len(next(steps)) for _ in range(3)] == [1000, 1000, 1000]


@given(st.binary(max_size=3000), st.integers(1, 100), st.booleans())
def test_any_data_comes_through_in_steps_of_any_size(data, step_bytes, is_gzip):
    stream = gzip.compress(data) if is_gzip else zlib.compress(data)
    parts = list(Inflater("gzip" if is_gzip else "deflate").inflate(stream, step_bytes))
    assert b"".join(parts) == data
    assert max(map(len, parts), default=0) <= step_bytes
