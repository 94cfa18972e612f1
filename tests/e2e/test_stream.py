"""Successful streams over real sockets."""

import asyncio
import json

import grpc
import pytest

from ollmbridge.v1.chat_pb2 import FunctionTool, StreamOptions, Tool, ToolChoice
from ollmbridge.v1.ollm_options_pb2 import OllmOptions
from tests.kit.client import chat, scenario
from tests.kit.waiting import eventually
from tests.kit.windows import wait_for_backpressure

TEXT = "You said: hello there"
USAGE = StreamOptions(include_usage=True)


async def test_each_delta_is_a_chunk_and_the_last_one_has_the_finish_reason(bridge, emulator):
    chunks = (await bridge.ask(chat(), stream=True)).chunks
    assert emulator.exchanges[0].json["stream"] is True
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["", "You", " said:", " hello", " there", ""]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert not chunks[1].choices[0].delta.HasField("role")
    assert [chunk.choices[0].finish_reason for chunk in chunks] == ["", "", "", "", "", "stop"]
    assert not chunks[0].choices[0].HasField("finish_reason")
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1


FORMS = (
    "crlf",
    "cr",
    "bom",
    "multiline",
    "split?size=1",
    "split?size=7",
    "comments?every=0.001",
    "no_done",
    "gzip",
    "usage_chunk",
    "slow?delay_s=0.02&chunk_delay_s=0.005",
    "header_flood?count=40&size=50",
)


@pytest.mark.parametrize("name", FORMS)
async def test_stream_in_another_valid_form_gives_the_same_chunks(bridge, name):
    answer = await bridge.ask(scenario(name, stream_options=USAGE), stream=True)
    assert [chunk.choices[0].delta.content for chunk in answer.chunks if chunk.choices][:5] == [
        "",
        "You",
        " said:",
        " hello",
        " there",
    ]
    assert [chunk.usage.total_tokens for chunk in answer.chunks if chunk.HasField("usage")] == [6]
    record = await bridge.records.next()
    assert (record.code, record.prompt_tokens, record.completion_tokens) == ("OK", 2, 4)
    assert record.chunks == len(answer.chunks)


async def test_usage_comes_in_a_chunk_of_its_own_or_in_the_last_one(bridge):
    own = (await bridge.ask(scenario("usage_chunk", stream_options=USAGE), stream=True)).chunks
    assert [(len(chunk.choices), chunk.HasField("usage")) for chunk in own[-2:]] == [(1, False), (0, True)]
    last = (await bridge.ask(scenario("plain", stream_options=USAGE), stream=True)).chunks
    assert [(len(chunk.choices), chunk.HasField("usage")) for chunk in last[-2:]] == [(1, False), (1, True)]


async def test_usage_is_requested_if_raw_usage_needs_it(bridge, emulator):
    chunks = (await bridge.ask(chat(ollm=OllmOptions(include_raw_usage=True)), stream=True)).chunks
    assert emulator.exchanges[0].json["stream_options"] == {"include_usage": True}
    raw = [json.loads(chunk.raw_usage_json) for chunk in chunks if chunk.HasField("raw_usage_json")]
    assert raw[0][0]["data"]["total_tokens"] == 6


async def test_raw_chunks_are_returned_without_their_envelope(bridge):
    chunks = (await bridge.ask(chat(ollm=OllmOptions(include_raw_response=True)), stream=True)).chunks
    raw = [json.loads(chunk.raw_chunk_json) for chunk in chunks if chunk.HasField("raw_chunk_json")]
    assert [each["choices"][0]["delta"]["content"] for each in raw] == ["", "You", " said:", " hello", " there"]


async def test_tool_call_fragments_are_passed_on_unchanged(bridge):
    parameters = '{"properties":{"city":{"type":"string"},"days":{"type":"integer"}},"required":["days"]}'
    tools = [Tool(function=FunctionTool(name=name, parameters_json=parameters)) for name in ("one", "two")]
    request = chat(tools=tools, tool_choice=ToolChoice(mode=ToolChoice.MODE_REQUIRED), parallel_tool_calls=True)
    chunks = (await bridge.ask(request, stream=True)).chunks
    fragments = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls]
    for index, name in enumerate(("one", "two")):
        first, *others = [call for call in fragments if call.index == index]
        assert (first.id, first.type, first.function.name) == (f"call_{index + 1}", "function", name)
        assert others
        assert not any(call.HasField("id") for call in others)  # null is unset
        assert all(call.function.HasField("name") and not call.function.name for call in others)  # "" is ""
        assert json.loads("".join(call.function.arguments for call in others)) == {"city": "Paris", "days": 0}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("key", "read"),
    {
        "reasoning_content": lambda delta: delta.reasoning_content,
        "reasoning": lambda delta: delta.reasoning,
        "thoughts": lambda delta: json.loads(delta.extra_json.get("thoughts", '""')),
    }.items(),
)
async def test_reasoning_keeps_its_key(bridge, key, read):
    chunks = (await bridge.ask(scenario(f"reasoning?key={key}"), stream=True)).chunks
    assert "".join(read(chunk.choices[0].delta) for chunk in chunks) == "Let me think about it."


async def test_two_choices_and_logprobs_are_returned(bridge):
    chunks = (await bridge.ask(scenario("two_choices"), stream=True)).chunks
    assert all([choice.index for choice in chunk.choices] == [0, 1] for chunk in chunks)
    chunks = (await bridge.ask(scenario("logprobs"), stream=True)).chunks
    (token,) = chunks[1].choices[0].logprobs.content
    assert (token.token, token.logprob, bytes(token.bytes)) == ("You", -0.25, b"You")
    assert not chunks[0].choices[0].HasField("logprobs")  # it came as null


async def test_unknown_keys_keep_their_spelling_in_every_chunk(bridge):
    for chunk in (await bridge.ask(scenario("unknown_fields", stream_options=USAGE), stream=True)).chunks:
        levels = [chunk, chunk.choices[0], chunk.choices[0].delta, *([chunk.usage] if chunk.HasField("usage") else [])]
        for level in levels:
            assert level.extra_json["x_big"] == "9007199254740993"
            assert level.extra_json["x_price"] == "1.10"
            assert level.extra_json["x_exponent"] == "1e2"
            assert level.extra_json["x_nested"] == '{"z":[1.0,null,{"b":-0,"a":"\\u00e9"}],"a":true}'
            assert "x_null" not in level.extra_json


async def test_values_of_a_wrong_type_are_returned_as_json_and_do_not_end_the_stream(bridge):
    answer = await bridge.ask(scenario("misfit"), stream=True)
    assert answer.text == TEXT
    assert answer.chunks[0].extra_json["id"] == "12"
    assert answer.chunks[0].choices[0].delta.extra_json["role"] == "false"


async def test_lone_surrogates_become_replacement_characters(bridge):
    assert (await bridge.ask(scenario("surrogate"), stream=True)).text == "cut \ufffd\ufffd whole" + TEXT


async def test_event_of_six_megabytes_is_returned(start_bridge):
    bridge = await start_bridge(channel={"grpc.max_receive_message_length": -1})
    answer = await bridge.ask(scenario("huge_event?size=6000000"), stream=True)
    assert len(answer.chunks[0].choices[0].delta.content) == 6_000_000


async def test_ten_thousand_chunks_are_returned_whole_and_in_order(bridge, emulator):
    answer = await bridge.ask(scenario("many?chunks=10000&bytes=20"), stream=True)
    assert len(answer.chunks) == 10_002
    assert len(answer.text) == 200_000
    assert emulator.exchanges[0].events_sent == 10_003


async def test_done_alone_ends_a_stream_if_the_settings_allow_it(start_bridge):
    bridge = await start_bridge(upstream={"require_finish_reason": False})
    answer = await bridge.ask(scenario("done_only"), stream=True)
    assert answer.chunks == []
    assert answer.trailers["x-ollm-gateway-version"] == "emulator"  # the headers come with a chunk, if there is one
    assert (await bridge.ask(scenario("no_finish"), stream=True)).text == TEXT


async def test_times_are_trailers_and_headers_are_initial_metadata(bridge):
    metadata = (("x-request-id", "mine"),)
    answer = await bridge.ask(scenario("slow?delay_s=0.03&chunk_delay_s=0.01"), stream=True, metadata=metadata)
    assert answer.initial["x-request-id"] == "mine"
    assert answer.initial["x-ratelimit-limit-requests"] == "1000"
    first_ms, whole_ms = (float(answer.trailers[f"ollmbridge-{name}-ms"]) for name in ("first-chunk", "upstream"))
    assert 30 <= first_ms < whole_ms
    assert whole_ms >= 70


async def test_initial_metadata_comes_with_the_first_chunk_and_not_before(bridge, emulator):
    silent = bridge.stub.StreamChatCompletion(scenario("stall?after=0"))
    initial_metadata = asyncio.create_task(silent.initial_metadata())
    exchange = await emulator.next_exchange()
    await eventually(lambda: exchange.status == 200)
    call = bridge.stub.StreamChatCompletion(scenario("stall?after=1"))
    await call.initial_metadata()
    assert await call.read() is not grpc.aio.EOF
    assert not initial_metadata.done()
    silent.cancel()
    call.cancel()
    await asyncio.wait([initial_metadata])
    for exchange in emulator.exchanges:
        await exchange.wait_closed()


@pytest.mark.parametrize("chunks", [1, 2, 4])
async def test_chunk_is_passed_on_before_the_next_event(bridge, emulator, chunks):
    call = bridge.stub.StreamChatCompletion(scenario(f"stall?after={chunks}"))
    for _ in range(chunks):
        assert await call.read() is not grpc.aio.EOF
    exchange = await emulator.next_exchange()
    assert (exchange.events_sent, exchange.finished) == (chunks, False)
    call.cancel()
    await exchange.wait_closed()


async def test_reader_that_stops_reading_stops_the_gateway(bridge, emulator):
    call = bridge.stub.StreamChatCompletion(scenario("many?chunks=100000&bytes=1000"))
    await call.read()
    exchange = await emulator.next_exchange()
    sent = await wait_for_backpressure(exchange)
    assert sent < 30_000  # of 100 MB, the buffers take at most these
    for _ in range(sent + 1000):
        assert await call.read() is not grpc.aio.EOF
    assert exchange.events_sent > sent
    call.cancel()
    await exchange.wait_closed()


async def test_fifty_concurrent_streams_do_not_mix(bridge, emulator):
    answers = await asyncio.gather(*(bridge.ask(chat(f"number {number}"), stream=True) for number in range(50)))
    assert [answer.text for answer in answers] == [f"You said: number {number}" for number in range(50)]
    assert emulator.connections_opened <= 50
