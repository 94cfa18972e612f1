"""Time: the caller's deadline and the bridge's own limits, in each window of a call."""

import asyncio
import contextlib
import socket
import time

import grpc
import pytest

from tests.conftest import chat, scenario
from tests.e2e.windows import WINDOWS, in_flight

AT_ONCE_S = 0.1
METHODS = pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
TIMEOUT = ("DEADLINE_EXCEEDED", "UPSTREAM_TIMEOUT")


@pytest.mark.parametrize("window", WINDOWS)
async def test_callers_deadline_closes_the_upstream_at_once(bridge, emulator, window):
    limit_s = 1.5 if window == "blocked write" else 0.3
    started_at = time.monotonic()
    call = await in_flight(bridge, window, timeout=limit_s)
    exchange = await emulator.next_exchange()
    late_s = await exchange.wait_closed() - started_at - limit_s
    assert -0.05 < late_s < AT_ONCE_S
    record = await bridge.records.next()
    assert (record.code, record.reason, record.fault) == ("DEADLINE_EXCEEDED", "", None)
    assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("window", WINDOWS)
async def test_call_timeout_bounds_a_call_without_a_deadline(start_bridge, emulator, window):
    limit_s = 1.5 if window == "blocked write" else 0.3
    bridge = await start_bridge(call_timeout_s=limit_s)
    started_at = time.monotonic()
    call = await in_flight(bridge, window)
    exchange = await emulator.next_exchange()
    late_s = await exchange.wait_closed() - started_at - limit_s
    assert -0.05 < late_s < AT_ONCE_S
    record = await bridge.records.next()
    assert (record.code, record.reason) == TIMEOUT
    if window != "blocked write":  # there the status waits behind what the caller has not read
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_status_reaches_a_slow_reader_behind_what_it_had_not_read(start_bridge, emulator):
    bridge = await start_bridge(call_timeout_s=1)
    call = await in_flight(bridge, "blocked write")
    await bridge.records.next()
    with contextlib.suppress(grpc.aio.AioRpcError):
        while await call.read() is not grpc.aio.EOF:
            pass
    assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert b"UPSTREAM_TIMEOUT" in dict(await call.trailing_metadata())["grpc-status-details-bin"]


@METHODS
async def test_deadline_bounds_the_connect(start_bridge, stream):
    with full_backlog() as url:
        bridge = await start_bridge(upstream={"base_url": url, "connect_timeout_s": 30})
        failed = (await bridge.ask(chat(), stream=stream, timeout=0.2)).failed
        assert failed.code == "DEADLINE_EXCEEDED"
        assert (await bridge.records.next()).code == "DEADLINE_EXCEEDED"


@METHODS
async def test_connect_timeout_is_unavailable(start_bridge, stream):
    with full_backlog() as url:
        bridge = await start_bridge(upstream={"base_url": url, "connect_timeout_s": 0.2})
        async with asyncio.timeout(3):
            failed = (await bridge.ask(chat(), stream=stream)).failed
    assert (failed.code, failed.reason) == ("UNAVAILABLE", "UPSTREAM_UNREACHABLE")


@contextlib.contextmanager
def full_backlog():
    """Give the URL of a listener whose backlog is full: the kernel drops what would connect."""
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
async def test_silence_on_an_open_response_ends_the_call(start_bridge, emulator, window):
    bridge = await start_bridge(upstream={"idle_timeout_s": 0.2})
    answer = await bridge.ask(scenario(WINDOWS[window].scenario), stream=WINDOWS[window].stream)
    assert (answer.failed.code, answer.failed.reason) == TIMEOUT
    assert len(answer.messages) == WINDOWS[window].reads
    await emulator.exchanges[0].wait_closed()
    if WINDOWS[window].stream:
        assert answer.failed.upstream.chunks_delivered == WINDOWS[window].reads


async def test_wait_for_the_headers_is_no_silence(start_bridge):
    bridge = await start_bridge(upstream={"idle_timeout_s": 0.1})
    assert (await bridge.ask(scenario("slow?delay_s=0.3"))).failure is None
    assert (await bridge.ask(scenario("slow?delay_s=0.3"), stream=True)).failure is None


async def test_comments_are_no_silence(start_bridge):
    bridge = await start_bridge(upstream={"idle_timeout_s": 0.25})
    answer = await bridge.ask(scenario("comments?every=0.05&count=7", max_tokens=1), stream=True)
    assert answer.text == "You"


async def test_time_that_a_slow_reader_takes_is_no_silence(start_bridge):
    bridge = await start_bridge(upstream={"idle_timeout_s": 0.3})
    call = bridge.stub.StreamChatCompletion(scenario("many?chunks=15000&bytes=1000"))
    await call.read()
    await asyncio.sleep(0.9)  # the reader's slowness is the fact
    count = 1
    while await call.read() is not grpc.aio.EOF:
        count += 1
    assert await call.code() is grpc.StatusCode.OK
    assert count == 15_002


FIRST = {
    "no headers": ("stall?headers=0", TIMEOUT),
    "no event": ("stall?after=0", TIMEOUT),
    "comments alone": ("comments?every=0.05&count=50", TIMEOUT),
    "a stall after it": ("cut?after=1", ("ABORTED", "INCOMPLETE_STREAM")),
}


@pytest.mark.parametrize(("name", "expected"), FIRST.values(), ids=FIRST)
async def test_first_chunk_timeout_bounds_the_wait_for_it(start_bridge, name, expected):
    bridge = await start_bridge(upstream={"first_chunk_timeout_s": 0.3})
    async with asyncio.timeout(3):
        failed = (await bridge.ask(scenario(name), stream=True)).failed
    assert (failed.code, failed.reason) == expected


async def test_first_chunk_timeout_bounds_neither_later_chunks_nor_unary_calls(start_bridge):
    bridge = await start_bridge(upstream={"first_chunk_timeout_s": 0.2})
    assert (await bridge.ask(scenario("slow?delay_s=0&chunk_delay_s=0.1"), stream=True)).failure is None
    assert (await bridge.ask(scenario("slow?delay_s=0.4"))).failure is None
