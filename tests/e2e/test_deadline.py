"""Timeouts: the caller's deadline and the bridge's own limits, in each window of a call."""

import asyncio
import contextlib
import socket

import grpc
import pytest

from tests.kit.client import chat, scenario
from tests.kit.waiting import WAIT_S
from tests.kit.windows import WINDOWS, start_call

METHODS = pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
TIMEOUT = ("DEADLINE_EXCEEDED", "UPSTREAM_TIMEOUT")


@pytest.mark.parametrize("window", WINDOWS)
async def test_callers_deadline_closes_the_upstream_connection(bridge, emulator, window):
    limit_s = 3 if window == "blocked write" else 2  # the window must be reached before, on a busy machine too
    call = await start_call(bridge, window, timeout=limit_s)
    exchange = await emulator.next_exchange()
    await exchange.wait_closed()
    record = await bridge.records.next()
    assert (record.code, record.reason, record.fault) == ("DEADLINE_EXCEEDED", "", None)
    assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("window", WINDOWS)
async def test_call_timeout_bounds_a_call_without_a_deadline(start_bridge, emulator, window):
    limit_s = 3 if window == "blocked write" else 2  # the window must be reached before, on a busy machine too
    bridge = await start_bridge(call_timeout_s=limit_s)
    call = await start_call(bridge, window)
    exchange = await emulator.next_exchange()
    await exchange.wait_closed()
    record = await bridge.records.next()
    assert (record.code, record.reason) == TIMEOUT
    if window != "blocked write":  # there the status comes after chunks that the caller has not read
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_status_reaches_a_slow_reader_after_the_unread_chunks(start_bridge, emulator):
    bridge = await start_bridge(call_timeout_s=1)
    call = await start_call(bridge, "blocked write")
    await bridge.records.next()
    with contextlib.suppress(grpc.aio.AioRpcError):
        while await call.read() is not grpc.aio.EOF:
            pass
    assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert b"UPSTREAM_TIMEOUT" in dict(await call.trailing_metadata())["grpc-status-details-bin"]


@METHODS
async def test_deadline_bounds_the_connect(start_bridge, stream):
    with open_full_backlog() as url:
        bridge = await start_bridge(upstream={"base_url": url, "connect_timeout_s": 30})
        failure = (await bridge.ask(chat(), stream=stream, timeout=0.2)).failure
        assert failure.code == "DEADLINE_EXCEEDED"
        assert (await bridge.records.next()).code == "DEADLINE_EXCEEDED"


@METHODS
async def test_connect_timeout_is_unavailable(start_bridge, stream):
    with open_full_backlog() as url:
        bridge = await start_bridge(upstream={"base_url": url, "connect_timeout_s": 0.2})
        failure = (await bridge.ask(chat(), stream=stream, timeout=WAIT_S)).failure
    assert (failure.code, failure.reason) == ("UNAVAILABLE", "UPSTREAM_UNREACHABLE")


@contextlib.contextmanager
def open_full_backlog():
    """Yield the URL of a listener whose backlog is full: the kernel drops new connections."""
    with socket.socket() as full, contextlib.ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(full.getsockname())
        yield f"http://127.0.0.1:{full.getsockname()[1]}"


@pytest.mark.parametrize("window", ["unary within the body", "stream before the first chunk", "mid-stream"])
async def test_idle_timeout_ends_a_call_whose_response_stalls(start_bridge, emulator, window):
    bridge = await start_bridge(upstream={"idle_timeout_s": 0.2, "first_chunk_timeout_s": 0.2})
    answer = await bridge.ask(scenario(WINDOWS[window].scenario), stream=WINDOWS[window].stream)
    assert (answer.failure.code, answer.failure.reason) == TIMEOUT
    assert len(answer.messages) == WINDOWS[window].chunks
    await emulator.exchanges[0].wait_closed()
    if WINDOWS[window].stream:
        assert answer.failure.upstream.chunks_delivered == WINDOWS[window].chunks


async def test_idle_timeout_does_not_count_before_the_headers(start_bridge):
    bridge = await start_bridge(upstream={"idle_timeout_s": 0.1})
    assert (await bridge.ask(scenario("slow?delay_s=0.3"))).failure is None
    assert (await bridge.ask(scenario("slow?delay_s=0.3"), stream=True)).failure is None


async def test_comments_restart_the_idle_timeout(start_bridge):
    bridge = await start_bridge(upstream={"idle_timeout_s": 1})
    answer = await bridge.ask(scenario("comments?every=0.2&count=7", max_tokens=1), stream=True)
    assert answer.text == "You"


async def test_idle_timeout_does_not_count_while_the_reader_is_slow(start_bridge):
    bridge = await start_bridge(upstream={"idle_timeout_s": 1})
    call = bridge.stub.StreamChatCompletion(scenario("many?chunks=1500&bytes=10000"))
    await call.read()
    await asyncio.sleep(3)  # three times the idle timeout
    count = 1
    while await call.read() is not grpc.aio.EOF:
        count += 1
    assert await call.code() is grpc.StatusCode.OK
    assert count == 1502


FIRST = {
    "no headers": ("stall?headers=0", TIMEOUT),
    "no event": ("stall?after=0", TIMEOUT),
    "comments": ("comments?every=0.2&count=7", None),
    "a stall after it": ("cut?after=1", ("ABORTED", "INCOMPLETE_COMPLETION")),
}


@pytest.mark.parametrize(("name", "expected"), FIRST.values(), ids=FIRST)
async def test_first_chunk_timeout_bounds_the_wait_for_it(start_bridge, name, expected):
    bridge = await start_bridge(upstream={"first_chunk_timeout_s": 1})
    failure = (await bridge.ask(scenario(name, max_tokens=1), stream=True, timeout=WAIT_S)).failure
    assert (failure and failure.verdict) == expected


STALLS = {
    "comments after output": ("comments?every=0.05&count=40", 2),
    "silence after output": ("stall?after=2", 2),
}


@pytest.mark.parametrize(("name", "chunks"), STALLS.values(), ids=STALLS)
async def test_stall_timeout_bounds_the_time_without_output_whatever_comments_come(
    start_bridge, emulator, name, chunks
):
    bridge = await start_bridge(upstream={"stall_timeout_s": 1, "first_chunk_timeout_s": 8})
    answer = await bridge.ask(scenario(name), stream=True, timeout=WAIT_S)
    assert answer.failure.verdict == TIMEOUT
    assert answer.failure.message == "no output from the gateway for 1 s (upstream.stall_timeout_s)"
    assert len(answer.messages) == answer.failure.upstream.chunks_delivered == chunks
    await emulator.exchanges[0].wait_closed()


async def test_first_output_may_take_as_long_as_the_first_chunk(start_bridge):
    """The role, whose chunk comes at once, is no output: the model thinks for longer than a stall may last."""
    bridge = await start_bridge(upstream={"stall_timeout_s": 1, "first_chunk_timeout_s": 20})
    answer = await bridge.ask(scenario("slow?delay_s=2", max_tokens=1), stream=True)
    assert answer.text == "You"


@METHODS
async def test_gateway_is_told_what_is_left_of_the_deadline(start_bridge, emulator, stream):
    upstream = {"deadline_header": "x-envoy-expected-rq-timeout-ms"}
    bridge = await start_bridge(upstream=upstream, call_timeout_s=500, call_timeout_max_s=100)
    for timeout_s in (50, None, 1000):
        assert (await bridge.ask(chat(), stream=stream, timeout=timeout_s)).failure is None
    left_ms = [int(each.headers["x-envoy-expected-rq-timeout-ms"]) for each in emulator.exchanges]
    assert [round(each, -4) for each in left_ms] == [50_000, 500_000, 100_000]


async def test_first_chunk_timeout_bounds_neither_later_chunks_nor_unary_calls(start_bridge):
    bridge = await start_bridge(upstream={"first_chunk_timeout_s": 1.5})
    assert (await bridge.ask(scenario("slow?delay_s=0&chunk_delay_s=0.6"), stream=True)).failure is None
    assert (await bridge.ask(scenario("slow?delay_s=2"))).failure is None
