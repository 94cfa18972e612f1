"""Unary calls at a fixed rate, whatever their outcome, from one light client in raw HTTP/2.

A stock client costs half of what the bridge does, or more; this one writes the same frames for each call,
and reads only the trailers of an answer. It tells the server to use no header table and plain `-bin` values (a
setting of gRPC's own), so that trailers can be read as they come. Time counts from the moment a call was due, so that
waiting counts: also in the client, as in any other, for a stream that the server's SETTINGS allow. Who finds none
within a second gives up.
"""

import asyncio
import contextlib
import functools
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest
from tests.kit import http2

__all__ = ["LOST", "OK", "PENDING", "REFUSED", "RESOURCE_EXHAUSTED", "UNSENT", "Call", "Client", "connect"]

OK, RESOURCE_EXHAUSTED = 0, 8
LOST, PENDING, REFUSED, UNSENT = -1, -2, -3, -4
"""In place of a status: the connection or the stream was reset; the call was pending when the run ended; the server
reset the stream with REFUSED_STREAM, that is, it did not process the call; clients call that UNAVAILABLE; the client
gave up before it could send the call.
"""

_TICK_S = 0.002
"""How late this client may send a call; it is in all times alike."""
_UNSENT_S_MAX = 1.0
_LAST_S_MAX = 15.0
"""How long the last calls of a run may take; those that take longer stay PENDING."""
_WINDOW = 2**31 - 1
_WINDOW_FIRST = 65_535
_WINDOW_GIVEN = 2**24
_STREAMS_FIRST = 100
_STREAMS_MAX_SETTING = 3
_REFUSED_STREAM = (7).to_bytes(4)
_SETTINGS = {1: 0, 2: 0, 4: _WINDOW, 0xFE03: 1}
"""HEADER_TABLE_SIZE, ENABLE_PUSH, INITIAL_WINDOW_SIZE, and gRPC's ALLOW_TRUE_BINARY_METADATA."""


_MARKS = (b"OVERLOADED", b"type.googleapis.com/google.rpc.RetryInfo")


@dataclass(slots=True)
class Call:
    """One call: when it was due, sent and ended, its status, and whether it was OVERLOADED with the time to wait."""

    due_at: float
    sent_at: float = 0.0
    ended_at: float = 0.0
    status: int = PENDING
    has_advice: bool = False

    @property
    def took_s(self) -> float:
        return self.ended_at - self.due_at


def parse_fields(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the literal fields of a header block (RFC 7541, 6.2) without Huffman codes, except those of the table."""
    at = 0
    while at < len(block):
        first = block[at]
        at += 1
        if first & 0x80:
            continue
        if first & 0xE0 == 0x20:
            _, at = _integer(block, at - 1, 5)
            continue
        assert first in {0x00, 0x10, 0x40}, f"no literal name: {first:#x}"
        size, at = _integer(block, at, 7)
        name, at = block[at : at + size], at + size
        size, at = _integer(block, at, 7)
        value, at = block[at : at + size], at + size
        yield name, value


def _integer(block: bytes, at: int, prefix: int) -> tuple[int, int]:
    full = 2**prefix - 1
    value = block[at] & full
    at += 1
    if value < full:
        return value, at
    shift = 0
    while True:
        byte = block[at]
        value += (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at


@functools.lru_cache(64)
def _has_advice(trailers: bytes) -> bool:
    """Whether trailers say OVERLOADED and how long to wait."""
    fields = dict(parse_fields(trailers))
    details = http2.decode_binary(fields.get(b"grpc-status-details-bin", b""))
    return b"grpc-retry-pushback-ms" in fields and all(mark in details for mark in _MARKS)


class _Connection(asyncio.Protocol):
    """One connection: frames out and in."""

    def __init__(self, client: "Client") -> None:
        self.client = client
        self.calls: dict[int, Call] = {}
        self.streams = itertools.count(1, 2)
        self.streams_max = _STREAMS_FIRST
        self.window = _WINDOW_FIRST
        self.received = 0
        self.pending = bytearray()
        self.open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        settings = b"".join(key.to_bytes(2) + value.to_bytes(4) for key, value in _SETTINGS.items())
        window = (_WINDOW - _WINDOW_FIRST).to_bytes(4)
        opening = http2.encode_frame(http2.SETTINGS, 0, 0, settings) + http2.encode_frame(
            http2.WINDOW_UPDATE, 0, 0, window
        )
        transport.write(http2.PREFACE + opening)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        for stream in list(self.calls):
            self.end(stream, LOST)

    def has_room(self, size: int) -> bool:
        """Whether a call with so many bytes of DATA may be sent now."""
        return self.open and len(self.calls) < self.streams_max and self.window >= size

    def send(self, call: Call, head: bytes, body: bytes) -> None:
        stream = next(self.streams)
        self.calls[stream] = call
        call.sent_at = time.monotonic()
        self.window -= len(body)
        self.transport.write(
            http2.encode_frame(http2.HEADERS, http2.END_HEADERS, stream, head)
            + http2.encode_frame(http2.DATA, http2.END_STREAM, stream, body)
        )

    def data_received(self, data: bytes) -> None:
        pending = self.pending
        pending += data
        at = 0
        while len(pending) - at >= 9 and len(pending) - at >= (size := int.from_bytes(pending[at : at + 3])) + 9:
            kind, flags, stream = pending[at + 3], pending[at + 4], int.from_bytes(pending[at + 5 : at + 9])
            self.handle_frame(kind, flags, stream, bytes(pending[at + 9 : at + 9 + size]))
            at += 9 + size
        del pending[:at]
        self.client.flush()

    def handle_frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == http2.DATA:
            self.received += len(payload)
            if self.received > _WINDOW_GIVEN:
                self.transport.write(http2.encode_frame(http2.WINDOW_UPDATE, 0, 0, self.received.to_bytes(4)))
                self.received = 0
        elif kind == http2.HEADERS and flags & http2.END_STREAM:
            status = next((int(value) for name, value in parse_fields(payload) if name == b"grpc-status"), LOST)
            self.end(stream, status, payload)
        elif kind in {http2.RST_STREAM, http2.GOAWAY}:
            is_refused = kind == http2.RST_STREAM and payload == _REFUSED_STREAM
            for lost in [stream] if stream else list(self.calls):
                self.end(lost, REFUSED if is_refused else LOST)
            self.open = self.open and kind != http2.GOAWAY
        elif kind == http2.WINDOW_UPDATE and not stream:
            self.window += int.from_bytes(payload)
        elif kind == http2.SETTINGS and not flags & http2.ACK:
            values = {
                int.from_bytes(payload[i : i + 2]): int.from_bytes(payload[i + 2 : i + 6])
                for i in range(0, len(payload), 6)
            }
            self.streams_max = values.get(_STREAMS_MAX_SETTING, self.streams_max)
            self.transport.write(http2.encode_frame(http2.SETTINGS, http2.ACK, 0))
        elif kind == http2.PING and not flags & http2.ACK:
            self.transport.write(http2.encode_frame(http2.PING, http2.ACK, 0, payload))

    def end(self, stream: int, status: int, trailers: bytes = b"") -> None:
        if (call := self.calls.pop(stream, None)) is not None:
            call.ended_at, call.status = time.monotonic(), status
            call.has_advice = status != OK and _has_advice(trailers)
            self.client.on_end(call)


def _ignore(_call: Call) -> None:
    pass


class Client:
    """A client that makes one call again and again over several connections."""

    def __init__(self, request: CreateChatCompletionRequest) -> None:
        self._head = http2.encode_block(http2.build_fields())
        self._body = http2.encode_message(request.SerializeToString())
        self._connections: list[_Connection] = []
        self._unsent: deque[Call] = deque()
        self.on_end: Callable[[Call], None] = _ignore

    async def connect(self, address: str, connections: int) -> None:
        host, _, port = address.rpartition(":")
        loop = asyncio.get_running_loop()
        for _ in range(connections):
            _transport, connection = await loop.create_connection(lambda: _Connection(self), host, int(port))
            self._connections.append(connection)

    def close(self) -> None:
        for connection in self._connections:
            connection.transport.abort()

    async def call_at_rate(self, rate: float, seconds: float) -> list[Call]:
        """Make calls at this rate a second, and wait for the last of them."""
        start = time.monotonic() + _TICK_S
        calls = [Call(start + number / rate) for number in range(int(rate * seconds))]
        sent = 0
        while sent < len(calls):
            now = time.monotonic()
            while sent < len(calls) and calls[sent].due_at <= now:
                self._unsent.append(calls[sent])
                sent += 1
            self.flush()
            await asyncio.sleep(_TICK_S)
        await self._wait_for_ends(calls, _LAST_S_MAX)
        return calls

    async def call_concurrently(self, count: int, seconds: float) -> list[Call]:
        """Keep this number of calls in flight for a time, each next one due as soon as one has ended."""
        end_at = time.monotonic() + seconds
        calls: list[Call] = []

        def another(_ended: Call | None = None) -> None:
            if (now := time.monotonic()) < end_at:
                calls.append(Call(now))
                self._unsent.append(calls[-1])

        self.on_end = another
        for _ in range(count):
            another()
        self.flush()
        await asyncio.sleep(seconds)
        self.on_end = _ignore
        await self._wait_for_ends(calls, _LAST_S_MAX)
        return calls

    async def _wait_for_ends(self, calls: list[Call], wait_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while any(call.status == PENDING for call in calls):
                    await asyncio.sleep(0.02)
                    self.flush()
        self._unsent.clear()

    def flush(self) -> None:
        """Send the calls that are due, as far as the server's limits allow."""
        now = time.monotonic()
        while self._unsent and now - self._unsent[0].due_at > _UNSENT_S_MAX:
            call = self._unsent.popleft()
            call.ended_at, call.status = now, UNSENT if any(each.open for each in self._connections) else LOST
            self.on_end(call)
        while self._unsent:
            connection = min(
                self._connections, key=lambda each: len(each.calls) if each.has_room(len(self._body)) else 2**31
            )
            if not connection.has_room(len(self._body)):
                return
            connection.send(self._unsent.popleft(), self._head, self._body)


@contextlib.asynccontextmanager
async def connect(address: str, request: CreateChatCompletionRequest, *, connections: int = 4) -> AsyncIterator[Client]:
    """Yield a client of one call that is connected until the block ends."""
    client = Client(request)
    try:
        await client.connect(address, connections)
        yield client
    finally:
        client.close()
