"""Tests of bridge/server/protocols/connect.py, by https://connectrpc.com/docs/protocol."""

import base64
import gzip
import json

import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2 as rpc_pb2
from google.rpc import status_pb2

from bridge.core.errors import BridgeError, Code
from bridge.server.protocols.connect import ConnectStreamWire, ConnectUnaryWire, encode_error
from bridge.server.protocols.framing import MessageError
from bridge.server.protocols.wire import Status, Types
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest, CreateChatCompletionResponse
from tests.kit.client import chat
from tests.kit.web import encode_frame, split_frames

MAX = 1000
TYPES = Types(CreateChatCompletionRequest, CreateChatCompletionResponse)
BOTH = pytest.mark.parametrize("kind", [ConnectUnaryWire, ConnectStreamWire])
ENCODING = {ConnectUnaryWire: b"content-encoding", ConnectStreamWire: b"connect-content-encoding"}
REPLY = CreateChatCompletionResponse(id="a")
OK = Status(0, "", [("x-a", "b")])


def make(kind, *headers, is_json=False):
    wire = kind(TYPES, ("gzip", "deflate"), MAX, is_json=is_json)
    wire.read_head(list(headers))
    return wire


def make_status(*details) -> Status:
    packed = status_pb2.Status(code=8, message="full")
    for detail in details:
        if isinstance(detail, any_pb2.Any):
            packed.details.append(detail)
        else:
            packed.details.add().Pack(detail)
    return Status(8, "full", [("x-a", "b"), ("grpc-status-details-bin", packed.SerializeToString())])


@BOTH
def test_head_has_the_deadline_and_the_metadata(kind):
    own = [(b"connect-protocol-version", b"1"), (b"connect-timeout-ms", b"250"), (b"connect-accept-encoding", b"br")]
    wire = make(kind, *own, (b"content-type", b"x"), (b"x-a", b"1"), (b"x-bin", b"AP8"), (b"user-agent", b"u"))
    assert wire.timeout_s == 0.25
    assert list(wire.metadata) == [("x-a", "1"), ("x-bin", b"\x00\xff"), ("user-agent", "u")]


@BOTH
@pytest.mark.parametrize("value", [b"", b"-1", b"1.5", b"12345678901", b"1s"])
def test_deadline_must_be_a_number_of_milliseconds(kind, value):
    with pytest.raises(MessageError) as caught:
        make(kind, (b"connect-timeout-ms", value))
    assert caught.value.code is Code.INVALID_ARGUMENT


@BOTH
def test_other_version_is_refused(kind):
    with pytest.raises(MessageError, match="connect-protocol-version"):
        make(kind, (b"connect-protocol-version", b"2"))


@BOTH
def test_compression_is_the_same_in_upper_case(kind):
    assert make(kind, (ENCODING[kind], b"GZip")).encoding == "gzip"


@BOTH
def test_unknown_compression_is_refused_and_the_known_ones_are_told(kind):
    with pytest.raises(MessageError) as caught:
        make(kind, (ENCODING[kind], b"br"))
    assert caught.value.code is Code.UNIMPLEMENTED
    name, value = make(kind).accepted
    assert (name, value) == (
        "accept-encoding" if kind is ConnectUnaryWire else "connect-accept-encoding",
        "gzip,deflate",
    )


def frame(kind, data, flags=0):
    return data if kind is ConnectUnaryWire else encode_frame(data, flags)


@BOTH
def test_message_is_protobuf_or_json(kind):
    request = chat("Hi")
    data = request.SerializeToString()
    assert make(kind).read_body(frame(kind, data)) == data
    text = b'{"model":"echo","messages":[{"role":"user","text":"Hi"}]}'
    assert make(kind, is_json=True).read_body(frame(kind, text)) == data
    with pytest.raises(BridgeError, match="bogus"):
        make(kind, is_json=True).read_body(frame(kind, b'{"bogus":1}'))


@BOTH
def test_compressed_message_is_inflated_within_the_limit(kind):
    wire = make(kind, (ENCODING[kind], b"gzip"))
    assert wire.read_body(frame(kind, gzip.compress(bytes(MAX)), 1)) == bytes(MAX)
    with pytest.raises(MessageError) as caught:
        wire.read_body(frame(kind, gzip.compress(bytes(MAX + 1)), 1))
    assert caught.value.code is Code.RESOURCE_EXHAUSTED


def test_stream_has_one_request():
    wire = make(ConnectStreamWire)
    assert wire.read_body(encode_frame(b"x")[:-1]) is None
    for body in (b"", encode_frame(b"") * 2):
        with pytest.raises(MessageError):
            wire.read_body(body)


def test_unary_reply_is_plain_with_its_trailers_as_headers():
    data = REPLY.SerializeToString()
    answer = make(ConnectUnaryWire).encode_answer([("x-b", "c")], data, OK)
    assert (answer.http_status, answer.body, answer.trailers) == (200, data, [])
    assert answer.headers == [(b"content-type", b"application/proto"), (b"x-b", b"c"), (b"trailer-x-a", b"b")]
    answer = make(ConnectUnaryWire, is_json=True).encode_answer((), data, OK)
    assert (answer.headers[0][1], json.loads(answer.body)) == (b"application/json", {"id": "a"})


def test_unary_failure_is_json_with_its_http_status():
    answer = make(ConnectUnaryWire).encode_answer([("x-b", "c")], None, make_status())
    assert answer.http_status == 429
    assert answer.headers == [(b"content-type", b"application/json"), (b"x-b", b"c"), (b"trailer-x-a", b"b")]
    assert json.loads(answer.body) == {"code": "resource_exhausted", "message": "full"}


def test_unary_call_has_no_end_of_its_own():
    wire = make(ConnectUnaryWire)
    assert wire.encode_message(b"hello") == b"hello"
    with pytest.raises(NotImplementedError):
        wire.encode_end(OK)


def test_stream_ends_with_a_frame_of_json():
    wire = make(ConnectStreamWire)
    assert wire.encode_start([("x-b", "c")]) == [(b"content-type", b"application/connect+proto"), (b"x-b", b"c")]
    assert wire.encode_message(b"hello") == encode_frame(b"hello")
    ((flags, text),) = split_frames(wire.encode_end(make_status())[0])
    assert flags == 2
    assert json.loads(text) == {
        "error": {"code": "resource_exhausted", "message": "full"},
        "metadata": {"x-a": ["b"]},
    }
    (_, text), *_ = split_frames(wire.encode_end(Status(0, ""))[0])
    assert json.loads(text) == {}


def test_stream_without_messages_is_an_end_alone():
    answer = make(ConnectStreamWire).encode_answer((), None, make_status())
    assert answer.http_status == 200
    assert [flags for flags, _ in split_frames(answer.body)] == [2]


def test_details_have_their_type_their_bytes_and_their_words():
    info = rpc_pb2.ErrorInfo(reason="R", domain="d")
    (detail,) = encode_error(make_status(info))["details"]
    assert detail["type"] == "google.rpc.ErrorInfo"
    assert "=" not in detail["value"]
    assert rpc_pb2.ErrorInfo.FromString(base64.b64decode(detail["value"] + "==")) == info
    assert detail["debug"] == {"reason": "R", "domain": "d"}


@pytest.mark.parametrize(
    "packed",
    [
        any_pb2.Any(type_url="type.googleapis.com/no.such.Type", value=b"\x01"),
        any_pb2.Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff"),
    ],
    ids=["unknown", "broken"],
)
def test_detail_that_cannot_be_read_here_goes_out_as_it_is(packed):
    (detail,) = encode_error(make_status(packed))["details"]
    assert detail.keys() == {"type", "value"}


# https://connectrpc.com/docs/protocol#error-codes
HTTP_STATUSES = [499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401]


@pytest.mark.parametrize(("code", "http_status"), list(enumerate(HTTP_STATUSES, start=1)))
def test_each_code_has_its_http_status(code, http_status):
    assert make(ConnectUnaryWire).encode_answer((), None, Status(code, "")).http_status == http_status


def test_unknown_code_is_unknown():
    assert encode_error(Status(99, "")) == {"code": "unknown"}
