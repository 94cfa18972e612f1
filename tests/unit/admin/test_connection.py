import asyncio
import contextlib
import logging
import os
import random
import signal

import pytest

from bridge.admin.connection import Limits
from tests.kit.proc import count_descriptors
from tests.kit.processes import find_free_port
from tests.kit.waiting import WAIT_S, eventually
from tests.unit.admin.samples import fetch, read_all, send, serve

KEY = "sk-" + "k" * 24
CLOSE = (b"connection", b"close")


async def greet(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5"), CLOSE]})
    await send({"type": "http.response.body", "body": b"hello"})


class Held:
    """An application whose answers come when `released` is set."""

    def __init__(self) -> None:
        self.requests = 0
        self.released = asyncio.Event()

    async def __call__(self, scope, receive, send):
        self.requests += 1
        await self.released.wait()
        await greet(scope, receive, send)


class Flood:
    """An application that writes more than the kernel's buffers take. `ended` is set when the writing is over."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.started = asyncio.Event()

    async def __call__(self, scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [CLOSE]})
        for _ in range(2):
            await send({"type": "http.response.body", "body": bytes(20_000_000), "more_body": True})
            self.started.set()
        await send({"type": "http.response.body", "body": b""})
        self.ended.set()


@pytest.fixture
async def connect():
    """A function that opens a connection; all are closed at the end."""
    writers = []

    async def connect(where, begin: bytes = b""):
        reader, writer = await asyncio.open_connection(*where)
        writers.append(writer)
        writer.write(begin)
        return reader, writer

    yield connect
    for writer in writers:
        writer.transport.abort()
    await asyncio.sleep(0)


async def test_one_request_a_connection_is_answered():
    async with serve(greet) as where:
        answer = await send(where, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n" * 2)
    assert (answer.status, answer.body) == (200, b"hello")
    assert answer.headers == {"content-length": "5", "connection": "close"}


async def test_request_may_come_byte_by_byte(connect):
    async with serve(greet) as where:
        reader, writer = await connect(where)
        for byte in b"GET / HTTP/1.1\r\nhost: a\r\n\r\n":
            writer.write(bytes([byte]))
            await writer.drain()
        assert (await read_all(reader, writer)).endswith(b"hello")


async def test_signals_and_logging_are_left_alone():
    def look():
        handlers = [[*logging.getLogger(name).handlers] for name in ("", "uvicorn", "uvicorn.error")]
        return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)], handlers

    before = look()
    async with serve(greet) as where:
        await fetch(where)
        assert look() == before
    assert look() == before


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x00\x05hello\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        KEY.encode() + b"\r\n\r\n",
        b"GET http://evil HTTP/1.1\r\nhost: a\r\n\r\n",
        b"CONNECT evil:80 HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx\r\n\r\n",
        b"GET / HTTP/9.9\r\nhost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + KEY.encode() + b" : a\r\n\r\n",
    ],
    ids=["TLS", "HTTP/2", "a key", "a URL without path", "CONNECT", "no field", "HTTP/9.9", "a key as a field"],
)
async def test_invalid_request_is_refused_without_a_log_line(request_, caplog, capfd):
    async with serve(greet) as where:
        answer = await send(where, request_)
        assert (answer.status, answer.body) == (400, b"Invalid HTTP request received.")
        assert (await fetch(where)).body == b"hello"
    assert caplog.text + "".join(capfd.readouterr()) == ""


async def test_exception_of_the_application_is_500_without_a_text():
    async def fail(scope, receive, send):
        raise ValueError(KEY)

    async with serve(fail) as where:
        answer = await fetch(where)
    assert (answer.status, answer.body) == (500, b"Internal Server Error")


@pytest.mark.parametrize("line", [b"GET /%s HTTP/1.1\r\nhost: a\r\n", b"GET / HTTP/1.1\r\nhost: a\r\nx: %s\r\n"])
async def test_large_head_is_refused(line):
    async with serve(greet, request_bytes_max=1000) as where:
        assert (await send(where, (line % (b"y" * 900)) + b"\r\n")).status == 200
        answer = await send(where, line % (b"y" * 1000))
    assert (answer.status, answer.body) == (400, b"the request has more than 1000 bytes\n")


async def test_large_head_in_small_pieces_is_refused(connect):
    async with serve(greet) as where:
        reader, writer = await connect(where)
        reading = asyncio.create_task(read_all(reader, writer))
        with contextlib.suppress(ConnectionError):
            writer.write(b"GET / HTTP/1.1\r\n")
            while not reading.done():
                writer.write(b"x: " + b"y" * 100 + b"\r\n")
                await writer.drain()
                await asyncio.sleep(0)
        await reading


async def test_what_follows_a_request_is_dropped(connect):
    held = Held()
    async with serve(held, request_bytes_max=100) as where:
        client = await connect(where, b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9000\r\n\r\n")
        await eventually(lambda: held.requests == 1)
        client[1].write(bytes(9000))
        await connect(where, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        await eventually(lambda: held.requests == 2)  # so what was sent before it has come too
        held.released.set()
        answer = await read_all(*client)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"hello")


async def test_silent_connection_is_closed(connect):
    async with serve(greet, request_s=0.05) as where:
        assert await read_all(*await connect(where)) == b""


async def test_request_that_never_ends_is_closed(connect):
    async with serve(greet, request_s=0.05) as where:
        reader, writer = await connect(where, b"GET / HTTP/1.1\r\nx: ")
        reading = asyncio.create_task(read_all(reader, writer))
        with contextlib.suppress(ConnectionError):
            while not reading.done():
                writer.write(b"y")
                await writer.drain()
                await asyncio.sleep(0.001)
        assert await reading == b""


async def test_answer_that_nobody_reads_is_dropped(connect):
    flood = Flood()
    async with serve(flood, answer_s=0.05) as where:
        reader, writer = await connect(where)
        writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        async with asyncio.timeout(WAIT_S):
            await flood.ended.wait()  # without the bound it waits for the reader
        assert len(await read_all(reader, writer)) < 40_000_000


async def test_new_connection_ends_the_oldest_silent_one_when_there_are_too_many(connect):
    async with serve(greet, connections_max=3) as where:
        first, second, third = [await connect(where) for _ in range(3)]
        assert (await fetch(where)).body == b"hello"
        assert await read_all(*first) == b""
        for reader, writer in (second, third):
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            assert (await read_all(reader, writer)).endswith(b"hello")


async def test_silent_connections_end_before_those_with_a_request(connect):
    held = Held()
    async with serve(held, connections_max=3) as where:
        asked = [asyncio.create_task(fetch(where)) for _ in range(2)]
        await eventually(lambda: held.requests == 2)
        silent = [await connect(where) for _ in range(20)]
        held.released.set()
        assert [(await each).body for each in asked] == [b"hello"] * 2
        for reader, writer in silent[:-1]:
            assert await read_all(reader, writer) == b""
        writer = silent[-1][1]
        writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        assert (await read_all(*silent[-1])).endswith(b"hello")


async def test_requests_that_are_never_answered_do_not_keep_others_out(connect):
    held = Held()
    async with serve(held, connections_max=3) as where:
        for _ in range(10):
            _, writer = await connect(where)
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        await eventually(lambda: held.requests == 10)
        asked = asyncio.create_task(fetch(where))
        await eventually(lambda: held.requests == 11)
        held.released.set()
        assert (await asked).body == b"hello"


@pytest.mark.parametrize(
    "begin",
    [b"", b"GET / HTTP/1.1\r\nx: ", b"x" * 16_000, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"],
    ids=["silent", "slow", "large", "HTTP/2", "TLS"],
)
async def test_port_stays_usable_among_hundreds_of_bad_clients_and_gives_their_files_back(begin, connect):
    async with serve(greet) as where:
        await fetch(where)
        before = count_descriptors(os.getpid())
        clients = []
        for number in range(600):
            clients.append(await connect(where))
            clients[-1][1].write(begin)
            if number % 100 == 99:
                assert (await fetch(where)).body == b"hello"
        await eventually(lambda: count_descriptors(os.getpid()) <= before + 600 + Limits().connections_max)
        for _, writer in clients:
            writer.transport.abort()
        assert (await fetch(where)).body == b"hello"
        await eventually(lambda: count_descriptors(os.getpid()) <= before)


async def test_random_bytes_never_keep_the_port_from_answering(connect):
    chance = random.Random(11)
    good = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: h2c\r\ncontent-length: 1\r\n\r\nx"
    async with serve(greet, request_s=0.5) as where:
        for _ in range(200):
            data = bytearray(good)
            for _ in range(chance.randint(1, 6)):
                place = chance.randrange(len(data))
                data[place : place + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
            _, writer = await connect(where)
            writer.write(data)
            writer.write_eof()
        assert (await fetch(where)).body == b"hello"


async def test_answer_on_its_way_is_finished_before_the_end():
    held = Held()
    async with serve(held) as where:
        asked = asyncio.create_task(fetch(where))
        await eventually(lambda: held.requests == 1)
        asyncio.get_running_loop().call_soon(held.released.set)
    assert (await asked).body == b"hello"


async def test_clients_that_are_silent_or_do_not_read_do_not_hold_up_the_end(connect):
    flood, before = Flood(), count_descriptors(os.getpid())
    port = find_free_port()  # that no system gives to others meanwhile
    async with asyncio.timeout(WAIT_S), serve(flood, port=port, request_s=3600, answer_s=3600) as where:
        clients = [await connect(where) for _ in range(3)]
        clients[0][1].write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        await flood.started.wait()
    await eventually(lambda: count_descriptors(os.getpid()) <= before + len(clients))
    for reader, writer in clients:
        assert len(await read_all(reader, writer)) < 40_000_000
    with pytest.raises(ConnectionRefusedError):
        await connect(where)
