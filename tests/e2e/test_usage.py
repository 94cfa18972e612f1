"""Usage of streams, asked for and hidden, and the end of a whole completion, across a whole bridge."""

import json

import pytest

from tests.kit.client import chat
from tests.kit.upstreams import Peer, serve_answers, start_server
from tests.kit.waiting import WAIT_S

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 16},
    "completion_tokens_details": {"reasoning_tokens": 3},
}


def render(*values: object) -> bytes:
    return b"".join(b"data: %b\n\n" % json.dumps(value).encode() for value in values)


def chunk(delta: dict, finish_reason: str | None = None, **fields: object) -> dict:
    return {"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}], **fields}


EVENTS = render(
    chunk({"role": "assistant", "content": ""}, usage=None),
    chunk({"content": "hi"}, usage=None),
    chunk({}, "stop", usage=None),
    {"id": "c", "choices": [], "usage": USAGE},
)


@pytest.mark.parametrize("asks", [False, True])
async def test_usage_is_in_the_record_and_only_for_a_caller_who_asks_in_the_stream(start_bridge, asks):
    body = EVENTS + b"data: [DONE]\n\n"
    async with serve_answers(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body) as server:
        bridge = await start_bridge(upstream={"base_url": server.url})
        request = chat(**({"stream_options": {"include_usage": True}} if asks else {}))
        answer = await bridge.ask(request, stream=True)
        record = await bridge.records.next()
    assert b'"include_usage":true' in server.requests[0]
    assert [message.HasField("usage") for message in answer.chunks] == [False, False, False, *[True] * asks]
    tokens = (record.prompt_tokens, record.cached_tokens, record.completion_tokens, record.reasoning_tokens)
    assert tokens == (20, 16, 5, 3)
    assert record.first_chunk_s <= record.first_token_s


@pytest.mark.parametrize("heartbeats", [False, True])
@pytest.mark.parametrize("asks", [False, True])
async def test_whole_completion_ends_although_its_upstream_stays_open(start_bridge, asks, heartbeats):
    async def serve(peer: Peer) -> None:
        await peer.read_request()
        await peer.write(HEAD + b"\r\n" + EVENTS)
        while heartbeats and not peer.writer.is_closing():
            await peer.write(b": ping\n\n", b": ping\n\n")
        await peer.read_to_end()

    async with start_server(serve) as server:
        bridge = await start_bridge(upstream={"base_url": server.url, "finish_grace_s": 0.05})
        request = chat(**({"stream_options": {"include_usage": True}} if asks else {}))
        answer = await bridge.ask(request, stream=True, timeout=WAIT_S)
        record = await bridge.records.next()
    assert len(answer.chunks) == 3 + asks
    assert record.stream_end == "whole"


@pytest.mark.parametrize(
    ("texts", "end"), [(["It is"], "whole"), (["It is", " certainly"], "UPSTREAM_TIMEOUT")], ids=["one chunk", "more"]
)
async def test_server_that_may_send_a_finish_reason_with_each_chunk_has_the_idle_timeout(start_bridge, texts, end):
    async def serve(peer: Peer) -> None:
        await peer.read_request()
        await peer.write(HEAD + b"\r\n" + render(*(chunk({"content": text}, "stop") for text in texts)))
        await peer.read_to_end()

    grace_s = WAIT_S * 2 if end == "whole" else 0.001  # what ends the call is not the grace
    async with start_server(serve) as server:
        upstream = {"base_url": server.url, "finish_grace_s": grace_s, "idle_timeout_s": 0.1}
        bridge = await start_bridge(upstream=upstream)
        answer = await bridge.ask(chat(), stream=True, timeout=WAIT_S)
        record = await bridge.records.next()
    assert (answer.text, record.stream_end) == ("".join(texts), end)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("header", ["retry-after: 7", "retry-after-ms: 7000"])
async def test_wait_beside_an_error_in_a_200_is_told(start_bridge, stream, header):
    error = {"error": {"message": "slow down", "code": 429}}
    body = render(error) if stream else json.dumps(error).encode()
    kind = "text/event-stream" if stream else "application/json"
    lines = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n{header}\r\ncontent-length: {len(body)}\r\n\r\n"
    async with serve_answers(lines.encode() + body) as server:
        bridge = await start_bridge(upstream={"base_url": server.url})
        answer = await bridge.ask(chat(), stream=stream)
    assert answer.failure.code == "RESOURCE_EXHAUSTED"
    assert answer.failure.details["RetryInfo"].retry_delay.ToMilliseconds() == 7000
    assert answer.failure.details["ErrorInfo"].metadata["httpStatus"] == "200"


async def test_one_request_id_is_used_everywhere_if_a_caller_sends_two(start_bridge):
    body = b"{}"
    async with serve_answers(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n" + body) as server:
        bridge = await start_bridge(upstream={"base_url": server.url})
        answer = await bridge.ask(chat(), metadata=(("x-request-id", "first"), ("x-request-id", "second")))
        record = await bridge.records.next()
    assert server.requests[0].count(b"x-request-id: ") == 1
    assert b"x-request-id: first\r\n" in server.requests[0]
    assert record.request_id == "first"
    assert answer.failure.details["RequestInfo"].request_id == "first"
    assert answer.trailers["x-request-id"] == "first"


@pytest.mark.parametrize("metadata", [(("x-request-id", "mine"),), ()], ids=["the caller's", "made here"])
@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
async def test_request_id_is_returned_although_the_gateway_returns_none(start_bridge, stream, metadata):
    choice = {"index": 0, "delta" if stream else "message": {"role": "assistant"}, "finish_reason": "stop"}
    body = render({"choices": [choice]}) if stream else json.dumps({"choices": [choice]}).encode()
    kind = "text/event-stream" if stream else "application/json"
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    async with serve_answers(head.encode() + body) as server:
        bridge = await start_bridge(upstream={"base_url": server.url})
        answer = await bridge.ask(chat(), stream=stream, metadata=metadata)
        record = await bridge.records.next()
    assert answer.failure is None
    assert (answer.initial if stream else answer.trailers)["x-request-id"] == record.request_id
    assert not metadata or record.request_id == "mine"


async def test_first_idempotency_key_is_sent(bridge, emulator):
    keys = (("idempotency-key", "k-1"), ("idempotency-key", "k-2"))
    assert (await bridge.ask(chat(), metadata=keys)).failure is None
    assert emulator.exchanges[0].headers["idempotency-key"] == "k-1"
