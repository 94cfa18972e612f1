"""A raw server for the tests of the native engine: each connection is served by a coroutine of the test's."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge.settings import UpstreamSettings
from bridge.upstream.engine import Http1Engine
from bridge.upstream.exchange import Answer, Engine

BOUND_S = 30.0
"""How long a fact may take that must come."""
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LARGE = bytes(30_000_000)
"""More than the buffers of two sockets."""

Serve = Callable[["Peer"], Awaitable[None]]


@dataclass(eq=False)
class Peer:
    """The server's end of a connection; `number` counts from 1."""

    number: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def read_head(self) -> bytes:
        return await self.reader.readuntil(b"\r\n\r\n")

    async def read_request(self) -> bytes:
        head = await self.read_head()
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
        return head + await self.reader.readexactly(length)

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def wait_for_end(self) -> bytes:
        """Return what came before the client ended the connection."""
        data = b""
        with contextlib.suppress(ConnectionError):
            while piece := await self.reader.read(65536):
                data += piece
        return data


@dataclass(eq=False)
class Server:
    """Where it listens, and the connections that it got."""

    host: str = "127.0.0.1"
    port: int = 0
    path: str = ""
    peers: list[Peer] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


@contextlib.asynccontextmanager
async def start_server(
    serve: Serve, *, tls: ssl.SSLContext | None = None, path: Path | None = None
) -> AsyncIterator[Server]:
    """Serve each connection until `serve` returns; when the block is left each has ended."""
    server = Server()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(len(server.peers) + 1, reader, writer)
        server.peers.append(peer)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await serve(peer)
        finally:
            writer.close()

    def start(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.tasks.append(asyncio.create_task(accept(reader, writer)))

    if path is not None:
        listener = await asyncio.start_unix_server(start, path)
        server.path = str(path)
    else:
        listener = await asyncio.start_server(start, server.host, 0, ssl=tls)
        server.port = listener.sockets[0].getsockname()[1]
    async with listener:
        yield server
        async with asyncio.timeout(BOUND_S):
            await asyncio.gather(*server.tasks)


async def answer_each(peer: Peer) -> None:
    """Answer each request with its own body."""
    while True:
        body = (await peer.read_request()).partition(b"\r\n\r\n")[2]
        await peer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))


def answer_with(*pieces: bytes) -> Serve:
    """Answer the first request with some bytes, then wait for the client to end the connection."""

    async def serve(peer: Peer) -> None:
        await peer.read_request()
        for piece in pieces:
            await peer.write(piece)
        await peer.wait_for_end()

    return serve


@contextlib.asynccontextmanager
async def open_engine(url: str, *, connections_max: int = 10, **settings: Any) -> AsyncIterator[Http1Engine]:
    """An engine that posts to a URL; at the end no place in its pool may be taken."""
    found = UpstreamSettings(**{"base_url": url, "plaintext": True, **settings})
    target = ("http://localhost" if url.startswith("unix:") else url) + "/v1/chat/completions"
    engine = Http1Engine(found, url=target, connections_max=connections_max)
    try:
        yield engine
    finally:
        await engine.close()
    async with asyncio.timeout(BOUND_S):
        while engine.connections:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def read_all(answer: Answer) -> bytes:
    body = b""
    while piece := await answer.read(BOUND_S):
        body += piece
    return body


async def exchange(engine: Engine, body: bytes = b"{}", *headers: tuple[str, str]) -> tuple[int, bytes]:
    """Post a body and return the status and the body of the answer."""
    answer = await engine.post(headers, body, timeout_s=BOUND_S)
    try:
        return answer.status, await read_all(answer)
    finally:
        answer.close()
