"""Tests of bridge/server/protocols/grpc.py: each header of gRPC's, read and written as the rules have it."""

import base64
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.errors import Code
from bridge.server.protocols.framing import MessageError
from bridge.server.protocols.grpc import (
    decode_binary,
    encode_binary,
    encode_encodings,
    encode_metadata,
    encode_text,
    is_content_type,
    list_trailers,
    parse_timeout,
    read_head,
    read_metadata,
)

TIMEOUTS = {
    b"1H": 3600.0,
    b"2M": 120.0,
    b"3S": 3.0,
    b"250m": 0.25,
    b"7u": 7e-6,
    b"8n": 8e-9,
    b"0n": 0.0,
    b"99999999H": 99999999 * 3600.0,
    b"00000001S": 1.0,
}


@pytest.mark.parametrize(("value", "expected_s"), TIMEOUTS.items(), ids=TIMEOUTS)
def test_timeout_is_read(value, expected_s):
    assert parse_timeout(value) == expected_s


@pytest.mark.parametrize("value", [b"", b"S", b"1", b"1s", b"-1S", b"1.5S", b"123456789S", b"1S ", b"\xd9\xa1S"])
def test_malformed_timeout_is_an_internal_error(value):
    with pytest.raises(MessageError, match="grpc-timeout") as caught:
        parse_timeout(value)
    assert caught.value.code == Code.INTERNAL


CONTENT_TYPES = {
    b"application/grpc": True,
    b"application/grpc+proto": True,
    b"application/grpc;charset=utf-8": True,
    b"application/grpc-web": False,
    b"application/grpcx": False,
    b"application/json": False,
    b"": False,
}


@pytest.mark.parametrize(("value", "expected"), CONTENT_TYPES.items(), ids=CONTENT_TYPES)
def test_content_type_is_compared(value, expected):
    assert is_content_type(value) is expected


def test_content_type_of_another_protocol_is_compared():
    assert is_content_type(b"application/grpc-web+proto", b"application/grpc-web")


def test_headers_of_the_transport_are_no_metadata():
    head = read_head(
        [
            (b":path", b"/a/b"),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"grpc-timeout", b"5S"),
            (b"grpc-encoding", b"gzip"),
            (b"grpc-accept-encoding", b"identity"),
            (b"user-agent", b"me/1"),
            (b"x-one", b"1"),
            (b"x-one", b"2"),
            (b"trace-bin", b"AAE"),
        ],
        ["gzip"],
    )
    assert head.metadata == [("user-agent", "me/1"), ("x-one", "1"), ("x-one", "2"), ("trace-bin", b"\0\1")]
    assert (head.timeout_s, head.encoding) == (5.0, "gzip")


def test_head_without_gRPCs_headers_has_neither_timeout_nor_encoding():
    assert read_head([], ()) == ([], None, "identity")


@pytest.mark.parametrize("encodings", [(), ("deflate",)])
def test_encoding_that_is_not_accepted_is_unimplemented(encodings):
    with pytest.raises(MessageError, match="grpc-encoding 'gzip'") as caught:
        read_head([(b"grpc-encoding", b"gzip")], encodings)
    assert caught.value.code == Code.UNIMPLEMENTED


def test_accepted_encodings_are_told():
    assert encode_encodings(["gzip", "deflate"]) == (b"grpc-accept-encoding", b"identity,gzip,deflate")
    assert encode_encodings([]) == (b"grpc-accept-encoding", b"identity")


BINARIES = {
    "padded": (b"AA==", [b"\0"]),
    "not padded": (b"AA", [b"\0"]),
    "empty": (b"", [b""]),
    "joined": (b"AA,AQ==, AgM", [b"\0", b"\1", b"\2\3"]),
}


@pytest.mark.parametrize(("value", "expected"), BINARIES.values(), ids=BINARIES)
def test_binary_metadata_is_decoded(value, expected):
    assert read_metadata([(b"x-bin", value)]) == [("x-bin", each) for each in expected]


@pytest.mark.parametrize("value", [b"A", b"A===", b"A!==", b"AA=A", b"\xff\xff"])
def test_binary_metadata_that_is_not_base64_is_an_internal_error(value):
    with pytest.raises(MessageError, match="'x-bin' is not base64") as caught:
        read_metadata([(b"x-bin", value)])
    assert caught.value.code == Code.INTERNAL


@given(st.binary())
def test_binary_value_is_written_without_padding_and_read_again(value):
    encoded = encode_binary(value)
    assert b"=" not in encoded
    assert decode_binary(encoded) == decode_binary(base64.b64encode(value)) == value


def test_text_that_is_not_ASCII_is_read_as_grpc_aio_reads_it():
    assert read_metadata([(b"x", "é".encode()), (b"y", b"\xe9")]) == [("x", "é"), ("y", "é")]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_message_is_printable_and_can_be_decoded(text):
    encoded = encode_text(text)
    assert all(0x20 <= byte <= 0x7E for byte in encoded)
    assert unquote(encoded.decode()) == text


def test_message_keeps_what_needs_no_encoding():
    assert encode_text('50% of "é"\n') == b'50%25 of "%C3%A9"%0A'


def test_trailers_have_the_status_and_then_the_metadata():
    trailers = list_trailers(8, "no room", [("x-a", "1"), ("x-bin", b"\0\1")])
    assert trailers == [
        (b"grpc-status", b"8"),
        (b"grpc-message", b"no room"),
        (b"x-a", b"1"),
        (b"x-bin", b"AAE"),
    ]
    assert list_trailers(0, "", ()) == [(b"grpc-status", b"0")]


def test_value_that_no_header_can_have_is_replaced():
    assert encode_metadata([("x", "a\r\nb\0é"), ("y", b"\xff1")]) == [(b"x", b"a??b??"), (b"y", b"?1")]
