"""Tests of bridge/server/h2/hpack.py: blocks as another library writes them, any bytes, and blocks that are bombs."""

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.server.h2.hpack import Decoder, HpackError, TooLargeError, encode_header, encode_headers

HEADER = st.tuples(
    st.sampled_from([b":path", b":method", b"te", b"x-request-id", b"authorization", b"user-agent"]) | st.binary(),
    st.sampled_from([b"POST", b"trailers", b""]) | st.binary(max_size=60),
)


@given(st.lists(st.tuples(st.lists(HEADER, max_size=12), st.booleans()), max_size=12))
def test_blocks_of_another_encoder_are_decoded_with_its_table(blocks):
    encoder, decoder = hpack.Encoder(), Decoder(1_000_000)
    for headers, huffman in blocks:
        assert decoder.decode(encoder.encode(headers, huffman=huffman)) == headers


@given(st.lists(HEADER, max_size=12))
def test_literals_are_decoded_by_another_decoder(headers):
    decoded = hpack.Decoder(max_header_list_size=1_000_000).decode(encode_headers(headers), raw=True)
    assert [(bytes(name), bytes(value)) for name, value in decoded] == headers


@pytest.mark.parametrize("length", [0, 126, 127, 128, 254, 255, 256, 16_383, 16_384, 70_000])
def test_literal_of_any_length_is_written(length):
    header = (b"x", bytes(length))
    assert Decoder(1_000_000).decode(encode_header(*header)) == [header]


@given(st.lists(st.binary(max_size=80), max_size=5))
def test_any_bytes_are_headers_or_an_error_as_another_decoder_finds(blocks):
    decoder, other = Decoder(20_000), hpack.Decoder(max_header_list_size=20_000)
    other.max_allowed_table_size = 4096
    for block in blocks:
        try:
            expected = [(bytes(name), bytes(value)) for name, value in other.decode(block, raw=True)]
        except hpack.HPACKError:
            return  # what it refuses, ours may take: it is stricter on the size of an unused table
        try:
            found = decoder.decode(block)
        except HpackError as error:
            assert "update" in str(error)  # noqa: PT017 - two at the beginning of a block, no more: RFC 7541, 4.2
            return
        assert found == expected


FAULTS = {
    "index 0": b"\x80",
    "index beyond the table": b"\xbe",
    "index far beyond the table": b"\xff\xff\xff\x7f",
    "name beyond the table": b"\x7f\x00\x00",
    "integer that is cut off": b"\xff",
    "integer that goes on": b"\xff\xff\xff\xff",
    "integer too large": b"\xff" + b"\xff" * 10 + b"\x01",
    "string that is cut off": b"\x00\x05abc",
    "value that is missing": b"\x00\x01a",
    "length that is cut off": b"\x00\x7f",
    "huffman code that is bad": b"\x00\x81\x18\x00",
    "table larger than allowed": b"\x3f\xe2\x1f",
    "update after a header": b"\x82\x20",
    "third update": b"\x20\x20\x20",
}


@pytest.mark.parametrize("block", FAULTS.values(), ids=FAULTS)
def test_malformed_block_is_an_error(block):
    with pytest.raises(HpackError):
        Decoder(1000).decode(block)


def test_table_is_evicted_by_its_size():
    decoder = Decoder(10_000)
    entry = b"\x40\x01a\x7f\x81\x06" + bytes(896)
    decoder.decode(entry * 5)  # four of 929 bytes fit in 4096
    assert decoder.decode(b"\xbe\xc1") == [(b"a", bytes(896))] * 2
    with pytest.raises(HpackError):
        decoder.decode(b"\xc2")


def test_update_of_the_tables_size_evicts():
    decoder = Decoder(10_000)
    decoder.decode(b"\x40\x01a\x01b")
    assert decoder.decode(b"\x20\x3f\xe1\x1f") == []
    with pytest.raises(HpackError):
        decoder.decode(b"\xbe")


def test_entry_larger_than_the_table_empties_it():
    decoder = Decoder(10_000)
    decoder.decode(b"\x40\x01a\x01b")
    assert decoder.decode(b"\x40\x01c\x7f\x81\x1f" + bytes(4096)) == [(b"c", bytes(4096))]
    with pytest.raises(HpackError):
        decoder.decode(b"\xbe")


def test_headers_above_the_limit_are_dropped_and_the_table_is_kept():
    decoder = Decoder(100)
    large = b"\x40\x01a\x64" + bytes(100)
    assert decoder.decode(large) is None
    assert decoder.decode(b"\x40\x01b\x01c") == [(b"b", b"c")]
    assert decoder.decode(b"\xbe") == [(b"b", b"c")]


def test_block_that_stands_for_far_more_than_the_limit_is_refused_at_once():
    decoder = Decoder(16_384)
    decoder.decode(b"\x40\x01a\x7f\xd1\x1d" + bytes(3_920))
    with pytest.raises(TooLargeError):
        decoder.decode(b"\xbe" * 12_000)


INDEXED, SECOND = b"\xbe", b"\xbf"  # the newest entry of the table, and the one before
ADDED_A, ADDED_B, NOT_ADDED = b"\x40\1a\1x", b"\x40\1b\1y", b"\0\1c\1z"
NO_TABLE = b"\x20"
BLOCKS = [
    INDEXED,
    SECOND,
    ADDED_A,
    ADDED_B,
    NOT_ADDED,
    INDEXED * 2,
    NOT_ADDED + INDEXED,
    NO_TABLE + b"\x3f\xe1\x1f",
    b"",
]


@given(st.lists(st.sampled_from(BLOCKS), max_size=30))
def test_block_of_the_same_bytes_as_the_last_one_stands_for_what_the_table_has_now(blocks):
    ours, theirs = Decoder(32_000), hpack.Decoder()
    for block in blocks:
        try:
            expected = [(bytes(name), bytes(value)) for name, value in theirs.decode(block, raw=True)]
        except hpack.HPACKDecodingError:
            with pytest.raises(HpackError):
                ours.decode(block)
            return
        assert ours.decode(block) == expected


def test_repeated_block_is_not_decoded_again_unless_it_is_large():
    decoder = Decoder(32_000)
    for block, is_kept in ((NOT_ADDED, True), (NOT_ADDED * 400, False), (ADDED_A, False)):
        assert (decoder.decode(block) is decoder.decode(block)) == is_kept
