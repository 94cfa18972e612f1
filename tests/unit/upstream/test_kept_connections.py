"""Tests of connections kept for another call: an unasked answer reaches nobody, and one that ended is not used.

In HTTP/1.1 an answer that comes when a request has gone out is the answer to it, whoever it was meant for. So what an
engine can do is to look before it sends, and it must: an answer that came before belongs to nobody. The httpx engine
keeps no HTTP/1.1 connection, so that it has nothing to look at.
"""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import pytest

from bridge.upstream.exchange import ConnectError, ConnectionLostError, Engine
from tests.kit.upstreams import OK, Peer, answer_with, reset_on_close, start_server, wait_until_taken
from tests.kit.waiting import WAIT_S, eventually
from tests.unit.upstream.engines import Outcome, exchange, open_engine

LATE_408 = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 7\r\n\r\nUNASKED"
UNASKED = {
    "an answer": b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nUNASKED",
    "half a head": b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\nx: ",
    "a late 408": LATE_408,
    "no HTTP": b"\0\0\0",
    "a line break": b"\r\n",
}
BYTES = pytest.mark.parametrize("unasked", UNASKED.values(), ids=UNASKED)
LOOP = pytest.mark.parametrize("loop_is", ["free", "busy"])
"""Whether the engine's loop has a turn between what happens to an idle connection and the next request."""


def answer(text: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(text), text)


async def answer_each(peer: Peer) -> None:
    """Answer each request with its own body."""
    while True:
        request = await peer.read_request()
        await peer.write(answer(request.partition(b"\r\n\r\n")[2]))


@pytest.mark.parametrize(("kind", "connections"), [("native", 1), ("httpx", 3)])
async def test_whole_answer_leaves_a_connection_for_the_next_request(kind, connections):
    async with start_server(answer_each) as server, open_engine(kind, server.url) as engine:
        for body in (b"one", b"two", b"three"):
            assert await exchange(engine, body) == Outcome(200, body)
        assert len(server.peers) == connections


async def test_keepalive_of_zero_is_a_connection_a_request(engine_kind):
    async with start_server(answer_each) as server, open_engine(engine_kind, server.url, keepalive_s=0) as engine:
        for body in (b"one", b"two", b"three"):
            assert await exchange(engine, body) == Outcome(200, body)
        assert len(server.peers) == 3
        await eventually(lambda: not engine.connections)


@BYTES
async def test_bytes_behind_an_answer_are_nobodys(engine_kind, unasked):
    async def serve(peer):
        await peer.read_request()
        await peer.write(answer(b"first") + (unasked if peer.number == 1 else b""))
        if await peer.read_to_end():  # a second request on the connection
            await peer.write(answer(b"wrong"))

    async with start_server(serve) as server, open_engine(engine_kind, server.url) as engine:
        for _ in range(2):
            assert await exchange(engine) == Outcome(200, b"first")
        assert len(server.peers) == 2


@contextlib.contextmanager
def listen() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


async def serve_next(listener: socket.socket, text: bytes) -> socket.socket:
    """Answer one request of the next connection, and return the connection, which nothing reads on."""
    loop = asyncio.get_running_loop()
    connection, _ = await loop.sock_accept(listener)
    request = b""
    while not request.endswith(b"\r\n\r\n{}"):
        request += await loop.sock_recv(connection, 4096)
    await loop.sock_sendall(connection, answer(text))
    return connection


async def exchange_with(engine: Engine, listener: socket.socket, text: bytes) -> socket.socket:
    """Have a request answered on a connection of its own."""
    async with asyncio.timeout(WAIT_S):
        outcome, connection = await asyncio.gather(exchange(engine), serve_next(listener, text))
    assert outcome == Outcome(200, text)
    return connection


def send(connection: socket.socket, data: bytes) -> None:
    """Send bytes without a turn of the loop, so that they are at the engine's socket when this returns."""
    with contextlib.suppress(ConnectionError):  # of an engine that keeps nothing
        connection.send(data)
    wait_until_taken(connection)


def end(connection: socket.socket, how: str) -> None:
    if how == "FIN":
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        wait_until_taken(connection)
    else:
        reset_on_close(connection)
        connection.close()


def url_of(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


@BYTES
@LOOP
async def test_bytes_on_an_idle_connection_are_nobodys(engine_kind, unasked, loop_is):
    with listen() as listener:
        async with open_engine(engine_kind, url_of(listener)) as engine:
            with await exchange_with(engine, listener, b"first") as kept:
                send(kept, unasked)
                if loop_is == "free":
                    await eventually(lambda: not engine.connections)
                with await exchange_with(engine, listener, b"second"):
                    pass


@pytest.mark.parametrize("how", ["FIN", "RST"])
@LOOP
async def test_connection_that_ended_while_idle_is_not_used(engine_kind, how, loop_is):
    with listen() as listener:
        async with open_engine(engine_kind, url_of(listener)) as engine:
            with await exchange_with(engine, listener, b"first") as kept:
                end(kept, how)
                if loop_is == "free":
                    await eventually(lambda: not engine.connections)
                with await exchange_with(engine, listener, b"second"):
                    pass


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_request_that_was_read_is_never_sent_again(engine_kind, how):
    """The upstream reads the second request and ends the connection: the completion may have run."""

    async def serve(peer):
        while True:
            request = await peer.read_request()
            if request.endswith(b"second"):
                break
            await peer.write(OK)
        if how == "reset":
            peer.reset()

    async with start_server(serve) as server, open_engine(engine_kind, server.url) as engine:
        assert await exchange(engine, b"first") == Outcome(200, b"{}")
        assert await exchange(engine, b"second") == Outcome(None, b"", ConnectionLostError)
        assert [request.partition(b"\r\n\r\n")[2] for request in server.requests] == [b"first", b"second"]


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nconnection: close", b"HTTP/1.0 200 OK"])
async def test_connection_that_is_to_be_closed_is_not_used_again(engine_kind, head):
    async def serve(peer):
        await peer.read_request()
        await peer.write(head + b"\r\ncontent-length: 2\r\n\r\n{}")
        assert await peer.read_to_end() == b""

    async with start_server(serve) as server, open_engine(engine_kind, server.url) as engine:
        for _ in range(2):
            assert await exchange(engine) == Outcome(200, b"{}")
        assert len(server.peers) == 2
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*(peer.ended.wait() for peer in server.peers))


async def test_unused_connection_is_closed_after_its_keepalive(engine_kind):
    async def serve(peer):
        await peer.read_request()
        await peer.write(OK)
        assert await peer.read_to_end() == b""

    async with start_server(serve) as server, open_engine(engine_kind, server.url, keepalive_s=0.05) as engine:
        assert await exchange(engine) == Outcome(200, b"{}")
        async with asyncio.timeout(WAIT_S):
            await server.peers[0].ended.wait()
        await eventually(lambda: not engine.connections)


async def test_closing_the_engine_ends_its_connections(engine_kind):
    async def serve(peer):
        await peer.read_request()
        await peer.write(OK)
        await peer.read_to_end()

    async with start_server(serve) as server:
        async with open_engine(engine_kind, server.url) as engine:
            assert await exchange(engine) == Outcome(200, b"{}")
        async with asyncio.timeout(WAIT_S):
            await server.peers[0].ended.wait()
        assert engine.connections == 0


@pytest.mark.parametrize("connections_max", [1, 3])
async def test_connections_are_bounded_and_calls_take_turns(engine_kind, connections_max):
    at_once, most = 0, 0

    async def serve(peer):
        nonlocal at_once, most
        while True:
            request = await peer.read_request()
            at_once += 1
            most = max(most, at_once)
            for _ in range(5):
                await asyncio.sleep(0)
            at_once -= 1
            await peer.write(answer(request.partition(b"\r\n\r\n")[2]))

    limits = {"connections_max": connections_max, "connect_timeout_s": WAIT_S}
    async with start_server(serve) as server, open_engine(engine_kind, server.url, **limits) as engine:
        bodies = [b"%d" % number for number in range(8)]
        calls = [asyncio.create_task(exchange(engine, body)) for body in bodies]
        assert await asyncio.gather(*calls) == [Outcome(200, body) for body in bodies]
        assert most <= connections_max
        assert engine.connections <= connections_max
        if connections_max == 1:  # else two connects may overtake one another
            assert [request.partition(b"\r\n\r\n")[2] for request in server.requests] == bodies


async def test_call_that_gets_no_connection_in_time_was_not_sent(engine_kind):
    async with (
        start_server(answer_with()) as server,
        open_engine(engine_kind, server.url, connections_max=1, connect_timeout_s=1) as engine,
    ):
        first = asyncio.create_task(engine.post((), b"{}", timeout_s=WAIT_S))
        await eventually(lambda: server.requests)
        outcome = await exchange(engine)
        assert (outcome.failure, outcome.error.sent) == (ConnectError, False)
        first.cancel()
        await asyncio.wait([first])
    assert len(server.requests) == 1
