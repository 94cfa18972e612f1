"""What the real servers answer, asked directly over HTTP: the ground on which the tests through the bridge stand.

The shim is not under test, but what it must not do is: change a request's spelling, hold a reply back, keep a call open
that its client has left.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import httpx2
import pytest

from tests.real import servers

MESSAGES = [{"role": "user", "content": "Say hello."}]
TOO_LONG = [{"role": "user", "content": "hello " * 2 * servers.CONTEXT_TOKENS}]
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
OK_SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"ok": {"type": "boolean"}},
            "required": ["ok"],
            "additionalProperties": False,
        },
    },
}
HELLO = {"model": "ollm::function_name::hello"}
USAGE = {"stream_options": {"include_usage": True}}


class Client:
    """POST /v1/chat/completions: short, cold and with a key, unless the fields say otherwise."""

    def __init__(self, http: httpx2.AsyncClient, key: str) -> None:
        self.http = http
        self.headers = {"authorization": f"Bearer {key}"}

    def request(self, url: str, fields: dict[str, Any]) -> httpx2.Request:
        body = {"model": "near_qwen3_30b", "messages": MESSAGES, "max_tokens": 4, "temperature": 0, **fields}
        return self.http.build_request("POST", f"{url}/v1/chat/completions", json=body, headers=self.headers)

    async def unary(self, url: str, **fields: Any) -> httpx2.Response:
        return await self.http.send(self.request(url, fields))

    async def events(self, url: str, **fields: Any) -> AsyncIterator[Any]:
        """The data events as they come: parsed, or the text where it is no JSON."""
        response = await self.http.send(self.request(url, {"stream": True, **fields}), stream=True)
        try:
            assert response.status_code == 200, await response.aread()
            assert response.headers["content-type"].startswith("text/event-stream")
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    try:
                        yield json.loads(line[6:])
                    except ValueError:
                        yield line[6:]
        finally:
            await response.aclose()

    async def stream(self, url: str, **fields: Any) -> list[Any]:
        return [event async for event in self.events(url, **fields)]


@pytest.fixture
async def client(gateway_key: str) -> AsyncIterator[Client]:
    # llama-server closes the connection after a streamed reply, though it says Keep-Alive.
    limits = httpx2.Limits(max_keepalive_connections=0)
    async with httpx2.AsyncClient(trust_env=False, verify=False, timeout=30, limits=limits) as http:
        yield Client(http, gateway_key)


def text(events: list[Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for event in chunks(events) for choice in event["choices"])


def chunks(events: list[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, dict) and "error" not in event]


def finish_reasons(events: list[Any]) -> list[str]:
    reasons = [choice["finish_reason"] for event in chunks(events) for choice in event["choices"]]
    return [reason for reason in reasons if reason]


# The gateway: TensorZero behind the shim.

# A UUIDv7 of this moment: TensorZero takes no other version, and none of the future.
EPISODE = str(uuid.UUID(int=time.time_ns() // 1_000_000 << 80 | 7 << 76 | 2 << 62 | 1))

ACCEPTED: dict[str, tuple[dict[str, Any], Callable[[Any], object]]] = {
    "bare-model": ({}, lambda r: r["model"] == "tensorzero::model_name::near_qwen3_30b"),
    "model": ({"model": "ollm::model_name::near_qwen3_30b"}, lambda r: r["object"] == "chat.completion"),
    "function": (HELLO, lambda r: r["model"].startswith("tensorzero::function_name::hello::variant_name::v")),
    "variant": ({**HELLO, "ollm::variant_name": "v2"}, lambda r: r["model"].endswith("::hello::variant_name::v2")),
    "json-function": (
        {"model": "ollm::function_name::city", "max_tokens": 60},
        lambda r: set(json.loads(r["choices"][0]["message"]["content"])) == {"city"},
    ),
    "tags": ({"ollm::tags": {"source": "playground"}}, lambda r: r["choices"]),
    "episode": ({"ollm::episode_id": EPISODE}, lambda r: r["episode_id"] == EPISODE),
    "dryrun": ({"ollm::dryrun": True}, lambda r: r["choices"]),
    "deny-nothing-unknown": ({"ollm::deny_unknown_fields": True}, lambda r: r["choices"]),
    "unknown-field": ({"logprobs": True}, lambda r: "logprobs" not in r["choices"][0]),
    # Without a database the cache is a word: nothing comes from it, and nothing is said about that.
    "cache": ({"ollm::cache_options": {"enabled": "on", "max_age_s": 60}}, lambda r: r["usage"]["prompt_tokens"] > 0),
    "raw-usage": (
        {"ollm::include_raw_usage": True},
        lambda r: r["tensorzero_raw_usage"][0]["data"]["total_tokens"] == r["usage"]["total_tokens"],
    ),
    "raw-response": (
        {"ollm::include_raw_response": True},
        lambda r: json.loads(r["tensorzero_raw_response"][0]["data"])["timings"],
    ),
    "stop": ({"stop": ["e"], "max_tokens": 60}, lambda r: r["choices"][0]["finish_reason"] == "stop"),
    "json-schema": (
        {"response_format": OK_SCHEMA, "max_tokens": 60},
        lambda r: isinstance(json.loads(r["choices"][0]["message"]["content"])["ok"], bool),
    ),
    "no-messages": ({"messages": []}, lambda r: r["choices"]),
    "fallback": ({"model": "fallback"}, lambda r: r["choices"]),
}


@pytest.mark.parametrize(("fields", "holds"), ACCEPTED.values(), ids=ACCEPTED.keys())
async def test_gateway_accepts(client: Client, gateway_url: str, fields: Any, holds: Any):
    response = await client.unary(gateway_url, **fields)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    assert holds(response.json()), response.text


REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "model-unknown": ({"model": "nope"}, 400, "Model name 'nope' not found"),
    "function-unknown": ({"model": "ollm::function_name::nope"}, 404, "Unknown function: nope"),
    "function-empty": ({"model": "ollm::function_name::"}, 400, "cannot be empty"),
    "variant-unknown": ({**HELLO, "ollm::variant_name": "v9"}, 404, "Unknown variant: v9"),
    "variant-of-model": ({"ollm::variant_name": "v1"}, 400, "`variant_name` cannot be provided"),
    "unknown-denied": ({"ollm::deny_unknown_fields": True, "b": 1, "a": 2}, 400, "[a, b]"),
    "tag-number": ({"ollm::tags": {"a": 1}}, 400, "tensorzero::tags.a: invalid type"),
    "episode-no-uuid": ({"ollm::episode_id": "x"}, 400, "UUID parsing failed"),
    "episode-v4": ({"ollm::episode_id": "3f2504e0-4f89-41d3-9a0c-0305e82c3301"}, 400, "Failed to parse UUID as v7"),
    "cache-mode": ({"ollm::cache_options": {"enabled": "yes"}}, 400, "unknown variant `yes`"),
    "raw-usage-off": (
        {"ollm::include_raw_usage": True, "stream": True, "stream_options": {"include_usage": False}},
        400,
        "include_usage",
    ),
    "n": ({"n": 2}, 400, "does not support `n` other than 1"),
    "integer-as-float": ({"max_tokens": 4.0}, 400, "floating point `4.0`, expected u32"),
    "stop-string": ({"stop": "e"}, 400, "stop: invalid type"),
    "service-tier": ({"service_tier": "scale"}, 400, "unknown variant `scale`"),
    "role": ({"messages": [{"role": "nope", "content": ""}]}, 400, "messages[0]: unknown variant `nope`"),
    "tool-orphan": (
        {"messages": [*MESSAGES, {"role": "tool", "tool_call_id": "x", "content": ""}]},
        400,
        "tool call id not found",
    ),
    # Whatever the provider said: 502, or 500 when the variant is pinned.
    "too-long": ({"messages": TOO_LONG}, 502, "Error 400 Bad Request from openai client"),
    "too-long-stream": ({"messages": TOO_LONG, "stream": True}, 502, "exceeds the available context size"),
    "dead": ({"model": "dead"}, 502, "Error sending request"),
    "dead-stream": ({"model": "dead", "stream": True}, 502, "rror sending request"),
    "dead-pinned": ({"model": "ollm::function_name::doomed", "ollm::variant_name": "v1"}, 500, "All model providers"),
}


@pytest.mark.parametrize(("fields", "status", "message"), REFUSED.values(), ids=REFUSED.keys())
async def test_gateway_refuses(client: Client, gateway_url: str, fields: Any, status: int, message: str):
    response = await client.unary(gateway_url, **fields)
    assert (response.status_code, response.headers["content-type"]) == (status, "application/json")
    assert list(response.json()["error"]) == ["message"]
    assert message in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("authorization", "code"),
    [(None, "missing_api_key"), ("Bearer sk-ollm-test-wrong", "invalid_api_key"), ("Basic x", "invalid_authorization")],
)
async def test_gateway_asks_for_a_key(client: Client, gateway_url: str, open_gateway_url: str, authorization, code):
    client.headers = {"authorization": authorization} if authorization else {}
    response = await client.unary(gateway_url)
    assert response.status_code == 401
    assert response.json()["error"].keys() == {"message", "type", "code", "param"}
    assert response.json()["error"]["code"] == code
    assert (await client.unary(open_gateway_url)).status_code == 200


async def test_gateway_streams_with_usage_on_the_finish_chunk(client: Client, gateway_url: str):
    *events, done = await client.stream(gateway_url, **USAGE)
    assert done == "[DONE]"
    assert finish_reasons(events) == ["length"]
    assert text(events)
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert [event["usage"] is not None for event in events] == [False] * (len(events) - 1) + [True]


async def test_gateway_streams_raw_usage_before_the_finish_chunk(client: Client, gateway_url: str):
    *events, _ = await client.stream(gateway_url, **{"ollm::include_raw_usage": True})
    assert ["tensorzero_raw_usage" in event for event in events[-3:]] == [False, True, False]
    assert events[-1]["usage"]["total_tokens"] > 0


async def test_gateway_streams_raw_chunks(client: Client, gateway_url: str):
    *events, _ = await client.stream(gateway_url, **{"ollm::include_raw_response": True})
    raw = [json.loads(event["tensorzero_raw_chunk"]) for event in events if "tensorzero_raw_chunk" in event]
    assert len(raw) == len(events) - 1
    assert raw[-1]["choices"] == []


# The gateway over an upstream that fails.


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503, 529])
async def test_gateway_answers_502_for_whatever_its_provider_answers(
    client: Client, gateway_url: str, llmock: servers.Llmock, status: int, *, stream: bool
):
    await llmock.scenario({"type": "fail", "status": status, "retry_after": 2})
    response = await client.unary(gateway_url, model="faulty", stream=stream)
    assert response.status_code == 502
    assert "retry-after" not in response.headers
    assert len(await llmock.requests()) == 1


@pytest.mark.parametrize(("stream", "pinned"), [(False, False), (False, True), (True, False), (True, True)])
async def test_gateway_timeout_is_408_when_the_variant_is_pinned(
    client: Client, gateway_url: str, llmock: servers.Llmock, *, stream: bool, pinned: bool
):
    await llmock.scenario({"type": "slow_first_token" if stream else "delay", "seconds": 1})
    variant = {"ollm::variant_name": "v1"} if pinned else {}
    response = await client.unary(gateway_url, model="ollm::function_name::hasty", stream=stream, **variant)
    assert response.status_code == (408 if pinned else 502)
    assert "timed out" in response.json()["error"]["message"]


# Of a role, five words and a finish, the fourth is hit.
MID_STREAM = {
    "disconnect": ["role", "one ", "two ", "error", None, "[DONE]"],
    "truncate": ["role", "one ", "two ", None, "[DONE]"],
    "malformed": ["role", "one ", "two ", "error", "four ", "five", "stop", "[DONE]"],
}


@pytest.mark.parametrize(("kind", "expected"), MID_STREAM.items(), ids=MID_STREAM.keys())
async def test_gateway_ends_with_done_whatever_breaks(
    client: Client, gateway_url: str, llmock: servers.Llmock, kind: str, expected: list[str | None]
):
    await llmock.scenario(
        {"type": "reply", "text": "one two three four five"}, {"type": "stream_fault", "kind": kind, "after_chunks": 3}
    )

    def told(event: Any) -> str | None:
        match event:
            case {"error": {"message": _}}:
                return "error"
            case {"choices": [{"delta": {"role": _}}]}:
                return "role"
            case {"choices": [{"delta": {"content": word}}]}:
                return word
            case {"choices": [{"finish_reason": reason}]}:
                return reason
        return event

    assert [told(event) for event in await client.stream(gateway_url, model="faulty")] == expected


async def test_gateway_refuses_a_stream_that_breaks_before_its_first_chunk(
    client: Client, gateway_url: str, llmock: servers.Llmock
):
    await llmock.scenario({"type": "stream_fault", "kind": "disconnect", "after_chunks": 0})
    assert (await client.unary(gateway_url, model="faulty", stream=True)).status_code == 502


async def test_gateway_streams_tool_calls_with_null_ids_and_empty_names(
    client: Client, gateway_url: str, llmock: servers.Llmock
):
    calls = [{"name": "get_weather", "arguments": {"city": city}} for city in ("Paris", "Oslo")]
    await llmock.scenario({"type": "reply", "tool_calls": calls, "times": 2})
    unary = (await client.unary(gateway_url, model="faulty", tools=[WEATHER])).json()["choices"][0]
    assert unary["message"]["content"] is None
    assert [call["function"]["arguments"] for call in unary["message"]["tool_calls"]] == [
        '{"city": "Paris"}',
        '{"city": "Oslo"}',
    ]
    events = await client.stream(gateway_url, model="faulty", tools=[WEATHER])
    deltas = [d for event in chunks(events) for d in event["choices"][0]["delta"].get("tool_calls", [])]
    assert [(d["index"], bool(d["id"]), d["function"]["name"]) for d in deltas] == [
        (0, True, "get_weather"),
        (0, False, ""),
        (0, False, ""),
        (1, True, "get_weather"),
        (1, False, ""),
        (1, False, ""),
    ]
    assert finish_reasons(events) == ["tool_calls"]


# What the shim must not do.


async def test_shim_holds_nothing_back(client: Client, gateway_url: str, llmock: servers.Llmock):
    await llmock.scenario({"type": "stream_fault", "kind": "stall", "after_chunks": 3, "stall_seconds": 2})
    events = client.events(gateway_url, model="faulty")
    async with asyncio.timeout(1):
        assert [bool(text([await anext(events)])) for _ in range(3)] == [False, True, True]
    await events.aclose()


@pytest.mark.parametrize("stream", [False, True])
async def test_shim_closes_a_call_that_its_client_leaves(
    client: Client, gateway_url: str, slots: servers.Gauge, open_calls: servers.Gauge, *, stream: bool
):
    call = asyncio.create_task(client.unary(gateway_url, stream=stream, max_tokens=100))
    await slots.becomes(1)
    call.cancel()
    with suppress(asyncio.CancelledError):
        await call
    assert await open_calls.becomes(0) < 0.5
    # TensorZero goes on with a stream, llama-server with a unary call.
    assert await slots.read() == 1


async def test_shim_passes_405_with_its_empty_body(client: Client, gateway_url: str):
    response = await client.http.get(f"{gateway_url}/v1/chat/completions", headers=client.headers)
    assert (response.status_code, response.headers["allow"], response.content) == (405, "POST", b"")


# llama-server alone.

LLAMA: dict[str, tuple[dict[str, Any], int, Callable[[Any], object]]] = {
    "plain": ({}, 200, lambda r: {"id", "choices", "usage", "timings"} <= r.keys()),
    "stop": ({"stop": ["e"], "max_tokens": 60}, 200, lambda r: r["choices"][0]["finish_reason"] == "stop"),
    "json-schema": (
        {"response_format": OK_SCHEMA, "max_tokens": 60},
        200,
        lambda r: isinstance(json.loads(r["choices"][0]["message"]["content"])["ok"], bool),
    ),
    "tools": ({"tools": [WEATHER], "tool_choice": "required"}, 200, lambda r: r["choices"][0]["message"]["content"]),
    "logprobs": (
        {"logprobs": True, "top_logprobs": 2},
        200,
        lambda r: len(r["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 2,
    ),
    "n": ({"n": 2}, 200, lambda r: [choice["index"] for choice in r["choices"]] == [0, 1]),
    "ollm-fields": ({"ollm::tags": {"a": "b"}, "ollm::dryrun": True}, 200, lambda r: r["choices"]),
    "any-model": ({"model": "nope"}, 200, lambda r: r["choices"]),
    "n-too-many": ({"n": 9}, 400, lambda r: "between 1 <= value <= 4" in r["error"]["message"]),
    "schema-bad": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nope"}}}},
        400,
        lambda r: r["error"]["type"] == "invalid_request_error",
    ),
    "too-long": ({"messages": TOO_LONG}, 400, lambda r: r["error"]["type"] == "exceed_context_size_error"),
    "too-long-stream": ({"messages": TOO_LONG, "stream": True}, 400, lambda r: r["error"]["code"] == 400),
    "image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}]},
        500,
        lambda r: r["error"]["type"] == "server_error",
    ),
}


@pytest.mark.parametrize(("fields", "status", "holds"), LLAMA.values(), ids=LLAMA.keys())
async def test_llama_server_answers(client: Client, llama_url: str, fields: Any, status: int, holds: Any):
    response = await client.unary(llama_url, **fields)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    assert holds(response.json()), response.text


async def test_llama_server_streams_usage_on_a_chunk_without_choices(client: Client, llama_url: str):
    *events, done = await client.stream(llama_url, **USAGE)
    assert done == "[DONE]"
    assert finish_reasons(events) == ["length"]
    assert (events[-1]["choices"], events[-1]["usage"]["completion_tokens"]) == ([], 4)


async def test_llama_server_streams_two_choices_interleaved(client: Client, llama_url: str):
    events = await client.stream(llama_url, n=2, logprobs=True)
    assert {choice["index"] for event in chunks(events) for choice in event["choices"]} == {0, 1}
    assert finish_reasons(events) == ["length", "length"]


async def test_llama_server_drops_a_stream_that_its_client_leaves(client: Client, llama_url: str, slots: servers.Gauge):
    events = client.events(llama_url, max_tokens=500)
    await anext(events)
    assert await slots.read() == 1
    await events.aclose()
    assert await slots.becomes(0) < 1


# llmock alone.


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 408, 409, 422, 429, 500, 501, 502, 503, 504, 529])
async def test_llmock_fails_as_told(client: Client, llmock: servers.Llmock, status: int):
    await llmock.scenario({"type": "fail", "status": status, "retry_after": 0.2})
    response = await client.unary(llmock.url)
    assert response.status_code == status
    assert response.json()["error"].keys() == {"message", "type", "param", "code"}
    assert (response.headers["retry-after"], response.headers["retry-after-ms"]) == ("1", "200")


async def test_llmock_knows_that_a_client_left_in_a_stall(client: Client, llmock: servers.Llmock):
    await llmock.scenario({"type": "stream_fault", "kind": "stall", "after_chunks": 2, "stall_seconds": 30})
    events = client.events(llmock.url)
    await anext(events)
    await events.aclose()
    [request] = await llmock.requests()
    assert (request["completed"], request["stall_waited"] < 5) == (False, True)


async def test_llmock_judges(client: Client, llmock: servers.Llmock):
    await llmock.scenario({"type": "fail", "status": 429, "retry_after": 5})
    assert [(await client.unary(llmock.url)).status_code for _ in range(2)] == [429, 200]
    verdict = await llmock.verdict()
    assert not verdict["passed"]
    assert [finding["code"] for finding in verdict["findings"]] == ["retry_after_ignored"]
