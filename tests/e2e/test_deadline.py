"""Timeouts: the caller's deadline and the bridge's own limits, in each window of a call."""

import asyncio

import grpc
import pytest

from tests.kit.client import build_deadline, chat, read_to_the_end, scenario
from tests.kit.upstreams import open_full_backlog
from tests.kit.waiting import WAIT_S
from tests.kit.windows import WINDOWS, start_call

METHODS = pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
TIMEOUT = ("DEADLINE_EXCEEDED", "UPSTREAM_TIMEOUT")


LIMIT_S = 8
"""Within it, a call must reach its window, on a busy machine too: all windows are tested at once."""


async def reach_windows(bridge, emulator, **options):
    """Make a call for each window, wait until it is in it, and return the calls by window, and their exchanges."""
    calls, exchanges = {}, []
    for window, shape in WINDOWS.items():
        calls[window] = await start_call(bridge, window, **options)
        exchanges.append(await emulator.next_exchange())
        await shape.wait(exchanges[-1])
    return calls, exchanges


async def test_callers_deadline_closes_the_upstream_connection_in_each_window(bridge, emulator):
    calls, exchanges = await reach_windows(bridge, emulator, metadata=build_deadline(LIMIT_S))
    for exchange in exchanges:
        await exchange.wait_closed()
    records = [await bridge.records.next() for _ in calls]
    assert {(record.code, record.reason, record.fault) for record in records} == {("DEADLINE_EXCEEDED", "", None)}
    await read_to_the_end(calls["blocked write"])
    assert {window: await call.code() for window, call in calls.items()} == dict.fromkeys(
        WINDOWS, grpc.StatusCode.DEADLINE_EXCEEDED
    )


async def test_call_timeout_bounds_a_call_without_a_deadline_in_each_window(start_bridge, emulator):
    bridge = await start_bridge(call_timeout_s=LIMIT_S)
    calls, exchanges = await reach_windows(bridge, emulator)
    for exchange in exchanges:
        await exchange.wait_closed()
    records = [await bridge.records.next() for _ in calls]
    assert {(record.code, record.reason) for record in records} == {TIMEOUT}
    await read_to_the_end(calls["blocked write"])
    for window, call in calls.items():
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED, window
        assert b"UPSTREAM_TIMEOUT" in dict(await call.trailing_metadata())["grpc-status-details-bin"], window


async def test_deadline_bounds_the_connect(start_bridge):
    with open_full_backlog() as url:
        bridge = await start_bridge(upstream={"base_url": url, "connect_timeout_s": 30})
        await asyncio.wait_for(bridge.channel.channel_ready(), WAIT_S)
        asked = [bridge.ask(chat(), stream=stream, metadata=build_deadline(2)) for stream in (False, True)]
        answers = await asyncio.gather(*asked)
        assert [answer.failure.code for answer in answers] == ["DEADLINE_EXCEEDED"] * 2
        assert [(await bridge.records.next()).code for _ in answers] == ["DEADLINE_EXCEEDED"] * 2


@METHODS
async def test_connect_timeout_is_unavailable(start_bridge, stream):
    with open_full_backlog() as url:
        bridge = await start_bridge(upstream={"base_url": url, "connect_timeout_s": 0.2})
        failure = (await bridge.ask(chat(), stream=stream, timeout=WAIT_S)).failure
    assert (failure.code, failure.reason) == ("UNAVAILABLE", "UPSTREAM_UNREACHABLE")


STALLING = ("unary within the body", "stream before the first chunk", "mid-stream")


async def test_idle_timeout_ends_a_call_whose_response_stalls(start_bridge, emulator):
    bridge = await start_bridge(upstream={"idle_timeout_s": 2, "first_chunk_timeout_s": 2})
    shapes = [WINDOWS[window] for window in STALLING]
    asked = [bridge.ask(scenario(shape.scenario), stream=shape.stream, timeout=WAIT_S) for shape in shapes]
    for shape, answer in zip(shapes, await asyncio.gather(*asked), strict=True):
        assert (answer.failure.code, answer.failure.reason) == TIMEOUT
        assert len(answer.messages) == shape.chunks
        if shape.stream:
            assert answer.failure.upstream.chunks_delivered == shape.chunks
    for exchange in emulator.exchanges:
        await exchange.wait_closed()


async def test_idle_timeout_does_not_count_before_the_headers(start_bridge):
    bridge = await start_bridge(upstream={"idle_timeout_s": 2})
    asked = [bridge.ask(scenario("slow?delay_s=3"), stream=stream) for stream in (False, True)]
    assert [answer.failure for answer in await asyncio.gather(*asked)] == [None, None]


async def test_comments_restart_the_timeouts_until_the_first_chunk(start_bridge):
    bridge = await start_bridge(upstream={"idle_timeout_s": 2, "first_chunk_timeout_s": 2})
    call = bridge.stub.StreamChatCompletion(scenario("comments?every=0.25&count=12"), timeout=WAIT_S)
    assert (await call.read()).choices
    call.cancel()


async def test_idle_timeout_does_not_count_while_the_reader_is_slow(start_bridge):
    bridge = await start_bridge(upstream={"idle_timeout_s": 2})
    call = bridge.stub.StreamChatCompletion(scenario("many?chunks=1500&bytes=10000"))
    await call.read()
    await asyncio.sleep(4)  # twice the idle timeout
    count = 1
    while await call.read() is not grpc.aio.EOF:
        count += 1
    assert await call.code() is grpc.StatusCode.OK
    assert count == 1502


FIRST = {
    "no headers": ("stall?headers=0", TIMEOUT),
    "no event": ("stall?after=0", TIMEOUT),
    "an end after it": ("cut?after=1", ("ABORTED", "INCOMPLETE_COMPLETION")),
}


async def test_first_chunk_timeout_bounds_the_wait_for_it(start_bridge):
    bridge = await start_bridge(upstream={"first_chunk_timeout_s": 2})
    asked = [bridge.ask(scenario(name), stream=True, timeout=WAIT_S) for name, _ in FIRST.values()]
    answers = dict(zip(FIRST, await asyncio.gather(*asked), strict=True))
    assert {name: answer.failure.verdict for name, answer in answers.items()} == {
        name: verdict for name, (_, verdict) in FIRST.items()
    }


STALLS = {
    "comments after output": ("comments?every=0.05&count=40", 2),
    "silence after output": ("stall?after=2", 2),
}


@pytest.mark.parametrize(("name", "chunks"), STALLS.values(), ids=STALLS)
async def test_stall_timeout_bounds_the_time_without_output_whatever_comments_come(
    start_bridge, emulator, name, chunks
):
    bridge = await start_bridge(upstream={"stall_timeout_s": 1, "first_chunk_timeout_s": WAIT_S})
    answer = await bridge.ask(scenario(name), stream=True, timeout=WAIT_S)
    assert answer.failure.verdict == TIMEOUT
    assert answer.failure.message == "no output from the gateway for 1 s (upstream.stall_timeout_s)"
    assert len(answer.messages) == answer.failure.upstream.chunks_delivered == chunks
    await emulator.exchanges[0].wait_closed()


async def test_first_output_may_take_as_long_as_the_first_chunk(start_bridge):
    """The role, whose chunk comes at once, is no output: the model thinks for longer than a stall may last."""
    bridge = await start_bridge(upstream={"stall_timeout_s": 1, "first_chunk_timeout_s": WAIT_S})
    role, output = await read_two_chunks(bridge, scenario("slow?delay_s=0&chunk_delay_s=2"))
    assert (role.choices[0].delta.role, output.choices[0].delta.content) == ("assistant", "You")


async def read_two_chunks(bridge, request):
    call = bridge.stub.StreamChatCompletion(request, timeout=WAIT_S)
    chunks = [await call.read() for _ in range(2)]
    call.cancel()
    return chunks


@METHODS
async def test_gateway_is_told_what_is_left_of_the_deadline(start_bridge, emulator, stream):
    upstream = {"deadline_header": "x-envoy-expected-rq-timeout-ms"}
    bridge = await start_bridge(upstream=upstream, call_timeout_s=500, call_timeout_max_s=100)
    for timeout_s in (50, None, 1000):
        assert (await bridge.ask(chat(), stream=stream, timeout=timeout_s)).failure is None
    left_ms = [int(each.headers["x-envoy-expected-rq-timeout-ms"]) for each in emulator.exchanges]
    assert [round(each, -4) for each in left_ms] == [50_000, 500_000, 100_000]


async def test_first_chunk_timeout_bounds_neither_later_chunks_nor_unary_calls(start_bridge):
    bridge = await start_bridge(upstream={"first_chunk_timeout_s": 2})
    (_, later), unary = await asyncio.gather(
        read_two_chunks(bridge, scenario("slow?delay_s=0&chunk_delay_s=3")), bridge.ask(scenario("slow?delay_s=3"))
    )
    assert later.choices
    assert unary.failure is None
