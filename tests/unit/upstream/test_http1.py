"""Tests of bridge/upstream/http1.py: one connection, by real sockets, on both event loops."""

import asyncio
import math

import pytest

from bridge.upstream.exchange import (
    ConnectError,
    ConnectionLostError,
    EngineError,
    InvalidAnswerError,
    ReadTimeoutError,
)
from bridge.upstream.framing import AnswerParser
from bridge.upstream.http1 import HELD_BYTES_MAX, Connection
from tests.kit.upstreams import CHUNKED, LARGE, OK, answer_with, start_server
from tests.kit.waiting import WAIT_S
from tests.unit.upstream.engines import wait_until_still
from tests.unit.upstream.native_engine import exchange, open_engine, read_all


async def test_request_is_its_head_and_its_body():
    seen = []

    async def serve(peer):
        seen.append(await peer.read_request())
        await peer.write(OK)

    async with start_server(serve) as server, open_engine(server.url) as engine:
        assert await exchange(engine, b"{}", ("x-one", "1"), ("x-two", "a b")) == (200, b"{}")
    lines = f"host: {server.address}\r\ncontent-length: 2\r\nx-one: 1\r\nx-two: a b\r\n\r\n{{}}"
    assert seen == [f"POST /v1/chat/completions HTTP/1.1\r\n{lines}".encode()]


async def test_large_request_arrives_whole():
    seen = []

    async def serve(peer):
        seen.append(await peer.read_request())
        await peer.write(OK)

    async with start_server(serve) as server, open_engine(server.url) as engine:
        assert await exchange(engine, LARGE) == (200, b"{}")
    assert seen[0].endswith(LARGE)


async def test_pieces_can_be_read_as_they_come():
    more = asyncio.Event()

    async def serve(peer):
        await peer.read_request()
        await peer.write(CHUNKED + b"3\r\none\r\n")
        await more.wait()
        await peer.write(b"3\r\ntwo\r\n0\r\n\r\n")
        await peer.read_to_end()

    async with start_server(serve) as server, open_engine(server.url) as engine:
        answer = await engine.post((), b"{}", timeout_s=WAIT_S)
        assert await answer.read(WAIT_S) == b"one"
        assert answer.read_nowait() == b""
        more.set()
        assert await read_all(answer) == b"two"
        assert await answer.read(WAIT_S) == b""
        answer.close()


async def test_what_came_before_a_failure_is_read_before_it_is_raised():
    async with (
        start_server(answer_with(CHUNKED + b"3\r\none\r\nxyz\r\n")) as server,
        open_engine(server.url) as engine,
    ):
        answer = await engine.post((), b"{}", timeout_s=WAIT_S)
        assert await answer.read(WAIT_S) == b"one"
        with pytest.raises(InvalidAnswerError, match="chunked body is malformed"):
            await answer.read(WAIT_S)
        answer.close()


@pytest.mark.parametrize("how", ["in order", "reset"])
async def test_body_to_the_connections_end_is_whole_after_an_end_in_order_alone(how):
    async def serve(peer):
        await peer.read_request()
        await peer.write(b"HTTP/1.1 200 OK\r\n\r\nhello")
        await read.wait()
        if how == "reset":
            peer.reset()

    read = asyncio.Event()
    async with start_server(serve) as server, open_engine(server.url) as engine:
        answer = await engine.post((), b"{}", timeout_s=WAIT_S)
        assert await answer.read(WAIT_S) == b"hello"
        read.set()
        if how == "in order":
            assert await answer.read(WAIT_S) == b""
        else:
            with pytest.raises(ConnectionLostError, match=r"body of the answer \(connection reset by peer\)"):
                await answer.read(WAIT_S)
        answer.close()


async def test_wait_for_a_head_has_its_time_whatever_comes_of_it():
    async def serve(peer):
        await peer.read_request()
        while not peer.writer.is_closing():
            await peer.write(b"HTTP/1.1 100 Continue\r\n\r\n" if peer.number == 1 else b"")
            if await peer.reader.read(1) == b"":
                return

    async with start_server(serve) as server, open_engine(server.url) as engine:
        with pytest.raises(ReadTimeoutError):
            await engine.post((), b"{}", timeout_s=0.05)


async def test_silence_in_a_body_has_its_time_and_ends_the_connection():
    async with (
        start_server(answer_with(CHUNKED + b"3\r\none\r\n")) as server,
        open_engine(server.url) as engine,
    ):
        answer = await engine.post((), b"{}", timeout_s=WAIT_S)
        assert await answer.read(0.05) == b"one"
        with pytest.raises(ReadTimeoutError):
            await answer.read(0.05)
        with pytest.raises(ReadTimeoutError):
            await answer.read(math.inf)
        answer.close()


async def test_later_wait_may_be_shorter_than_the_one_before():
    async with (
        start_server(answer_with(CHUNKED + b"3\r\none\r\n")) as server,
        open_engine(server.url) as engine,
    ):
        answer = await engine.post((), b"{}", timeout_s=1000)
        await answer.read(1000)
        async with asyncio.timeout(WAIT_S):
            with pytest.raises(ReadTimeoutError):
                await answer.read(0.05)
        answer.close()


async def test_body_that_is_not_read_waits_at_the_server():
    sent = 0

    async def serve(peer):
        nonlocal sent
        await peer.read_request()
        await peer.write(CHUNKED)
        try:
            while True:
                await peer.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
                sent += 0x10000
        except ConnectionError:
            pass

    async with start_server(serve) as server, open_engine(server.url) as engine:
        answer = await engine.post((), b"{}", timeout_s=WAIT_S)
        await wait_until_still(lambda: sent)
        before = sent
        assert HELD_BYTES_MAX < len(answer.read_nowait()) <= HELD_BYTES_MAX + 512 * 1024
        while sent == before:
            await answer.read(WAIT_S)
        answer.close()


async def test_answer_before_the_request_is_out_counts_and_its_connection_is_not_kept():
    received = []

    async def serve(peer):
        await peer.read_head()
        await peer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\n{}")
        await answered.wait()
        received.append(len(await peer.read_to_end()))

    answered = asyncio.Event()
    async with start_server(serve) as server, open_engine(server.url) as engine:
        assert await exchange(engine, LARGE) == (413, b"{}")
        assert engine.connections == 0
        answered.set()
    assert received[0] < len(LARGE)


async def test_leaving_before_the_head_drops_what_was_not_sent():
    received = []

    async def serve(peer):
        await peer.read_head()
        reached.set()
        await left.wait()
        received.append(len(await peer.read_to_end()))

    reached, left = asyncio.Event(), asyncio.Event()
    async with start_server(serve) as server, open_engine(server.url) as engine:
        call = asyncio.create_task(engine.post((), LARGE, timeout_s=WAIT_S))
        await reached.wait()
        call.cancel()
        await asyncio.wait([call])
        assert engine.connections == 0
        left.set()
    assert received[0] < len(LARGE)


async def test_closed_answer_has_nothing_to_do_with_the_connection_any_more():
    async def serve(peer):
        await peer.read_request()
        await peer.write(OK)
        await peer.read_request()
        await peer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret")
        await peer.read_to_end()

    async with start_server(serve) as server, open_engine(server.url) as engine:
        first = await engine.post((), b"{}", timeout_s=WAIT_S)
        first.close()
        second = await engine.post((), b"{}", timeout_s=WAIT_S)
        first.close()
        assert (await first.read(WAIT_S), first.read_nowait()) == (b"", b"")
        assert await read_all(second) == b"secret"
        second.close()
        assert len(server.peers) == 1


async def test_answer_that_is_closed_before_its_end_can_be_read_no_more():
    async with (
        start_server(answer_with(CHUNKED + b"3\r\none\r\n")) as server,
        open_engine(server.url) as engine,
    ):
        answer = await engine.post((), b"{}", timeout_s=WAIT_S)
        answer.close()
        assert answer.read_nowait() == b""
        with pytest.raises(ConnectionLostError, match="closed before its end"):
            await answer.read(WAIT_S)


class Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.is_aborted = False

    def writelines(self, pieces):
        self.written += b"".join(pieces)

    def abort(self):
        self.is_aborted = True

    def is_closing(self):
        return self.is_aborted

    def get_write_buffer_size(self):
        return 0


def open_connection(wire: Wire, freed: list[bool]) -> Connection:
    connection = Connection(
        make_parser=lambda: AnswerParser(head_bytes_max=1024, head_fields_max=100),
        on_free=lambda _, is_reusable: freed.append(is_reusable),
        on_lost=lambda _: None,
    )
    connection.connection_made(wire)
    return connection


EARLY = {
    "with a length": (b"HTTP/1.1 503 Full\r\ncontent-length: 4\r\n\r\nfull", b""),
    "to the end": (b"HTTP/1.1 503 Full\r\n\r\nfull", b""),
    "half of it": (b"HTTP/1.1 503 Full\r\ncontent-le", b"ngth: 4\r\n\r\nfull"),
}


@pytest.mark.parametrize(("early", "late"), EARLY.values(), ids=EARLY)
async def test_answer_that_a_new_connection_brings_before_the_request_is_the_answer_to_it(early, late):
    wire, freed = Wire(), []
    connection = open_connection(wire, freed)
    connection.data_received(early)
    if not late:
        assert connection.eof_received()
    asyncio.get_running_loop().call_soon(connection.data_received, late)
    answer = await connection.exchange(b"head", b"body", timeout_s=WAIT_S)
    assert (answer.status, answer.read_nowait()) == (503, b"full")
    assert wire.written == (b"headbody" if late else b"")
    answer.close()
    assert freed == [False]
    assert wire.is_aborted


async def test_new_connection_that_ends_within_an_early_answer_was_sent_nothing():
    wire, freed = Wire(), []
    connection = open_connection(wire, freed)
    connection.data_received(b"HTTP/1.1 503 Fu")
    connection.eof_received()
    with pytest.raises(ConnectError, match="ended at once"):
        await connection.exchange(b"head", b"body", timeout_s=WAIT_S)
    assert (wire.written, freed) == (b"", [False])


async def test_new_connection_that_brings_too_much_is_ended():
    wire = Wire()
    connection = open_connection(wire, [])
    connection.data_received(bytes(HELD_BYTES_MAX))
    assert not wire.is_aborted
    connection.data_received(b"\0")
    assert wire.is_aborted


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 503 Fu"], ids=["nothing", "half a head"])
async def test_new_connection_that_ends_before_an_answer_is_a_failure(data):
    async def serve(peer):
        await peer.write(data)

    async with start_server(serve) as server, open_engine(server.url) as engine:
        for _ in range(3):
            with pytest.raises(EngineError):
                await exchange(engine)
