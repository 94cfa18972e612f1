"""A streamed completion: whole only if the bytes are, the same however they are cut, each chunk as it was sent.

The first byte of an input seeds the cuts, the second says whether the connection is lost at the end; the rest is the
body.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from bridge.core.chat import ChatStream
from bridge.core.dialect import CHUNK
from bridge.core.errors import BridgeError, Code
from bridge.core.status import to_grpc_status
from lab.fuzz.mutate import change_json
from lab.fuzz.reply import check_agreement
from lab.fuzz.sse import cut
from ollmbridge.v1 import error_details_pb2 as details_pb2
from ollmbridge.v1.chat_completion_service_pb2 import StreamChatCompletionResponse
from tests.kit import oracle, vectors

__all__ = ["check", "mutate", "seeds"]

mutate = change_json

BROKEN = "the connection ended in the body of the answer"


def seeds() -> Iterator[bytes]:
    for number, name in enumerate(vectors.list_names("streams")):
        yield bytes([number, number % 2]) + vectors.read_answer("streams", name).body
    for number, name in enumerate(vectors.read_expected("cases")):
        yield bytes([number, number % 2]) + vectors.read_fault(name).partition(b"\r\n\r\n")[2]
    chunk = b'data: {"choices":[{"index":%b,"delta":{"content":"a"},"finish_reason":%b}]}\n\n'
    yield b"\0\0" + chunk % (b"0", b"null") + chunk % (b"1", b'"stop"') + b"data: [DONE]\n\n"
    yield b"\0\1" + chunk % (b'"x"', b'"stop"') + b'data: {"error": {"message": "m", "type": "overloaded_error"}}\n\n'
    yield b"\0\0" + chunk % (b"0", b'"stop"') + b"event: error\ndata: no JSON\n\n"
    yield b"\0\1" + b"event: Error\ndata: \n\n"


def check(data: bytes) -> None:
    if len(data) < 2:
        return
    is_cut, body = bool(data[1] & 1), data[2:]
    found = read([body], is_cut=is_cut)
    assert read(cut(body, data[0]), is_cut=is_cut) == found

    if oracle.measure_depth(body) > oracle.EQUAL_DEPTH_MAX:
        return
    expected = oracle.judge_stream(body, is_lost=is_cut)
    assert len(found.chunks) == len(expected.chunks)
    for chunk, text in zip(found.chunks, expected.chunks, strict=True):
        check_agreement(StreamChatCompletionResponse.FromString(chunk), CHUNK, text)
    match expected.end:
        case "whole":
            assert found.code is None
        case "incomplete":
            assert (found.code, found.reason) == (Code.ABORTED, "INCOMPLETE_COMPLETION")
        case "lost":
            assert found.code is (Code.ABORTED if found.chunks else Code.UNAVAILABLE)
            assert found.reason == "UPSTREAM_UNREACHABLE"
        case "invalid":
            assert (found.code, found.reason) == (Code.INTERNAL, "INVALID_UPSTREAM_RESPONSE")
        case "error":
            assert found.code is not None
            assert found.reason == "UPSTREAM_STREAM_ERROR"


class Reading(NamedTuple):
    chunks: list[bytes]
    code: Code | None
    reason: str
    message: str


def read(pieces: Iterable[bytes], *, is_cut: bool) -> Reading:
    """Read a stream to its end as the service does; only BridgeError may be raised."""
    stream = ChatStream()
    chunks: list[bytes] = []
    loss = BridgeError(Code.UNAVAILABLE, details_pb2.ERROR_REASON_UPSTREAM_UNREACHABLE, BROKEN) if is_cut else None
    try:
        try:
            for piece in pieces:
                for chunk in stream.feed(piece):
                    chunks.append(chunk.SerializeToString(deterministic=True))  # noqa: PERF401 - those before an error count
                if stream.done:
                    break
            for chunk in () if is_cut else stream.end():
                chunks.append(chunk.SerializeToString(deterministic=True))  # noqa: PERF401 - as above
        except BridgeError as error:
            loss = error
        stream.close(loss)
    except BridgeError as error:
        assert stream.chunks == len(chunks)
        assert error.upstream is not None
        assert error.upstream.chunks_delivered == len(chunks)
        assert not (chunks and error.code is Code.UNAVAILABLE)
        status = to_grpc_status(error)
        return Reading(chunks, status.code, error.reason_name, status.message)
    return Reading(chunks, None, "", "")
