"""A bridge in front of llmock, which fails on demand: the status of each failure, and OK only for a whole stream.

llmock records each request's body, and whether its client stayed to the end. A bridge sends one request per call.
"""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from ollmbridge.v1.chat_pb2 import ChatMessage
from tests.interop.real.clients import Caller, http_client, offer_tool, start_caller, text
from tests.kit.real.servers import LLMOCK_STATUSES, Llmock
from tests.kit.status_table import find_verdict

unary_and_streamed = pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])

FIVE_WORDS = {"type": "reply", "text": "one two three four five"}


@pytest.fixture
async def caller(llmock: Llmock) -> AsyncIterator[Caller]:
    async with start_caller(llmock.url) as caller:
        yield caller


# Refusals


@unary_and_streamed
@pytest.mark.parametrize("status", LLMOCK_STATUSES)
async def test_http_status_becomes_a_code_and_a_reason_at_the_first_attempt(
    caller: Caller, llmock: Llmock, status: int, *, stream: bool
):
    await llmock.scenario({"type": "fail", "status": status, "message": "No such luck.", "code": "as_told"})
    failure = await caller.failure(stream=stream)
    assert failure.verdict == find_verdict(status, has_envelope=True)
    upstream = failure.upstream
    assert (upstream.http_status, upstream.message, upstream.code) == (status, "No such luck.", "as_told")
    assert (failure.message, upstream.truncated, failure.chunks) == ("No such luck.", False, [])
    assert dict(failure.info.metadata) == {
        "httpStatus": str(status),
        "upstreamType": upstream.type,
        "upstreamCode": "as_told",
    }
    [request] = await llmock.requests()
    assert (request["status"], request["completed"]) == (status, True)


async def test_quota_that_is_spent_is_named(caller: Caller, llmock: Llmock):
    await llmock.scenario({"type": "fail", "status": 429, "code": "insufficient_quota"})
    failure = await caller.failure(stream=False)
    assert failure.verdict == ("RESOURCE_EXHAUSTED", "UPSTREAM_RATE_LIMITED")
    [violation] = failure.details["QuotaFailure"].violations
    assert violation.subject == "insufficient_quota"


async def test_key_in_an_upstreams_words_is_struck_out(caller: Caller, llmock: Llmock):
    await llmock.scenario({"type": "fail", "status": 401, "message": "Incorrect API key provided: sk-ollm-a1b2c3d4."})
    failure = await caller.failure(stream=False)
    assert "a1b2c3d4" not in repr(failure)
    assert failure.message.startswith("Incorrect API key provided: sk-")


@unary_and_streamed
async def test_message_too_long_for_trailers_is_cut_and_says_so(caller: Caller, llmock: Llmock, *, stream: bool):
    await llmock.scenario({"type": "fail", "status": 400, "message": "橋" * 20_000})
    failure = await caller.failure(stream=stream)
    assert failure.verdict == find_verdict(400, has_envelope=True)
    assert (failure.message.strip("橋"), len(failure.message) > 100) == ("", True)
    assert (failure.upstream.message.strip("橋"), failure.upstream.truncated) == ("", True)


# How long to wait

WAITS = {
    # llmock sends both headers: Retry-After in whole seconds, and retry-after-ms as configured.
    "seconds": (2, 2000, "2000"),
    "fraction": (0.25, 250, "250"),
    "long": (120, 120_000, "-1"),
}


@unary_and_streamed
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(("retry_after", "delay_ms", "pushback"), WAITS.values(), ids=WAITS.keys())
async def test_retry_after_becomes_retry_info_and_pushback(
    caller: Caller, llmock: Llmock, status: int, retry_after: float, delay_ms: int, pushback: str, *, stream: bool
):
    await llmock.scenario({"type": "fail", "status": status, "retry_after": retry_after})
    failure = await caller.failure(stream=stream)
    assert failure.verdict == find_verdict(status, has_envelope=True)
    assert failure.details["RetryInfo"].retry_delay.ToMilliseconds() == delay_ms
    assert failure.pushback_ms == pushback
    assert failure.trailers["retry-after"]
    assert len(await llmock.requests()) == 1


RETRYING = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.01s",
                "maxBackoff": "0.01s",
                "backoffMultiplier": 1,
                "retryableStatusCodes": ["RESOURCE_EXHAUSTED", "UNAVAILABLE"],
            },
        }
    ]
}


@unary_and_streamed
@pytest.mark.parametrize("status", [429, 503])
async def test_client_with_a_retry_policy_waits_for_the_pushback(llmock: Llmock, status: int, *, stream: bool):
    await llmock.scenario({"type": "fail", "status": status, "retry_after": 0.4}, FIVE_WORDS)
    async with start_caller(llmock.url, service_config=RETRYING) as caller:
        assert text(await caller.reply(stream=stream)) == FIVE_WORDS["text"]
    first, second = await llmock.requests()
    assert second["started_at"] - first["ended_at"] >= 0.4
    verdict = await llmock.verdict()
    assert (verdict["passed"], verdict["findings"]) == (True, [])


async def test_client_that_retries_by_itself_does_not_where_the_wait_is_long(llmock: Llmock):
    await llmock.scenario({"type": "fail", "status": 429, "retry_after": 120})
    async with start_caller(llmock.url, service_config=RETRYING) as caller:
        failure = await caller.failure(stream=False)
    assert failure.verdict == find_verdict(429, has_envelope=True)
    assert len(await llmock.requests()) == 1


@pytest.mark.parametrize("kind", ["disconnect", "truncate", "malformed"])
async def test_client_that_retries_by_itself_does_not_where_a_completion_may_have_run(llmock: Llmock, kind: str):
    await llmock.scenario(FIVE_WORDS, {"type": "stream_fault", "kind": kind, "after_chunks": 0})
    async with start_caller(llmock.url, service_config=RETRYING) as caller:
        assert (await caller.failure(stream=True)).verdict == BROKEN[kind][0]
    assert len(await llmock.requests()) == 1


# When a stream is whole

DISCONNECTED = ("ABORTED", "UPSTREAM_DISCONNECTED")
INCOMPLETE = ("ABORTED", "INCOMPLETE_COMPLETION")
INVALID = ("INTERNAL", "INVALID_UPSTREAM_RESPONSE")

BROKEN: dict[str, tuple[tuple[str, str], str]] = {
    "disconnect": (DISCONNECTED, "connection to the gateway was lost"),
    "truncate": (INCOMPLETE, "the completion is incomplete"),
    "malformed": (INVALID, "expected a JSON object in event"),
}

# A role, five words, a finish.
CHUNKS = 7


@pytest.mark.parametrize("after_chunks", range(CHUNKS))
@pytest.mark.parametrize(("kind", "case"), BROKEN.items(), ids=BROKEN.keys())
async def test_stream_that_breaks_before_its_finish_is_never_ok(
    caller: Caller, llmock: Llmock, kind: str, case: tuple[tuple[str, str], str], after_chunks: int
):
    verdict, words = case
    await llmock.scenario(FIVE_WORDS, {"type": "stream_fault", "kind": kind, "after_chunks": after_chunks})
    failure = await caller.failure(stream=True)
    assert (failure.verdict, failure.info.domain) == (verdict, "ollmbridge")
    assert words in failure.message
    # All that came before has been delivered, and nothing after.
    delivered = ["", "one ", "two ", "three ", "four ", "five", ""][:after_chunks]
    assert [chunk.choices[0].delta.content for chunk in failure.chunks] == delivered
    assert (failure.upstream.http_status, failure.upstream.chunks_delivered) == (200, after_chunks)
    assert len(await llmock.requests()) == 1


@pytest.mark.parametrize("kind", BROKEN.keys())
@pytest.mark.parametrize("include_usage", [False, True], ids=["finish-last", "usage-last"])
async def test_stream_that_breaks_after_its_finish_is_whole(
    caller: Caller, llmock: Llmock, kind: str, *, include_usage: bool
):
    after_chunks = CHUNKS + include_usage
    await llmock.scenario(FIVE_WORDS, {"type": "stream_fault", "kind": kind, "after_chunks": after_chunks})
    fields = {"stream_options": {"include_usage": include_usage}}
    reply = await caller.reply(stream=True, **fields)
    assert (text(reply), reply.choices[0].finish_reason) == (FIVE_WORDS["text"], "stop")
    assert reply.HasField("usage") == include_usage
    assert len(await llmock.requests()) == 1


async def test_whatever_came_before_the_connection_broke_is_delivered(caller: Caller, llmock: Llmock):
    # Whether the loss is seen while a chunk is being written is chance: so many times.
    for _ in range(30):
        await llmock.scenario(FIVE_WORDS, {"type": "stream_fault", "kind": "disconnect", "after_chunks": CHUNKS + 1})
        reply = await caller.reply(stream=True, stream_options={"include_usage": True})
        assert (text(reply), reply.usage.completion_tokens) == (FIVE_WORDS["text"], 5)


# Time, and callers that disconnect

STALL = {"type": "stream_fault", "kind": "stall", "after_chunks": 2, "stall_seconds": 30}


async def test_silence_on_an_open_stream_is_ended_by_the_bridge(llmock: Llmock):
    await llmock.scenario(FIVE_WORDS, {**STALL, "after_chunks": 3})
    async with start_caller(llmock.url, idle_timeout_s=1) as caller:
        failure = await caller.failure(stream=True)
    assert failure.verdict == ("DEADLINE_EXCEEDED", "UPSTREAM_TIMEOUT")
    assert (len(failure.chunks), failure.upstream.chunks_delivered) == (3, 3)
    await check_disconnected(llmock)


async def test_stream_that_does_not_begin_is_ended_by_the_bridge(llmock: Llmock):
    await llmock.scenario({"type": "slow_first_token", "seconds": 30})
    async with start_caller(llmock.url, first_chunk_timeout_s=0.3) as caller:
        failure = await caller.failure(stream=True)
    assert (failure.verdict, failure.chunks) == (("DEADLINE_EXCEEDED", "UPSTREAM_TIMEOUT"), [])


async def check_disconnected(llmock: Llmock) -> None:
    """Check that the client of the one request disconnected while it stalled."""
    [request] = await llmock.requests()
    assert (request["completed"], (request["stall_waited"] or 0) < 5) == (False, True)


async def test_stream_that_stalls_closes_when_its_caller_cancels(caller: Caller, llmock: Llmock):
    await llmock.scenario(FIVE_WORDS, STALL)
    call = caller.stream()
    chunks = aiter(call)
    # They have come, though the rest has not.
    assert [(await anext(chunks)).choices[0].delta.content for _ in range(2)] == ["", "one "]
    assert call.cancel()
    await check_disconnected(llmock)


async def test_stream_that_stalls_closes_at_its_callers_deadline(caller: Caller, llmock: Llmock):
    await llmock.scenario(STALL)
    failure = await caller.failure(stream=True, timeout_s=2)
    assert (failure.code, len(failure.chunks)) == ("DEADLINE_EXCEEDED", 2)
    await check_disconnected(llmock)


async def test_stall_shorter_than_the_idle_timeout_is_waited_out(caller: Caller, llmock: Llmock):
    await llmock.scenario(FIVE_WORDS, {**STALL, "stall_seconds": 0.2})
    assert text(await caller.reply(stream=True)) == FIVE_WORDS["text"]


# What passes


async def test_request_arrives_as_it_is_meant(caller: Caller, llmock: Llmock):
    image = {"url": "https://example.com/a.png", "detail": "low"}
    await caller.unary(
        messages=[
            {"role": "system", "text": "", "name": "s", "extra_json": {"cache": '{"b": 1, "a": 1.50}'}},
            {"role": "user", "parts": {"parts": [{"text": "橋 🌉 \u2028"}, {"image_url": image}]}},
        ],
        temperature=0.7,
        top_p=1,
        max_tokens=40,
        max_completion_tokens=0,
        n=1,
        stop=["\n", "end"],
        presence_penalty=-0.5,
        frequency_penalty=0,
        seed=2**53 + 1,
        reasoning_effort="low",
        verbosity="",
        service_tier="flex",
        # Only of a stream.
        stream_options={"include_usage": True},
        tools=[offer_tool("get_weather")],
        tool_choice={"mode": "MODE_REQUIRED"},
        parallel_tool_calls=False,
        response_format={"json_object": {}},
        ollm={
            "tags": {"team": "a"},
            "cache_options": {"enabled": "read_only", "max_age_s": 60},
            "dryrun": False,
            "variant_name": "v1",
            "episode_id": "3f2504e0-4f89-41d3-9a0c-0305e82c3301",
            "deny_unknown_fields": True,
            "include_raw_usage": True,
            "include_raw_response": False,
            "extra_json": {"namespace": '"n"'},
        },
        extra_json={"user": "null", "metadata": '{"z": [1.0, 1e2], "a": "\\u00e9"}'},
    )
    [request] = await llmock.requests()
    body = request["body"]
    assert body == {
        "model": "near_qwen3_30b",
        "messages": [
            {"role": "system", "content": "", "name": "s", "cache": {"b": 1, "a": 1.5}},
            {
                "role": "user",
                "content": [{"type": "text", "text": "橋 🌉 \u2028"}, {"type": "image_url", "image_url": image}],
            },
        ],
        "temperature": 0.7,
        "top_p": 1,
        "max_tokens": 40,
        "max_completion_tokens": 0,
        "n": 1,
        "stop": ["\n", "end"],
        "presence_penalty": -0.5,
        "frequency_penalty": 0,
        "seed": 2**53 + 1,
        "reasoning_effort": "low",
        "verbosity": "",
        "service_tier": "flex",
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "get_weather",
                    "parameters": json.loads(offer_tool("get_weather")["function"]["parameters_json"]),
                },
            }
        ],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "response_format": {"type": "json_object"},
        "ollm::tags": {"team": "a"},
        "ollm::cache_options": {"enabled": "read_only", "max_age_s": 60},
        "ollm::dryrun": False,
        "ollm::variant_name": "v1",
        "ollm::episode_id": "3f2504e0-4f89-41d3-9a0c-0305e82c3301",
        "ollm::deny_unknown_fields": True,
        "ollm::include_raw_usage": True,
        "ollm::include_raw_response": False,
        "ollm::namespace": "n",
        "user": None,
        "metadata": {"z": [1.0, 100.0], "a": "é"},
    }
    integers = ("max_tokens", "max_completion_tokens", "n", "seed")
    assert [type(body[name]) for name in integers] == [int] * len(integers)


async def test_stream_asks_for_one(caller: Caller, llmock: Llmock):
    await caller.reply(stream=True, stream_options={"include_usage": True})
    [request] = await llmock.requests()
    assert request["body"]["stream"] is True
    assert request["body"]["stream_options"] == {"include_usage": True}


async def test_reply_is_what_llmock_says_over_http(caller: Caller, llmock: Llmock):
    await llmock.scenario({**FIVE_WORDS, "times": 2})
    async with http_client() as http:
        raw = (await http.unary(llmock.url)).json()
    reply = await caller.unary()
    assert (text(reply), reply.model) == (raw["choices"][0]["message"]["content"], raw["model"])
    assert {each.name: value for each, value in reply.usage.ListFields()} == raw["usage"]
    assert not [*reply.extra_json, *reply.choices[0].extra_json]


@unary_and_streamed
async def test_any_text_passes_whole(caller: Caller, llmock: Llmock, *, stream: bool):
    content = '日本語 🦙 \u2028 \u0085 \x01 \x00 é data: [DONE] \\u0041 " \ufeff ' + "long " * 2000 + "end"
    await llmock.scenario({"type": "reply", "text": content, "finish_reason": "content_filter"})
    reply = await caller.reply(stream=stream)
    assert text(reply) == content
    assert reply.choices[0].finish_reason == "content_filter"


async def test_fifty_streams_at_once_keep_apart(caller: Caller, llmock: Llmock):
    await llmock.scenario(
        *({"type": "reply", "text": f"I am {n} of fifty", "match": {"model": f"m{n}"}} for n in range(50))
    )
    replies = await asyncio.gather(*(caller.reply(stream=bool(n % 2), model=f"m{n}") for n in range(50)))
    assert [text(reply) for reply in replies] == [f"I am {n} of fifty" for n in range(50)]
    assert len(await llmock.requests()) == 50


# Tools

CALLS = [{"name": name, "arguments": {"city": name * 9}} for name in ("first", "second", "third")]


@unary_and_streamed
async def test_tool_calls_go_back_into_the_next_request_whole(caller: Caller, llmock: Llmock, *, stream: bool):
    await llmock.scenario({"type": "reply", "tool_calls": CALLS}, {"type": "reply", "text": "Done."})
    tools = [offer_tool(call["name"]) for call in CALLS]
    question = ChatMessage(role="user", text="Which?")
    reply = await caller.reply(stream=stream, messages=[question], tools=tools)
    [choice] = reply.choices
    assert choice.finish_reason == "tool_calls"
    calls = choice.message.tool_calls
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        (call["name"], call["arguments"]) for call in CALLS
    ]

    results = [ChatMessage(role="tool", tool_call_id=call.id, text="21") for call in calls]
    assert (
        text(await caller.reply(stream=stream, messages=[question, choice.message, *results], tools=tools)) == "Done."
    )
    _, second = await llmock.requests()
    # Without content, none is sent.
    assert second["body"]["messages"][1] == {
        "role": "assistant",
        "tool_calls": [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": call.function.arguments},
            }
            for call in calls
        ],
    }


@unary_and_streamed
async def test_arguments_that_are_no_json_are_the_callers_to_judge(caller: Caller, llmock: Llmock, *, stream: bool):
    await llmock.scenario({"type": "tool_fault", "kind": "malformed_arguments"})
    reply = await caller.reply(stream=stream, tools=[offer_tool("get_weather")])
    [call] = reply.choices[0].message.tool_calls
    with pytest.raises(json.JSONDecodeError):
        json.loads(call.function.arguments)


# Where nobody answers


@unary_and_streamed
async def test_upstream_that_is_not_there_is_unavailable(unused_tcp_port: int, *, stream: bool):
    async with start_caller(f"http://127.0.0.1:{unused_tcp_port}") as caller:
        failure = await caller.failure(stream=stream)
    assert (failure.verdict, failure.chunks) == (("UNAVAILABLE", "UPSTREAM_UNREACHABLE"), [])
