"""What only the httpx engine does, HTTP/2 and SOCKS, and the faults below it that it works around.

A test of a fault says of httpx2 itself what it does wrong. If one fails, the fault is mended: drop the workaround that
the engine's docstring names, and the test.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import h2.config
import h2.connection
import h2.events
import httpx2
import pytest

from bridge.upstream.exchange import ConnectError, ConnectionLostError, InvalidAnswerError, ReadTimeoutError
from tests.kit.certificates import server_context
from tests.kit.upstreams import CHUNKED, OK, Peer, answer_with, start_server
from tests.kit.waiting import WAIT_S, eventually
from tests.unit.upstream.engines import Outcome, exchange, open_engine

HEAD = [(":status", "200"), ("content-type", "application/json")]


class Http2Peer:
    """The upstream's end of an HTTP/2 connection."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.events: list[h2.events.Event] = []
        self.state.initiate_connection()

    async def read_event(self, *kinds: type[h2.events.Event]) -> Any:
        """Return the next event of one of these kinds; EOFError at the connection's end."""
        while True:
            while self.events:
                event = self.events.pop(0)
                if isinstance(event, kinds):
                    return event
            await self.send()
            data = await self.peer.reader.read(65536)
            if not data:
                raise EOFError
            self.events += self.state.receive_data(data)

    async def read_request(self) -> int:
        """Return the stream of the next request, once its body is whole."""
        return (await self.read_event(h2.events.StreamEnded)).stream_id

    async def answer(self, stream: int, body: bytes, *, end: bool = True) -> None:
        self.state.send_headers(stream, HEAD)
        self.state.send_data(stream, body, end_stream=end)
        await self.send()

    async def send(self) -> None:
        await self.peer.write(self.state.data_to_send())


@contextlib.asynccontextmanager
async def http2_server(serve) -> AsyncIterator[Any]:
    async def serve_peer(peer: Peer) -> None:
        assert peer.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        with contextlib.suppress(EOFError, ConnectionError):
            await serve(Http2Peer(peer))
        peer.ended.set()

    async with start_server(serve_peer, tls=server_context(alpn=["h2"])) as server:
        yield server


async def answer_each(peer: Http2Peer) -> None:
    for number in range(10):
        await peer.answer(await peer.read_request(), b"%d" % number)


# HTTP/2


async def test_http2_connection_is_kept_and_serves_one_call_after_another():
    async with http2_server(answer_each) as server, open_engine("httpx", server.url) as engine:
        for number in range(3):
            assert await exchange(engine, b"{}", [("x-one", "1")]) == Outcome(200, b"%d" % number)
            assert engine.connections == 1
        assert len(server.peers) == 1


async def test_http2_calls_at_once_have_a_connection_each():
    async with http2_server(answer_each) as server, open_engine("httpx", server.url, connections_max=3) as engine:
        outcomes = await asyncio.gather(*(exchange(engine) for _ in range(3)))
        assert outcomes == [Outcome(200, b"0")] * 3
        assert len(server.peers) == 3


async def test_http2_call_that_is_left_ends_its_connection_and_no_other():
    async def serve(peer):
        stream = await peer.read_request()
        await peer.answer(stream, b"begun", end=False)
        await peer.read_event(h2.events.StreamReset)

    async with http2_server(serve) as server, open_engine("httpx", server.url) as engine:
        one, other = await asyncio.gather(*(engine.post((), b"{}", timeout_s=WAIT_S) for _ in range(2)))
        assert await one.read(WAIT_S) == b"begun"
        one.close()
        await eventually(lambda: engine.connections == 1)
        await eventually(lambda: sum(peer.ended.is_set() for peer in server.peers) == 1)
        assert await other.read(WAIT_S) == b"begun"
        other.close()
        await eventually(lambda: all(peer.ended.is_set() for peer in server.peers))


async def test_http2_call_that_is_cancelled_before_its_answer_ends_its_connection():
    async def serve(peer):
        await peer.read_request()
        await peer.read_event(h2.events.StreamReset)

    async with http2_server(serve) as server, open_engine("httpx", server.url) as engine:
        call = asyncio.create_task(exchange(engine))
        await eventually(lambda: server.peers)
        call.cancel()
        await asyncio.wait([call])
        await eventually(lambda: all(peer.ended.is_set() for peer in server.peers))
        await eventually(lambda: not engine.connections)


@pytest.mark.parametrize("begun", [b"", b"begun"])
async def test_http2_answer_after_a_goaway_is_lost_as_with_its_connection(begun):
    """If this fails, h2 reads on after a GOAWAY (python-hyper/h2#1181): delete the row of httpx_engine.py."""

    async def serve(peer):
        stream = await peer.read_request()
        if begun:
            await peer.answer(stream, begun, end=False)
        goaway = bytes([0, 0, 8, 7, 0, 0, 0, 0, 0]) + stream.to_bytes(4) + bytes(4)
        await peer.peer.write(goaway)
        if begun:
            peer.state.send_data(stream, b"the rest", end_stream=True)
            await peer.send()
        else:
            await peer.answer(stream, b"the rest")
        await peer.read_event(h2.events.StreamReset)

    async with http2_server(serve) as server, open_engine("httpx", server.url) as engine:
        outcome = await exchange(engine)
        assert outcome.body == begun
        assert outcome.failure is ConnectionLostError


async def test_http2_connection_that_ended_while_idle_is_not_used():
    async def serve(peer):
        await peer.answer(await peer.read_request(), b"first")
        peer.peer.writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await peer.peer.writer.wait_closed()

    async with http2_server(serve) as server, open_engine("httpx", server.url) as engine:
        for _ in range(3):
            assert await exchange(engine) == Outcome(200, b"first")
            await eventually(lambda: all(peer.ended.is_set() for peer in server.peers))
        assert len(server.peers) == 3


async def test_unused_http2_connection_is_closed_after_its_keepalive():
    async with http2_server(answer_each) as server, open_engine("httpx", server.url, keepalive_s=0.05) as engine:
        for _ in range(2):
            assert await exchange(engine) == Outcome(200, b"0")
            await eventually(lambda: not engine.connections)
            await eventually(lambda: all(peer.ended.is_set() for peer in server.peers))


@pytest.mark.parametrize("body", [b"", b"begun"])
async def test_http2_stream_that_is_reset_is_a_lost_connection(body):
    async def serve(peer):
        stream = await peer.read_request()
        if body:
            await peer.answer(stream, body, end=False)
        peer.state.reset_stream(stream)
        await peer.send()
        await peer.read_event(h2.events.StreamReset)

    async with http2_server(serve) as server, open_engine("httpx", server.url) as engine:
        assert await exchange(engine) == Outcome(200 if body else None, body, ConnectionLostError)


async def test_http2_connection_that_is_given_up_is_a_lost_connection():
    async def serve(peer):
        stream = await peer.read_request()
        peer.state.close_connection(last_stream_id=stream)
        await peer.send()

    async with http2_server(serve) as server, open_engine("httpx", server.url) as engine:
        assert await exchange(engine) == Outcome(None, b"", ConnectionLostError)


async def test_http2_frames_that_make_no_sense_are_an_invalid_answer():
    async def serve(peer):
        await peer.read_request()
        await peer.peer.write(b"\0\0\0\1\0\0\0\0\0")  # HEADERS on stream 0
        await peer.peer.read_to_end()

    async with http2_server(serve) as server, open_engine("httpx", server.url) as engine:
        assert await exchange(engine) == Outcome(None, b"", InvalidAnswerError)


async def test_http2_silence_is_a_read_timeout():
    async def serve(peer):
        stream = await peer.read_request()
        await peer.answer(stream, b"begun", end=False)
        await peer.read_event(h2.events.StreamReset)

    async with http2_server(serve) as server, open_engine("httpx", server.url) as engine:
        assert await exchange(engine, timeout_s=0.2, after=b"begun") == Outcome(200, b"begun", ReadTimeoutError)


async def test_http2_is_reached_without_a_request():
    async def serve(peer):
        await peer.read_request()
        pytest.fail("a request came")

    async with http2_server(serve) as server, open_engine("httpx", server.url) as engine:
        await engine.reach()
        await eventually(lambda: all(peer.ended.is_set() for peer in server.peers))


async def test_upstream_that_offers_no_http2_gets_http1():
    context = server_context(alpn=["http/1.1"])
    async with start_server(answer_with(OK), tls=context) as server, open_engine("httpx", server.url) as engine:
        for _ in range(2):
            assert await exchange(engine) == Outcome(200, b"{}")
        assert len(server.peers) == 2


# SOCKS


@contextlib.asynccontextmanager
async def socks_proxy(port: int, *, password: bytes = b"", reply: int = 0) -> AsyncIterator[Any]:
    """Run a SOCKS5 proxy (RFC 1928, 1929) that connects to a port of this machine, whatever it is asked for."""

    async def serve(peer: Peer) -> None:
        reader = peer.reader
        _, methods = await reader.readexactly(2)
        await reader.readexactly(methods)
        await peer.write(b"\5\2" if password else b"\5\0")
        if password:
            name = await reader.readexactly((await reader.readexactly(2))[1])
            word = await reader.readexactly((await reader.readexactly(1))[0])
            await peer.write(b"\1\0" if (name, word) == (b"user", password) else b"\1\1")
        head = await reader.readexactly(4)
        host = await reader.readexactly(4 if head[3] == 1 else (await reader.readexactly(1))[0])
        await reader.readexactly(2)
        peer.server.requests.append(host)
        await peer.write(bytes((5, reply, 0, 1)) + bytes(6))
        if reply:
            return
        await peer.relay(port)

    async with start_server(serve) as proxy:
        yield proxy


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


@pytest.mark.parametrize("password", [b"", b"s:es@me"])
async def test_request_goes_through_a_socks_proxy_that_looks_the_name_up(password):
    async with (
        start_server(answer_with(OK)) as server,
        socks_proxy(port_of(server.url), password=password) as proxy,
        open_engine(
            "httpx",
            "http://gateway.invalid",
            proxy=proxy.url.replace("http://", "socks5h://" + ("user:s%3Aes%40me@" if password else "")),
        ) as engine,
    ):
        await engine.reach()
        assert await exchange(engine) == Outcome(200, b"{}")
    assert set(proxy.requests) == {b"gateway.invalid"}
    assert b"host: gateway.invalid\r\n" in server.requests[0]


@pytest.mark.parametrize(("password", "reply"), [(b"another", 0), (b"", 5)])
async def test_socks_proxy_that_refuses_was_not_sent_the_request(password, reply, closed_address):
    async with (
        socks_proxy(port_of(closed_address), password=password, reply=reply) as proxy,
        open_engine(
            "httpx", "http://gateway.invalid", proxy=proxy.url.replace("http://", "socks5h://user:sesame@")
        ) as engine,
    ):
        outcome = await exchange(engine)
        assert outcome == Outcome(None, b"", ConnectError)
        assert "sesame" not in str(outcome.error)
        await eventually(lambda: not engine.connections)


# Faults of httpx2, which the engine works around


def request_to(url: str) -> httpx2.Request:
    headers = {"host": "upstream", "content-length": "2"}
    return httpx2.Request("POST", url, headers=headers, stream=httpx2.ByteStream(b"{}"))


async def test_fault_httpx2_gives_bytes_behind_an_answer_to_the_next_request():
    async def serve(peer):
        for _ in range(2):
            await peer.read_request()
            await peer.write(OK + b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nUNASKED")

    async with start_server(serve) as server, httpx2.AsyncHTTPTransport(trust_env=False) as transport:
        bodies = []
        for _ in range(2):
            response = await transport.handle_async_request(request_to(server.url))
            bodies.append(b"".join([piece async for piece in response.aiter_raw()]))
        assert bodies == [b"{}", b"UNASKED"]


async def test_fault_httpx2_does_not_reset_an_http2_stream_that_is_left():
    events = []

    async def serve(peer):
        await peer.answer(await peer.read_request(), b"begun", end=False)
        left.set()
        while True:
            event = await peer.read_event(h2.events.StreamReset, h2.events.StreamEnded)
            events.append(type(event))
            if isinstance(event, h2.events.StreamEnded):
                await peer.answer(event.stream_id, b"second")

    left = asyncio.Event()
    async with http2_server(serve) as server:
        trust = httpx2.create_ssl_context(verify=False, trust_env=False)
        async with httpx2.AsyncHTTPTransport(verify=trust, trust_env=False, http2=True) as transport:
            response = await transport.handle_async_request(request_to(server.url))
            await left.wait()
            await response.aclose()
            second = await transport.handle_async_request(request_to(server.url))
            await second.aread()
    assert events[0] is h2.events.StreamEnded  # of the second request, on the same connection; no reset came before


async def test_fault_httpx2_does_not_close_a_connection_whose_handshake_is_cancelled():
    async def serve(peer):
        await peer.reader.readexactly(1)
        shaking.set()
        await left.wait()
        await peer.write(b"x")
        with contextlib.suppress(ConnectionError):
            while not peer.reader.at_eof():
                await peer.reader.read(65536)
                peer.ended.set()

    shaking, left = asyncio.Event(), asyncio.Event()
    streams = []

    async def trace(event, info):
        if event == "connection.connect_tcp.complete":
            streams.append(info["return_value"])

    async with start_server(serve, scheme="https") as server, httpx2.AsyncHTTPTransport(trust_env=False) as transport:
        request = request_to(server.url)
        request.extensions["trace"] = trace
        call = asyncio.create_task(transport.handle_async_request(request))
        await shaking.wait()
        call.cancel()
        await asyncio.wait([call])
        assert streams[0].get_extra_info("socket").fileno() >= 0
        await streams[0].aclose()
        left.set()


async def test_head_of_an_answer_may_come_while_the_body_does_not():
    """The timer of the head is over with it: a body has time of its own."""
    serve = answer_with(CHUNKED)
    async with start_server(serve) as server, open_engine("httpx", server.url) as engine:
        answer, timeout_s = None, 0.05
        while answer is None:
            timeout_s *= 2
            with contextlib.suppress(ReadTimeoutError):  # of a busy machine
                answer = await engine.post((), b"{}", timeout_s=timeout_s)
        reading = asyncio.create_task(answer.read(WAIT_S))
        await asyncio.wait([reading], timeout=2 * timeout_s)
        assert not reading.done()
        reading.cancel()
        await asyncio.wait([reading])
        answer.close()
