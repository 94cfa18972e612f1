"""Tests of bridge/upstream/engine.py: the pool. Whose turn it is, what is kept, and that no place is lost."""

import asyncio
import contextlib
import random

import pytest

from bridge.upstream.exchange import ConnectError, EngineError
from tests.kit.upstreams import OK, answer_each, answer_with, start_server, wait_until_taken
from tests.kit.waiting import WAIT_S, eventually
from tests.unit.upstream.native_engine import exchange, open_engine


async def test_connection_is_kept_for_the_next_request():
    async with start_server(answer_each) as server, open_engine(server.url) as engine:
        for body in (b"one", b"two", b"three"):
            assert await exchange(engine, body) == (200, body)
            assert engine.connections == 1
        assert len(server.peers) == 1


async def test_keepalive_of_zero_is_a_connection_a_request():
    seen = []

    async def serve(peer):
        seen.append(await peer.read_request())
        await peer.write(OK)
        await peer.read_to_end()

    async with start_server(serve) as server, open_engine(server.url, keepalive_s=0) as engine:
        for _ in range(3):
            await exchange(engine)
            assert engine.connections == 0
    assert len(seen) == 3
    assert all(b"\r\nconnection: close\r\n" in each for each in seen)


async def test_unused_connections_are_closed_at_their_age_and_counted_no_more():
    async with start_server(answer_each) as server, open_engine(server.url, keepalive_s=0.1) as engine:
        await asyncio.gather(*[exchange(engine) for _ in range(3)])
        assert engine.connections == 3
        await eventually(lambda: engine.connections == 0)


async def test_connection_that_the_gateway_ends_while_unused_is_counted_no_more():
    async def serve(peer):
        await peer.read_request()
        await peer.write(OK)

    async with start_server(serve) as server, open_engine(server.url) as engine:
        for _ in range(3):
            assert await exchange(engine) == (200, b"{}")
            await eventually(lambda: engine.connections == 0)


UNASKED = {"an answer": OK, "a byte": b"\0", "an end": b""}


@pytest.mark.parametrize("loop_is", ["free", "busy"])
@pytest.mark.parametrize("unasked", UNASKED.values(), ids=UNASKED)
async def test_connection_on_which_something_came_is_never_used_again(unasked, loop_is):
    async def serve(peer):
        await peer.read_request()
        await peer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n%d" % peer.number)
        await answered.wait()
        if peer.number == 1:
            if unasked:
                await peer.write(unasked)
            else:
                peer.writer.write_eof()
            sent.set()
        await peer.read_to_end()

    answered, sent = asyncio.Event(), asyncio.Event()
    async with start_server(serve) as server, open_engine(server.url) as engine:
        assert await exchange(engine) == (200, b"1")
        answered.set()
        await sent.wait()
        if loop_is == "free":
            await eventually(lambda: engine.connections == 0)
        else:
            wait_until_taken(server.peers[0].writer.get_extra_info("socket"))  # and the loop has not looked
        assert await exchange(engine) == (200, b"2")


async def test_no_more_connections_than_may_be():
    async with (
        start_server(answer_each) as server,
        open_engine(server.url, connections_max=3) as engine,
    ):
        answers = await asyncio.gather(*[exchange(engine, b"%d" % number) for number in range(30)])
        assert answers == [(200, b"%d" % number) for number in range(30)]
        assert len(server.peers) == 3


async def test_calls_that_wait_are_served_in_the_order_in_which_they_came():
    order = []

    async def serve(peer):
        while True:
            order.append((await peer.read_request()).partition(b"\r\n\r\n")[2])
            await peer.write(OK)

    async with start_server(serve) as server, open_engine(server.url, connections_max=1) as engine:
        first = await engine.post((), b"00", timeout_s=WAIT_S)
        calls = []
        for number in range(1, 20):
            calls.append(asyncio.create_task(exchange(engine, b"%02d" % number)))
            await asyncio.sleep(0)
        first.close()
        newcomer = exchange(engine, b"20")  # in the same turn of the loop, when the connection is given up
        await asyncio.gather(newcomer, *calls)
    assert order == [b"%02d" % number for number in range(21)]


@pytest.mark.parametrize("how", ["left", "broken"])
async def test_place_of_an_ended_connection_goes_to_the_call_that_waits(how):
    async def serve(peer):
        await peer.read_request()
        if peer.number == 1:
            await peer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{")
            if how == "left":
                await peer.read_to_end()
            return
        await peer.write(OK)
        await peer.read_to_end()

    async with start_server(serve) as server, open_engine(server.url, connections_max=1) as engine:
        first = await engine.post((), b"{}", timeout_s=WAIT_S)
        waiting = asyncio.create_task(exchange(engine))
        await asyncio.sleep(0)
        if how == "broken":
            with contextlib.suppress(EngineError):
                while await first.read(WAIT_S):
                    pass
        first.close()
        assert await waiting == (200, b"{}")


async def test_connection_that_dies_on_its_way_to_a_waiting_call_is_replaced():
    async def serve(peer):
        await peer.read_request()
        await peer.write(OK)
        if peer.number == 1:
            await ending.wait()
        else:
            await peer.read_to_end()

    ending = asyncio.Event()
    async with start_server(serve) as server, open_engine(server.url, connections_max=1) as engine:
        first = await engine.post((), b"{}", timeout_s=WAIT_S)
        waiting = asyncio.create_task(exchange(engine))
        await asyncio.sleep(0)
        ending.set()
        await asyncio.wait(server.tasks)
        first.close()
        assert await waiting == (200, b"{}")
        assert len(server.peers) == 2


async def test_wait_for_a_place_is_no_longer_than_a_connect_may_take():
    async with (
        start_server(answer_with(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{")) as server,
        open_engine(server.url, connections_max=1, connect_timeout_s=0.05) as engine,
    ):
        first = await post_until_connected(engine)
        words = r"none of 1 connections became free within 0.05 s \(upstream.connect_timeout_s\)"
        with pytest.raises(ConnectError, match=words) as caught:
            await engine.post((), b"{}", timeout_s=WAIT_S)
        assert not caught.value.sent
        first.close()


async def post_until_connected(engine):
    """On a busy machine a connect may take longer than its limit."""
    async with asyncio.timeout(WAIT_S):
        while True:
            with contextlib.suppress(ConnectError):
                return await engine.post((), b"{}", timeout_s=WAIT_S)


async def test_call_that_is_cancelled_when_its_turn_comes_passes_it_on():
    async with (
        start_server(answer_each) as server,
        open_engine(server.url, connections_max=1) as engine,
    ):
        first = await engine.post((), b"{}", timeout_s=WAIT_S)
        cancelled = asyncio.create_task(exchange(engine, b"cancelled"))
        waiting = asyncio.create_task(exchange(engine, b"waiting"))
        await asyncio.sleep(0)
        first.close()  # the connection is the first one's now, which has not run since
        cancelled.cancel()
        assert await waiting == (200, b"waiting")
        assert cancelled.cancelled()
        assert len(server.peers) == 1


async def test_failed_connect_lets_the_next_call_try(closed_address):
    url = f"http://{closed_address}"
    async with open_engine(url, connections_max=1) as engine:
        failures = await asyncio.gather(*[exchange(engine) for _ in range(5)], return_exceptions=True)
        assert [type(failure) for failure in failures] == [ConnectError] * 5
        assert {str(failure) for failure in failures} == {"connection refused"}
        assert engine.connections == 0


async def test_header_of_two_lines_is_never_sent(closed_address):
    async with open_engine(f"http://{closed_address}") as engine:
        for value in ("a\r\nx-two: 2", "a\nx-two: 2", "a\rb", "a\0b", "é"):
            with pytest.raises(ValueError):
                await engine.post([("x-one", value)], b"{}", timeout_s=WAIT_S)
        with pytest.raises(ValueError):
            await engine.post([("x-one: 1\r\nx-two", "2")], b"{}", timeout_s=WAIT_S)
        assert engine.connections == 0


async def test_reaching_makes_a_connection_and_keeps_none(closed_address):
    async with (
        start_server(lambda peer: peer.read_to_end()) as server,
        open_engine(server.url) as engine,
    ):
        await engine.reach()
        await eventually(lambda: len(server.peers) == 1)
        assert engine.connections == 0
    async with open_engine(f"http://{closed_address}") as engine:
        with pytest.raises(ConnectError, match="connection refused"):
            await engine.reach()


async def test_closing_ends_what_is_in_use_and_who_waits():
    async with (
        start_server(answer_with(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{")) as server,
        open_engine(server.url, connections_max=1) as engine,
    ):
        answer = await engine.post((), b"{}", timeout_s=WAIT_S)
        waiting = asyncio.create_task(exchange(engine))
        await asyncio.sleep(0)
        await engine.close()
        with pytest.raises(ConnectError, match="the client is closed"):
            await waiting
        assert await answer.read(WAIT_S) == b"{"
        with pytest.raises(EngineError):
            await answer.read(WAIT_S)
        answer.close()


@pytest.mark.parametrize("seed", range(5))
async def test_no_place_is_lost_and_no_answer_strays_whatever_becomes_of_the_calls(seed):
    source = random.Random(seed)

    async def serve(peer):
        while True:
            body = (await peer.read_request()).partition(b"\r\n\r\n")[2]
            match source.randrange(6):
                case 0:
                    return
                case 1:
                    await peer.write(b"HTTP/1.1 200 OK\r\n")
                    return
                case 2:
                    await peer.write(OK.replace(b"{}", b"XX") + b"excess")
                case 3:
                    await asyncio.sleep(source.random() / 100)
            await peer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    async def call(number: int) -> None:
        body = b"question %d" % number
        with contextlib.suppress(EngineError, TimeoutError):
            async with asyncio.timeout(source.choice((0.001, 0.005, WAIT_S))):
                assert await exchange(engine, body) in {(200, body), (200, b"XX")}

    async with start_server(serve) as server, open_engine(server.url, connections_max=4) as engine:
        for at in range(0, 200, 20):
            await asyncio.gather(*[call(number) for number in range(at, at + 20)])
            assert engine.connections <= 4
