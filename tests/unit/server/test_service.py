"""Tests of bridge/server/service.py: the main path against an upstream that is a list of bytes."""

import contextlib
from collections.abc import AsyncIterator

import pytest

from bridge.core.errors import BridgeError, Code
from bridge.server.call import RpcCall
from bridge.server.service import ChatCompletionService
from bridge.settings import UpstreamSettings
from bridge.upstream.call import UpstreamCall
from ollmbridge.v1 import error_details_pb2 as details_pb2
from tests.conftest import chat
from tests.unit.server.fake_rpc import FakeRpc

CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}\n\n'
LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
LOST = BridgeError(Code.ABORTED, details_pb2.ERROR_REASON_UPSTREAM_DISCONNECTED, "the connection was lost")


class Events:
    """What a streamed body is to the service."""

    def __init__(self, pieces: list[bytes], failure: BridgeError | None) -> None:
        self._pieces = pieces
        self._failure = failure
        self.failure: BridgeError | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece
        self.failure = self._failure


class ListedUpstream:
    """An upstream that answers with these bytes. `bodies` are the requests, `is_left` whether the stream was left."""

    def __init__(self, *pieces: bytes, failure: BridgeError | None = None) -> None:
        self.pieces = list(pieces)
        self.failure = failure
        self.bodies: list[bytes] = []
        self.is_left = False

    async def complete(self, body: bytes, _call: UpstreamCall) -> bytes:
        self.bodies.append(body)
        return b"".join(self.pieces)

    @contextlib.asynccontextmanager
    async def stream(self, body: bytes, _call: UpstreamCall) -> AsyncIterator[Events]:
        self.bodies.append(body)
        try:
            yield Events(self.pieces, self.failure)
        finally:
            self.is_left = True


def make_call() -> RpcCall:
    return RpcCall(FakeRpc(b""), (), None)


async def collect(upstream: ListedUpstream) -> list[str]:
    service = ChatCompletionService(upstream, UpstreamSettings())
    return [chunk.choices[0].delta.content async for chunk in service.StreamChatCompletion(chat(), make_call())]


async def test_unary_call_is_one_request_and_its_reply():
    upstream = ListedUpstream(
        b'{"choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}'
    )
    reply = await ChatCompletionService(upstream, UpstreamSettings()).CreateChatCompletion(chat(), make_call())
    assert reply.choices[0].message.text == "hi"
    assert b'"stream"' not in upstream.bodies[0]


async def test_stream_yields_each_chunk_and_ends_when_it_is_whole():
    upstream = ListedUpstream(CHUNK, CHUNK, LAST + DONE)
    assert await collect(upstream) == ["hi", "hi", ""]
    assert b'"stream":true' in upstream.bodies[0]
    assert upstream.is_left


@pytest.mark.parametrize("pieces", [[], [CHUNK], [CHUNK, DONE]])
async def test_stream_that_is_not_whole_fails(pieces):
    with pytest.raises(BridgeError) as caught:
        await collect(ListedUpstream(*pieces))
    assert caught.value.code is Code.ABORTED


async def test_break_after_the_whole_completion_is_no_failure():
    assert await collect(ListedUpstream(CHUNK, LAST, failure=LOST)) == ["hi", ""]


async def test_break_before_the_whole_completion_is_its_failure():
    with pytest.raises(BridgeError) as caught:
        await collect(ListedUpstream(CHUNK, failure=LOST))
    assert caught.value.reason_name == "UPSTREAM_DISCONNECTED"


async def test_stream_that_is_left_early_leaves_the_upstream():
    upstream = ListedUpstream(CHUNK, CHUNK, LAST)
    service = ChatCompletionService(upstream, UpstreamSettings())
    async with contextlib.aclosing(service.StreamChatCompletion(chat(), make_call())) as chunks:
        await anext(chunks)
    assert upstream.is_left
