"""Either HTTP engine before a raw server: what the tests that run on both have in common.

The engines differ on purpose in what this table says; where a test differs, it refers to a row.

| | native | httpx |
|---|---|---|
| HTTP/2 | no | to https, if the upstream offers it (extra `http2`) |
| SOCKS proxies | no | `socks5://`, `socks5h://` (extra `socks`) |
| kept HTTP/1.1 connections | for `keepalive_s` | none: bytes behind an answer would be the next call's answer |
| exchanges on an HTTP/2 connection | | one at a time: a stream that is left could not be ended otherwise |
| answer before the request is out | taken at once | taken when the request is out, or can't be sent |
| what has come without a wait (`read_nowait`) | returned | nothing |
| leaving a call | ends the connection at once | in the next turn of the loop |
| head of an answer | `head_bytes_max`, 16 KiB a field, 128 fields | 100 KiB, any number of fields |
| interim answers (1xx) | 16 | as many as come in time |
| chunk extensions and trailers | 16 to 32 KiB in a row | 100 KiB |
| chunk size | 64 bits, strictly hex | 20 hex digits; a line without an end waits for one |
| lone LF for CRLF | refused | taken in heads |
| obs-fold in a header | refused | taken as a blank |
| equal Content-Lengths | refused | one |
| Content-Length beside Transfer-Encoding | refused | Transfer-Encoding counts |
| version | HTTP/1.0, HTTP/1.1 | any digit |
| no `HTTP/` in the first bytes | not HTTP, at once | waits for a head |
| status in an `InvalidAnswerError` | once the status line came | never |
| words of an `InvalidAnswerError` | name the limit or the fault | the same for all |
"""

import asyncio
import atexit
import contextlib
import math
import shutil
import socket
import ssl
import struct
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import trustme

from bridge.settings import UpstreamSettings
from bridge.upstream.engine import Http1Engine
from bridge.upstream.exchange import Answer, Engine, EngineError
from bridge.upstream.httpx_engine import HttpxEngine

ENGINES = {"native": Http1Engine, "httpx": HttpxEngine}
BOUND_S = 30.0
"""How long a fact may take that must come; no test waits so long where all is right."""
PATH = "/v1/chat/completions"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LARGE = bytes(30_000_000)
"""More than the buffers of two sockets."""


# The upstream


@dataclass(eq=False)
class Peer:
    """The upstream's end of a connection. `number` counts from 1."""

    server: "Server"
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def read_request(self, *, body: bool = True) -> bytes:
        """Return the next request, with its body or without."""
        head = await self.reader.readuntil(b"\r\n\r\n")
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

    def reset(self) -> None:
        """End the connection by RST; what was written and not read may be lost."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


Serve = Callable[[Peer], Awaitable[None]]


@dataclass(eq=False)
class Server:
    """A raw upstream. `requests` are those that its peers have read, `peers` its connections so far."""

    url: str
    requests: list[bytes] = field(default_factory=list)
    peers: list[Peer] = field(default_factory=list)


@contextlib.asynccontextmanager
async def start_server(
    serve: Serve, *, tls: ssl.SSLContext | None = None, unix: Path | None = None, scheme: str = ""
) -> AsyncIterator[Server]:
    """Serve each connection by `serve`, and close it when that returns. What fails in it fails here, at the end."""
    server = Server("")
    tasks: set[asyncio.Task[None]] = set()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        peer = Peer(server, reader, writer, len(server.peers) + 1)
        server.peers.append(peer)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await serve(peer)
        finally:
            writer.close()

    listener = (
        await asyncio.start_unix_server(connect, unix)
        if unix
        else await asyncio.start_server(connect, "127.0.0.1", 0, ssl=tls, limit=2**22)
    )
    async with listener:
        if not unix:
            port = listener.sockets[0].getsockname()[1]
            server.url = f"{scheme or ('https' if tls else 'http')}://127.0.0.1:{port}"
        yield server
        async with asyncio.timeout(BOUND_S):
            await asyncio.gather(*tasks)


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


# The engine


@cache
def authority() -> trustme.CA:
    return trustme.CA()


@cache
def ca_file() -> Path:
    """Return a file with the authority alone: to load the system's takes 75 ms an engine."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    authority().cert_pem.write_to_path(folder / "authority.pem")
    return folder / "authority.pem"


def server_context(name: str = "127.0.0.1", *, alpn: Sequence[str] = ()) -> ssl.SSLContext:
    """Return the TLS of a server whose certificate is good for a name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(name).configure_cert(context)
    context.set_alpn_protocols(list(alpn))
    return context


@contextlib.asynccontextmanager
async def open_engine(kind: str, url: str, *, connections_max: int = 100, **settings: Any) -> AsyncIterator[Engine]:
    """Run an engine of this kind, with settings as in UpstreamSettings."""
    found = UpstreamSettings(**{"base_url": url, "plaintext": True, "engine": kind, "ca_file": ca_file()} | settings)
    base = "http://localhost" if found.socket_path else found.base_url
    engine: Engine = ENGINES[kind](found, url=base + PATH, connections_max=connections_max)
    try:
        yield engine
    finally:
        await engine.close()


@dataclass(frozen=True)
class Outcome:
    """What came of an exchange: the status, what was read of the body, and the failure that it ended in."""

    status: int | None
    body: bytes = b""
    failure: type[EngineError] | None = None
    error: EngineError | None = field(default=None, compare=False)


async def exchange(
    engine: Engine, body: bytes = b"{}", headers: Sequence[tuple[str, str]] = (), *, timeout_s: float = BOUND_S
) -> Outcome:
    """Post a request and read its answer to the end, whatever that is."""
    status, pieces = None, []
    try:
        answer = await engine.post(headers, body, timeout_s=timeout_s)
        status = answer.status
        with contextlib.closing(answer):
            pieces.append(answer.read_nowait())
            while piece := await answer.read(timeout_s):
                pieces.append(piece)
    except EngineError as error:
        return Outcome(status, b"".join(pieces), type(error), error)
    return Outcome(status, b"".join(pieces))


async def read_all(answer: Answer, timeout_s: float = math.inf) -> bytes:
    """Return the whole body."""
    pieces = [answer.read_nowait()]
    while piece := await answer.read(timeout_s):
        pieces.append(piece)
    return b"".join(pieces)


def cut(data: bytes, sizes: Iterable[int]) -> list[bytes]:
    """Return the bytes in pieces of these sizes, the rest in one."""
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    return [piece for piece in (*pieces, data[at:]) if piece]
