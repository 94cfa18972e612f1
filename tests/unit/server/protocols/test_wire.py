"""Tests of bridge/server/protocols/wire.py: which headers are no metadata, and what holds of every wire."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.errors import BridgeError
from bridge.server.protocols.connect import ConnectStreamWire, ConnectUnaryWire
from bridge.server.protocols.framing import MessageError
from bridge.server.protocols.grpc_web import GrpcWebTextWire, GrpcWebWire, GrpcWire
from bridge.server.protocols.wire import Types, drop_hop_headers
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest, CreateChatCompletionResponse
from tests.kit.web import encode_frame

OWN = [(b"authorization", b"Bearer k"), (b"user-agent", b"u"), (b"x-request-id", b"r"), (b"traceparent", b"t")]
OTHERS = [
    b"connection",
    b"transfer-encoding",
    b"upgrade",
    b"expect",
    b"cookie",
    b"origin",
    b"sec-fetch-site",
    b"accept",
]


def test_headers_of_the_hop_and_of_the_browser_are_dropped():
    assert drop_hop_headers([*OWN, *((name, b"x") for name in OTHERS)]) == OWN


MAX = 1000
TYPES = Types(CreateChatCompletionRequest, CreateChatCompletionResponse)
WIRES = {
    "grpc": lambda: GrpcWire(("gzip",), MAX),
    "grpc-web": lambda: GrpcWebWire(("gzip",), MAX),
    "grpc-web-text": lambda: GrpcWebTextWire(("gzip",), MAX),
    "connect unary": lambda: ConnectUnaryWire(TYPES, ("gzip",), MAX, is_json=False),
    "connect unary json": lambda: ConnectUnaryWire(TYPES, ("gzip",), MAX, is_json=True),
    "connect stream": lambda: ConnectStreamWire(TYPES, ("gzip",), MAX, is_json=False),
    "connect stream json": lambda: ConnectStreamWire(TYPES, ("gzip",), MAX, is_json=True),
}
ENCODINGS = [(b"grpc-encoding", b"gzip"), (b"content-encoding", b"gzip"), (b"connect-content-encoding", b"gzip")]
NAMES = st.sampled_from(
    [b"grpc-timeout", b"grpc-encoding", b"connect-timeout-ms", b"content-encoding", b"x-a-bin", b"x-a", b"host"]
)


@pytest.mark.parametrize("make", WIRES.values(), ids=WIRES)
@given(body=st.binary(max_size=64) | st.binary(max_size=32).map(encode_frame), is_compressed=st.booleans())
def test_any_body_is_a_message_or_refused(make, body, is_compressed):
    wire = make()
    wire.read_head(ENCODINGS if is_compressed else [])
    try:
        message = wire.read_body(body)
    except (MessageError, BridgeError):
        return
    assert message is None or isinstance(message, bytes)


@pytest.mark.parametrize("make", WIRES.values(), ids=WIRES)
@given(headers=st.lists(st.tuples(NAMES, st.binary(max_size=12))))
def test_any_headers_are_read_or_refused(make, headers):
    wire = make()
    try:
        wire.read_head(headers)
    except MessageError:
        return
    assert wire.timeout_s is None or wire.timeout_s >= 0
    assert all(isinstance(value, bytes) or not name.endswith("-bin") for name, value in wire.metadata)
