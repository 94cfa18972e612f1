"""Tests of bridge/server/web_connection.py: what hostile bytes and slow callers can do, over real sockets."""

import asyncio
import contextlib
import random

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from bridge.http_server.shell import serve_http
from bridge.server.web_connection import FOREVER_S, HEAD_BYTES_MAX, Limits, list_limits, make_connection_class
from bridge.settings import Settings
from bridge.tcp import listen_tcp
from tests.kit.waiting import WAIT_S, eventually

HEAD = b"POST / HTTP/1.1\r\nhost: a\r\n"
GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


class Echo:
    """An application that answers with the body, once `released` is set. `calls` counts, `left` are disconnected."""

    def __init__(self, *, reads: bool = True) -> None:
        self.reads = reads
        self.calls = self.left = 0
        self.headers: list[dict[bytes, bytes]] = []
        self.released = asyncio.Event()
        self.released.set()

    async def __call__(self, scope, receive, send):
        self.calls += 1
        self.headers.append(dict(scope["headers"]))
        body, has_more = b"", self.reads
        while has_more:
            event = await receive()
            if event["type"] == "http.disconnect":
                self.left += 1
                return
            body += event["body"]
            has_more = event["more_body"]
        if not self.released.is_set():
            waiting = {asyncio.create_task(self.released.wait()), asyncio.create_task(receive())}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for each in waiting:
                each.cancel()
            if not self.released.is_set():
                self.left += 1
                return
        self.headers[-1] = dict(scope["headers"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})


@contextlib.asynccontextmanager
async def serve(application, *, sockets=None, **limits):
    limits = {"connections_max": 100, "age_s": FOREVER_S, "idle_s": FOREVER_S} | limits
    sockets = sockets or listen_tcp("127.0.0.1", 0)
    where = sockets[0].getsockname()
    async with serve_http(application, sockets, make_connection_class(Limits(**limits))):
        yield where


class Client:
    """A connection, for raw bytes."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    def write(self, data):
        self.writer.write(data)

    async def read_answer(self) -> tuple[int, bytes]:
        async with asyncio.timeout(WAIT_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
            return int(head.split()[1]), await self.reader.readexactly(length)

    async def read_to_end(self) -> bytes:
        parts = []
        async with asyncio.timeout(WAIT_S):
            with contextlib.suppress(ConnectionError):
                while data := await self.reader.read(65536):
                    parts.append(data)
        return b"".join(parts)


@pytest.fixture
async def connect():
    clients = []

    async def connect(where, data=b""):
        clients.append(Client(*await asyncio.open_connection(*where)))
        clients[-1].write(data)
        return clients[-1]

    yield connect
    for each in clients:
        each.writer.transport.abort()
    await asyncio.sleep(0)


async def test_requests_follow_each_other_on_a_connection(connect):
    async with serve(Echo()) as where:
        client = await connect(where)
        for text in (b"one", b"two"):
            client.write(HEAD + b"content-length: 3\r\n\r\n" + text)
            assert await client.read_answer() == (200, text)
        client.write(HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\nth\r\n3\r\nree\r\n0\r\n\r\n")
        assert await client.read_answer() == (200, b"three")


async def test_body_byte_by_byte_in_chunks_is_taken(connect):
    body = bytes(random.Random(1).randbytes(20_000))
    async with serve(Echo()) as where:
        client = await connect(where, HEAD + b"transfer-encoding: chunked\r\n\r\n")
        client.write(b"".join(b"1\r\n%b\r\n" % body[at : at + 1] for at in range(len(body))) + b"0\r\n\r\n")
        assert await client.read_answer() == (200, body)


async def test_caller_is_asked_to_continue_once_the_body_is_read(connect):
    async with serve(Echo()) as where:
        client = await connect(where, HEAD + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.write(b"hi")
        assert await client.read_answer() == (200, b"hi")


UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"


async def test_offer_of_another_protocol_is_ignored(connect):
    """As curl --http2 and Java's client make it over plain text."""
    async with serve(Echo()) as where:
        client = await connect(where)
        for _ in range(2):
            client.write(HEAD + UPGRADE + b"content-length: 9\r\n\r\nupgrade: ")
            assert await client.read_answer() == (200, b"upgrade: ")


OFFERS = {
    "length": b"content-length: 18\r\n\r\na\r\nupgrade: b\r\n\r\nc",
    "chunks": b"transfer-encoding: chunked\r\n\r\n12\r\na\r\nupgrade: b\r\n\r\nc\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("rest", OFFERS.values(), ids=OFFERS)
async def test_offer_is_ignored_and_the_body_kept_wherever_they_are_cut(rest):
    echo = Echo()
    data = HEAD + UPGRADE.replace(b"Upgrade: h2c", b"uPGRADE: h2c, other") + rest
    connection = make_connection_class(Limits(100, FOREVER_S, FOREVER_S))
    for cut in range(len(data) + 1):
        transport = Memory()
        config = Config(echo, http=connection, ws="none", lifespan="off", log_config=None, log_level=100)
        config.load()
        made = connection(config, ServerState(), {})
        made.connection_made(transport)
        for _ in range(2):
            made.data_received(data[:cut])
            made.data_received(data[cut:])
            await eventually(lambda transport=transport: transport.written.endswith(b"\nc"))
            assert transport.written.startswith(b"HTTP/1.1 200 OK\r\n")
            assert transport.written.endswith(b"\r\n\r\na\r\nupgrade: b\r\n\r\nc")
            transport.written.clear()
            await eventually(lambda made=made: not made.is_answering)
        made.connection_lost(None)
        made.stop_timer()
    assert b"upgrade" not in {name for headers in echo.headers for name in headers}
    assert echo.calls == 2 * (len(data) + 1)


class Memory(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self):
        super().__init__()
        self.written = bytearray()
        self.is_closed = False

    def write(self, data):
        self.written += data

    def close(self):
        self.is_closed = True

    def abort(self):
        self.is_closed = True

    def is_closing(self):
        return self.is_closed

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass


async def test_request_before_the_answer_ends_the_connection_and_its_call(connect):
    echo = Echo()
    echo.released.clear()
    async with serve(echo) as where:
        client = await connect(where, GET)
        await eventually(lambda: echo.calls == 1)
        client.write(GET * 1000)
        assert await client.read_to_end() == b""
        await eventually(lambda: echo.left == 1)
        assert echo.calls == 1


async def test_caller_who_leaves_is_noticed(connect):
    echo = Echo()
    echo.released.clear()
    async with serve(echo) as where:
        for data in (GET, HEAD + b"content-length: 9\r\n\r\nhalf"):
            client = await connect(where, data)
            await eventually(lambda: echo.calls > echo.left)
            client.writer.close()
            await eventually(lambda: echo.calls == echo.left)


async def test_trailers_of_a_request_are_no_headers(connect):
    echo = Echo()
    async with serve(echo) as where:
        client = await connect(
            where, HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nauthorization: k\r\n\r\n"
        )
        assert await client.read_answer() == (200, b"x")
    assert b"authorization" not in echo.headers[0]


NEVER_ENDING = {
    "path": (b"GET /", b"x" * 1000),
    "headers": (b"GET / HTTP/1.1\r\n", b"x: y\r\n" * 100),
    "one header": (b"GET / HTTP/1.1\r\nx: ", b"y" * 1000),
    "trailers": (HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\n", b"x: y\r\n" * 100),
    "one trailer": (HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\nx: ", b"y" * 1000),
    "extension of a chunk": (HEAD + b"transfer-encoding: chunked\r\n\r\n1;", b"y" * 1000),
    "empty lines": (b"\r\n", b"\r\n" * 500),
}


@pytest.mark.parametrize(("begin", "part"), NEVER_ENDING.values(), ids=NEVER_ENDING)
async def test_head_and_framing_are_bounded(begin, part, connect):
    async with serve(Echo()) as where:
        client = await connect(where, begin)
        reading = asyncio.create_task(client.read_to_end())
        with contextlib.suppress(ConnectionError):
            while not reading.done():
                client.write(part)
                await client.writer.drain()
                await asyncio.sleep(0)
        answer = await reading
        assert answer[:13] in {b"", b"HTTP/1.1 400 "}
        other = await connect(where, GET)
        assert (await other.read_answer())[0] == 200


async def test_head_within_the_bound_is_taken(connect):
    async with serve(Echo()) as where:
        client = await connect(where, HEAD + b"x: " + b"y" * (HEAD_BYTES_MAX - 1000) + b"\r\n\r\n")
        assert (await client.read_answer())[0] == 200


async def test_slow_head_ends_the_connection(connect):
    async with serve(Echo(), head_s=0.05) as where:
        client = await connect(where, b"GET / HT")
        assert await client.read_to_end() == b""


async def test_idle_connection_is_closed(connect):
    sockets = listen_tcp("127.0.0.1", 0)
    # What they send is there as they are accepted, so that it can't be late.
    clients = {data: await connect(sockets[0].getsockname(), data) for data in (b"", GET, b"\r\n", GET + b"\r\n")}
    async with serve(Echo(), sockets=sockets, idle_s=0.05):
        for data, client in clients.items():
            assert (await client.read_to_end())[:13] == (b"HTTP/1.1 200 " if GET in data else b"")


async def test_call_that_goes_on_is_not_idle(connect):
    echo = Echo()
    echo.released.clear()
    async with serve(echo, idle_s=0.01, head_s=0.01, linger_s=0.01) as where:
        client = await connect(where, GET)
        await eventually(lambda: echo.calls == 1)
        await asyncio.sleep(0.1)  # longer than any limit
        echo.released.set()
        assert (await client.read_answer())[0] == 200


async def test_connection_ends_after_the_answer_that_finds_it_old(connect):
    async with serve(Echo(), age_s=0) as where:
        client = await connect(where, GET)
        assert b"connection: close\r\n" in await client.read_to_end()


async def test_further_connections_are_closed_at_once(connect):
    async with serve(Echo(), connections_max=2) as where:
        first, second = await connect(where, GET), await connect(where, GET)
        for client in (first, second):
            assert (await client.read_answer())[0] == 200
        third = await connect(where, GET)
        assert await third.read_to_end() == b""
        first.writer.close()
        async with asyncio.timeout(WAIT_S):
            while not (
                await (await connect(where, GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))).read_to_end()
            ):
                pass


async def test_rest_of_a_body_that_nobody_reads_is_let_go_for_a_while(connect):
    async with serve(Echo(reads=False)) as where:
        client = await connect(where, HEAD + b"content-length: 1000000\r\n\r\n")
        assert (await client.read_answer())[0] == 200
        client.write(bytes(1_000_000) + GET)
        assert (await client.read_answer())[0] == 200


async def test_rest_of_a_body_that_does_not_come_ends_the_connection(connect):
    async with serve(Echo(reads=False), linger_s=0.05) as where:
        client = await connect(where, HEAD + b"content-length: 1000000\r\n\r\n")
        assert (await client.read_to_end()).startswith(b"HTTP/1.1 200 ")


async def test_answer_without_its_end_breaks_the_connection(connect):
    async def stop_in_the_middle(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})

    async with serve(stop_in_the_middle) as where:
        client = await connect(where, GET)
        assert b"\r\n0\r\n" not in await client.read_to_end()


async def test_closed_connection_whose_reader_takes_nothing_is_given_back(connect):
    async def flood(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
        await send({"type": "http.response.body", "body": bytes(30_000_000)})

    async with serve(flood, linger_s=0.05) as where:
        client = await connect(where, GET)
        async with asyncio.timeout(WAIT_S):
            await client.reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.2)  # it does not read; only then the limit is passed
        assert len(await client.read_to_end()) < 30_000_000


BAD = {
    "TLS": b"\x16\x03\x01\x00\x05hello\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "CONNECT": b"CONNECT evil:80 HTTP/1.1\r\nhost: a\r\n\r\n",
    "no UTF-8": b"GET /\xff HTTP/1.1\r\nhost: a\r\n\r\n",
    "two lengths": HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\nx",
    "length and chunks": HEAD + b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "wrong length": HEAD + b"content-length: -1\r\n\r\n",
    "wrong chunk": HEAD + b"transfer-encoding: chunked\r\n\r\nxyz\r\n",
    "LF alone": b"GET / HTTP/1.1\nhost: a\nx\n\n",
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
async def test_bytes_that_are_no_request_end_the_connection(data, connect, caplog, capfd):
    async with serve(Echo()) as where:
        client = await connect(where, data)
        assert (await client.read_to_end())[:12] in {b"", b"HTTP/1.1 400"}
        other = await connect(where, GET)
        assert (await other.read_answer())[0] == 200
    assert caplog.text + "".join(capfd.readouterr()) == ""


async def test_random_bytes_never_keep_the_port_from_answering(connect):
    chance = random.Random(7)
    good = (
        HEAD
        + b"expect: 100-continue\r\ntransfer-encoding: chunked\r\nconnection: upgrade\r\n\r\n"
        + b"1\r\nx\r\n0\r\na: b\r\n\r\n"
    )
    async with serve(Echo(), head_s=0.5, linger_s=0.5, idle_s=0.5) as where:
        for _ in range(300):
            data = bytearray(good * 2)
            for _ in range(chance.randint(1, 6)):
                place = chance.randrange(len(data))
                data[place : place + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
            client = await connect(where, bytes(data))
            client.writer.write_eof()
        other = await connect(where, GET)
        assert (await other.read_answer())[0] == 200


def test_limits_are_the_settings():
    connections = Settings(connections={"connections_max": 7, "age_s": 60, "idle_s": 5}).connections
    assert list_limits(connections) == Limits(connections_max=7, age_s=60, idle_s=5)
    assert list_limits(Settings(connections={"idle_s": 0}).connections).idle_s == FOREVER_S
