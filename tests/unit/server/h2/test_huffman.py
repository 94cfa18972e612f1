"""Tests of bridge/server/h2/huffman.py: the code of RFC 7541, as another library writes it."""

import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hypothesis import given
from hypothesis import strategies as st

from bridge.server.h2.huffman import decode_huffman

ENCODER = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)


@given(st.binary(max_size=300))
def test_any_text_is_decoded(text):
    assert decode_huffman(ENCODER.encode(text)) == text


def test_example_of_the_rfc_is_decoded():
    assert decode_huffman(bytes.fromhex("f1e3c2e5f23a6ba0ab90f4ff")) == b"www.example.com"


FAULTS = {
    "padding of zeros": b"\x18",  # `a` is 00011, and three zeros
    "padding of a byte": ENCODER.encode(b"a") + b"\xff",
    "EOS": b"\xff\xff\xff\xff",
    "a code that is cut off": b"\xff\xfe",
}


@pytest.mark.parametrize("data", FAULTS.values(), ids=FAULTS)
def test_malformed_code_is_an_error(data):
    with pytest.raises(ValueError, match="Huffman code"):
        decode_huffman(data)


@given(st.binary(max_size=50))
def test_any_bytes_are_a_text_or_an_error(data):
    try:
        text = decode_huffman(data)
    except ValueError:
        return
    assert ENCODER.encode(text) == data  # there is one code for each text
