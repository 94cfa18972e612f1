"""Heartbeats: empty messages on a silent stream, if the caller or the setting asks for them."""

import asyncio

import grpc
import pytest

from ollmbridge.v1.chat_completion_service_pb2 import StreamChatCompletionResponse
from tests.kit.client import chat, scenario
from tests.kit.upstreams import start_server
from tests.kit.waiting import WAIT_S

EMPTY = StreamChatCompletionResponse()
ASKS = (("ollmbridge-heartbeat-s", "1"),)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-ollm-gateway-version: raw\r\nconnection: close\r\n\r\n"
COMPLETION = b'data: {"choices": [{"delta": {"content": "You"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'


def count_empty(messages):
    return sum(message == EMPTY for message in messages)


async def test_silence_before_the_headers_and_between_chunks_is_filled(start_bridge):
    bridge = await start_bridge(heartbeat_s=0.1)
    answer = await bridge.ask(scenario("slow?delay_s=0.5&chunk_delay_s=0.5", max_tokens=1), stream=True)
    assert answer.failure is None
    assert answer.text == "You"
    first = next(index for index, message in enumerate(answer.messages) if message != EMPTY)
    assert first >= 1
    assert count_empty(answer.messages[first:]) >= 1
    assert answer.trailers["x-request-id"]  # the answer's head came behind the first heartbeat
    assert answer.trailers["x-ollm-gateway-version"] == "emulator"
    assert "x-request-id" not in answer.initial
    record = await bridge.records.next()
    assert (record.code, record.chunks) == ("OK", len(answer.messages) - count_empty(answer.messages))


async def test_headers_that_came_before_the_first_heartbeat_are_initial_metadata(start_bridge):
    has_heartbeat = asyncio.Event()

    async def serve(peer):
        await peer.read_request()
        await peer.write(HEAD)
        await has_heartbeat.wait()
        await peer.write(COMPLETION)

    async with start_server(serve) as upstream:
        bridge = await start_bridge(heartbeat_s=2, upstream={"base_url": upstream.url})
        call = bridge.stub.StreamChatCompletion(chat(), timeout=WAIT_S)
        assert await call.read() == EMPTY
        has_heartbeat.set()
        assert (await call.read()).choices[0].delta.content == "You"
        assert await call.read() is grpc.aio.EOF
        assert dict(await call.initial_metadata())["x-ollm-gateway-version"] == "raw"
        assert "x-ollm-gateway-version" not in dict(await call.trailing_metadata())


async def test_caller_asks_by_metadata(bridge):
    slow = scenario("slow?delay_s=1.5", max_tokens=1)
    answer = await bridge.ask(slow, stream=True, metadata=ASKS)
    assert (answer.failure, answer.text) == (None, "You")
    assert answer.messages[0] == EMPTY


async def test_nobody_gets_one_without_asking(bridge):
    answer = await bridge.ask(scenario("slow?delay_s=1.2", max_tokens=1), stream=True)
    assert (answer.failure, count_empty(answer.messages)) == (None, 0)


async def test_caller_turns_them_off_by_metadata(start_bridge):
    bridge = await start_bridge(heartbeat_s=0.1)
    never = (("ollmbridge-heartbeat-s", "0"),)
    answer = await bridge.ask(scenario("slow?delay_s=0.5", max_tokens=1), stream=True, metadata=never)
    assert (answer.failure, count_empty(answer.messages)) == (None, 0)


async def test_unary_call_has_none(start_bridge):
    bridge = await start_bridge(heartbeat_s=0.1)
    assert (await bridge.ask(scenario("slow?delay_s=0.5"))).failure is None


@pytest.mark.parametrize("stream", [False, True])
async def test_metadata_that_is_no_number_is_refused(bridge, emulator, stream):
    answer = await bridge.ask(chat(), stream=stream, metadata=(("ollmbridge-heartbeat-s", "often"),))
    assert answer.failure.verdict == ("INVALID_ARGUMENT", "INVALID_METADATA")
    assert not emulator.exchanges


async def test_timeout_behind_heartbeats_has_its_details(start_bridge):
    bridge = await start_bridge(heartbeat_s=0.1, upstream={"first_chunk_timeout_s": 1})
    answer = await bridge.ask(scenario("stall?headers=0"), stream=True)
    assert count_empty(answer.messages) == len(answer.messages) >= 2
    assert answer.failure.verdict == ("DEADLINE_EXCEEDED", "UPSTREAM_TIMEOUT")
    assert answer.failure.trailers["x-request-id"]


async def test_caller_that_cancels_amid_heartbeats_closes_the_upstream(start_bridge, emulator):
    bridge = await start_bridge(heartbeat_s=0.05)
    call = bridge.stub.StreamChatCompletion(scenario("stall?after=0"))
    assert await call.read() == EMPTY
    exchange = await emulator.next_exchange()
    call.cancel()
    await exchange.wait_closed()
    record = await bridge.records.next()
    assert (record.code, record.fault) == ("CANCELLED", None)


async def test_caller_that_reads_no_heartbeat_is_ended_by_the_write_timeout(start_bridge):
    """Heartbeats are small, so a caller that reads nothing is noticed by a chunk: both wait in turn, none is lost."""
    bridge = await start_bridge(heartbeat_s=0.05, write_stall_timeout_s=0.5)
    call = bridge.stub.StreamChatCompletion(scenario("many?chunks=20000&bytes=10000"), timeout=WAIT_S)
    assert await call.read() is not None
    record = await bridge.records.next()
    assert (record.code, record.reason, record.fault) == ("DEADLINE_EXCEEDED", "UPSTREAM_TIMEOUT", None)
    call.cancel()


async def test_many_chunks_and_heartbeats_come_in_their_order(start_bridge):
    bridge = await start_bridge(heartbeat_s=0.001)
    call = bridge.stub.StreamChatCompletion(scenario("pace?chunks=100&interval_ms=5"), timeout=WAIT_S)
    messages = []
    while (message := await call.read()) is not grpc.aio.EOF:
        messages.append(message)
        await asyncio.sleep(0)
    assert await call.code() is grpc.StatusCode.OK
    chunks = [message for message in messages if message != EMPTY]
    assert count_empty(messages) >= 1
    assert len(chunks) == (await bridge.records.next()).chunks
    assert chunks[-1].choices[0].finish_reason == "stop"
