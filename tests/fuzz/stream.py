"""A streamed completion: whole only where the bytes say so, the same however they are cut, each chunk what was said.

The first byte of an input seeds the cuts, the second says whether the connection broke at the end; then comes the body.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from bridge.core.chat import ChatStream
from bridge.core.dialect import CHUNK
from bridge.core.errors import BridgeError, Code
from bridge.core.status import to_grpc_status
from ollmbridge.v1 import error_details_pb2 as details_pb2
from ollmbridge.v1.chat_completion_service_pb2 import StreamChatCompletionResponse
from tests.fuzz import reference
from tests.fuzz.mutate import json_within
from tests.fuzz.reply import agree
from tests.fuzz.sse import cuts
from tests.unit.core import vectors

__all__ = ["check", "mutate", "seeds"]

mutate = json_within

BROKEN = "expected a whole answer, found the connection lost"


def seeds() -> Iterator[bytes]:
    for number, name in enumerate(vectors.list_names("streams")):
        yield bytes([number, number % 2]) + vectors.read_answer("streams", name).body
    chunk = b'data: {"choices":[{"index":%b,"delta":{"content":"a"},"finish_reason":%b}]}\n\n'
    yield b"\0\0" + chunk % (b"0", b"null") + chunk % (b"1", b'"stop"') + b"data: [DONE]\n\n"
    yield b"\0\1" + chunk % (b'"x"', b'"stop"') + b'data: {"error": {"message": "m", "type": "overloaded_error"}}\n\n'
    yield b"\0\0" + chunk % (b"0", b'"stop"') + b"event: error\ndata: no JSON\n\n"


def check(data: bytes) -> None:
    if len(data) < 2:
        return
    broke, body = bool(data[1] & 1), data[2:]
    found = read([body], broke=broke)
    assert read(cuts(body, data[0]), broke=broke) == found

    if reference.depth(body) > reference.EQUAL_DEPTH_MAX:
        return
    expected = reference.streamed(body)
    assert len(found.chunks) == len(expected.chunks)
    for chunk, text in zip(found.chunks, expected.chunks, strict=True):
        agree(StreamChatCompletionResponse.FromString(chunk), CHUNK, text)
    match expected.end:
        case "whole":
            assert found.code is None
        case "incomplete":
            code = Code.ABORTED if found.chunks or not ends_by_itself(broke=broke, body=body) else Code.UNAVAILABLE
            assert found.code is code
            assert (found.reason == "UPSTREAM_UNREACHABLE") == ends_by_itself(broke=broke, body=body)
        case "invalid":
            assert (found.code, found.reason) == (Code.INTERNAL, "INVALID_UPSTREAM_RESPONSE")
        case "error":
            assert found.code is not None
            assert found.reason == "UPSTREAM_STREAM_ERROR"


def ends_by_itself(*, broke: bool, body: bytes) -> bool:
    """Whether what broke the connection is what ended the stream, and not its [DONE]."""
    return broke and not any(name != "error" and text.strip() == b"[DONE]" for name, text in reference.events(body))


class Read(NamedTuple):
    chunks: list[bytes]
    code: Code | None
    reason: str
    message: str


def read(pieces: Iterable[bytes], *, broke: bool) -> Read:
    """Read a stream to its end as the service does; only BridgeError may come out of it."""
    stream = ChatStream()
    chunks: list[bytes] = []
    lost = BridgeError(Code.UNAVAILABLE, details_pb2.ERROR_REASON_UPSTREAM_UNREACHABLE, BROKEN) if broke else None
    try:
        try:
            for piece in pieces:
                for chunk in stream.feed(piece):
                    chunks.append(chunk.SerializeToString(deterministic=True))  # noqa: PERF401 - those before an error count
                if stream.done:
                    break
        except BridgeError as error:
            lost = error
        stream.close(lost)
    except BridgeError as error:
        assert stream.chunks == len(chunks)
        assert error.upstream is not None
        assert error.upstream.chunks_delivered == len(chunks)
        assert not (chunks and error.code is Code.UNAVAILABLE)
        made = to_grpc_status(error)
        return Read(chunks, made.code, error.reason_name, made.message)
    return Read(chunks, None, "", "")
