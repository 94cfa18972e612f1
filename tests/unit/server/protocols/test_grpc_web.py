"""Tests of bridge/server/protocols/grpc_web.py: what a browser sends and reads, and gRPC with trailers."""

import base64
import gzip

import pytest

from bridge.core.errors import Code
from bridge.server.protocols.framing import MessageError
from bridge.server.protocols.grpc_web import GrpcWebTextWire, GrpcWebWire, GrpcWire, read_one
from bridge.server.protocols.wire import Status
from tests.kit.web import encode_frame, split_frames

MAX = 1000
FAILED = Status(8, "50 % ä", [("x-a", "b"), ("x-bin", b"\x00\xff")])
TRAILERS = [(b"grpc-status", b"8"), (b"grpc-message", b"50 %25 %C3%A4"), (b"x-a", b"b"), (b"x-bin", b"AP8")]
LINES = b"".join(b"%b: %b\r\n" % each for each in TRAILERS)
ALL = pytest.mark.parametrize("kind", [GrpcWire, GrpcWebWire, GrpcWebTextWire])


def make(kind, *headers):
    wire = kind(("gzip",), MAX)
    wire.read_head(list(headers))
    return wire


@ALL
def test_head_has_the_deadline_and_the_metadata_without_the_browsers_own(kind):
    others = [(b"cookie", b"a=" + b"b" * 9000), (b"sec-fetch-mode", b"cors"), (b"origin", b"https://a.example")]
    others += [(b"host", b"a"), (b"content-length", b"1"), (b"connection", b"x"), (b"x-grpc-web", b"1")]
    wire = make(kind, (b"grpc-timeout", b"250m"), (b"x-a", b"1"), (b"x-bin", b"AP8"), *others)
    assert wire.timeout_s == 0.25
    assert list(wire.metadata) == [("x-a", "1"), ("x-bin", b"\x00\xff")]


@ALL
def test_unknown_compression_is_refused_and_the_known_ones_are_told(kind):
    with pytest.raises(MessageError) as caught:
        make(kind, (b"grpc-encoding", b"br"))
    assert caught.value.code is Code.UNIMPLEMENTED
    assert make(kind).accepted == ("grpc-accept-encoding", "identity,gzip")


def encode(kind, body):
    return base64.b64encode(body) if kind is GrpcWebTextWire else body


@ALL
def test_body_has_one_message(kind):
    wire = make(kind)
    assert wire.read_body(encode(kind, encode_frame(b"hello"))) == b"hello"
    assert wire.read_body(encode(kind, encode_frame(b"hello")[:-1])) is None
    for body in (b"", encode_frame(b"hello") * 2):
        with pytest.raises(MessageError) as caught:
            wire.read_body(encode(kind, body))
        assert caught.value.code is Code.UNIMPLEMENTED


@ALL
def test_largest_body_has_the_largest_message(kind):
    wire = make(kind)
    body = encode(kind, encode_frame(bytes(MAX)))
    assert len(body) == wire.body_bytes_max
    assert wire.read_body(body) == bytes(MAX)


@ALL
def test_compressed_message_is_inflated_within_the_limit(kind):
    wire = make(kind, (b"grpc-encoding", b"gzip"))
    assert wire.read_body(encode(kind, encode_frame(gzip.compress(bytes(MAX)), 1))) == bytes(MAX)
    with pytest.raises(MessageError) as caught:
        wire.read_body(encode(kind, encode_frame(gzip.compress(bytes(MAX + 1)), 1)))
    assert caught.value.code is Code.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("body", [b"*", b"AAA", b"AAAA=AAA", b"AA==AA=="])
def test_text_that_is_no_base64_is_refused(body):
    with pytest.raises(MessageError) as caught:
        make(GrpcWebTextWire).read_body(body)
    assert caught.value.code is Code.INTERNAL


def test_grpc_has_its_status_in_trailers_of_http():
    wire = make(GrpcWire)
    assert wire.has_http_trailers
    assert wire.encode_start([("x-a", "b")]) == [(b"content-type", b"application/grpc"), (b"x-a", b"b")]
    assert wire.encode_end(FAILED) == (b"", TRAILERS)
    answer = wire.encode_answer((), b"hello", Status(0, ""))
    assert (answer.http_status, answer.body, answer.trailers) == (200, encode_frame(b"hello"), [(b"grpc-status", b"0")])


def test_grpc_web_has_its_status_in_the_last_frame():
    wire = make(GrpcWebWire)
    assert not wire.has_http_trailers
    assert wire.encode_message(b"hello") == encode_frame(b"hello")
    end, trailers = wire.encode_end(FAILED)
    assert (split_frames(end), trailers) == ([(0x80, LINES)], [])
    answer = wire.encode_answer([("x-a", "b")], b"hello", Status(0, ""))
    assert split_frames(answer.body) == [(0, b"hello"), (0x80, b"grpc-status: 0\r\n")]
    assert answer.headers == [(b"content-type", b"application/grpc-web+proto"), (b"x-a", b"b")]


def test_text_form_is_the_same_in_base64():
    wire = make(GrpcWebTextWire)
    assert wire.encode_start(()) == [(b"content-type", b"application/grpc-web-text+proto")]
    assert base64.b64decode(wire.encode_message(b"hello")) == encode_frame(b"hello")
    assert base64.b64decode(wire.encode_end(FAILED)[0]) == encode_frame(LINES, 0x80)


@ALL
def test_answer_of_a_failed_call_has_no_message(kind):
    answer = make(kind).encode_answer((), b"hello", FAILED)
    assert answer.body == make(kind).encode_end(FAILED)[0]
    assert answer.http_status == 200


def test_message_of_unknown_flags_is_refused():
    with pytest.raises(MessageError, match="unknown flags"):
        read_one(encode_frame(b"", 0x80), "identity", MAX)
