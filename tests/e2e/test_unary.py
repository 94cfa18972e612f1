"""Successful unary calls over real sockets."""

import json

import pytest

from bridge import __version__
from ollmbridge.v1.chat_pb2 import (
    ChatMessage,
    ContentPart,
    ContentParts,
    FunctionTool,
    ImageUrl,
    ResponseFormat,
    StreamOptions,
    Tool,
    ToolChoice,
)
from ollmbridge.v1.ollm_options_pb2 import CacheOptions, OllmOptions
from tests.kit.client import chat, scenario

EPISODE = "0190a7c3-0000-7000-8000-000000000001"
SCHEMA = '{"type":"object","required":["z","a"],"properties":{"z":{"type":"number"},"a":{"const":1.10}}}'


# Requests


async def test_every_kind_of_field_reaches_the_gateway_as_json(bridge, emulator):
    request = chat(
        "hi",
        temperature=0.7,
        top_p=0.0,
        max_tokens=40,
        n=1,
        seed=0,
        stop=["x"],
        parallel_tool_calls=False,
        service_tier="auto",
        reasoning_effort="",
        tools=[Tool(function=FunctionTool(name="f", parameters_json=SCHEMA, strict=False))],
        tool_choice=ToolChoice(mode=ToolChoice.MODE_NONE),
        response_format=ResponseFormat(json_schema=ResponseFormat.JsonSchema(name="s", schema_json=SCHEMA)),
    )
    assert (await bridge.ask(request)).failure is None
    assert emulator.exchanges[0].json == {
        "model": "echo",
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0.7,
        "top_p": 0.0,
        "max_tokens": 40,
        "n": 1,
        "seed": 0,
        "stop": ["x"],
        "parallel_tool_calls": False,
        "service_tier": "auto",
        "reasoning_effort": "",
        "tools": [{"type": "function", "function": {"name": "f", "parameters": json.loads(SCHEMA), "strict": False}}],
        "tool_choice": "none",
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": json.loads(SCHEMA)}},
    }
    body = emulator.exchanges[0].body
    assert body.count(SCHEMA.encode()) == 2
    assert b'"max_tokens":40,' in body


async def test_options_of_the_gateway_are_sent_with_their_prefix(bridge, emulator):
    options = OllmOptions(
        tags={"team": "a", "cost-center": "7"},
        cache_options=CacheOptions(enabled="on", max_age_s=60),
        dryrun=False,
        variant_name="v2",
        episode_id=EPISODE,
        deny_unknown_fields=False,
        include_raw_usage=True,
        include_raw_response=True,
    )
    answer = await bridge.ask(chat(model="ollm::function_name::hello", ollm=options))
    exchange = emulator.exchanges[0]
    assert {key: value for key, value in exchange.json.items() if key.startswith("ollm::")} == {
        "ollm::tags": {"team": "a", "cost-center": "7"},
        "ollm::cache_options": {"enabled": "on", "max_age_s": 60},
        "ollm::dryrun": False,
        "ollm::variant_name": "v2",
        "ollm::episode_id": EPISODE,
        "ollm::deny_unknown_fields": False,
        "ollm::include_raw_usage": True,
        "ollm::include_raw_response": True,
    }
    assert exchange.tags == {"team": "a", "cost-center": "7"}
    assert exchange.billed
    assert answer.reply.model == "ollm::function_name::hello::variant_name::v2"
    assert answer.reply.episode_id == EPISODE
    assert json.loads(answer.reply.raw_usage_json)[0]["data"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert json.loads(json.loads(answer.reply.raw_response_json)[0]["data"])["choices"][0]["finish_reason"] == "stop"


async def test_dry_run_is_not_billed(bridge, emulator):
    assert (await bridge.ask(chat(ollm=OllmOptions(dryrun=True)))).failure is None
    assert not emulator.exchanges[0].billed


SPELLINGS = {
    "integer above 2^53": "9007199254740993",
    "integer above 2^64": "123456789012345678901234567890",
    "decimal with a zero": "1.10",
    "exponent": "1e2",
    "key order": '{"z":1,"a":{"y":2,"b":3}}',
    "escapes": '"caf\\u00e9 \\/ \\ud83d\\ude00"',
    "white space": "[1, 2,\n 3 ]",
    "duplicate keys": '{"a":1,"a":2}',
    "null": "null",
}


@pytest.mark.parametrize("text", SPELLINGS.values(), ids=SPELLINGS)
async def test_extra_json_is_sent_byte_for_byte(bridge, emulator, text):
    message = ChatMessage(role="user", text="hi", extra_json={"x_own": text})
    request = chat(messages=[message], extra_json={"x_top": text}, ollm=OllmOptions(extra_json={"x_opt": text}))
    assert (await bridge.ask(request)).failure is None
    body = emulator.exchanges[0].body.decode()
    for key in ("x_own", "x_top", "ollm::x_opt"):
        assert f'"{key}":{text}' in body


async def test_parts_and_tools_are_sent_and_a_reply_can_be_sent_back(bridge, emulator):
    tool = Tool(function=FunctionTool(name="get_weather", parameters_json='{"properties":{"city":{"type":"string"}}}'))
    parts = ContentParts(
        parts=[ContentPart(text="what is this?"), ContentPart(image_url=ImageUrl(url="https://e.com/a", detail="low"))]
    )
    messages = [ChatMessage(role="user", parts=parts)]
    first = (await bridge.ask(chat(messages=messages, tools=[tool]))).reply.choices[0]
    assert first.finish_reason == "tool_calls"
    assert first.message.WhichOneof("content") is None
    call = first.message.tool_calls[0]
    assert (call.id, call.type, call.function.name) == ("call_1", "function", "get_weather")
    assert json.loads(call.function.arguments) == {"city": "Paris"}

    messages += [first.message, ChatMessage(role="tool", tool_call_id=call.id, text="18 degrees")]
    second = await bridge.ask(chat(messages=messages, tools=[tool]))
    assert second.text == "The tool said: 18 degrees"
    assert emulator.exchanges[1].json["messages"][0]["content"][1] == {
        "type": "image_url",
        "image_url": {"url": "https://e.com/a", "detail": "low"},
    }
    assert emulator.exchanges[1].json["messages"][1]["tool_calls"][0]["function"] == {
        "name": "get_weather",
        "arguments": '{"city":"Paris"}',
    }


async def test_stream_options_of_a_unary_call_are_not_sent(bridge, emulator):
    assert (await bridge.ask(chat(stream_options=StreamOptions(include_usage=True)))).failure is None
    assert {"stream", "stream_options"} & emulator.exchanges[0].json.keys() == set()


# Replies


async def test_reply_has_the_fields_of_the_contract(bridge):
    reply = (await bridge.ask(chat("one two three", max_tokens=2))).reply
    choice = reply.choices[0]
    assert (reply.object, reply.model) == ("chat.completion", "ollm::model_name::echo")
    assert (choice.index, choice.message.role, choice.message.text) == (0, "assistant", "You said:")
    assert choice.finish_reason == "length"
    usage = reply.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (3, 2, 5)
    assert not reply.HasField("service_tier")  # it came as null


async def test_unknown_keys_of_every_level_keep_their_spelling(bridge):
    reply = (await bridge.ask(scenario("unknown_fields"))).reply
    expected = {
        "x_big": "9007199254740993",
        "x_price": "1.10",
        "x_exponent": "1e2",
        "x_nested": '{"z":[1.0,null,{"b":-0,"a":"\\u00e9"}],"a":true}',
    }
    for level in (reply, reply.choices[0], reply.choices[0].message, reply.usage):
        assert dict(level.extra_json) == expected


async def test_values_of_a_wrong_type_come_down_as_json(bridge):
    reply = (await bridge.ask(scenario("misfit"))).reply
    assert dict(reply.extra_json) == {
        "id": "12",
        "created": '"soon"',
        "model": '["a","b"]',
        "system_fingerprint": '{"b":1,"a":2}',
        "service_tier": "7",
    }
    assert dict(reply.choices[0].message.extra_json) == {"role": "false"}
    assert dict(reply.usage.extra_json) == {
        "prompt_tokens": '"two"',
        "completion_tokens": "1.5",
        "total_tokens": str(2**70),
    }
    assert reply.choices[0].message.text == "You said: hello there"


async def test_lone_surrogate_becomes_the_replacement_character(bridge):
    assert (await bridge.ask(scenario("surrogate"))).text == "cut \ufffd"


async def test_reasoning_and_logprobs_are_returned_in_their_fields(bridge):
    message = (await bridge.ask(scenario("reasoning"))).reply.choices[0].message
    assert message.reasoning_content == "Let me think about it."
    choice = (await bridge.ask(scenario("logprobs"))).reply.choices[0]
    assert choice.logprobs.content[0].logprob == -0.25


async def test_two_choices_are_returned(bridge):
    assert [choice.index for choice in (await bridge.ask(scenario("two_choices"))).reply.choices] == [0, 1]


@pytest.mark.parametrize("name", ["gzip", "split?size=100", "slow?delay_s=0.05", "header_flood?count=40&size=50"])
async def test_answer_in_another_valid_form_gives_the_same_reply(bridge, name):
    assert (await bridge.ask(scenario(name))).text == "You said: hello there"


async def test_reply_above_grpcs_default_of_4_mib_is_returned(start_bridge):
    bridge = await start_bridge(channel={"grpc.max_receive_message_length": -1})
    assert len((await bridge.ask(scenario("big?size=6000000"))).text) == 6_000_000


async def test_request_above_grpcs_default_of_4_mib_is_sent_if_the_settings_allow_it(start_bridge, emulator):
    bridge = await start_bridge(request_bytes_max=8 * 1024 * 1024)
    assert (await bridge.ask(chat("0123456789" * 600_000, max_tokens=1))).failure is None
    exchange = emulator.exchanges[0]
    assert exchange.json["messages"][0]["content"] == "0123456789" * 600_000
    assert int(exchange.headers["content-length"]) == len(exchange.body)
    assert "transfer-encoding" not in exchange.headers


# Metadata


async def test_request_id_of_the_caller_is_sent_and_returned(bridge, emulator):
    answer = await bridge.ask(chat(), metadata=(("x-request-id", "mine-1"),))
    assert emulator.exchanges[0].headers["x-request-id"] == "mine-1"
    assert answer.trailers["x-request-id"] == "mine-1"
    assert (await bridge.records.next()).request_id == "mine-1"


async def test_request_id_is_created_if_the_caller_sends_none(bridge, emulator):
    answers = [await bridge.ask(chat()) for _ in range(2)]
    sent = [exchange.headers["x-request-id"] for exchange in emulator.exchanges]
    assert [answer.trailers["x-request-id"] for answer in answers] == sent
    assert len(set(sent)) == 2
    assert all(len(each) == 36 for each in sent)


async def test_response_headers_and_times_are_returned_as_trailers(bridge):
    answer = await bridge.ask(scenario("slow?delay_s=0.05"))
    assert answer.trailers["x-ratelimit-limit-requests"] == "1000"
    assert answer.trailers["x-ollm-gateway-version"] == "emulator"
    assert int(answer.trailers["openai-processing-ms"]) >= 50
    assert not {"date", "content-type", "content-length"} & answer.trailers.keys()
    assert float(answer.trailers["ollmbridge-upstream-ms"]) >= 50
    assert not {"x-ratelimit-limit-requests", "ollmbridge-upstream-ms"} & answer.initial.keys()


USER_AGENTS = {
    "stock": (None, f"ollm-bridge/{__version__}"),
    "product": ("shop/2.1", f"shop/2.1 ollm-bridge/{__version__}"),
    "two products": ("shop/2.1 lib/3", f"shop/2.1 lib/3 ollm-bridge/{__version__}"),
}


@pytest.mark.parametrize(("product", "sent"), USER_AGENTS.values(), ids=USER_AGENTS)
async def test_user_agent_is_the_callers_product_and_the_bridges(start_bridge, emulator, product, sent):
    bridge = await start_bridge(channel={"grpc.primary_user_agent": product} if product else {})
    await bridge.ask(chat())
    assert emulator.exchanges[0].headers["user-agent"] == sent
    assert emulator.exchanges[0].tags == {"user_agent": sent}


async def test_only_listed_metadata_is_sent(start_bridge, emulator):
    bridge = await start_bridge(upstream={"forward_metadata": ["x-team-id"]})
    metadata = {
        "authorization": "Bearer caller",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "a=b",
        "idempotency-key": "k-1",
        "x-team-id": "7",
        "x-other": "no",
        "cookie": "no",
        "host": "no",
        "x-forwarded-for": "1.2.3.4",
        "content-length": "3",
        "accept-encoding": "gzip",
        "trace-bin": b"no",
    }
    answer = await bridge.ask(chat(), metadata=tuple(metadata.items()))
    assert answer.failure is None, answer.failure
    headers = emulator.exchanges[0].headers
    forwarded = ("authorization", "traceparent", "tracestate", "idempotency-key", "x-team-id")
    assert {name: headers[name] for name in forwarded} == {name: metadata[name] for name in forwarded}
    assert set(headers) - {"connection"} == {
        *forwarded,
        "x-request-id",
        "user-agent",
        "host",
        "accept",
        "accept-encoding",
        "content-type",
        "content-length",
    }
    assert headers["host"] != "no"
    assert headers["accept-encoding"] == "identity"


async def test_listed_response_headers_are_returned(start_bridge):
    bridge = await start_bridge(upstream={"return_headers": ["date"]})
    answer = await bridge.ask(chat())
    assert answer.trailers["date"].endswith("GMT")
    failure = await bridge.ask(scenario("error?status=500"))
    assert failure.trailers["date"].endswith("GMT")


async def test_own_key_is_sent_and_the_callers_is_not(start_bridge, emulator, tmp_path):
    (tmp_path / "key").write_text("own-key\n")
    (tmp_path / "key").chmod(0o600)
    for settings in ({"api_key": "own-key"}, {"api_key_file": str(tmp_path / "key")}):
        bridge = await start_bridge(upstream=settings)
        for metadata in ((), (("authorization", "Bearer caller"),)):
            assert (await bridge.ask(chat(), metadata=metadata)).failure is None
    assert {exchange.headers["authorization"] for exchange in emulator.exchanges} == {"Bearer own-key"}


# The connection


async def test_many_calls_of_both_kinds_share_one_connection(bridge, emulator, upstream_engine):
    for number in range(30):
        assert (await bridge.ask(chat(), stream=bool(number % 2))).failure is None
        assert (await bridge.ask(scenario("error?status=429"), stream=bool(number % 2))).failure is not None
    assert emulator.connections_opened == (1 if upstream_engine == "native" else 60)  # httpx keeps no HTTP/1.1 one
