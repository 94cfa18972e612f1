"""Raw upstreams on real sockets: each connection is served by a coroutine of the test's, or with fixed bytes.

They know as little HTTP as it takes to find the end of a request, so that an answer can have any fault.
"""

import array
import asyncio
import contextlib
import fcntl
import re
import socket
import ssl
import struct
import termios
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bridge.tcp import close_server
from tests.kit.waiting import WAIT_S, eventually

__all__ = [
    "CHUNKED",
    "LARGE",
    "OK",
    "FixedUpstream",
    "Peer",
    "Serve",
    "Server",
    "answer_each",
    "answer_with",
    "cut",
    "open_full_backlog",
    "reset",
    "reset_on_close",
    "serve_answers",
    "start_server",
    "wait_until_taken",
]

OK: Final = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
CHUNKED: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LARGE: Final = bytes(30_000_000)
"""More than the buffers of two sockets."""
_TCP_CLOSE: Final = b"\x07"
"""The first byte of Linux' TCP_INFO for a connection that was reset."""


@dataclass(eq=False)
class Peer:
    """The upstream's end of a connection. `number` counts from 1."""

    server: "Server"
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def read_head(self) -> bytes:
        return await self.reader.readuntil(b"\r\n\r\n")

    async def read_request(self, *, body: bool = True) -> bytes:
        """Return the next request, with its body or without."""
        head = await self.read_head()
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
        request = head + (await self.reader.readexactly(length) if body else b"")
        self.server.requests.append(request)
        return request

    async def write(self, *pieces: bytes) -> None:
        """Write pieces that the engine can read apart."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            for _ in range(2 if len(pieces) > 1 else 0):
                await asyncio.sleep(0)

    async def read_to_end(self) -> bytes:
        """Return what comes until the engine ends the connection, however it does."""
        data = bytearray()
        with contextlib.suppress(ConnectionError):
            while piece := await self.reader.read(65536):
                data += piece
        self.ended.set()
        return bytes(data)

    async def wait_until_received(self) -> None:
        """Wait until the other side's kernel has acknowledged all that was written: a reset drops the rest."""
        unacknowledged = array.array("i", [0])

        def is_received() -> bool:
            fcntl.ioctl(self.writer.get_extra_info("socket"), termios.TIOCOUTQ, unacknowledged)
            return unacknowledged[0] == 0

        await eventually(is_received)

    def reset(self) -> None:
        """End the connection by RST; what was written and not read may be lost."""
        reset(self.writer)

    async def relay(self, port: int) -> None:
        """Carry bytes between the engine and another port of this machine, until each side has ended."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_carry(self.reader, writer), _carry(reader, self.writer))


async def _carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
    target.close()


def reset_on_close(connection: socket.socket) -> None:
    """Let this side end a connection by RST once it is closed; what is not sent by then is lost."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection by RST; what was written and not read may be lost."""
    reset_on_close(writer.get_extra_info("socket"))
    writer.transport.abort()


@contextlib.contextmanager
def open_full_backlog() -> Iterator[str]:
    """Yield the URL of a listener whose backlog is full: the kernel drops new connections."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as stack:
        for _ in range(4):  # the backlog is full after one or two
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


Serve = Callable[[Peer], Awaitable[object]]


@dataclass(eq=False)
class Server:
    """A raw upstream. `requests` are those that its peers have read, `peers` its connections so far."""

    url: str = ""
    port: int = 0
    requests: list[bytes] = field(default_factory=list)
    peers: list[Peer] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@contextlib.asynccontextmanager
async def start_server(
    serve: Serve, *, tls: ssl.SSLContext | None = None, unix: Path | None = None, scheme: str = ""
) -> AsyncIterator[Server]:
    """Serve each connection by `serve`, and close it when that returns. What fails in it fails here, at the end."""
    server = Server()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(server, reader, writer, len(server.peers) + 1)
        server.peers.append(peer)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await serve(peer)
        finally:
            writer.close()

    def start(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.tasks.append(asyncio.create_task(accept(reader, writer)))

    listener = (
        await asyncio.start_unix_server(start, unix)
        if unix
        else await asyncio.start_server(start, "127.0.0.1", 0, ssl=tls, limit=2**22)
    )
    async with listener:
        if not unix:
            server.port = listener.sockets[0].getsockname()[1]
            server.url = f"{scheme or ('https' if tls else 'http')}://{server.address}"
        yield server
        await close_server(listener)
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*server.tasks)


async def answer_each(peer: Peer) -> None:
    """Answer each request with its own body."""
    while True:
        body = (await peer.read_request()).partition(b"\r\n\r\n")[2]
        await peer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))


def answer_with(*pieces: bytes, then: str = "open") -> Serve:
    """Serve one request with these bytes, and then close, reset or keep the connection until the engine ends it."""

    async def serve(peer: Peer) -> None:
        await peer.read_request()
        await peer.write(*pieces)
        if then == "reset":
            peer.reset()
        elif then == "open":
            await peer.read_to_end()

    return serve


def wait_until_taken(connection: socket.socket) -> None:
    """Wait until the peer's kernel has what was sent, or has ended the connection, while the loop stands still."""
    until = time.monotonic() + WAIT_S
    while struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, b"\0\0\0\0"))[0]:
        if connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == _TCP_CLOSE:
            return
        assert time.monotonic() < until


def cut(data: bytes, sizes: Iterable[int]) -> list[bytes]:
    """Return the bytes in pieces of these sizes, the rest in one."""
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    return [piece for piece in (*pieces, data[at:]) if piece]


@dataclass(eq=False)
class FixedUpstream:
    """An upstream that answers with fixed bytes. `requests` are the heads and bodies that it received."""

    answers: tuple[bytes, ...]
    url: str = ""
    requests: list[bytes] = field(default_factory=list)
    transports: set[asyncio.Transport] = field(default_factory=set)


class _FixedConnection(asyncio.Protocol):
    def __init__(self, upstream: FixedUpstream) -> None:
        self.upstream = upstream
        self.data = b""

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.upstream.transports.add(transport)

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, end, body = self.data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if end and len(body) == int(length[1] if length else 0):
            upstream = self.upstream
            upstream.requests.append(self.data)
            self.transport.write(upstream.answers[min(len(upstream.requests), len(upstream.answers)) - 1])
            self.transport.write_eof()

    def connection_lost(self, _error) -> None:
        self.upstream.transports.discard(self.transport)


@contextlib.asynccontextmanager
async def serve_answers(*answers: bytes) -> AsyncIterator[FixedUpstream]:
    """Answer requests with these bytes in turn, the last one again and again; close each connection after one."""
    upstream = FixedUpstream(answers)
    server = await asyncio.get_running_loop().create_server(lambda: _FixedConnection(upstream), "127.0.0.1", 0)
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield upstream
        await close_server(server)
        for transport in upstream.transports:
            transport.abort()
        await eventually(lambda: not upstream.transports)
