"""Tests of bridge/upstream/engine.py: what it puts on the wire, and what becomes of a connection after an answer."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import httpx2
import pytest
import trustme

from bridge.upstream.engine import Engine
from tests.conftest import eventually

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
LARGE = bytes(30_000_000)  # more than the buffers of two sockets
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def served(serve: Serve, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Give the address of a server whose connections end with their `serve`; each has ended at the block's end."""
    tasks = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await serve(reader, writer)
        finally:
            writer.close()

    async with await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with asyncio.timeout(5):
            await asyncio.gather(*tasks)


@contextlib.asynccontextmanager
async def engine(
    url: str, *, proxy: str | None = None, tls: ssl.SSLContext | bool = True, force_close: bool = False
) -> AsyncIterator[Engine]:
    async with aiohttp.TCPConnector(ssl=tls, force_close=force_close) as connector:
        yield Engine(connector, httpx2.URL(url), proxy=proxy, connect_timeout_s=5)


async def posted(to: Engine, body: bytes = b"{}", **headers: str) -> httpx2.Response:
    pairs = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return await to.handle_async_request(
        httpx2.Request("POST", "http://engine.invalid", headers=pairs, stream=httpx2.ByteStream(body))
    )


async def answered(to: Engine, body: bytes = b"{}", **headers: str) -> tuple[int, bytes]:
    async with contextlib.aclosing(await posted(to, body, **headers)) as response:
        return response.status_code, await response.aread()


async def heard(reader: asyncio.StreamReader) -> bytes:
    """Give one request, its body of two bytes included."""
    return await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(2)


@pytest.mark.parametrize("force_close", [False, True])
async def test_request_on_the_wire_is_its_headers_and_its_body(force_close):
    seen = []

    async def serve(reader, writer):
        seen.append(await heard(reader))
        writer.write(OK)

    async with served(serve) as address, engine(f"http://{address}/a%20b", force_close=force_close) as to:
        assert await answered(to, x_one="1") == (200, b"{}")
    close = "connection: close\r\n" if force_close else ""
    head = f"POST /a%20b HTTP/1.1\r\nhost: {address}\r\n{close}content-length: 2\r\nx-one: 1\r\n\r\n"
    assert seen == [head.encode() + b"{}"]


@pytest.mark.parametrize("value", ["a\r\nx-two: 2", "a\nx-two: 2", "a\rb", "a\0b"])
async def test_header_that_would_be_two_is_never_sent(value):
    seen = []

    async def serve(reader, _writer):
        seen.append(await reader.read())

    async with served(serve) as address, engine(f"http://{address}/") as to:
        with pytest.raises(ValueError, match="one line each"):
            await posted(to, x_one=value)
        await eventually(lambda: seen == [b""])


async def test_interim_answers_are_passed_over():
    async def serve(reader, writer):
        await heard(reader)
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + OK)

    async with served(serve) as address, engine(f"http://{address}/") as to:
        assert await answered(to) == (200, b"{}")


async def test_body_without_a_length_goes_on_to_the_connections_end():
    async def serve(reader, writer):
        await heard(reader)
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nto the end")

    async with served(serve) as address, engine(f"http://{address}/") as to:
        assert await answered(to) == (200, b"to the end")


async def test_body_read_to_its_end_leaves_a_connection_for_the_next_request():
    connections = []

    async def serve(reader, writer):
        connections.append(writer)
        for _ in range(3):
            await heard(reader)
            writer.write(OK)

    async with served(serve) as address, engine(f"http://{address}/") as to:
        for _ in range(3):
            assert await answered(to) == (200, b"{}")
    assert len(connections) == 1


@pytest.mark.parametrize("status", ["200 OK", "408 Request Timeout"])
async def test_unasked_answer_on_a_kept_connection_is_nobodys(status):
    """A second answer that comes while a connection is idle must not become the answer to the next request."""
    unasked = f"HTTP/1.1 {status}\r\ncontent-length: 7\r\n\r\nunasked".encode()
    connections = []

    async def serve(reader, writer):
        connections.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError):
            await heard(reader)
            writer.write(OK)
            if len(connections) == 1:
                await writer.drain()
                await asyncio.sleep(0.01)  # so that it arrives apart
                writer.write(unasked)
            await heard(reader)
            writer.write(OK)

    async with served(serve) as address, engine(f"http://{address}/") as to:
        assert await answered(to) == (200, b"{}")
        (kept,) = next(iter(to._connector._conns.values()))
        await eventually(lambda: kept[0].should_close)
        assert await answered(to) == (200, b"{}")
    assert len(connections) == 2


async def test_body_left_before_its_end_ends_the_connection():
    left = asyncio.Event()

    async def serve(reader, writer):
        await heard(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
        await reader.read()
        left.set()

    async with served(serve) as address, engine(f"http://{address}/") as to:
        await (await posted(to)).aclose()
        await asyncio.wait_for(left.wait(), 5)


async def test_large_request_arrives_whole():
    arrived = []

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        arrived.append(await reader.readexactly(len(LARGE)))
        writer.write(OK)

    async with served(serve) as address, engine(f"http://{address}/") as to:
        assert await answered(to, LARGE) == (200, b"{}")
    assert arrived == [LARGE]


async def test_answer_before_the_request_has_gone_out_is_taken_and_ends_the_connection():
    left = asyncio.Event()

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\n{}")
        await left.wait()
        with contextlib.suppress(ConnectionError):
            assert len(await reader.read()) < len(LARGE)

    async with served(serve) as address, engine(f"http://{address}/") as to:
        assert await answered(to, LARGE) == (413, b"{}")
        assert not to._connector._conns
        left.set()


async def test_leaving_ends_a_connection_whose_peer_reads_nothing():
    reached, left = asyncio.Event(), asyncio.Event()

    async def serve(reader, writer):
        writer.transport.pause_reading()
        reached.set()
        await left.wait()
        writer.transport.resume_reading()
        with contextlib.suppress(ConnectionError):
            assert len(await reader.read()) < len(LARGE)  # what the sockets held; the rest was never sent

    async with served(serve) as address, engine(f"http://{address}/") as to:
        call = asyncio.create_task(posted(to, LARGE))
        await reached.wait()
        await eventually(lambda: any(each.transport for each in to._connector._acquired))
        (protocol,) = to._connector._acquired
        await eventually(protocol.transport.get_write_buffer_size)
        call.cancel()
        await asyncio.wait([call])
        assert protocol.transport is None
        left.set()


async def test_lost_connection_is_an_error_of_aiohttps():
    async def serve(reader, _writer):
        await heard(reader)

    async with served(serve) as address, engine(f"http://{address}/") as to:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await posted(to)


async def test_https_through_a_proxy_is_a_tunnel_that_the_request_goes_through():
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("gateway.invalid").configure_cert(server)
    authority.configure_trust(client)
    asked, seen = [], []

    async def gateway(reader, writer):
        seen.append(await heard(reader))
        writer.write(OK)
        await writer.drain()

    async with served(gateway, server) as behind:

        async def proxy(reader, writer):
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            answers, onward = await asyncio.open_connection(*behind.split(":"))
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await asyncio.gather(passed_on(reader, onward), passed_on(answers, writer))

        async with (
            served(proxy) as address,
            engine("https://gateway.invalid/v1", proxy=f"http://user:sesame@{address}", tls=client) as to,
        ):
            assert await answered(to) == (200, b"{}")
    assert asked[0].startswith(b"CONNECT gateway.invalid:443 HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic dXNlcjpzZXNhbWU=\r\n" in asked[0]
    assert seen[0].startswith(b"POST /v1 HTTP/1.1\r\nhost: gateway.invalid\r\n")
    assert b"sesame" not in seen[0]
    assert b"authorization" not in seen[0].lower()


async def passed_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
    writer.close()
