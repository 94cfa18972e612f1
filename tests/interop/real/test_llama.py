"""A bridge before llama-server alone: a gateway's API with another server's habits, and a cancel seen in its slots.

llama-server closes the connection right after every streamed reply and does not say so; such an upstream wants a
connection a call.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from ollmbridge.v1.chat_pb2 import ChatMessage, TokenLogprob
from tests.interop.real.clients import PROMPT, Caller, bridge, http_client, offer_tool, open_caller, start_caller, text
from tests.kit.real import servers

unary_and_streamed = pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])


@pytest.fixture
async def caller(llama_url: str) -> AsyncIterator[Caller]:
    async with start_caller(llama_url, keepalive_s=0) as caller:
        yield caller


# Completions


async def test_reply_is_what_llama_server_says_over_http(caller: Caller, llama_url: str):
    options = {"seed": 7, "temperature": 0, "max_tokens": 6}
    async with http_client() as http:
        raw = (await http.unary(llama_url, cache_prompt=False, logprobs=True, top_logprobs=2, **options)).json()
    reply = await caller.unary(extra_json={"cache_prompt": "false"}, logprobs=True, top_logprobs=2, **options)
    [choice], [raw_choice] = reply.choices, raw["choices"]
    assert (choice.message.role, choice.message.text) == ("assistant", raw_choice["message"]["content"])
    assert (choice.index, choice.finish_reason) == (raw_choice["index"], raw_choice["finish_reason"])
    assert not choice.extra_json
    assert list_tokens(choice.logprobs.content) == [
        (token["token"], token["bytes"], [each["token"] for each in token["top_logprobs"]])
        for token in raw_choice["logprobs"]["content"]
    ]
    assert (reply.object, reply.model, reply.system_fingerprint) == tuple(
        raw[key] for key in ("object", "model", "system_fingerprint")
    )
    assert {each.name: value for each, value in reply.usage.ListFields() if isinstance(value, int)} == {
        count: raw["usage"][count] for count in ("prompt_tokens", "completion_tokens", "total_tokens")
    }
    assert reply.usage.prompt_tokens_details.cached_tokens == 0
    assert reply.extra_json.keys() == {"timings"}
    assert json.loads(reply.extra_json["timings"]).keys() == raw["timings"].keys()
    assert not reply.HasField("episode_id")


def list_tokens(tokens: Iterable[TokenLogprob]) -> list[tuple[str, list[int], list[str]]]:
    return [(each.token, list(each.bytes), [top.token for top in each.top_logprobs]) for each in tokens]


async def test_stream_joined_is_the_unary_reply(caller: Caller):
    options = {"max_tokens": 12, "stream_options": {"include_usage": True}, "extra_json": {"cache_prompt": "false"}}
    unary, streamed = await caller.reply(stream=False, **options), await caller.reply(stream=True, **options)
    for reply in (unary, streamed):
        for name in ("id", "created", "extra_json"):
            reply.ClearField(name)
    assert streamed == unary


async def test_usage_on_a_chunk_without_choices_passes_after_the_finish(caller: Caller):
    *_, finish, usage = [chunk async for chunk in caller.stream(stream_options={"include_usage": True})]
    assert (finish.choices[0].finish_reason, finish.HasField("usage")) == ("length", False)
    assert (len(usage.choices), usage.usage.completion_tokens) == (0, 4)


@unary_and_streamed
async def test_two_choices_that_only_extra_json_can_ask_for(caller: Caller, *, stream: bool):
    reply = await caller.reply(stream=stream, extra_json={"n": "2"})
    assert [choice.index for choice in reply.choices] == [0, 1]
    assert {choice.finish_reason for choice in reply.choices} == {"length"}
    assert reply.choices[0].message == reply.choices[1].message


@unary_and_streamed
async def test_stop_ends_the_text(caller: Caller, *, stream: bool):
    reply = await caller.reply(stream=stream, stop=["hello"], max_tokens=60)
    assert (text(reply).strip(), reply.choices[0].finish_reason) == ("Say", "stop")


@unary_and_streamed
async def test_schema_binds_the_text_in_its_own_key_order(caller: Caller, *, stream: bool):
    schema = (
        '{"type": "object", "properties": {"zeta": {"type": "boolean"}, "alpha": {"enum": [1]}},'
        ' "required": ["zeta", "alpha"], "additionalProperties": false}'
    )
    format_ = {"json_schema": {"name": "answer", "schema_json": schema, "strict": True}}
    answer = json.loads(text(await caller.reply(stream=stream, response_format=format_, max_tokens=60)))
    assert list(answer) == ["zeta", "alpha"]


async def test_conversation_with_tools_and_parts_is_taken(caller: Caller):
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    reply = await caller.unary(
        tools=[offer_tool("get_weather")],
        tool_choice={"mode": "MODE_AUTO"},
        messages=[
            {"role": "system", "text": "Be brief."},
            {"role": "user", "parts": {"parts": [{"text": "Weather in "}, {"text": "Paris?"}]}},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "text": "21 degrees"},
        ],
    )
    assert reply.usage.completion_tokens == 4
    again = [ChatMessage(role="user", text=PROMPT), reply.choices[0].message, ChatMessage(role="user", text=PROMPT)]
    assert text(await caller.unary(messages=again))


async def test_calls_after_a_stream_get_a_connection_of_their_own(caller: Caller):
    for _ in range(5):
        assert await caller.reply(stream=True, max_tokens=1)
        assert await caller.reply(stream=False, max_tokens=1)


# Refusals

REFUSED: dict[str, tuple[dict[str, Any], tuple[str, str], int, str, dict[str, str]]] = {
    "too-long": (
        {"messages": [{"role": "user", "text": "hello " * 2 * servers.CONTEXT_TOKENS}]},
        ("INVALID_ARGUMENT", "UPSTREAM_INVALID_REQUEST"),
        400,
        "exceed_context_size_error",
        {"n_ctx": str(servers.CONTEXT_TOKENS), "n_prompt_tokens": "2072"},
    ),
    "schema-bad": (
        {"response_format": {"json_schema": {"name": "x", "schema_json": '{"type": "nope"}'}}},
        ("INVALID_ARGUMENT", "UPSTREAM_INVALID_REQUEST"),
        400,
        "invalid_request_error",
        {},
    ),
    "choices-too-many": (
        {"extra_json": {"n": "9"}},
        ("INVALID_ARGUMENT", "UPSTREAM_INVALID_REQUEST"),
        400,
        "invalid_request_error",
        {},
    ),
    "image": (
        {"messages": [{"role": "user", "parts": {"parts": [{"image_url": {"url": "data:,x"}}]}}]},
        ("INTERNAL", "UPSTREAM_INTERNAL"),
        500,
        "server_error",
        {},
    ),
}


@unary_and_streamed
@pytest.mark.parametrize(("fields", "verdict", "http_status", "kind", "others"), REFUSED.values(), ids=REFUSED.keys())
async def test_refusal_has_the_whole_envelope(
    caller: Caller,
    fields: Any,
    verdict: tuple[str, str],
    http_status: int,
    kind: str,
    others: dict[str, str],
    *,
    stream: bool,
):
    failure = await caller.failure(stream=stream, **fields)
    assert (failure.verdict, failure.info.domain) == (verdict, "upstream.ollmbridge")
    # llama-server's code is the HTTP status, a number.
    assert (failure.upstream.http_status, failure.upstream.code) == (http_status, str(http_status))
    assert (failure.upstream.type, dict(failure.upstream.extra_json)) == (kind, others)
    assert failure.upstream.message == failure.message
    assert dict(failure.info.metadata) == {
        "httpStatus": str(http_status),
        "upstreamCode": str(http_status),
        "upstreamType": kind,
    }


# Callers that disconnect

# Of 10 s and more, if it is let.
LONG = {"max_tokens": 900}


@pytest.mark.parametrize("leave", ["call", "reader", "channel"])
async def test_stream_that_its_caller_cancels_frees_its_slot(caller: Caller, slots: servers.Gauge, leave: str):
    call = caller.stream(**LONG)
    chunks = aiter(call)
    await anext(chunks)
    assert await slots.read() == 1
    match leave:
        case "call":
            assert call.cancel()
        case "reader":
            # A task that waits for the next chunk, and is cancelled by whoever started it.
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await anext(chunks)
        case "channel":
            await caller.channel.close()
    assert await slots.wait_until(0) < 5


async def test_stream_whose_deadline_passes_frees_its_slot(caller: Caller, slots: servers.Gauge):
    failure = await caller.failure(stream=True, timeout_s=2, **LONG)
    assert failure.code == "DEADLINE_EXCEEDED"
    assert failure.chunks
    assert await slots.wait_until(0) < 5


async def test_bridge_that_shuts_down_frees_the_slot_and_sends_a_status(llama_url: str, slots: servers.Gauge):
    async with AsyncExitStack() as running:
        address = await running.enter_async_context(bridge(llama_url, keepalive_s=0))
        async with open_caller(address) as caller:
            call = asyncio.create_task(caller.failure(stream=True, **LONG))
            await slots.wait_until(1)
            await running.aclose()
            failure = await call
    assert failure.verdict == ("ABORTED", "DRAINING")
    assert await slots.wait_until(0) < 5
