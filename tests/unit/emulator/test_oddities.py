"""Tests of bridge/emulator/oddities.py: what the table of scenarios can't hold: time, memory, whole bodies."""

import gzip
import json
import zlib

import pytest

from bridge.emulator.steps import Step, Wait, Write
from tests.unit.emulator.client import WEATHER
from tests.unit.emulator.table import create_call, run


def join_writes(steps: list[Step]) -> bytes:
    return b"".join(step.data for step in steps if isinstance(step, Write))


@pytest.mark.parametrize("size", [1, 7, 1000, 0])
@pytest.mark.parametrize("stream", [False, True])
def test_split_cuts_the_same_body_into_pieces(size, stream):
    call = create_call(stream=stream)
    body = b"".join(call.split_body())
    head, *steps = run(f"split?size={size}&delay_s=0.5", call)
    assert (head, steps[1::2]) == (call.build_head(), [Wait(0.5)] * (len(steps) // 2))
    assert join_writes(steps) == body
    assert {len(write.data) for write in steps[:-2:2]} <= {max(size, 1)}
    ends = [len(join_writes(steps[: at + 1])) for at, step in enumerate(steps) if isinstance(step, Write)]
    events = [sum(write.events for write in steps[: 2 * at + 1 : 2]) for at in range(len(ends))]
    assert events == [body[:end].count(b"\n\n") if stream else 0 for end in ends]


def test_pace_says_when_each_chunk_was_due_and_sent():
    call = create_call(stream=True)
    first, *_, finish, done = call.split_body()
    head, *steps = run("pace?chunks=5&interval_ms=2", call)
    assert (head, steps[0], steps[-2:]) == (call.build_head(), Write(first, 1), [Write(finish, 1), Write(done, 1)])
    waits, writes = steps[1:-2:2], steps[2:-2:2]
    assert all(isinstance(wait, Wait) and 0 <= wait.seconds <= 0.010 for wait in waits)
    contents = [json.loads(write.data[6:])["choices"][0]["delta"]["content"] for write in writes]
    times = [[int(word) for word in content.split()] for content in contents]
    assert [due - times[0][0] for due, _ in times] == [0, 2_000_000, 4_000_000, 6_000_000, 8_000_000]
    assert [sent for _, sent in times] == sorted(sent for _, sent in times)


@pytest.mark.parametrize("stream", [False, True])
def test_gzip_has_the_ordinary_body_and_each_part_can_be_unpacked_at_once(stream):
    call = create_call(stream=stream)
    head, *writes, last = run("gzip", call)
    assert head == call.build_head(("content-encoding", "gzip"))
    assert gzip.decompress(join_writes([*writes, last])) == b"".join(call.split_body())
    unpacker = zlib.decompressobj(wbits=31)
    assert [unpacker.decompress(write.data) for write in writes] == call.split_body()
    assert [write.events for write in (*writes, last)] == [int(stream)] * len(writes) + [0]


def test_bomb_is_small_until_it_is_unpacked():
    data = join_writes(run("gzip?bomb=1", create_call(stream=True)))
    assert len(data) < 500_000
    assert len(zlib.decompressobj(wbits=31).decompress(data, 2_000_000)) == 2_000_000


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_fields_stand_in_tool_calls_too(stream):
    data = join_writes(run("unknown_fields", create_call(stream=stream, tools=[WEATHER])))
    value = json.loads(data.split(b"\n\n")[1][6:] if stream else data)
    choice = value["choices"][0]
    message = choice["delta" if stream else "message"]
    call = message["tool_calls"][0]
    assert all("x_big" in level for level in (value, choice, message, call, call["function"]))


@pytest.mark.parametrize("stream", [False, True])
def test_mirror_repeats_the_body_byte_for_byte_and_calls_no_tool(stream):
    body = b'{"x": [1.10, 9007199254740993],  "messages": "\\u00e9"}'
    data = join_writes(run("mirror", create_call(stream=stream, received=body, tools=[WEATHER])))
    value = json.loads(data.split(b"\n\n")[1][6:] if stream else data)
    assert value["choices"][0]["delta" if stream else "message"]["content"].encode() == body
