"""Tests of bridge/server/service.py: the main path against an upstream that is a list of bytes."""

import contextlib
import threading
from collections.abc import AsyncIterator

import pytest

from bridge.core.errors import Asked, BridgeError, Code, Resource
from bridge.server import service
from bridge.server.call import RpcCall
from bridge.server.service import ChatCompletionService
from bridge.settings import UpstreamSettings
from bridge.upstream.call import UpstreamCall
from ollmbridge.v1 import error_details_pb2 as details_pb2
from tests.kit.client import chat
from tests.unit.server.fake_rpc import FakeRpc

CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}\n\n'
LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
LOST = BridgeError(Code.ABORTED, details_pb2.ERROR_REASON_UPSTREAM_DISCONNECTED, "the connection was lost")


class Events:
    """What a streamed body is to the service, and its limits, of which `outputs` counts what it is told."""

    def __init__(self, pieces: list[bytes], failure: BridgeError | None, *, is_open: bool) -> None:
        self._pieces = pieces
        self._failure = failure
        self._is_open = is_open
        self.failure: BridgeError | None = None
        self.has_ended = False

        self.limits: list[tuple[float, bool] | None] = []
        self.waits = self
        self.has_output_limit = False
        self.outputs = 0

    def note_output(self) -> None:
        self.outputs += 1

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece
        self.failure = self._failure
        self.has_ended = self.failure is None and not self._is_open

    def end_within(self, limit_s: float, *, anew: bool) -> None:
        self.limits.append((limit_s, anew))

    def keep_open(self) -> None:
        self.limits.append(None)


class ListedUpstream:
    """An upstream that answers with these bytes. `bodies` are the requests, `is_left` whether the stream was left.

    `is_open`: the body does not end, but the time that the service gives it.
    """

    def __init__(self, *pieces: bytes, failure: BridgeError | None = None, is_open: bool = False) -> None:
        self.is_open = is_open
        self.pieces = list(pieces)
        self.failure = failure
        self.bodies: list[bytes] = []
        self.events: Events | None = None
        self.has_output_limit = False
        self.is_left = False

    async def complete(self, body: bytes, _call: UpstreamCall) -> bytes:
        self.bodies.append(body)
        return b"".join(self.pieces)

    @contextlib.asynccontextmanager
    async def stream(self, body: bytes, _call: UpstreamCall) -> AsyncIterator[Events]:
        self.bodies.append(body)
        try:
            self.events = Events(self.pieces, self.failure, is_open=self.is_open)
            self.events.has_output_limit = self.has_output_limit
            yield self.events
        finally:
            self.is_left = True


def make_call() -> RpcCall:
    return RpcCall(FakeRpc(b""), (), None)


async def stream(upstream: ListedUpstream, *, call: RpcCall | None = None, request=None, **settings):
    served = ChatCompletionService(upstream, UpstreamSettings(**settings))
    chunks = served.StreamChatCompletion(request or chat(), call or make_call())
    return [chunk async for chunk in chunks]


async def collect(upstream: ListedUpstream) -> list[str]:
    return [chunk.choices[0].delta.content for chunk in await stream(upstream)]


async def test_unary_call_is_one_request_and_its_reply():
    upstream = ListedUpstream(
        b'{"choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}'
    )
    reply = await ChatCompletionService(upstream, UpstreamSettings()).CreateChatCompletion(chat(), make_call())
    assert reply.choices[0].message.text == "hi"
    assert b'"stream"' not in upstream.bodies[0]


async def test_call_learns_of_model_and_usage():
    upstream = ListedUpstream(
        b'{"choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}],'
        b'"usage":{"prompt_tokens":3}}'
    )
    call = make_call()
    await ChatCompletionService(upstream, UpstreamSettings(), own_key=True).CreateChatCompletion(chat(), call)
    assert (call.model, call.usage.prompt_tokens) == ("echo", 3)
    assert call.upstream.asked == Asked(Resource("model", "echo"), own_key=True)


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


async def test_event_that_has_come_in_part_as_the_time_for_the_end_is_over_is_no_chunk():
    assert await collect(ListedUpstream(CHUNK, LAST, CHUNK[:-2], is_open=True)) == ["hi", ""]


async def test_break_before_the_whole_completion_is_its_failure():
    with pytest.raises(BridgeError) as caught:
        await collect(ListedUpstream(CHUNK, failure=LOST))
    assert caught.value.reason_name == "UPSTREAM_DISCONNECTED"


async def test_stream_that_is_left_early_leaves_the_upstream():
    upstream = ListedUpstream(CHUNK, CHUNK, LAST)
    served = ChatCompletionService(upstream, UpstreamSettings())
    async with contextlib.aclosing(served.StreamChatCompletion(chat(), make_call())) as chunks:
        await anext(chunks)
    assert upstream.is_left


USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
ASKS = {"stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    ("mode", "fields", "is_added"),
    [("always", {}, True), ("always", ASKS, False), ("asked", {}, False), ("asked", ASKS, False)],
)
async def test_usage_is_asked_for_and_hidden_from_a_caller_who_did_not_ask(mode, fields, is_added):
    upstream = ListedUpstream(CHUNK, LAST, USAGE, DONE)
    call = make_call()
    chunks = await stream(upstream, call=call, request=chat(**fields), stream_usage=mode)
    assert (b'"include_usage":true' in upstream.bodies[0]) is (is_added or fields == ASKS)
    assert any(chunk.HasField("usage") for chunk in chunks) is not is_added
    assert len(chunks) == call.stream.chunks == (2 if is_added else 3)
    assert call.usage.prompt_tokens == 3


PING = b": ping\n\n"
EMPTY = b'data: {"choices":[]}\n\n'
TEXT_LAST = CHUNK.replace(b"null", b'"stop"')


@pytest.mark.parametrize(
    ("fields", "pieces", "limits"),
    [
        ({}, [CHUNK, LAST, PING, EMPTY], [None, (2, True), (2, False), (2, False)]),
        ({}, [CHUNK, LAST, USAGE], [None, (2, True), (2, False)]),
        (ASKS, [CHUNK, LAST, PING, USAGE, PING], [None, (9, True), (9, False), (2, False), (2, False)]),
        ({}, [CHUNK, LAST, CHUNK, PING, LAST], [None, (2, True), None, None, None]),
        ({}, [CHUNK, LAST, CHUNK.replace(b'"index":0', b'"index":1'), PING], [None, (2, True), None, None]),
        ({}, [LAST, PING, USAGE, PING], [(9, True), (9, False), (2, False), (2, False)]),
        ({}, [LAST, CHUNK, PING], [(9, True), None, None]),
        ({}, [CHUNK, TEXT_LAST, PING], [None, (2, True), (2, False)]),
    ],
    ids=[
        "heartbeats",
        "usage",
        "usage that is asked for",
        "text goes on",
        "another choice",
        "finish_reason in the first chunk, then usage",
        "finish_reason in the first chunk, then text",
        "finish_reason beside the last text",
    ],
)
async def test_whole_completion_bounds_the_wait_for_its_end(fields, pieces, limits):
    upstream = ListedUpstream(*pieces)
    with contextlib.suppress(BridgeError):
        await stream(upstream, request=chat(**fields), finish_grace_s=2, idle_timeout_s=9)
    assert upstream.events.limits == limits


@pytest.mark.parametrize(("has_limit", "outputs"), [(True, 2), (False, 1)])
async def test_each_output_is_told_if_it_has_a_limit(has_limit, outputs):
    upstream = ListedUpstream(EMPTY, CHUNK, PING, CHUNK, EMPTY, LAST, DONE)
    upstream.has_output_limit = has_limit
    await stream(upstream)
    assert upstream.events.outputs == outputs


def thread_names(function):
    """Return a list to which the name of the thread is added with each call, and the function that does so."""
    names = []

    def call(*args, **kwargs):
        names.append(threading.current_thread() is threading.main_thread())
        return function(*args, **kwargs)

    return names, call


@pytest.mark.parametrize(("size", "is_here"), [(1000, True), (300_000, False)])
async def test_large_answer_is_decoded_in_a_thread(size, is_here, monkeypatch):
    names, call = thread_names(service.decode_reply)
    monkeypatch.setattr(service, "decode_reply", call)
    body = b'{"choices":[{"message":{"role":"a","content":"%b"},"finish_reason":"stop"}]}' % (b"x" * size)
    upstream = ListedUpstream(body)
    reply = await ChatCompletionService(upstream, UpstreamSettings()).CreateChatCompletion(chat(), make_call())
    assert len(reply.choices[0].message.text) == size
    assert names == [is_here]


@pytest.mark.parametrize("ends", [True, False], ids=["with its last bytes", "later"])
async def test_large_event_is_delivered_in_its_order(ends):
    text = b"x" * 400_000
    large = CHUNK.replace(b"hi", text)
    cut = [large[at : at + 16_000] for at in range(0, len(large), 16_000)]
    upstream = ListedUpstream(CHUNK, *cut[:-1], cut[-1] + CHUNK if ends else cut[-1], CHUNK, LAST, DONE)
    found = await collect(upstream)
    assert [len(each) for each in found] == [2, len(text), *[2] * (1 + ends), 0]


async def test_large_event_that_is_an_error_fails_the_call():
    large = b'data: {"error":{"message":"no","x":"%b"}}\n\n' % (b"x" * 400_000)
    with pytest.raises(BridgeError) as caught:
        await collect(ListedUpstream(CHUNK, large[:-5], large[-5:]))
    assert (caught.value.message, caught.value.upstream.chunks_delivered) == ("no", 1)
