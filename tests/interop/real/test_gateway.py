"""A bridge in front of a TensorZero gateway: completions, refusals, failures of providers, and callers that disconnect.

Behind the gateway are llama-server, with a real model, and llmock, which fails on demand; `servers.py` maps the
gateway's models and functions to them.
"""

import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionResponse
from ollmbridge.v1.chat_pb2 import ChatMessage
from tests.interop.real.clients import PROMPT, Caller, http_client, join_chunks, offer_tool, start_caller, text
from tests.kit.real import servers

HELLO = "ollm::function_name::hello"
TOO_LONG = "hello " * 2 * servers.CONTEXT_TOKENS
OK_SCHEMA = (
    '{"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": false}'
)
# A UUIDv7 of this moment: TensorZero takes no other version, and none of the future.
EPISODE = str(uuid.UUID(int=time.time_ns() // 1_000_000 << 80 | 7 << 76 | 2 << 62 | 1))

unary_and_streamed = pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])


@pytest.fixture
async def caller(gateway_url: str, gateway_key: str) -> AsyncIterator[Caller]:
    async with start_caller(gateway_url, key=gateway_key) as caller:
        yield caller


# Completions

ACCEPTED: dict[str, tuple[dict[str, Any], Callable[[CreateChatCompletionResponse], object]]] = {
    "bare-model": ({}, lambda r: r.model == "tensorzero::model_name::near_qwen3_30b"),
    "model": ({"model": "ollm::model_name::near_qwen3_30b"}, lambda r: r.model.endswith("::near_qwen3_30b")),
    "function": ({"model": HELLO}, lambda r: r.model.startswith("tensorzero::function_name::hello::variant_name::v")),
    "variant": ({"model": HELLO, "ollm": {"variant_name": "v2"}}, lambda r: r.model.endswith("::variant_name::v2")),
    "json-function": (
        {"model": "ollm::function_name::city", "max_tokens": 60},
        lambda r: json.loads(text(r)).keys() == {"city"},
    ),
    "fallback": ({"model": "fallback"}, text),
    "stop": (
        {"stop": ["hello"], "max_tokens": 60},
        lambda r: (text(r).strip(), r.choices[0].finish_reason) == ("Say", "stop"),
    ),
    "json-schema": (
        {"response_format": {"json_schema": {"name": "answer", "strict": True, "schema_json": OK_SCHEMA}}}
        | {"max_tokens": 60},
        lambda r: isinstance(json.loads(text(r))["ok"], bool),
    ),
    "tools": (
        {"tools": [offer_tool("get_weather")], "tool_choice": {"function_name": "get_weather"}},
        lambda r: r.choices[0].finish_reason == "length",
    ),
    "usage": ({"stream_options": {"include_usage": True}}, lambda r: r.usage.completion_tokens == 4),
    "episode": ({"ollm": {"episode_id": EPISODE}}, lambda r: r.episode_id == EPISODE),
    "tags": ({"ollm": {"tags": {"source": "playground", "team": "a"}}}, text),
    "dryrun": ({"ollm": {"dryrun": True}}, text),
    # Without a database the gateway ignores the cache options silently.
    "cache": ({"ollm": {"cache_options": {"enabled": "on", "max_age_s": 60}}}, text),
    "unknown-field": ({"extra_json": {"no_such_key": "1"}}, text),
    "nothing-unknown": (
        {"ollm": {"deny_unknown_fields": True, "dryrun": False, "include_raw_usage": False}}
        | {"top_p": 1, "presence_penalty": 0, "frequency_penalty": 0, "n": 1, "service_tier": "auto"}
        | {"parallel_tool_calls": False, "max_completion_tokens": 4},
        text,
    ),
}


@unary_and_streamed
@pytest.mark.parametrize(("fields", "holds"), ACCEPTED.values(), ids=ACCEPTED.keys())
async def test_gateway_takes_the_request_as_it_is_meant(caller: Caller, fields: Any, holds: Any, *, stream: bool):
    reply = await caller.reply(stream=stream, **fields)
    assert [choice.index for choice in reply.choices] == [0]
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].finish_reason in {"stop", "length"}
    assert holds(reply), reply


async def test_reply_is_what_the_gateway_says_over_http(caller: Caller, gateway_url: str, gateway_key: str):
    async with http_client(key=gateway_key) as http:
        raw = (await http.unary(gateway_url)).json()
    reply = await caller.unary()
    [choice], [raw_choice] = reply.choices, raw["choices"]
    assert (choice.message.role, choice.message.text) == ("assistant", raw_choice["message"]["content"])
    assert (choice.index, choice.finish_reason) == (raw_choice["index"], raw_choice["finish_reason"])
    assert (reply.object, reply.model) == (raw["object"], raw["model"])
    # Empty, and still there.
    assert raw["system_fingerprint"] == reply.system_fingerprint == ""
    assert reply.HasField("system_fingerprint")
    assert uuid.UUID(reply.episode_id).version == uuid.UUID(reply.id).version == 7
    assert raw["created"] <= reply.created <= time.time()
    for count in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert getattr(reply.usage, count) == raw["usage"][count]
    assert reply.usage.prompt_tokens_details.HasField("cached_tokens")
    # Without nulls and modelled keys, none of the gateway's keys remains.
    assert not [*reply.extra_json, *reply.usage.extra_json, *choice.extra_json, *choice.message.extra_json]


async def test_stream_joined_is_the_unary_reply(caller: Caller):
    usage = {"stream_options": {"include_usage": True}}
    unary, streamed = await caller.reply(stream=False), await caller.reply(stream=True, **usage)
    for reply in (unary, streamed):
        for name in ("id", "created", "episode_id"):
            reply.ClearField(name)
        reply.usage.prompt_tokens_details.ClearField("cached_tokens")
    assert streamed == unary


async def test_stream_is_a_message_a_chunk_with_usage_on_the_finish(caller: Caller):
    chunks = [chunk async for chunk in caller.stream(stream_options={"include_usage": True})]
    assert [chunk.choices[0].HasField("finish_reason") for chunk in chunks] == [False] * 4 + [True]
    assert [chunk.HasField("usage") for chunk in chunks] == [False] * 4 + [True]
    assert len({chunk.episode_id for chunk in chunks}) == 1


async def test_trailers_tell_the_times(caller: Caller):
    call = caller.stream()
    assert [chunk async for chunk in call]
    assert await call.code() is grpc.StatusCode.OK
    trailers = dict(await call.trailing_metadata())
    assert 0 < float(trailers["ollmbridge-first-chunk-ms"]) < float(trailers["ollmbridge-upstream-ms"])


# The provider's own words

RAW_ON = {"include_raw_usage": True, "include_raw_response": True}


async def test_raw_usage_and_raw_response_of_a_unary_call(caller: Caller):
    reply = await caller.unary(ollm=RAW_ON)
    [usage], [response] = json.loads(reply.raw_usage_json), json.loads(reply.raw_response_json)
    assert usage["data"]["total_tokens"] == reply.usage.total_tokens == 30
    provider = json.loads(response["data"])
    assert provider["choices"][0]["message"]["content"] == text(reply)
    assert "timings" in provider
    assert not reply.extra_json


async def test_raw_usage_of_a_stream_brings_the_usage_that_it_needs(caller: Caller):
    chunks = [chunk async for chunk in caller.stream(ollm={"include_raw_usage": True})]
    [raw] = [json.loads(chunk.raw_usage_json) for chunk in chunks if chunk.HasField("raw_usage_json")]
    assert raw[0]["data"]["total_tokens"] == join_chunks(chunks).usage.total_tokens == 30
    assert not any(chunk.extra_json for chunk in chunks)


async def test_raw_response_of_a_stream_comes_chunk_by_chunk(caller: Caller):
    chunks = [chunk async for chunk in caller.stream(ollm={"include_raw_response": True})]
    raw = [json.loads(chunk.raw_chunk_json) for chunk in chunks if chunk.HasField("raw_chunk_json")]
    # The finish chunk is of the gateway's own making.
    assert len(raw) == len(chunks) - 1
    words = [choice["delta"].get("content") or "" for event in raw for choice in event["choices"]]
    assert "".join(words) == text(join_chunks(chunks))
    assert not any(chunk.extra_json for chunk in chunks)


# Refusals

INVALID = ("INVALID_ARGUMENT", "UPSTREAM_INVALID_REQUEST")
NOT_FOUND = ("NOT_FOUND", "UPSTREAM_NOT_FOUND")
PROVIDER_FAILED = ("UNAVAILABLE", "UPSTREAM_PROVIDER_FAILED")

REFUSED: dict[str, tuple[dict[str, Any], tuple[str, str], int, str]] = {
    "model-unknown": ({"model": "nope"}, INVALID, 400, "Model name 'nope' not found"),
    "function-empty": ({"model": "ollm::function_name::"}, INVALID, 400, "cannot be empty"),
    "variant-of-model": ({"ollm": {"variant_name": "v1"}}, INVALID, 400, "`variant_name` cannot be provided"),
    "unknown-denied": (
        {"ollm": {"deny_unknown_fields": True}, "extra_json": {"b": "1", "a": "2"}},
        INVALID,
        400,
        "[a, b]",
    ),
    "tag-number": ({"extra_json": {"ollm::tags": '{"a": 1}'}}, INVALID, 400, "tensorzero::tags.a: invalid type"),
    "episode-v4": (
        {"ollm": {"episode_id": "3f2504e0-4f89-41d3-9a0c-0305e82c3301"}},
        INVALID,
        400,
        "Failed to parse UUID as v7",
    ),
    "cache-mode": ({"ollm": {"cache_options": {"enabled": "yes"}}}, INVALID, 400, "unknown variant `yes`"),
    "service-tier": ({"service_tier": "scale"}, INVALID, 400, "unknown variant `scale`"),
    "role": ({"messages": [{"role": "nope", "text": ""}]}, INVALID, 400, "messages[0]: unknown variant `nope`"),
    "tool-orphan": (
        {"messages": [{"role": "user", "text": PROMPT}, {"role": "tool", "tool_call_id": "x", "text": ""}]},
        INVALID,
        400,
        "tool call id not found",
    ),
    # Spelled by the caller, byte for byte.
    "integer-as-float": (
        {"max_tokens": None, "extra_json": {"max_tokens": "4.0"}},
        INVALID,
        400,
        "floating point `4.0`, expected u32",
    ),
    "stop-string": ({"extra_json": {"stop": '"e"'}}, INVALID, 400, "stop: invalid type"),
    "function-unknown": ({"model": "ollm::function_name::nope"}, NOT_FOUND, 404, "Unknown function: nope"),
    "variant-unknown": ({"model": HELLO, "ollm": {"variant_name": "v9"}}, NOT_FOUND, 404, "Unknown variant: v9"),
    # Before its first chunk a provider that refuses, or is not there, is a 502, and a 500 when the variant is pinned.
    "too-long": (
        {"messages": [{"role": "user", "text": TOO_LONG}]},
        PROVIDER_FAILED,
        502,
        "exceeds the available context size",
    ),
    "dead": ({"model": "dead"}, PROVIDER_FAILED, 502, "rror sending request"),
    "dead-pinned": (
        {"model": "ollm::function_name::doomed", "ollm": {"variant_name": "v1"}},
        ("INTERNAL", "UPSTREAM_INTERNAL"),
        500,
        "All model providers failed",
    ),
}


@unary_and_streamed
@pytest.mark.parametrize(("fields", "verdict", "http_status", "words"), REFUSED.values(), ids=REFUSED.keys())
async def test_refusal_has_the_gateways_message(
    caller: Caller, fields: Any, verdict: tuple[str, str], http_status: int, words: str, *, stream: bool
):
    failure = await caller.failure(stream=stream, **fields)
    assert (failure.verdict, failure.info.domain) == (verdict, "upstream.ollmbridge")
    assert dict(failure.info.metadata) == {"httpStatus": str(http_status)}
    assert words in failure.message
    # TensorZero's envelope has a message and nothing else.
    assert {each.name for each, _ in failure.upstream.ListFields()} == {"http_status", "message"}
    assert (failure.upstream.http_status, failure.upstream.message) == (http_status, failure.message)
    assert uuid.UUID(failure.details["RequestInfo"].request_id)
    assert "RetryInfo" not in failure.details
    assert not failure.chunks


@pytest.mark.parametrize(
    ("case", "resource"),
    [
        ("function-unknown", ("function", "nope")),
        ("variant-unknown", ("variant", "v9")),
        # TensorZero says 400 to a model that it has not, where OpenAI says 404.
        ("model-unknown", None),
    ],
)
async def test_what_is_missing_is_named(caller: Caller, case: str, resource: tuple[str, str] | None):
    info = (await caller.failure(stream=False, **REFUSED[case][0])).details.get("ResourceInfo")
    assert (info and (info.resource_type, info.resource_name)) == resource


# The same in protobuf and in JSON, and the field at fault.
RULES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "n": ({"n": 2}, {"n": 2}, "n"),
    "max-tokens": ({"max_tokens": -1}, {"max_tokens": -1}, "max_tokens"),
    "episode": ({"ollm": {"episode_id": "x"}}, {"ollm::episode_id": "x"}, "ollm.episode_id"),
    "raw-usage": (
        {"ollm": {"include_raw_usage": True}, "stream_options": {"include_usage": False}},
        {"ollm::include_raw_usage": True, "stream": True, "stream_options": {"include_usage": False}},
        "stream_options.include_usage",
    ),
}


@pytest.mark.parametrize(("fields", "json_fields", "path"), RULES.values(), ids=RULES.keys())
async def test_what_the_bridge_refuses_the_gateway_would(
    caller: Caller, gateway_url: str, gateway_key: str, fields: Any, json_fields: Any, path: str
):
    async with http_client(key=gateway_key) as http:
        assert (await http.unary(gateway_url, **json_fields)).status_code == 400
    failure = await caller.failure(stream=True, **fields)
    assert (failure.verdict, failure.info.domain) == (("INVALID_ARGUMENT", "INVALID_REQUEST"), "ollmbridge")
    assert [each.field for each in failure.details["BadRequest"].field_violations] == [path]


@unary_and_streamed
async def test_wrong_base_url_has_the_gateways_message(gateway_url: str, gateway_key: str, *, stream: bool):
    async with start_caller(f"{gateway_url}/nope", key=gateway_key) as caller:
        failure = await caller.failure(stream=stream)
    # TensorZero sends an envelope for this too, whose words name the path.
    assert failure.verdict == ("INTERNAL", "INVALID_UPSTREAM_RESPONSE")
    assert (failure.upstream.http_status, failure.upstream.message) == (
        404,
        "Route not found: POST /nope/openai/v1/chat/completions",
    )


# Keys


@unary_and_streamed
@pytest.mark.parametrize(
    ("authorization", "code"),
    [(None, "missing_api_key"), ("Bearer sk-ollm-test-wrong", "invalid_api_key"), ("Basic x", "invalid_authorization")],
    ids=["none", "wrong", "basic"],
)
async def test_call_without_the_right_key_is_unauthenticated(
    caller: Caller, authorization: str | None, code: str, *, stream: bool
):
    failure = await caller.with_authorization(authorization).failure(stream=stream)
    assert failure.verdict == ("UNAUTHENTICATED", "UPSTREAM_UNAUTHENTICATED")
    assert (failure.upstream.type, failure.upstream.code) == ("authentication_error", code)
    assert dict(failure.info.metadata) == {
        "httpStatus": "401",
        "upstreamType": "authentication_error",
        "upstreamCode": code,
    }
    assert failure.upstream.message == failure.message


async def test_open_gateway_asks_for_no_key(open_gateway_url: str):
    async with start_caller(open_gateway_url) as caller:
        assert text(await caller.unary())


async def test_bridges_own_key_is_sent_in_place_of_the_callers(gateway_url: str, gateway_key: str):
    async with start_caller(gateway_url, api_key=gateway_key, key="sk-ollm-test-wrong") as caller:
        assert text(await caller.unary())
        assert text(await caller.with_key(None).unary())


async def test_refused_key_of_the_bridges_own_is_no_fault_of_the_caller(gateway_url: str, gateway_key: str):
    async with start_caller(gateway_url, api_key="sk-ollm-test-wrong", key=gateway_key) as caller:
        failure = await caller.failure(stream=False)
    assert failure.verdict == ("INTERNAL", "CREDENTIALS_REJECTED")
    assert "sk-ollm" not in repr(failure)


# Providers that fail


@unary_and_streamed
@pytest.mark.parametrize("status", [400, 401, 429, 500, 503, 529])
async def test_refusal_of_a_provider_is_not_retried(
    caller: Caller, llmock: servers.Llmock, status: int, *, stream: bool
):
    await llmock.scenario({"type": "fail", "status": status, "retry_after": 2})
    failure = await caller.failure(stream=stream, model="faulty")
    assert failure.verdict == PROVIDER_FAILED
    assert (failure.upstream.http_status, failure.chunks) == (502, [])
    # The gateway swallows the provider's Retry-After.
    assert failure.pushback_ms is None
    assert [request["status"] for request in await llmock.requests()] == [status]


@unary_and_streamed
@pytest.mark.parametrize("pinned", [False, True], ids=["any", "pinned"])
async def test_gateways_timeout_is_a_provider_timeout_when_the_variant_is_pinned(
    caller: Caller, llmock: servers.Llmock, *, pinned: bool, stream: bool
):
    await llmock.scenario({"type": "slow_first_token" if stream else "delay", "seconds": 1})
    variant = {"variant_name": "v1"} if pinned else None
    failure = await caller.failure(stream=stream, model="ollm::function_name::hasty", ollm=variant)
    expected = ("DEADLINE_EXCEEDED", "UPSTREAM_PROVIDER_TIMEOUT") if pinned else PROVIDER_FAILED
    assert (failure.verdict, failure.upstream.http_status) == (expected, 408 if pinned else 502)
    assert "timed out" in failure.upstream.message


# Of a role, five words and a finish, the fourth is hit.
MID_STREAM: dict[str, tuple[tuple[str, str], str, list[str]]] = {
    # The gateway sends an error event, and then [DONE].
    "disconnect": (
        ("INTERNAL", "UPSTREAM_STREAM_ERROR"),
        "error decoding response body",
        ["", "one ", "two "],
    ),
    # It sends an empty delta of its own, and [DONE].
    "truncate": (("ABORTED", "INCOMPLETE_COMPLETION"), "", ["", "one ", "two ", ""]),
    # It goes on to the end, over the hole.
    "malformed": (("INTERNAL", "UPSTREAM_STREAM_ERROR"), "Error parsing chunk", ["", "one ", "two "]),
}


@pytest.mark.parametrize(("kind", "case"), MID_STREAM.items(), ids=MID_STREAM.keys())
async def test_stream_whose_provider_breaks_is_never_ok(caller: Caller, llmock: servers.Llmock, kind: str, case: Any):
    verdict, words, delivered = case
    await llmock.scenario(
        {"type": "reply", "text": "one two three four five"}, {"type": "stream_fault", "kind": kind, "after_chunks": 3}
    )
    failure = await caller.failure(stream=True, model="faulty")
    assert failure.verdict == verdict
    assert [chunk.choices[0].delta.content for chunk in failure.chunks] == delivered
    assert (failure.upstream.http_status, failure.upstream.chunks_delivered) == (200, len(delivered))
    assert words in failure.upstream.message
    assert len(await llmock.requests()) == 1


@pytest.mark.parametrize("kind", MID_STREAM)
async def test_stream_whose_provider_breaks_before_the_first_chunk_is_unavailable(
    caller: Caller, llmock: servers.Llmock, kind: str
):
    await llmock.scenario({"type": "stream_fault", "kind": kind, "after_chunks": 0})
    failure = await caller.failure(stream=True, model="faulty")
    assert (failure.verdict, failure.upstream.http_status, failure.chunks) == (PROVIDER_FAILED, 502, [])
    assert len(await llmock.requests()) == 1


# Tools

CALLS = [{"name": "get_weather", "arguments": {"city": city}} for city in ("Paris", "Oslo")]


@unary_and_streamed
@pytest.mark.parametrize("words", [None, "Let me see."], ids=["mute", "with-words"])
async def test_tool_calls_go_back_into_the_next_request_whole(
    caller: Caller, llmock: servers.Llmock, words: str | None, *, stream: bool
):
    await llmock.scenario({"type": "reply", "text": words, "tool_calls": CALLS}, {"type": "reply", "text": "Mild."})
    request = {"model": "faulty", "tools": [offer_tool("get_weather")]}
    question = ChatMessage(role="user", text="Paris and Oslo?")

    reply = await caller.reply(stream=stream, messages=[question], **request)
    [choice] = reply.choices
    assert choice.finish_reason == "tool_calls"
    calls = choice.message.tool_calls
    assert [(call.type, call.function.name) for call in calls] == [("function", "get_weather")] * 2
    assert [json.loads(call.function.arguments) for call in calls] == [call["arguments"] for call in CALLS]

    results = [ChatMessage(role="tool", tool_call_id=call.id, text="21 degrees") for call in calls]
    answer = await caller.reply(stream=stream, messages=[question, choice.message, *results], **request)
    assert text(answer) == "Mild."

    _, second = await llmock.requests()
    _, assistant, *tools = second["body"]["messages"]
    assert [
        (call["id"], call["type"], call["function"]["name"], call["function"]["arguments"])
        for call in assistant["tool_calls"]
    ] == [(call.id, "function", "get_weather", call.function.arguments) for call in calls]
    assert [(tool["role"], tool["tool_call_id"]) for tool in tools] == [("tool", call.id) for call in calls]


async def test_fragments_of_tool_calls_pass_as_they_come(caller: Caller, llmock: servers.Llmock):
    await llmock.scenario({"type": "reply", "tool_calls": CALLS})
    chunks = [chunk async for chunk in caller.stream(model="faulty", tools=[offer_tool("get_weather")])]
    deltas = [delta for chunk in chunks for choice in chunk.choices for delta in choice.delta.tool_calls]
    # TensorZero repeats the id as null and the name as "".
    assert [(d.index, d.HasField("id"), d.function.HasField("name"), d.function.name) for d in deltas] == [
        (0, True, True, "get_weather"),
        (0, False, True, ""),
        (0, False, True, ""),
        (1, True, True, "get_weather"),
        (1, False, True, ""),
        (1, False, True, ""),
    ]


# Callers that disconnect


@unary_and_streamed
async def test_cancelled_call_is_closed_at_the_gateway_at_once(
    caller: Caller, slots: servers.Gauge, open_calls: servers.Gauge, *, stream: bool
):
    call = caller.stream(max_tokens=100) if stream else caller.unary(max_tokens=100)
    if stream:
        await anext(aiter(call))
    else:
        await slots.wait_until(1)
    assert await open_calls.read() == 1
    assert call.cancel()
    assert await open_calls.wait_until(0) < 5
    # TensorZero goes on with a stream, llama-server with a unary call.
    assert await slots.read() == 1


@unary_and_streamed
async def test_call_is_closed_at_the_gateway_when_its_deadline_passes(
    caller: Caller, open_calls: servers.Gauge, llmock: servers.Llmock, *, stream: bool
):
    await llmock.scenario(
        {"type": "stream_fault", "kind": "stall", "after_chunks": 3, "stall_seconds": 30}
        if stream
        else {"type": "delay", "seconds": 30}
    )
    failure = await caller.failure(stream=stream, model="faulty", timeout_s=2)
    assert (failure.code, len(failure.chunks)) == ("DEADLINE_EXCEEDED", 3 if stream else 0)
    assert await open_calls.wait_until(0) < 5


async def test_chunks_are_not_held_back(caller: Caller, llmock: servers.Llmock, open_calls: servers.Gauge):
    await llmock.scenario(
        {"type": "reply", "text": "one two three four five"},
        {"type": "stream_fault", "kind": "stall", "after_chunks": 3, "stall_seconds": 30},
    )
    call = caller.stream(model="faulty")
    chunks = aiter(call)
    assert [(await anext(chunks)).choices[0].delta.content for _ in range(3)] == ["", "one ", "two "]
    call.cancel()
    await open_calls.wait_until(0)
