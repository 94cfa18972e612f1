"""Tests of bridge/emulator/wire.py: connections over real sockets that are given the steps of their answers."""

import asyncio
import contextlib
import itertools
import math
from collections.abc import AsyncIterator, Callable, Iterable

import pytest
import uvloop

from bridge.emulator.exchange import Exchange
from bridge.emulator.steps import Disconnect, Head, Step, Wait, Write, send
from bridge.emulator.wire import Connection
from tests.kit.waiting import eventually
from tests.unit.emulator.client import Client

FAR_S = 30


class Wire:
    """A server whose connections play given steps."""

    def __init__(self, answer: Callable[[Exchange], Iterable[Step]], *, resets: int = 0) -> None:
        self._answer = answer
        self._resets = resets
        self.exchanges: list[Exchange] = []
        self.connections: set[Connection] = set()
        self.arrival = asyncio.Event()

    def answer(self, exchange: Exchange):
        self.exchanges.append(exchange)
        self.arrival.set()
        return iter(self._answer(exchange))

    def open(self, connection: Connection) -> None:
        self.connections.add(connection)
        if self._resets:
            self._resets -= 1
            connection.reset()

    @contextlib.asynccontextmanager
    async def listen(self) -> AsyncIterator[int]:
        def create() -> Connection:
            return Connection(
                self.answer, lambda _: [("x-last", "1")], on_open=self.open, on_close=self.connections.discard
            )

        server = await asyncio.get_running_loop().create_server(create, "127.0.0.1", 0)
        yield server.sockets[0].getsockname()[1]
        server.close()
        for connection in list(self.connections):
            connection.abort()
            await connection.wait_lost()

    @contextlib.asynccontextmanager
    async def connect(self, **options) -> AsyncIterator[Client]:
        async with self.listen() as port, Client(port, **options) as client:
            yield client

    async def receive_exchange(self) -> Exchange:
        async with asyncio.timeout(FAR_S):
            await self.arrival.wait()
        return self.exchanges[-1]


def play(*steps: Step) -> Wire:
    return Wire(lambda _: steps)


async def read_raw(*steps: Step, data: bytes = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") -> bytes:
    """Return all that comes on a connection, less the date."""
    async with play(*steps).connect() as client:
        client.writer.write(data)
        lines = (await client.reader.read()).split(b"\r\n")
    return b"\r\n".join(line for line in lines if not line.startswith(b"date: "))


HTTP = b"HTTP/1.1 200 OK\r\n%bconnection: close\r\nx-last: 1\r\n\r\n"
CHUNKED = HTTP % b"transfer-encoding: chunked\r\n"
PLAYED = {
    "a body of known length": ([Head(200, length=2), Write(b"ab")], HTTP % b"content-length: 2\r\n" + b"ab"),
    "HTTP chunks": ([Head(200), Write(b"a"), Write(b"bcd" * 4)], CHUNKED + b"1\r\na\r\nC\r\nbcdbcdbcdbcd\r\n0\r\n\r\n"),
    "a wait in between": ([Head(200), Write(b"a"), Wait(0.01)], CHUNKED + b"1\r\na\r\n0\r\n\r\n"),
    "a head alone": ([Head(200), Disconnect(reset=False)], CHUNKED),
    "a broken chunk": (
        [Head(200), Write(b"FF\r\nab", framed=False), Disconnect(reset=False)],
        CHUNKED + b"FF\r\nab",
    ),
    "nothing": ([Disconnect(reset=False)], b""),
    "a status without a phrase": (
        [*send(599, b"")],
        HTTP.replace(b"200 OK", b"599 Unknown") % b"content-length: 0\r\n",
    ),
    "line ends in a header": (
        [*send(200, b"", ("a", "b\r\nc: d"))],
        HTTP % b"a: b  c: d\r\ncontent-length: 0\r\n",
    ),
    "what latin-1 lacks": ([*send(200, b"", ("a", "é橋"))], HTTP % b"a: \xe9?\r\ncontent-length: 0\r\n"),
}


@pytest.mark.parametrize(("steps", "data"), PLAYED.values(), ids=PLAYED)
async def test_steps_are_written_as_they_are(steps, data):
    assert await read_raw(*steps) == data


async def test_head_request_gets_no_body():
    data = b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert await read_raw(*send(200, b"ab"), data=data) == HTTP % b"content-length: 2\r\n"


async def test_each_write_is_sent_before_the_next_step():
    async with play(Head(200), Write(b"a"), Wait(math.inf)).connect() as client:
        client.send()
        await client.receive_head()
        assert await client.receive_piece() == b"a"


async def test_exchange_tells_what_was_sent():
    wire = play(Head(201), Write(b"a", 1), Write(b"b", 2))
    async with wire.connect() as client:
        await client.post(None)
        exchange = wire.exchanges[0]
        assert (exchange.status, exchange.events_sent, exchange.finished, exchange.closed_at) == (201, 3, True, None)


@pytest.mark.parametrize(("status", "billed"), [(200, True), (307, True), (400, False)])
async def test_error_is_not_billed(status, billed):
    wire = play(*send(status, b""))

    def answer(exchange: Exchange):
        exchange.billed = True
        return send(status, b"")

    wire = Wire(answer)
    async with wire.connect() as client:
        await client.post(None)
    assert wire.exchanges[0].billed is billed


async def test_requests_in_one_write_are_answered_in_turn():
    wire = Wire(lambda exchange: send(200, exchange.body))
    async with wire.connect() as client:
        for body in (b"a", b"b", b"c"):
            client.send(body)
        assert [(await client.receive()).body for _ in range(3)] == [b"a", b"b", b"c"]
        assert len(wire.connections) == 1


async def test_continue_is_sent_before_the_body():
    async with Wire(lambda exchange: send(200, exchange.body)).connect() as client:
        client.writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n")
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.writer.write(b"a")
        assert (await client.receive()).body == b"a"


async def test_bad_request_is_refused_and_the_connection_closed():
    wire = play()
    async with wire.connect() as client:
        client.writer.write(b"\x16\x03\x01\r\n\r\n" + b"x" * 100_000)
        response = await client.receive()
        assert (response.status, response.headers["connection"], response.headers["x-last"]) == (400, "close", "1")
        assert response.json["error"]["type"] == "invalid_request_error"
        assert await client.reader.read() == b""
    assert wire.exchanges == []


# How a connection ends

LEAVINGS = {"close": lambda writer: writer.close(), "reset": lambda writer: writer.transport.abort()}
UNFINISHED = {
    "before the head": ([Wait(math.inf)], None, 0),
    "after the head": ([Head(200), Wait(math.inf)], 200, 0),
    "after an event": ([Head(200), Write(b"a", 1), Wait(math.inf)], 200, 1),
    "in a long wait": ([Head(200), Write(b"a", 1), Wait(600)], 200, 1),
    "in a fast stream": ([Head(200), *itertools.repeat(Write(b"a" * 1000, 1), 100_000)], 200, 1),
}


@pytest.mark.parametrize("leave", LEAVINGS.values(), ids=LEAVINGS)
@pytest.mark.parametrize(("steps", "status", "events"), UNFINISHED.values(), ids=UNFINISHED)
async def test_peer_that_disconnects_is_seen_before_the_end(steps, status, events, leave):
    wire = Wire(lambda _: steps)
    async with wire.connect() as client:
        client.send()
        exchange = await wire.receive_exchange()
        if status is not None:
            await client.receive_head()
        for _ in range(events):
            await client.receive_piece()
        assert exchange.closed_at is None
        leave(client.writer)
        assert await exchange.wait_closed(FAR_S) == exchange.closed_at
        assert (exchange.status, exchange.finished) == (status, False)
        assert exchange.events_sent >= events


async def test_peer_that_disconnects_after_the_end_is_seen_on_every_exchange_of_the_connection():
    wire = play(*send(200, b""))
    async with wire.connect() as client:
        await client.post(None)
        await client.post(None)
        client.writer.close()
        for exchange in wire.exchanges:
            await exchange.wait_closed(FAR_S)
            assert exchange.finished


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_reset_is_a_reset_in_both_loops(loop_factory):
    async def be_reset() -> None:
        async with play(Disconnect(reset=True)).connect() as client:
            client.send()
            with pytest.raises(ConnectionResetError):
                await client.receive_head()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(be_reset())


async def test_connection_can_be_reset_when_it_opens():
    wire = Wire(lambda _: send(200, b""), resets=1)
    async with wire.listen() as port:
        async with Client(port) as client:
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await client.post(None)
        async with Client(port) as client:
            assert (await client.post(None)).status == 200


async def test_connection_that_is_aborted_leaves_no_task():
    tasks = asyncio.all_tasks()
    wire = play(Wait(math.inf))
    async with wire.connect() as client:
        client.send()
        exchange = await wire.receive_exchange()
        (connection,) = wire.connections
        connection.abort()
        await connection.wait_lost()
        assert await client.reader.read() == b""
    assert (asyncio.all_tasks(), wire.connections, exchange.closed_at) == (tasks, set(), None)


async def test_slow_reader_holds_the_stream_back():
    wire = play(Head(200), *itertools.repeat(Write(b"a" * 10_000, 1), 100_000))
    async with wire.connect(limit=1024) as client:
        client.send()
        exchange = await wire.receive_exchange()
        (connection,) = wire.connections
        await eventually(lambda: not connection.is_writable, FAR_S)
        assert 0 < exchange.events_sent < 5000
        client.writer.transport.abort()
        await exchange.wait_closed(FAR_S)
