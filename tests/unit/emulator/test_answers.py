"""Tests of bridge/emulator/answers.py: the ordinary answer in each form, to the byte but for ids and times."""

import json
import re
import time
import uuid
from typing import Any

import pytest

from bridge.emulator.answers import Call, Memory
from bridge.emulator.steps import Head, Wait, Write
from tests.unit.emulator.client import WEATHER, request

SSE = Head(200, (("content-type", "text/event-stream"), ("cache-control", "no-cache")))


def create_call(*, cached: bool = False, chunk_delay_s: float = 0.0, **changes: Any) -> Call:
    body = request(**changes)
    return Call(body, json.dumps(body).encode(), "MODEL", cached=cached, chunk_delay_s=chunk_delay_s)


def hide_random(data: bytes) -> str:
    text = re.sub(r'"((?:episode_|model_inference_)?id)":"[0-9a-f]{8}-[0-9a-f-]{27}"', r'"\1":"ID"', data.decode())
    return re.sub(r'"created":\d+', '"created":0', text)


def join_body(call: Call) -> str:
    return hide_random(b"".join(step.data for step in call.send() if isinstance(step, Write)))


def complete(kind: str, choice: str, usage: str, more: str = "") -> str:
    return (
        f'{{"id":"ID","episode_id":"ID","choices":[{choice}],"created":0,"model":"MODEL","system_fingerprint":"",'
        f'"service_tier":null,"object":"chat.completion{kind}","usage":{usage}{more}}}'
    )


def write_chunk(delta: str, finish_reason: str = "null", usage: str = "null", more: str = "") -> str:
    choice = f'{{"index":0,"finish_reason":{finish_reason},"logprobs":null,"delta":{delta}}}'
    return f"data: {complete('.chunk', choice, usage, more)}\n\n"


def write_usage(prompt: int, completion: int) -> str:
    return f'{{"prompt_tokens":{prompt},"completion_tokens":{completion},"total_tokens":{prompt + completion}}}'


USAGE = write_usage(2, 2)
PROVIDER_USAGE = USAGE[:-1] + ',"prompt_tokens_details":{"cached_tokens":0}}'
CHOICE = '{"index":0,"finish_reason":"length","message":{"role":"assistant","content":"You said:"}}'
CALL = '{"id":"call_1","type":"function","function":{"name":"get_weather","arguments":"{\\"location\\":\\"Paris\\"}"}}'
TOOL_CHOICE = (
    f'{{"index":0,"finish_reason":"tool_calls","message":{{"role":"assistant","content":null,"tool_calls":[{CALL}]}}}}'
)
START = write_chunk('{"role":"assistant","content":""}')
WORDS = write_chunk('{"content":"You"}') + write_chunk('{"content":" said:"}')
FINISH = write_chunk("{}", '"length"')
DONE = "data: [DONE]\n\n"
RAW = {"ollm::include_raw_usage": True, "ollm::include_raw_response": True}


def write_raw(key: str, data: str) -> str:
    entry = f'{{"model_inference_id":"ID","provider_type":"emulator","api_type":"chat_completions","data":{data}}}'
    return f',"{key}":[{entry}]'


def write_raw_chunk(delta: str) -> str:
    return write_chunk(delta, more=f',"ollm_raw_chunk":{json.dumps(f"""{{"choices":[{{"delta":{delta}}}]}}""")}')


def write_fragment(id_: str, name: str, arguments: str) -> str:
    function = f'{{"name":"{name}","arguments":{json.dumps(arguments)}}}'
    return write_chunk(f'{{"tool_calls":[{{"id":{id_},"index":0,"type":"function","function":{function}}}]}}')


BODIES = {
    "reply": ({}, complete("", CHOICE, USAGE)),
    "reply of tools": ({"tools": [WEATHER]}, complete("", TOOL_CHOICE, write_usage(2, 1))),
    "reply with raw parts": (
        RAW,
        complete(
            "",
            CHOICE,
            USAGE,
            write_raw("ollm_raw_usage", PROVIDER_USAGE)
            + write_raw("ollm_raw_response", json.dumps(f'{{"choices":[{CHOICE}],"usage":{PROVIDER_USAGE}}}')),
        ),
    ),
    "reply without words": (
        {"max_tokens": 0},
        complete("", CHOICE.replace('"You said:"', "null"), write_usage(2, 0)),
    ),
    "stream": ({"stream": True}, START + WORDS + FINISH + DONE),
    "stream with usage": (
        {"stream": True, "stream_options": {"include_usage": True}},
        START + WORDS + write_chunk("{}", '"length"', USAGE) + DONE,
    ),
    "stream of tools": (
        {"stream": True, "tools": [WEATHER]},
        START
        + write_fragment('"call_1"', "get_weather", "")
        + "".join(write_fragment("null", "", piece) for piece in ('{"loca', 'tion":', '"Paris', '"}'))
        + write_chunk("{}", '"tool_calls"')
        + DONE,
    ),
    "stream with raw parts": (
        RAW | {"stream": True},
        "".join(
            map(write_raw_chunk, ('{"role":"assistant","content":""}', '{"content":"You"}', '{"content":" said:"}'))
        )
        + write_chunk("{}", more=write_raw("ollm_raw_usage", PROVIDER_USAGE))
        + write_chunk("{}", '"length"', USAGE)
        + DONE,
    ),
}


@pytest.mark.parametrize(("changes", "body"), BODIES.values(), ids=BODIES)
def test_ordinary_answer_has_these_bytes(changes, body):
    assert join_body(create_call(**{"max_tokens": 2} | changes)) == body


def test_answer_from_the_cache_has_no_usage_and_no_raw_parts():
    usage = write_usage(0, 0)
    body = join_body(create_call(cached=True, max_tokens=2, **RAW))
    assert body == complete("", CHOICE, usage, ',"ollm_raw_usage":[],"ollm_raw_response":[]')
    stream = join_body(create_call(cached=True, max_tokens=2, stream=True, **RAW))
    assert stream == START + WORDS + write_chunk("{}", '"length"', usage) + DONE


def test_reply_is_sent_with_its_length_and_a_stream_event_by_event():
    head, write = create_call().send()
    assert head == Head(200, (("content-type", "application/json"),), len(write.data))
    call = create_call(stream=True)
    assert list(call.send()) == [SSE, *(Write(event, 1) for event in call.split_body())]


def test_stream_waits_before_each_event_but_the_first():
    call = create_call(stream=True, max_tokens=0, chunk_delay_s=0.5)
    first, second, third = (Write(event, 1) for event in call.split_body())
    assert list(call.send()) == [SSE, first, Wait(0.5), second, Wait(0.5), third]
    assert Wait(0.25) in call.send(chunk_delay_s=0.25)
    assert not any(isinstance(step, Wait) for step in call.send(chunk_delay_s=0))


def test_body_of_a_reply_is_cut_into_eight_parts():
    call = create_call()
    parts = call.split_body()
    assert len(parts) == 8
    assert json.loads(b"".join(parts)) == call.build_reply()


@pytest.mark.parametrize("after", [0, 2, 1000])
@pytest.mark.parametrize("stream", [False, True])
def test_beginning_never_brings_the_end(after, stream):
    call = create_call(stream=stream)
    head, *writes = call.send_beginning(after)
    assert head == call.build_head()
    assert [write.data for write in writes] == call.split_body()[:-2][:after]
    assert {write.events for write in writes} <= {int(stream)}


def test_ids_are_new_and_ordered_and_the_episode_is_repeated():
    episode_id = str(uuid.uuid4())
    before = int(time.time())
    first, second = create_call().build_reply(), create_call(**{"ollm::episode_id": episode_id.upper()}).build_reply()
    assert before <= first["created"] <= second["created"]
    assert second["episode_id"] == episode_id
    ids = [uuid.UUID(value) for value in (first["id"], first["episode_id"], second["id"])]
    assert {each.version for each in ids} == {7}
    assert {each.variant for each in ids} == {uuid.RFC_4122}
    assert len(set(ids)) == 3
    assert [each.int >> 80 for each in ids] == sorted(each.int >> 80 for each in ids)


def test_calls_without_a_memory_share_nothing():
    assert create_call().memory == Memory()
    assert create_call().memory is not create_call().memory
