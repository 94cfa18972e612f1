"""A call that is left, early answers, and readers that take their time: what goes over the wire, on each engine."""

import asyncio
import contextlib

import pytest

from bridge.upstream.exchange import InvalidAnswerError, ReadTimeoutError
from tests.kit.upstreams import CHUNKED, LARGE, OK, Peer, answer_with, start_server
from tests.kit.waiting import WAIT_S, eventually
from tests.unit.upstream.engines import Outcome, exchange, open_engine, read_all, wait_until_still

TOO_LARGE = b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\n{}"


async def wait_for_end(peer: Peer) -> None:
    async with asyncio.timeout(WAIT_S):
        await peer.ended.wait()


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200", CHUNKED, CHUNKED + b"5\r\nhello\r\n"])
async def test_cancelled_call_ends_its_connection(engine_kind, begin):
    """Before the answer, within its head, after the head, within the body."""
    written = asyncio.Event()

    async def serve(peer):
        await peer.read_request()
        await peer.write(begin)
        written.set()
        assert await peer.read_to_end() == b""

    async with start_server(serve) as server, open_engine(engine_kind, server.url) as engine:
        call = asyncio.create_task(exchange(engine))
        await written.wait()
        for _ in range(10):  # so that it waits in each of the places
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])
        assert call.cancelled()
        await wait_for_end(server.peers[0])
        await eventually(lambda: not engine.connections)


@pytest.mark.parametrize("reads", [0, 1])
async def test_answer_closed_before_its_end_ends_its_connection(engine_kind, reads):
    serve = answer_with(CHUNKED + b"5\r\nhello\r\n")
    async with start_server(serve) as server, open_engine(engine_kind, server.url) as engine:
        answer = await engine.post((), b"{}", timeout_s=WAIT_S)
        for _ in range(reads):
            assert await answer.read(WAIT_S) == b"hello"
        answer.close()
        answer.close()
        await wait_for_end(server.peers[0])
        await eventually(lambda: not engine.connections)


async def test_read_that_is_cancelled_leaves_no_whole_answer(engine_kind):
    async with start_server(answer_with(CHUNKED)) as server, open_engine(engine_kind, server.url) as engine:
        answer = await engine.post((), b"{}", timeout_s=WAIT_S)
        reading = asyncio.create_task(answer.read(WAIT_S))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        answer.close()
        await wait_for_end(server.peers[0])


async def test_call_cancelled_while_it_sends_sends_no_more(engine_kind):
    """What the sockets hold arrives; the rest is dropped, although the upstream reads on."""
    left = asyncio.Event()
    arrived = []

    async def serve(peer):
        await peer.read_request(body=False)
        await left.wait()
        arrived.append(await peer.read_to_end())

    async with start_server(serve) as server, open_engine(engine_kind, server.url) as engine:
        call = asyncio.create_task(exchange(engine, LARGE))
        await eventually(lambda: server.requests)
        call.cancel()
        await asyncio.wait([call])
        await eventually(lambda: not engine.connections)
        left.set()
        await wait_for_end(server.peers[0])
    assert len(arrived[0]) < len(LARGE)


async def test_large_request_arrives_whole(engine_kind):
    arrived = []

    async def serve(peer):
        arrived.append((await peer.read_request()).partition(b"\r\n\r\n")[2])
        await peer.write(OK)

    async with start_server(serve) as server, open_engine(engine_kind, server.url) as engine:
        assert await exchange(engine, LARGE) == Outcome(200, b"{}")
    assert arrived == [LARGE]


async def test_answer_before_the_request_is_out_counts_and_ends_the_connection():
    arrived = []

    async def serve(peer):
        await peer.read_request(body=False)
        await peer.write(TOO_LARGE)
        await answered.wait()
        arrived.append(await peer.read_to_end())

    answered = asyncio.Event()
    async with start_server(serve) as server, open_engine("native", server.url) as engine:
        assert await exchange(engine, LARGE) == Outcome(413, b"{}")
        assert engine.connections == 0
        answered.set()
    assert len(arrived[0]) < len(LARGE)


async def test_httpx_sees_an_early_answer_when_its_request_is_out():
    async def serve(peer):
        await peer.read_request(body=False)
        await peer.write(TOO_LARGE)
        await peer.read_to_end()

    async with start_server(serve) as server, open_engine("httpx", server.url) as engine:
        assert await exchange(engine, LARGE) == Outcome(413, b"{}")


async def test_httpx_waits_for_a_request_to_be_taken_no_longer_than_for_an_answer():
    left = asyncio.Event()

    async def serve(peer):
        await peer.read_request(body=False)
        await peer.write(TOO_LARGE)
        await left.wait()

    async with start_server(serve) as server, open_engine("httpx", server.url) as engine:
        outcome = await exchange(engine, LARGE, timeout_s=0.2)
        assert outcome in {
            Outcome(None, b"", ReadTimeoutError),
            Outcome(413, b"{}"),
        }  # the latter if buffers take it all
        left.set()


@pytest.mark.parametrize(("begin", "status", "body"), [(b"", None, b""), (CHUNKED + b"5\r\nhello\r\n", 200, b"hello")])
async def test_silence_is_a_read_timeout_and_ends_the_connection(engine_kind, begin, status, body):
    async with start_server(answer_with(begin)) as server, open_engine(engine_kind, server.url) as engine:
        outcome = await exchange(engine, timeout_s=0.1, after=body if begin else None)
        assert outcome == Outcome(status, body, ReadTimeoutError)
        assert outcome.error.sent
        await wait_for_end(server.peers[0])
        await eventually(lambda: not engine.connections)


async def test_failure_stays_a_failure(engine_kind):
    serve = answer_with(CHUNKED + b"5\r\nhello\r\nZZ\r\n", then="close")
    async with start_server(serve) as server, open_engine(engine_kind, server.url) as engine:
        answer = await engine.post((), b"{}", timeout_s=WAIT_S)
        with contextlib.closing(answer):
            assert await answer.read(WAIT_S) == b"hello"
            for _ in range(3):
                with pytest.raises(InvalidAnswerError):
                    await answer.read(WAIT_S)
            assert answer.read_nowait() == b""


async def test_reader_that_stops_holds_the_upstream_back_and_misses_nothing(engine_kind):
    size, pieces = 0x40000, 160
    written = 0

    async def serve(peer):
        nonlocal written
        await peer.read_request()
        await peer.write(CHUNKED)
        for _ in range(pieces):
            await peer.write(b"%x\r\n" % size + bytes(size) + b"\r\n")
            written += size
        await peer.write(b"0\r\n\r\n")
        await peer.read_to_end()

    async with start_server(serve) as server, open_engine(engine_kind, server.url) as engine:
        answer = await engine.post((), b"{}", timeout_s=WAIT_S)
        with contextlib.closing(answer):
            first = answer.read_nowait() or await answer.read(WAIT_S)
            await wait_until_still(lambda: written)
            assert written < 20_000_000  # the buffers of two sockets, mostly
            assert len(first) + len(await read_all(answer, WAIT_S)) == size * pieces


async def test_head_without_an_end_is_refused(engine_kind):
    async def serve(peer):
        await peer.read_request()
        await peer.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(100_000):
            peer.writer.write(b"x-%d: " % number + b"a" * 1000 + b"\r\n")
            await peer.writer.drain()
        pytest.fail("the engine took a head of 100 MB")

    async with start_server(serve) as server, open_engine(engine_kind, server.url) as engine:
        assert await exchange(engine) == Outcome(None, b"", InvalidAnswerError)
