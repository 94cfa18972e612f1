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
from ollmbridge.v1 import error_details_pb2 as details_pb2
from ollmbridge.v1.chat_completion_service_pb2 import StreamChatCompletionResponse
from tests.fuzz import reference
from tests.fuzz.mutate import change_json
from tests.fuzz.reply import check_agreement
from tests.fuzz.sse import cut
from tests.unit.core import vectors

__all__ = ["check", "mutate", "seeds"]

mutate = change_json

BROKEN = "the connection ended in the body of the answer"


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
    is_cut, body = bool(data[1] & 1), data[2:]
    found = read([body], is_cut=is_cut)
    assert read(cut(body, data[0]), is_cut=is_cut) == found

    if reference.measure_depth(body) > reference.EQUAL_DEPTH_MAX:
        return
    expected = reference.judge_stream(body)
    assert len(found.chunks) == len(expected.chunks)
    for chunk, text in zip(found.chunks, expected.chunks, strict=True):
        check_agreement(StreamChatCompletionResponse.FromString(chunk), CHUNK, text)
    match expected.end:
        case "whole":
            assert found.code is None
        case "incomplete":
            code = Code.ABORTED if found.chunks or not is_ended_by_loss(is_cut=is_cut, body=body) else Code.UNAVAILABLE
            assert found.code is code
            assert (found.reason == "UPSTREAM_UNREACHABLE") == is_ended_by_loss(is_cut=is_cut, body=body)
        case "invalid":
            assert (found.code, found.reason) == (Code.INTERNAL, "INVALID_UPSTREAM_RESPONSE")
        case "error":
            assert found.code is not None
            assert found.reason == "UPSTREAM_STREAM_ERROR"


def is_ended_by_loss(*, is_cut: bool, body: bytes) -> bool:
    """Whether the loss of the connection ended the stream, and not its [DONE]."""
    return is_cut and not any(
        name != "error" and text.strip() == b"[DONE]" for name, text in reference.split_events(body)
    )


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
