"""Requests of the web port: any headers and any body are a message or a refusal, in each protocol.

The first byte of an input chooses the protocol, the second one headers; the rest is the body. A JSON text that is taken
is the message that protobuf's own parser makes of it.
"""

import base64
import gzip
from collections.abc import Iterator

from google.protobuf import json_format

from bridge.core.errors import BridgeError, Code
from bridge.server.protocols.connect import ConnectStreamWire, ConnectUnaryWire
from bridge.server.protocols.framing import MessageError, encode_frame
from bridge.server.protocols.grpc_web import GrpcWebTextWire, GrpcWebWire, GrpcWire
from bridge.server.protocols.wire import Status, Types, Wire
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest, CreateChatCompletionResponse
from tests.kit.web import split_frames

__all__ = ["check", "seeds"]

BYTES_MAX = 4096
TYPES = Types(CreateChatCompletionRequest, CreateChatCompletionResponse)
ENCODINGS = ("gzip", "deflate")
HEADERS = (
    [],
    [(b"grpc-encoding", b"gzip"), (b"content-encoding", b"gzip"), (b"connect-content-encoding", b"gzip")],
    [(b"grpc-encoding", b"deflate"), (b"content-encoding", b"deflate"), (b"connect-content-encoding", b"deflate")],
    [(b"connect-timeout-ms", b"100"), (b"grpc-timeout", b"1S"), (b"x-bin", b"AP8")],
)
REFUSALS = {Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED, Code.UNIMPLEMENTED, Code.INTERNAL}
TEXTS = (
    b"{}",
    b'{"model":"a","messages":[{"role":"user","text":"Hello"}],"maxTokens":1,"top_p":0.5}',
    b'{"messages":[{"parts":{"parts":[{"text":{"text":"x"}}]}}],"ollm":{"tags":{"a":"b"}},"extraJson":{"k":"40"}}',
    b'{"model":"\\ud83d","stop":["a"],"temperature":1e400}',
    b'{"messages":[{"content":"x"}]}',
    b'{"a":' * 80 + b"1" + b"}" * 80,
)
MESSAGE = CreateChatCompletionRequest(model="a").SerializeToString()


def make_wires() -> tuple[Wire, ...]:
    return (
        ConnectUnaryWire(TYPES, ENCODINGS, BYTES_MAX, is_json=True),
        ConnectStreamWire(TYPES, ENCODINGS, BYTES_MAX, is_json=True),
        ConnectUnaryWire(TYPES, ENCODINGS, BYTES_MAX, is_json=False),
        ConnectStreamWire(TYPES, ENCODINGS, BYTES_MAX, is_json=False),
        GrpcWebWire(ENCODINGS, BYTES_MAX),
        GrpcWebTextWire(ENCODINGS, BYTES_MAX),
        GrpcWire(ENCODINGS, BYTES_MAX),
    )


JSON = {0, 1}
FRAMED = {1, 3, 4, 5, 6}
TEXT = 5


def seeds() -> Iterator[bytes]:
    for number in range(len(make_wires())):
        for body in TEXTS if number in JSON else (MESSAGE, b"", b"\xff"):
            yield build(number, 0, body)
            yield build(number, 1, gzip.compress(body, mtime=0), flags=1)
        yield build(number, 3, MESSAGE, flags=0x80)


def build(number: int, headers: int, body: bytes, *, flags: int = 0) -> bytes:
    """Return an input."""
    data = encode_frame(body, flags) if number in FRAMED else body
    return bytes((number, headers)) + (base64.b64encode(data) if number == TEXT else data)


def check(data: bytes) -> None:
    if len(data) < 2:
        return
    wires = make_wires()
    number = data[0] % len(wires)
    wire = wires[number]
    wire.read_head(list(HEADERS[data[1] % len(HEADERS)]))
    body = data[2:]
    try:
        message = wire.read_body(body)
    except (MessageError, BridgeError) as error:
        assert error.code in REFUSALS
        check_refusal(wire, error)
        return
    if message is None:
        assert number in FRAMED
        return
    if number not in JSON:
        assert len(message) <= BYTES_MAX
    elif wire.encoding == "identity":
        check_json(body if number == 0 else split_frames(body)[0][1], message)


def check_json(text: bytes, message: bytes) -> None:
    """Check a taken text against protobuf's own parser, which also refuses a name twice and lone surrogates."""
    found = CreateChatCompletionRequest.FromString(message)
    try:
        expected = json_format.Parse(text, CreateChatCompletionRequest())
    except (json_format.ParseError, UnicodeDecodeError) as error:
        assert any(word in str(error) for word in ("duplicate key", "surrogate", "decode"))
        return
    assert found == expected


def check_refusal(wire: Wire, error: MessageError | BridgeError) -> None:
    """Check that a refusal can be told."""
    answer = wire.encode_answer((), None, Status(int(error.code), error.message))
    assert 200 <= answer.http_status < 600
    assert answer.body or answer.trailers
    assert all(b"\n" not in value and b"\r" not in value for _, value in (*answer.headers, *answer.trailers))
