"""Tests of bridge/emulator/: over real sockets, by a client that reads HTTP by hand."""

import asyncio
import contextlib
import gzip
import json
import time
import uuid
from typing import Any, NamedTuple

import aiohttp
import httpx2
import pytest
import uvloop

from bridge.emulator import DEFAULT_MODELS, SCENARIOS, Emulator, Exchange

HELLO = [{"role": "user", "content": "Hello there"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"location": {"type": "string"}, "days": {"type": "integer"}}},
    },
}
CLOCK = {"type": "function", "function": {"name": "get_time", "parameters": {}}}


class Response(NamedTuple):
    status: int
    headers: dict[str, str]
    pieces: list[bytes]  # HTTP chunks, or the body
    whole: bool  # whether the body ended as HTTP says it must

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data of each event, parsed; `[DONE]` and what is not JSON as text."""
        texts = [block[6:] for block in self.body.decode().split("\n\n") if block.startswith("data: ")]
        return [parsed(text) for text in texts]


def parsed(text: str) -> Any:
    with contextlib.suppress(ValueError):
        return json.loads(text)
    return text


class Client:
    """One connection, and requests on it."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator

    async def __aenter__(self):
        self.reader, self.writer = await asyncio.open_connection(self.emulator.host, self.emulator.port, limit=2**27)
        return self

    async def __aexit__(self, *_):
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    def send(self, body: Any = None, *, method="POST", path="/v1/chat/completions", headers=()):
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "Host: emulator", f"Content-Length: {len(data)}", *headers]
        self.writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + data)

    async def head(self) -> tuple[int, dict[str, str]]:
        text = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = text.rstrip().split("\r\n")
        return int(first.split()[1]), dict(line.split(": ", 1) for line in lines)

    async def piece(self) -> bytes | None:
        """The next HTTP chunk; None after the last."""
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        data = (await self.reader.readexactly(size + 2))[:size]
        return data or None

    async def response(self) -> Response:
        status, headers = await self.head()
        if "content-length" in headers:
            return Response(
                status, headers, [await self.reader.readexactly(int(headers["content-length"]))], whole=True
            )
        pieces: list[bytes] = []
        try:
            while (piece := await self.piece()) is not None:
                pieces.append(piece)
        except (asyncio.IncompleteReadError, ConnectionResetError):
            return Response(status, headers, pieces, whole=False)
        return Response(status, headers, pieces, whole=True)

    async def post(self, body: Any, *headers: str) -> Response:
        self.send(body, headers=headers)
        return await self.response()


def request(**changes: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": HELLO} | changes


def ollm(name: str, value: Any) -> dict[str, Any]:
    return request(**{f"ollm::{name}": value})


async def ask(body: Any, *headers: str, **settings: Any) -> Response:
    """One request to an emulator of its own."""
    async with Emulator(**settings) as emulator, Client(emulator) as client:
        return await client.post(body, *headers)


async def play(scenario: str, *, stream: bool = True, **changes: Any) -> Response:
    return await ask(request(model=f"scenario::{scenario}", stream=stream, **changes))


def content(events: list[Any]) -> str:
    chunks = [event for event in events if isinstance(event, dict) and event.get("choices")]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


def finish_reasons(events: list[Any]) -> list[str]:
    reasons = [
        choice["finish_reason"] for event in events if isinstance(event, dict) for choice in event.get("choices", ())
    ]
    return [reason for reason in reasons if reason is not None]


# The ordinary answer


async def test_unary_answer_repeats_what_the_user_said():
    response = await ask(request())
    assert (response.status, response.headers["content-type"]) == (200, "application/json")
    reply = response.json
    assert list(reply) == [
        "id",
        "episode_id",
        "choices",
        "created",
        "model",
        "system_fingerprint",
        "service_tier",
        "object",
        "usage",
    ]
    message = {"role": "assistant", "content": "You said: Hello there"}
    assert reply["choices"] == [{"index": 0, "finish_reason": "stop", "message": message}]
    assert reply["usage"] == {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}
    assert (reply["model"], reply["object"]) == ("ollm::model_name::echo", "chat.completion")
    assert uuid.UUID(reply["episode_id"]).version == 7


async def test_stream_is_an_event_for_each_http_chunk_and_ends_with_done():
    response = await ask(request(stream=True))
    assert response.headers["content-type"] == "text/event-stream"
    assert all(piece.startswith(b"data: ") and piece.endswith(b"\n\n") for piece in response.pieces)
    *chunks, done = response.events
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert content(chunks) == "You said: Hello there"
    assert finish_reasons(chunks) == ["stop"]
    assert {
        (chunk["id"], chunk["usage"], chunk["service_tier"], chunk["choices"][0]["logprobs"]) for chunk in chunks
    } == {(chunks[0]["id"], None, None, None)}


async def test_usage_rides_on_the_finish_chunk():
    *chunks, last, _ = (await ask(request(stream=True, stream_options={"include_usage": True}))).events
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["usage"]["total_tokens"] == 6
    assert {chunk["usage"] for chunk in chunks} == {None}


async def test_response_headers_carry_the_request_id_and_the_limits():
    headers = (await ask(request(), "X-Request-Id: abc-1")).headers
    assert headers["x-request-id"] == "abc-1"
    assert headers["x-ratelimit-limit-requests"] == "1000"
    assert {"openai-processing-ms", "x-ollm-gateway-version", "x-ratelimit-remaining-requests"} <= headers.keys()


@pytest.mark.parametrize(
    ("changes", "text", "finish_reason"),
    [
        ({"max_tokens": 3}, "You said: Hello", "length"),
        ({"max_tokens": 3, "max_completion_tokens": 1}, "You", "length"),
        ({"max_tokens": 0}, None, "length"),
        ({"max_tokens": 4}, "You said: Hello there", "stop"),
        ({"stop": ["there", ": He"]}, "You said", "stop"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "part"}]}]}, "You said: part", "stop"),
        ({"response_format": {"type": "json_object"}}, '{"text":"You said: Hello there"}', "stop"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {
                        "name": "answer",
                        "schema": {
                            "type": "object",
                            "properties": {
                                "city": {"type": "string"},
                                "days": {"type": "integer", "minimum": 1},
                                "kind": {"enum": ["a", "b"]},
                                "other": {"type": "string"},
                                "flags": {"type": "array"},
                            },
                            "required": ["city", "days", "kind", "flags"],
                        },
                    },
                }
            },
            '{"city":"Paris","days":1,"kind":"a","flags":[]}',
            "stop",
        ),
    ],
)
async def test_answer_heeds_the_request(changes, text, finish_reason):
    choice = (await ask(request(**changes))).json["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (text, finish_reason)
    events = (await ask(request(stream=True, **changes))).events
    assert (content(events) or None, finish_reasons(events)) == (text, [finish_reason])


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, ["get_weather"]),
        ({"tool_choice": "required"}, ["get_weather"]),
        ({"tool_choice": "required", "parallel_tool_calls": True}, ["get_weather", "get_time"]),
        ({"tool_choice": {"type": "function", "function": {"name": "get_time"}}}, ["get_time"]),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {
                        "mode": "auto",
                        "tools": [{"type": "function", "function": {"name": "get_time"}}],
                    },
                }
            },
            ["get_time"],
        ),
    ],
)
async def test_tools_are_called(changes, names):
    choice = (await ask(request(tools=[WEATHER, CLOCK], **changes))).json["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == names
    assert all(
        json.loads(call["function"]["arguments"]) in ({}, {"location": "Paris"})
        for call in choice["message"]["tool_calls"]
    )


async def test_no_tool_is_called_when_the_choice_is_none():
    choice = (await ask(request(tools=[WEATHER], tool_choice="none"))).json["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert "tool_calls" not in choice["message"]


async def test_tool_call_is_streamed_in_fragments_with_the_name_once():
    events = (await ask(request(stream=True, tools=[WEATHER]))).events
    fragments = [call for event in events[:-1] for call in event["choices"][0]["delta"].get("tool_calls", ())]
    assert fragments[0]["function"] == {"name": "get_weather", "arguments": ""}
    assert {(call["id"], call["function"]["name"]) for call in fragments[1:]} == {(None, "")}
    assert "".join(call["function"]["arguments"] for call in fragments) == '{"location":"Paris"}'
    assert finish_reasons(events) == ["tool_calls"]


async def test_answer_after_a_tool_message_uses_its_result():
    call = (await ask(request(tools=[WEATHER]))).json["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": call["tool_calls"][0]["id"], "content": "18 degrees"}
    choice = (await ask(request(tools=[WEATHER], messages=[*HELLO, call, result]))).json["choices"][0]
    assert choice["message"]["content"] == "The tool said: 18 degrees"


async def test_custom_tool_comes_back_as_a_function_call():
    reply = (await ask(request(tools=[{"type": "custom", "custom": {"name": "run"}}]))).json
    assert reply["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "run"


# What the ollm:: fields do


async def test_episode_is_echoed_in_the_answer_and_in_every_chunk():
    episode = str(uuid.uuid4())
    assert (await ask(ollm("episode_id", episode))).json["episode_id"] == episode
    events = (await ask(ollm("episode_id", episode) | {"stream": True})).events[:-1]
    assert {event["episode_id"] for event in events} == {episode}


@pytest.mark.parametrize(
    ("headers", "tags", "seen"),
    [
        ((), {"team": "a"}, {"team": "a"}),
        ((), {"source": "playground", "team": "a"}, {"playground": "true", "team": "a"}),
        ((), {"source": "elsewhere"}, {"source": "elsewhere"}),
        (("User-Agent: demo/1",), {}, {"user_agent": "demo/1"}),
        (("User-Agent: demo/1",), None, {"user_agent": "demo/1"}),
        ((), {}, {}),
    ],
)
async def test_tags_reach_the_spend_log(headers, tags, seen):
    async with Emulator() as emulator, Client(emulator) as client:
        await client.post(request() if tags is None else ollm("tags", tags), *headers)
        assert (await emulator.next_exchange()).tags == seen


@pytest.mark.parametrize(
    ("body", "billed"),
    [
        (request(), True),
        (ollm("dryrun", True), False),
        (ollm("dryrun", None), True),
        (request(n=2), False),
        (request(model="scenario::error"), False),
        (request(model="scenario::cut", stream=True), True),
    ],
)
async def test_dry_runs_and_refusals_are_not_billed(body, billed):
    async with Emulator() as emulator, Client(emulator) as client:
        await client.post(body)
        assert (await emulator.next_exchange()).billed is billed


async def test_raw_usage_and_raw_response_stand_beside_usage():
    reply = (await ask(request(**{"ollm::include_raw_usage": True, "ollm::include_raw_response": True}))).json
    assert list(reply["ollm_raw_usage"][0]) == ["model_inference_id", "provider_type", "api_type", "data"]
    assert reply["ollm_raw_usage"][0]["data"]["total_tokens"] == 6
    assert json.loads(reply["ollm_raw_response"][0]["data"])["usage"]["total_tokens"] == 6
    plain = (await ask(ollm("include_raw_usage", False))).json
    assert "ollm_raw_usage" not in plain


async def test_raw_usage_in_a_stream_comes_on_a_chunk_of_its_own_and_switches_usage_on():
    *_, raw, last, done = (await ask(ollm("include_raw_usage", True) | {"stream": True})).events
    assert raw["choices"][0]["delta"] == {}
    assert raw["ollm_raw_usage"][0]["data"]["total_tokens"] == 6
    assert (last["usage"]["total_tokens"], done) == (6, "[DONE]")


async def test_raw_response_in_a_stream_is_a_string_on_each_chunk_of_the_provider():
    *chunks, last, _ = (await ask(ollm("include_raw_response", True) | {"stream": True})).events
    assert all(isinstance(chunk["ollm_raw_chunk"], str) for chunk in chunks)
    assert "ollm_raw_chunk" not in last


async def test_second_identical_request_is_a_cache_hit():
    flags = {"ollm::include_raw_usage": True, "ollm::include_raw_response": True}
    body = request(**flags, **{"ollm::cache_options": {"enabled": "on", "max_age_s": None}})
    async with Emulator() as emulator, Client(emulator) as client:
        first, second = (await client.post(body)).json, (await client.post(body)).json
        stream = (await client.post(body | {"stream": True})).events
        other = (await client.post(body | {"seed": 1})).json
    assert first["usage"]["total_tokens"] == other["usage"]["total_tokens"] == 6
    assert (second["usage"]["total_tokens"], second["ollm_raw_usage"], second["ollm_raw_response"]) == (0, [], [])
    assert not any({"ollm_raw_usage", "ollm_raw_chunk"} & event.keys() for event in stream[:-1])
    assert stream[-2]["usage"]["total_tokens"] == 0


@pytest.mark.parametrize(
    ("first", "second", "hit"),
    [
        ({"enabled": "on"}, {"enabled": "read_only"}, True),
        ({"enabled": "write_only"}, {"enabled": "on"}, True),
        ({"enabled": "read_only"}, {"enabled": "on"}, False),
        ({"enabled": "on"}, {"enabled": "off"}, False),
        ({"enabled": "on"}, {}, False),
        ({"enabled": "on"}, {"enabled": "on", "max_age_s": 60}, True),
        ({"enabled": "on"}, {"enabled": "on", "max_age_s": 0}, False),
    ],
)
async def test_cache_mode_decides_on_reading_and_writing(first, second, hit):
    async with Emulator() as emulator, Client(emulator) as client:
        await client.post(ollm("cache_options", first))
        usage = (await client.post(ollm("cache_options", second))).json["usage"]
    assert (usage["total_tokens"] == 0) is hit


async def test_dry_run_does_not_write_the_cache():
    body = ollm("cache_options", {"enabled": "on"})
    async with Emulator() as emulator, Client(emulator) as client:
        await client.post(body | {"ollm::dryrun": True})
        assert (await client.post(body)).json["usage"]["total_tokens"] == 6


@pytest.mark.parametrize(
    ("selector", "variant", "echo"),
    [
        ("near_qwen3_30b", None, "ollm::model_name::near_qwen3_30b"),
        ("ollm::model_name::echo", None, "ollm::model_name::echo"),
        ("ollm::function_name::hello", None, "ollm::function_name::hello::variant_name::v1"),
        ("ollm::function_name::hello", "v2", "ollm::function_name::hello::variant_name::v2"),
        ("ollm::model_name::scenario::plain", None, "ollm::model_name::scenario::plain"),
        ("ollm::function_name::scenario::plain", "v2", "ollm::function_name::scenario::plain::variant_name::v2"),
    ],
)
async def test_selector_is_echoed_in_full(selector, variant, echo):
    assert (await ask(request(model=selector, **{"ollm::variant_name": variant}))).json["model"] == echo


# Refusals

BAD_BODIES = {
    "empty": b"",
    "whitespace": b"  ",
    "not json": b"{",
    "trailing bytes": b"{} {}",
    "not utf-8": b'{"model":"\xff"}',
    "byte order mark": b"\xef\xbb\xbf{}",
    "nan": b'{"temperature":NaN}',
    "lone surrogate": b'{"model":"\\ud83d"}',
    "too deep": b"[" * 100_000,
    "array": b"[]",
    "null": b"null",
    "duplicate key, the last one wins": b'{"model":"echo","messages":[{"role":"user","content":""}],"n":1,"n":2}',
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES)
async def test_body_that_is_no_json_object_is_refused(body):
    response = await ask(body)
    assert response.status == 400
    assert list(response.json["error"]) == ["message", "type", "code", "param"]
    assert response.json["error"]["type"] == "invalid_request_error"


def user(*parts: Any) -> dict[str, Any]:
    return request(messages=[{"role": "user", "content": list(parts)}])


def tool(**function: Any) -> dict[str, Any]:
    return request(tools=[{"type": "function", "function": function}])


def said(**message: Any) -> dict[str, Any]:
    return request(messages=[*HELLO, message])


IMAGE = {"url": "https://example.com/a.png"}
BAD_FIELDS = [
    ({"messages": HELLO}, "model"),
    (request(model=None), "model"),
    (request(model=1), "model"),
    (request(model=""), "model"),
    (request(model="ollm::function_name::"), "model"),
    (request(model="ollm::model_name::"), "model"),
    ({"model": "echo"}, "messages"),
    (request(messages=None), "messages"),
    (request(messages="hi"), "messages"),
    (request(messages=[]), "messages"),
    (request(messages=["hi"]), "messages[0]"),
    (said(content="x"), "messages[1].role"),
    (said(role="robot", content="x"), "messages[1].role"),
    (said(role="function", content="x"), "messages[1].role"),
    (said(role=["user"], content="x"), "messages[1].role"),
    (said(role="user"), "messages[1].content"),
    (said(role="user", content=None), "messages[1].content"),
    (said(role="user", content={"text": "x"}), "messages[1].content"),
    (said(role="assistant", content=1), "messages[1].content"),
    (said(role="assistant", tool_calls={}), "messages[1].tool_calls"),
    (said(role="assistant", tool_calls=[1]), "messages[1].tool_calls[0]"),
    (said(role="assistant", tool_calls=[{"id": "a", "type": "function"}]), "messages[1].tool_calls[0].function"),
    (
        said(
            role="assistant", tool_calls=[{"id": "a", "type": "function", "function": {"name": "f", "arguments": {}}}]
        ),
        "messages[1].tool_calls[0].function.arguments",
    ),
    (said(role="tool", content="x"), "messages[1].tool_call_id"),
    (said(role="tool", content="x", tool_call_id="nobody"), "messages[1].tool_call_id"),
    (user("text"), "messages[0].content[0]"),
    (user({"text": "x"}), "messages[0].content[0].type"),
    (user({"type": "video", "video": {}}), "messages[0].content[0].type"),
    (user({"type": "text"}), "messages[0].content[0].text"),
    (user({"type": "text", "text": 1}), "messages[0].content[0].text"),
    (user({"type": "image_url"}), "messages[0].content[0].image_url"),
    (user({"type": "image_url", "image_url": IMAGE | {"detail": "best"}}), "messages[0].content[0].image_url.detail"),
    (user({"type": "image_url", "image_url": IMAGE | {"x": 1}}), "messages[0].content[0].image_url"),
    (user({"type": "image_url", "image_url": IMAGE, "x": 1}), "messages[0].content[0]"),
    (
        user({"type": "input_audio", "input_audio": {"data": "!", "format": "wav"}}),
        "messages[0].content[0].input_audio.data",
    ),
    (user({"type": "file", "file": {"file_data": "abc"}}), "messages[0].content[0].file.file_data"),
    (user({"type": "file", "file": {"file_id": "abc"}}), "messages[0].content[0].file.file_data"),
    (
        request(messages=[{"role": "system", "content": [{"type": "image_url", "image_url": IMAGE}]}]),
        "messages[0].content[0].type",
    ),
    (request(temperature="hot"), "temperature"),
    (request(top_p=True), "top_p"),
    (request(presence_penalty="x"), "presence_penalty"),
    (request(frequency_penalty=[]), "frequency_penalty"),
    (request(max_tokens=100.0), "max_tokens"),
    (request(max_tokens=-1), "max_tokens"),
    (request(max_tokens=2**31), "max_tokens"),
    (request(max_tokens=True), "max_tokens"),
    (request(max_completion_tokens=-1), "max_completion_tokens"),
    (request(max_completion_tokens=1.5), "max_completion_tokens"),
    (request(n=0), "n"),
    (request(n=2), "n"),
    (request(n=-1), "n"),
    (request(n=1.0), "n"),
    (request(stop="x"), "stop"),
    (request(stop=[1]), "stop"),
    (request(seed=1.0), "seed"),
    (request(seed=2**31), "seed"),
    (request(reasoning_effort=1), "reasoning_effort"),
    (request(verbosity=1), "verbosity"),
    (request(service_tier="scale"), "service_tier"),
    (request(service_tier="Auto"), "service_tier"),
    (request(stream="yes"), "stream"),
    (request(parallel_tool_calls=1), "parallel_tool_calls"),
    (request(stream_options=[]), "stream_options"),
    (request(stream_options={"include_usage": None}), "stream_options.include_usage"),
    (request(tools={}), "tools"),
    (request(tools=[1]), "tools[0]"),
    (request(tools=[{"type": "retrieval"}]), "tools[0].type"),
    (request(tools=[{"type": "function"}]), "tools[0].function"),
    (tool(parameters={}), "tools[0].function.name"),
    (tool(name="f"), "tools[0].function.parameters"),
    (tool(name="f", parameters={}, strict=None), "tools[0].function.strict"),
    (request(tools=[{"type": "custom", "custom": {"name": "f", "x": 1}}]), "tools[0].custom"),
    (request(tools=[WEATHER, WEATHER]), "tools"),
    (request(tool_choice="invalid"), "tool_choice"),
    (request(tool_choice=1), "tool_choice"),
    (request(tool_choice=[]), "tool_choice"),
    (request(tool_choice={}), "tool_choice.type"),
    (request(tool_choice={"type": "custom"}), "tool_choice.type"),
    (request(tool_choice={"type": "function", "function": {}}), "tool_choice.function.name"),
    (request(tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "other"}}), "tool_choice"),
    (
        request(tool_choice={"type": "allowed_tools", "allowed_tools": {"mode": "none", "tools": []}}),
        "tool_choice.allowed_tools.mode",
    ),
    (request(response_format="json"), "response_format"),
    (request(response_format={"type": "xml"}), "response_format.type"),
    (request(response_format={"type": "json_schema"}), "response_format.json_schema"),
    (request(response_format={"type": "json_schema", "json_schema": {}}), "response_format.json_schema.name"),
    (
        request(response_format={"type": "json_schema", "json_schema": {"name": "a", "strict": None}}),
        "response_format.json_schema.strict",
    ),
    (ollm("tags", {"a": 1}), "ollm::tags"),
    (ollm("tags", None), "ollm::tags"),
    (ollm("tags", []), "ollm::tags"),
    (ollm("cache_options", "on"), "ollm::cache_options"),
    (ollm("cache_options", {"enabled": "yes"}), "ollm::cache_options.enabled"),
    (ollm("cache_options", {"enabled": None}), "ollm::cache_options.enabled"),
    (ollm("cache_options", {"max_age_s": -1}), "ollm::cache_options.max_age_s"),
    (ollm("dryrun", "yes"), "ollm::dryrun"),
    (ollm("episode_id", "not-a-uuid"), "ollm::episode_id"),
    (ollm("episode_id", 1), "ollm::episode_id"),
    (ollm("variant_name", 1), "ollm::variant_name"),
    (ollm("variant_name", "v1"), "ollm::variant_name"),
    (ollm("deny_unknown_fields", None), "ollm::deny_unknown_fields"),
    (ollm("include_raw_usage", None), "ollm::include_raw_usage"),
    (ollm("include_raw_response", 1), "ollm::include_raw_response"),
    (ollm("deny_unknown_fields", True) | {"b": 1, "a": None}, "a"),
    (
        ollm("include_raw_usage", True) | {"stream": True, "stream_options": {"include_usage": False}},
        "stream_options.include_usage",
    ),
    (ollm("include_raw_usage", True) | {"stream": True, "stream_options": {}}, "stream_options.include_usage"),
]


@pytest.mark.parametrize(
    ("body", "param"), BAD_FIELDS, ids=[f"{at} {param}" for at, (_, param) in enumerate(BAD_FIELDS)]
)
async def test_bad_field_is_refused_by_its_name(body, param):
    response = await ask(body)
    error = response.json["error"]
    assert (response.status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert error["message"]


async def test_unknown_fields_are_named_in_order_when_they_are_denied():
    response = await ask(ollm("deny_unknown_fields", True) | {"b": 1, "a": 2, "ollm::tag": {}})
    assert "a, b, ollm::tag" in response.json["error"]["message"]


async def test_raw_usage_conflict_mentions_include_usage():
    response = await ask(ollm("include_raw_usage", True) | {"stream": True, "stream_options": {}})
    assert "include_usage" in response.json["error"]["message"]


@pytest.mark.parametrize(
    "changes",
    [
        dict.fromkeys(
            (
                "temperature",
                "top_p",
                "presence_penalty",
                "frequency_penalty",
                "max_tokens",
                "max_completion_tokens",
                "n",
                "stop",
                "seed",
                "reasoning_effort",
                "verbosity",
                "service_tier",
                "stream",
                "stream_options",
                "tools",
                "tool_choice",
                "parallel_tool_calls",
                "response_format",
                "ollm::dryrun",
                "ollm::episode_id",
                "ollm::cache_options",
                "ollm::variant_name",
            )
        ),
        {"temperature": 99, "top_p": 1, "seed": -1, "n": 1, "stop": [], "service_tier": "flex"},
        {"unknown": {"nested": [None, 2**70, 1e300]}, "ollm::tag": {}},
        {"tools": [], "response_format": {"type": "text"}},
        {"stream_options": {"include_usage": True, "include_obfuscation": False}, "ollm::deny_unknown_fields": True},
        {
            "messages": [
                {"role": "developer", "content": "x", "name": "y"},
                *HELLO,
                {"role": "assistant", "content": None},
            ]
        },
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "x", "cache": 1}, {"type": "image_url", "image_url": IMAGE}],
                }
            ]
        },
        {"messages": [{"role": "user", "content": []}]},
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
                        {"type": "file", "file": {"file_data": "data:text/plain;base64,AAAA", "filename": "a"}},
                    ],
                }
            ]
        },
    ],
    ids=["nulls", "edges", "unknown", "empty", "options", "roles", "parts", "no parts", "media"],
)
async def test_what_the_gateway_takes_is_taken(changes):
    assert (await ask(request(**changes))).status == 200


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (request(model="nope"), "model_not_found"),
        (request(model="ollm::model_name::nope"), "model_not_found"),
        (request(model="scenario::nope"), "model_not_found"),
        (request(model="scenario::slow?speed=1"), "model_not_found"),
        (request(model="scenario::slow?delay_s=x"), "model_not_found"),
        (request(model="scenario::big?size=99999999999"), "model_not_found"),
        (request(model="ollm::function_name::nope"), "function_not_found"),
        (request(model="ollm::function_name::hello", **{"ollm::variant_name": "v9"}), "variant_not_found"),
        (request(model="ollm::function_name::scenario::plain", **{"ollm::variant_name": "v9"}), "variant_not_found"),
    ],
)
async def test_unknown_name_is_not_found(body, code):
    response = await ask(body)
    assert response.status == 404
    assert (response.json["error"]["type"], response.json["error"]["code"]) == ("not_found_error", code)


def test_unknown_scenario_for_all_requests_is_refused_at_once():
    with pytest.raises(ValueError, match="expected one of"):
        Emulator(scenario="nope")


@pytest.mark.parametrize(
    ("headers", "text"),
    [
        ([], "is required"),
        (["Authorization: Basic c2stb2xsbQ=="], "must start with 'Bearer '"),
        (["Authorization: bearer sk-ollm-a-b"], "must start with 'Bearer '"),
        (["Authorization: Bearer sk-ollm-other"], "does not exist"),
    ],
)
async def test_bad_key_is_refused_and_not_repeated(headers, text):
    response = await ask(request(), *headers, api_key="sk-ollm-a-b")
    assert response.status == 401
    assert response.json["error"]["type"] == "authentication_error"
    assert text in response.json["error"]["message"]
    assert b"sk-ollm" not in response.body


async def test_right_key_is_taken():
    assert (await ask(request(), "Authorization: Bearer sk-ollm-a-b", api_key="sk-ollm-a-b")).status == 200


async def test_key_is_ignored_without_one_to_compare():
    assert (await ask(request(), "Authorization: nonsense")).status == 200


# The wire


async def test_two_requests_share_a_connection():
    async with Emulator() as emulator, Client(emulator) as client:
        assert [(await client.post(request())).status, (await client.post(request(stream=True))).status] == [200, 200]
        assert emulator.connections_opened == 1


async def test_two_requests_in_one_write_are_answered_in_turn():
    async with Emulator() as emulator, Client(emulator) as client:
        client.send(request())
        client.send(request(max_tokens=1))
        assert (await client.response()).json["choices"][0]["finish_reason"] == "stop"
        assert (await client.response()).json["choices"][0]["finish_reason"] == "length"


async def test_request_body_in_http_chunks_is_joined():
    body = json.dumps(request()).encode()
    pieces = [body[:7], body[7:30], body[30:]]
    data = b"".join(b"%x;a=b\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\nTrailer: x\r\n\r\n"
    async with Emulator() as emulator, Client(emulator) as client:
        client.writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + data)
        assert (await client.response()).status == 200
        assert (await emulator.next_exchange()).body == body


async def test_request_that_comes_byte_by_byte_is_whole_at_its_end():
    body = json.dumps(request()).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    async with Emulator() as emulator, Client(emulator) as client:
        for byte in head + body:
            client.writer.write(bytes([byte]))
            await client.writer.drain()
        assert (await client.response()).status == 200


async def test_expected_continue_is_given_before_the_body():
    body = json.dumps(request()).encode()
    async with Emulator() as emulator, Client(emulator) as client:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n"
        client.writer.write(head.encode())
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.writer.write(body)
        assert (await client.response()).status == 200


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\x00c\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFF0\r\n", 413),
        (b"POST / HTTP/1.1\r\nContent-Length: 999999999999\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Encoding: gzip\r\n\r\n", 415),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 70_000 + b"\r\n\r\n", 431),
        (b"x" * 70_000, 431),
    ],
)
async def test_malformed_request_is_refused_and_the_connection_closed(data, status):
    async with Emulator() as emulator, Client(emulator) as client:
        client.writer.write(data)
        response = await client.response()
        assert (response.status, response.headers["connection"]) == (status, "close")
        assert await client.reader.read() == b""
        assert await connects(emulator)


async def test_wrong_method_says_which_one_is_right():
    async with Emulator() as emulator, Client(emulator) as client:
        client.send(method="GET")
        response = await client.response()
        assert (response.status, response.headers["allow"], response.body) == (405, "POST", b"")


async def test_unknown_route_is_named_in_a_flat_error():
    async with Emulator() as emulator, Client(emulator) as client:
        client.send({}, path="/v1/nope")
        response = await client.response()
        assert (response.status, response.json) == (404, {"error": "Route not found: POST /v1/nope"})


@pytest.mark.parametrize("close", ["HTTP/1.1\r\nConnection: close", "HTTP/1.0"])
async def test_connection_is_closed_when_the_request_says_so(close):
    async with Emulator() as emulator, Client(emulator) as client:
        client.writer.write(f"GET /health {close}\r\n\r\n".encode())
        response = await client.response()
        assert (response.json, response.headers["connection"]) == ({"status": "ok"}, "close")
        assert await client.reader.read() == b""


async def test_common_http_clients_get_along():
    async with Emulator() as emulator:
        async with httpx2.AsyncClient(base_url=emulator.url) as client:
            models = (await client.get("/v1/models")).json()
            assert [model["id"] for model in models["data"]] == list(DEFAULT_MODELS)
            reply = await client.post("/v1/chat/completions", json=request(stream=True))
            assert reply.text.endswith("data: [DONE]\n\n")
        async with aiohttp.ClientSession(emulator.url) as session:
            for _ in range(3):
                async with session.post("/v1/chat/completions", json=request(stream=True)) as answer:
                    assert (await answer.text()).endswith("data: [DONE]\n\n")


# The record


async def test_exchange_tells_what_was_seen_and_sent():
    async with Emulator() as emulator, Client(emulator) as client:
        before = time.monotonic()
        await client.post(request(stream=True), "X-One: a", "X-One: b")
        exchange = await emulator.next_exchange()
        assert (exchange.method, exchange.path, exchange.headers["x-one"]) == ("POST", "/v1/chat/completions", "a, b")
        assert exchange.json == request(stream=True) == json.loads(exchange.body)
        assert before <= exchange.received_at <= time.monotonic()
        assert (exchange.status, exchange.events_sent, exchange.finished, exchange.closed_at) == (200, 7, True, None)
        assert emulator.exchanges == [exchange]


async def test_each_exchange_is_given_out_once_in_order():
    async with Emulator() as emulator, Client(emulator) as client:
        waiting = asyncio.create_task(emulator.next_exchange())
        await client.post(request(seed=1))
        await client.post(request(seed=2))
        assert [(await waiting).json["seed"], (await emulator.next_exchange()).json["seed"]] == [1, 2]
        with pytest.raises(TimeoutError):
            await emulator.next_exchange(timeout_s=0.01)


async def test_exchanges_are_bounded(monkeypatch):
    monkeypatch.setattr("bridge.emulator.gateway.EXCHANGES_MAX", 3)
    async with Emulator() as emulator, Client(emulator) as client:
        for seed in range(5):
            await client.post(request(seed=seed))
        assert [exchange.json["seed"] for exchange in emulator.exchanges] == [2, 3, 4]


async def test_exchanges_are_served_without_the_key():
    async with Emulator() as emulator, Client(emulator) as client:
        await client.post(request(seed=1), "Authorization: Bearer sk-ollm-a-b")
        await client.post(request(seed=2))
        client.send(method="GET", path="/_emulator/exchanges")
        response = await client.response()
        assert b"sk-ollm" not in response.body
        assert [(one["json"]["seed"], one["authorization"]) for one in response.json] == [(1, True), (2, False)]
        client.send(method="GET", path="/_emulator/exchanges?last=1")
        assert [one["json"]["seed"] for one in (await client.response()).json] == [2]
        assert len(emulator.exchanges) == 2


# The peer's leaving


async def left_after(emulator: Emulator, client: Client, leave) -> Exchange:
    """The exchange, whose peer's leaving was seen within 100 ms."""
    exchange = await emulator.next_exchange()
    assert exchange.closed_at is None
    leave(client.writer)
    at = time.monotonic()
    assert await exchange.wait_closed(timeout_s=1) - at < 0.1
    assert exchange.closed.is_set()
    return exchange


LEAVINGS = {"close": lambda writer: writer.close(), "reset": lambda writer: writer.transport.abort()}


@pytest.mark.parametrize("leave", LEAVINGS.values(), ids=LEAVINGS)
@pytest.mark.parametrize(
    ("scenario", "stream", "status", "events"),
    [
        ("stall?headers=0", False, None, 0),
        ("slow?delay_s=600", False, None, 0),
        ("stall?after=0", True, 200, 0),
        ("stall?after=2", True, 200, 2),
        ("stall?after=2", False, 200, 0),
        ("slow?delay_s=0&chunk_delay_s=600", True, 200, 1),
        ("comments?every=600", True, 200, 0),
        ("pace?interval_ms=60000", True, 200, 1),
    ],
)
async def test_peer_leaving_before_the_end_is_seen_at_once(scenario, stream, status, events, leave):
    async with Emulator() as emulator, Client(emulator) as client:
        client.send(request(model=f"scenario::{scenario}", stream=stream))
        if status is not None:
            await client.head()
        for _ in range(events):
            await client.piece()
        exchange = await left_after(emulator, client, leave)
        assert (exchange.status, exchange.events_sent, exchange.finished) == (status, events, False)


async def test_peer_leaving_in_the_middle_of_a_fast_stream_is_seen_at_once():
    async with Emulator() as emulator, Client(emulator) as client:
        client.send(request(model="scenario::many?chunks=10000000", stream=True))
        await client.head()
        await client.piece()
        exchange = await left_after(emulator, client, LEAVINGS["reset"])
        assert not exchange.finished


async def test_peer_leaving_after_the_end_is_seen_on_every_exchange_of_the_connection():
    async with Emulator() as emulator, Client(emulator) as client:
        await client.post(request())
        await client.post(request())
        first = await emulator.next_exchange()
        second = await left_after(emulator, client, LEAVINGS["close"])
        assert first.closed_at is not None
        assert first.finished
        assert second.finished


async def test_waiting_for_a_peer_that_stays_times_out():
    async with Emulator() as emulator, Client(emulator) as client:
        await client.post(request())
        with pytest.raises(TimeoutError):
            await (await emulator.next_exchange()).wait_closed(timeout_s=0.01)


async def test_end_of_the_emulator_leaves_no_task_and_no_connection():
    tasks = asyncio.all_tasks()
    async with Emulator() as emulator:
        clients = [await Client(emulator).__aenter__() for _ in range(3)]
        for client, scenario in zip(clients, ("stall", "slow?delay_s=600", "plain"), strict=True):
            client.send(request(model=f"scenario::{scenario}", stream=True))
            await emulator.next_exchange()
    assert asyncio.all_tasks() == tasks
    assert not emulator.connections
    for client in clients:
        with contextlib.suppress(ConnectionResetError):
            await client.reader.read()
        client.writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(emulator.host, emulator.port)


async def test_slow_reader_holds_the_stream_back():
    async with Emulator() as emulator:
        reader, writer = await asyncio.open_connection(emulator.host, emulator.port, limit=1024)
        client = Client(emulator)
        client.reader, client.writer = reader, writer
        client.send(request(model="scenario::many?chunks=100000&bytes=10000", stream=True))
        exchange = await emulator.next_exchange()
        (connection,) = emulator.connections
        while connection.writable.is_set():
            await client.reader.read(1)
        assert 0 < exchange.events_sent < 5000
        writer.transport.abort()
        await exchange.wait_closed()


# Listening


async def test_refusing_emulator_takes_connections_again_on_the_same_port():
    async with Emulator() as emulator:
        port = emulator.port
        await emulator.refuse()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(emulator.host, port)
        await emulator.accept()
        async with Client(emulator) as client:
            assert (await client.post(request())).status == 200
        assert emulator.port == port


async def connects(emulator: Emulator) -> bool:
    """Whether a new connection gets an answer."""
    try:
        async with Client(emulator) as client:
            return (await client.post(request())).status == 200
    except (OSError, asyncio.IncompleteReadError):
        return False


async def test_connections_are_reset_at_once_as_often_as_asked():
    async with Emulator(scenario="refuse?connects=2") as emulator:
        assert [await connects(emulator) for _ in range(3)] == [False, False, True]
        async with Client(emulator) as client:
            await client.post(request(model="scenario::refuse?connects=1"))
            assert [await connects(emulator) for _ in range(2)] == [False, True]
            await client.post(request(model="scenario::refuse?connects=1"))
            await emulator.accept()
            assert await connects(emulator)


# Scenarios


def test_every_scenario_has_help_in_one_line():
    assert all(scenario.help and "\n" not in scenario.help for scenario in SCENARIOS.values())


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize("name", sorted(SCENARIOS.keys() - {"stall"}))
async def test_scenario_plays_to_its_end(name, stream):
    async with Emulator() as emulator, Client(emulator) as client:
        client.send(request(model=f"scenario::{name}", stream=stream))
        broken = {"reset", "half_chunk", "close"}
        if name == "close":
            assert await client.reader.read() == b""
        else:
            response = await client.response()
            assert response.whole is (name not in broken)
            assert response.status == (await emulator.next_exchange()).status


async def test_scenario_for_all_requests_yields_to_the_one_in_the_model():
    async with Emulator(scenario="error?status=418&message=tea") as emulator, Client(emulator) as client:
        response = await client.post(request())
        assert (response.status, response.json["error"]["message"]) == (418, "tea")
        assert (await client.post(request(model="scenario::plain"))).status == 200


async def test_slow_waits_before_the_headers():
    before = time.monotonic()
    await play("slow?delay_s=0.05")
    assert time.monotonic() - before >= 0.05


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("stream", [False, True])
async def test_split_cuts_the_body_into_pieces(size, stream):
    async with Emulator() as emulator, Client(emulator) as client:
        response = await client.post(request(model=f"scenario::split?size={size}", stream=stream, max_tokens=2))
        assert {len(piece) for piece in response.pieces[:-1]} <= {size}
        exchange = await emulator.next_exchange()
        if stream:
            assert content(response.events) == "You said:"
            assert exchange.events_sent == len(response.events) == 5
        else:
            assert response.json["choices"]


async def test_cut_ends_properly_without_finish_and_done():
    response = await play("cut?after=3")
    assert response.whole
    assert (len(response.events), finish_reasons(response.events)) == (3, [])
    assert finish_reasons((await play("cut?after=1000")).events) == []


@pytest.mark.parametrize("after", [0, 3])
async def test_reset_comes_after_the_events(after):
    response = await play(f"reset?after={after}")
    assert (len(response.events), response.whole) == (after, False)


@pytest.mark.parametrize("scenario", ["reset?after=-1", "close"])
async def test_connection_can_end_before_any_header(scenario):
    async with Emulator() as emulator, Client(emulator) as client:
        client.send(request(model=f"scenario::{scenario}"))
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await client.head()
        exchange = await emulator.next_exchange()
        assert (exchange.status, exchange.billed, exchange.finished) == (None, True, False)


def test_reset_is_a_reset_under_uvloop_too():
    async def reset() -> None:
        async with Emulator() as emulator, Client(emulator) as client:
            client.send(request(model="scenario::reset?after=-1"))
            with pytest.raises(ConnectionResetError):
                await client.head()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(reset())


async def test_half_chunk_breaks_off_inside_an_http_chunk():
    response = await play("half_chunk?after=2")
    assert (len(response.events), response.whole) == (2, False)


async def test_no_finish_ends_with_done_alone():
    events = (await play("no_finish")).events
    assert (finish_reasons(events), events[-1]) == ([], "[DONE]")


async def test_no_done_finishes_and_ends():
    response = await play("no_done")
    assert (finish_reasons(response.events), response.events[-1] != "[DONE]", response.whole) == (["stop"], True, True)


async def test_done_only_says_nothing_else():
    assert (await play("done_only")).events == ["[DONE]"]


async def test_garbage_stands_where_it_was_asked_for():
    events = (await play("garbage?after=1")).events
    assert events[1] == "{not json"
    assert (finish_reasons(events), events[-1]) == (["stop"], "[DONE]")


@pytest.mark.parametrize(
    ("params", "event"),
    [
        (
            "",
            {
                "error": {
                    "message": "the provider failed in mid-stream",
                    "type": "server_error",
                    "code": None,
                    "param": None,
                }
            },
        ),
        (
            "&message=m&status=429&type=t&code=c",
            {"error": {"message": "m", "type": "t", "code": "c", "param": None, "status": 429}},
        ),
        ("&message=m&code=429&type=t", {"error": {"message": "m", "type": "t", "code": 429, "param": None}}),
        ("&flat=1&message=m", {"error": "m"}),
        ("&flat=1&message=m&raw=1", {"error": "m", "ollm_raw_chunk": "{not json"}),
    ],
)
async def test_error_event_is_followed_by_good_chunks(params, event):
    events = (await play(f"error_event?after=2{params}")).events
    assert events[2] == event
    assert content(events) == "You said: Hello there"
    assert (finish_reasons(events), events[-1]) == (["stop"], "[DONE]")


async def test_named_error_event_has_the_bare_error():
    body = (await play("error_event?named=1&message=m")).body
    assert b'event: error\ndata: {"message":"m",' in body


@pytest.mark.parametrize(
    ("params", "body"),
    [
        ("", b'{"error":{"message":"m","type":"server_error","code":null,"param":null}}'),
        ("&type=t&code=5&param=p", b'{"error":{"message":"m","type":"t","code":5,"param":"p"}}'),
        ("&envelope=bare", b'{"error":{"message":"m"}}'),
        ("&envelope=flat", b'{"error":"m"}'),
        ("&envelope=detail", b'{"detail":"m"}'),
        ("&envelope=message", b'{"message":"m"}'),
        ("&envelope=none", b"{}"),
        ("&envelope=html", b"<html><body><h1>m</h1></body></html>"),
        ("&envelope=empty", b""),
        ("&envelope=flat&size=7", '{"error":"错错"}'.encode()),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_error_has_the_envelope_that_was_asked_for(params, body, stream):
    response = await play(f"error?status=599&message=m{params}", stream=stream)
    assert (response.status, response.body) == (599, body)


async def test_unknown_envelope_is_refused():
    assert (await play("error?envelope=brown")).status == 400


async def test_error_headers_say_when_to_come_back():
    headers = (await play("error?status=429&retry_after=1.5&retry_after_ms=1500")).headers
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("1.5", "1500")
    assert (await play("error?retry_date_s=5")).headers["retry-after"].endswith("GMT")


async def test_error_can_carry_a_raw_response():
    assert list((await play("error?raw=1")).json) == ["error", "ollm_raw_response"]


@pytest.mark.parametrize(("name", "status"), [("rate_limited", 429), ("overloaded", 503), ("provider_failed", 502)])
async def test_aliases_of_the_error(name, status):
    response = await play(name)
    assert response.status == status
    assert ("retry-after" in response.headers) is (status != 502)
    assert (await play(f"{name}?message=m")).json["error"]["message"] == "m"


async def test_comments_stand_before_and_between_events():
    body = (await play("comments?every=0&count=1", max_tokens=1)).body
    assert [line[:1] for line in body.split(b"\n\n")] == [b":", b"d"] * 4 + [b""]


@pytest.mark.parametrize(("scenario", "size"), [("huge_event?size=300000", 300_000), ("big?size=5000", 5000)])
async def test_content_has_the_size_that_was_asked_for(scenario, size):
    reply = (await play(scenario, stream=False)).json
    assert reply["choices"][0]["message"]["content"] == "x" * size
    assert content((await play(scenario)).events).startswith("x" * size)


async def test_many_chunks_come_as_asked():
    events = (await play("many?chunks=1000&bytes=10")).events
    assert content(events) == "x" * 10_000
    assert finish_reasons(events) == ["stop"]


async def test_pace_tells_when_each_chunk_was_due_and_sent():
    events = (await play("pace?chunks=5&interval_ms=2")).events
    times = [[int(word) for word in content([event]).split()] for event in events[1:6]]
    assert [due - times[0][0] for due, _ in times] == [0, 2_000_000, 4_000_000, 6_000_000, 8_000_000]
    assert all(sent >= due - 1_000_000 for due, sent in times)
    assert finish_reasons(events) == ["stop"]


@pytest.mark.parametrize(("name", "end"), [("crlf", "\r\n"), ("cr", "\r"), ("bom", "\n")])
async def test_events_have_other_line_ends_or_a_byte_order_mark(name, end):
    body = (await play(name)).body.decode()
    assert body.startswith("\ufeff") is (name == "bom")
    text = body.removeprefix("\ufeff").replace(end, "\n")
    assert "\r" not in text
    assert text.endswith("data: [DONE]\n\n")


async def test_multiline_data_joins_to_json():
    blocks = (await play("multiline")).body.decode().split("\n\n")
    texts = ["\n".join(line.removeprefix("data:") for line in block.split("\n")) for block in blocks if block]
    assert all("\n" in text for text in texts[:-1])
    assert content([json.loads(text) for text in texts[:-1]]) == "You said: Hello there"
    assert texts[-1] == "[DONE]"


async def test_usage_chunk_has_no_choices():
    *_, finish, usage, done = (await play("usage_chunk", stream_options={"include_usage": True})).events
    assert (finish["usage"], usage["choices"], usage["usage"]["total_tokens"], done) == (None, [], 6, "[DONE]")


async def test_reasoning_precedes_the_answer():
    deltas = [event["choices"][0]["delta"] for event in (await play("reasoning?text=I+think")).events[:-1]]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "I think"
    assert (await play("reasoning", stream=False)).json["choices"][0]["message"]["reasoning_content"]


async def test_logprobs_stand_in_the_choice():
    assert (await play("logprobs", stream=False)).json["choices"][0]["logprobs"]["content"][0]["logprob"] == -0.25
    choices = [event["choices"][0] for event in (await play("logprobs")).events[:-1]]
    assert [bool(choice["logprobs"]) for choice in choices] == [
        bool(choice["delta"].get("content")) for choice in choices
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_unknown_fields_stand_at_every_level_in_their_own_spelling(stream):
    response = await play("unknown_fields", stream=stream, tools=[WEATHER])
    for spelling in (b'"x_big":9007199254740993,', b'"x_price":1.10,', b'"x_exponent":1e2,', b'"a":"\\u00e9"'):
        assert spelling in response.body
    value = response.events[1] if stream else response.json
    choice = value["choices"][0]
    message = choice["delta" if stream else "message"]
    call = message["tool_calls"][0]
    assert all("x_big" in level for level in (value, choice, message, call, call["function"]))


@pytest.mark.parametrize("stream", [False, True])
async def test_mirror_answers_with_the_body_byte_for_byte(stream):
    body = (
        b'{"x": [1.10, 9007199254740993],  "model": "scenario::mirror", "stream": %s,'
        b' "messages": [{"role": "user", "content": "\\u00e9"}], "tools": [%s]}'
    ) % (str(stream).lower().encode(), json.dumps(WEATHER).encode())
    response = await ask(body)
    text = content(response.events) if stream else response.json["choices"][0]["message"]["content"]
    assert text.encode() == body


async def test_flaky_refuses_the_same_body_so_often_and_then_answers():
    body, other = (request(model="scenario::flaky?times=2&status=429&retry_after_ms=40", seed=seed) for seed in (1, 2))
    async with Emulator() as emulator, Client(emulator) as client:
        responses = [await client.post(each) for each in (body, other, body, body, body)]
    assert [response.status for response in responses] == [429, 429, 429, 200, 429]
    assert responses[0].headers["retry-after-ms"] == "40"


async def test_misfits_leave_content_and_finish_good():
    events = (await play("misfit", stream_options={"include_usage": True})).events
    assert (events[0]["id"], events[0]["created"], events[-2]["usage"]["prompt_tokens"]) == (12, "soon", "two")
    assert (content(events), finish_reasons(events)) == ("You said: Hello there", ["stop"])


@pytest.mark.parametrize("stream", [False, True])
async def test_surrogate_is_alone_inside_its_escape(stream):
    assert b"cut \\ud83d" in (await play("surrogate", stream=stream)).body


async def test_two_choices_are_told_apart_by_index():
    assert [choice["index"] for choice in (await play("two_choices", stream=False)).json["choices"]] == [0, 1]
    assert finish_reasons((await play("two_choices")).events) == ["stop", "stop"]


async def test_answers_of_a_wrong_shape():
    response = await play("not_json")
    assert (response.status, response.headers["content-type"]) == (200, "text/html")
    response = await play("wrong_type")
    assert (response.headers["content-type"], response.json["object"]) == ("application/json", "chat.completion")
    assert list((await play("wrong_type?in_200=1")).json) == ["error"]
    assert (await play("not_object", stream=False)).json == [1, 2]
    assert (await play("not_object")).events == [[1, 2], "[DONE]"]
    assert "choices" not in (await play("no_choices", stream=False)).json
    assert all("choices" not in event for event in (await play("no_choices")).events[:-1])


async def test_redirect_leads_elsewhere():
    response = await play("redirect?status=302&location=http://x/%0d%0aSet-Cookie:%20a")
    assert (response.status, response.headers["location"]) == (302, "http://x/  Set-Cookie: a")


@pytest.mark.parametrize("stream", [False, True])
async def test_gzip_comes_unasked(stream):
    response = await play("gzip", stream=stream)
    assert response.headers["content-encoding"] == "gzip"
    assert b"You" in gzip.decompress(response.body)


async def test_bomb_is_small_on_the_wire():
    assert len((await play("gzip?bomb=1")).body) < 500_000


async def test_header_flood_has_as_many_headers_as_asked():
    headers = (await play("header_flood?count=3&size=5")).headers
    assert [headers[f"x-flood-{number}"] for number in range(3)] == ["xxxxx"] * 3
