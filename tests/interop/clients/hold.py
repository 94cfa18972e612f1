"""A proxy before a bridge that holds the answer to a call until the client pings, as a silent upstream would.

It reads HTTP/2 as far as it takes: the types of frames (RFC 9113, 4.1).
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from tests.kit.http2 import ACK, HEADERS, PING, PREFACE, read_frame
from tests.kit.upstreams import Peer, start_server

__all__ = ["Hold", "start_hold"]


@dataclass
class Hold:
    """The proxy's address, and the pings of the client since it made its call."""

    address: str = ""
    pings: int = 0
    is_open: asyncio.Event = field(default_factory=asyncio.Event)
    """Set unless the answer is held."""

    def __post_init__(self) -> None:
        self.is_open.set()

    def see(self, kind: int, flags: int) -> None:
        """Take a frame of the client."""
        if kind == HEADERS:
            self.is_open.clear()
        elif kind == PING and not flags & ACK and not self.is_open.is_set():
            self.pings += 1
            self.is_open.set()


@contextlib.asynccontextmanager
async def start_hold(bridge: str) -> AsyncIterator[Hold]:
    """Run the proxy. It holds the answer to each call until a ping comes."""
    hold = Hold()
    host, _, port = bridge.rpartition(":")

    async def serve(peer: Peer) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        back = asyncio.create_task(_return(reader, peer.writer, hold))
        try:
            await _forward(peer.reader, writer, hold)
        finally:
            back.cancel()
            writer.close()

    async with start_server(serve) as server:
        hold.address = server.address
        yield hold


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, hold: Hold) -> None:
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        writer.write(await reader.readexactly(len(PREFACE)))
        while True:
            frame = await read_frame(reader)
            hold.see(*frame[3:5])
            writer.write(frame)
            await writer.drain()


async def _return(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, hold: Hold) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65_536):
            await hold.is_open.wait()
            writer.write(data)
            await writer.drain()
