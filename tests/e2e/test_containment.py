"""Hostile clients, over raw sockets, against a bridge in a process of its own.

After each attack a stock client's good call answers within a second, over its old connection and over a new one; the
process lives; its log has nothing but lines of calls; and what the attack cost is given back: open files, and memory,
told by the second attack of a kind, since the first one warms allocators up. One process meets all the attacks, one
after the other; should one kill it, the next test has a new one.
"""

import asyncio
import contextlib
import gzip
import json
import os
import signal
import socket
import ssl
import struct
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
import pytest_asyncio

from bridge.emulator import Emulator
from tests.conftest import Bridge, chat, eventually, scenario
from tests.e2e.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    OPENING,
    PADDED,
    PATH,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SERVICE,
    SETTINGS,
    WINDOW_UPDATE,
    block,
    call,
    data,
    fields,
    frame,
    grpc_status,
    headers,
    heard,
    integer,
    literal,
    message,
)
from tests.e2e.process import Process, served
from tests.kit.health import ANSWER_S_MAX, answer_good_call, is_expected

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1024 * 1024
GROWTH_BYTES_MAX = 30 * MIB
"""Of the resident set, from one attack to the next of its kind: what allocators keep in their arenas."""
FILES_GROWTH_MAX = 8
"""Of open files: those of grpc's own pollers come and go."""
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0

REQUEST = chat().SerializeToString()
MESSAGE = message(REQUEST)
STREAM = SERVICE + b"StreamChatCompletion"
DONE = frame(PING, 0, 0, b"said all")
"""Its answer tells that what was said before has been dealt with."""
UNKNOWN, INVALID_ARGUMENT, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNIMPLEMENTED = 2, 3, 4, 8, 12


# The process under attack


class Cost(NamedTuple):
    """What a process holds; zeros where there is no /proc to tell."""

    resident_bytes: int
    files: int


@dataclass(eq=False)
class Target:
    """The bridge and its upstream."""

    emulator: Emulator
    bridge: Process

    @property
    def said(self) -> list[str]:
        return self.bridge.said

    @property
    def address(self) -> str:
        return self.bridge.address

    @property
    def cost(self) -> Cost:
        process = Path(f"/proc/{self.bridge.process.pid}")
        try:
            return Cost(
                int((process / "statm").read_text().split()[1]) * PAGE_BYTES, len(list((process / "fd").iterdir()))
            )
        except OSError:
            return Cost(0, 0)

    @property
    def unexpected(self) -> list[str]:
        return [line for line in self.said if not is_expected(line)]

    def reasons(self) -> list[str]:
        return [json.loads(line).get("reason", "") for line in self.said if line.startswith("{")]

    async def answers(self) -> str:
        """A good call is answered, over the connection that is there and over a new one. Give the last one's id."""
        await answer_good_call(self.bridge)
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self.address, options=options) as channel:
            return await answer_good_call(Bridge(self.address, channel))

    async def is_unharmed(self) -> None:
        last = await self.answers()
        await eventually(lambda: any(last in line for line in self.said))  # so the log has all that was before
        assert self.bridge.process.returncode is None
        assert self.unexpected == []

    async def is_back(self, before: Cost) -> None:
        """What an attack cost is given back soon; nothing tells of it, so it is polled."""
        with contextlib.suppress(TimeoutError):
            await eventually(lambda: self._is_back(before), timeout_s=2)
        grown = self.cost.resident_bytes - before.resident_bytes
        assert grown < GROWTH_BYTES_MAX, f"{grown / MIB:.0f} MiB are not given back"
        assert self.cost.files <= before.files + FILES_GROWTH_MAX

    def _is_back(self, before: Cost) -> bool:
        cost = self.cost
        grown = cost.resident_bytes - before.resident_bytes
        return grown < GROWTH_BYTES_MAX and cost.files <= before.files + FILES_GROWTH_MAX


async def _started(emulator: Emulator, stack: contextlib.AsyncExitStack) -> Target:
    bridge = await stack.enter_async_context(served(emulator, upstream__keepalive_s=0))
    target = Target(emulator, bridge)
    await target.answers()
    return target


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def emulator() -> AsyncIterator[Emulator]:
    async with Emulator() as emulator:
        yield emulator


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _targets() -> AsyncIterator[tuple[contextlib.AsyncExitStack, list[Target]]]:
    async with contextlib.AsyncExitStack() as stack:
        yield stack, []


@pytest_asyncio.fixture(loop_scope="module")
async def target(_targets, emulator) -> Target:
    stack, started = _targets
    if not started or started[-1].bridge.process.returncode is not None:
        started.append(await _started(emulator, stack))
    emulator.exchanges.clear()
    started[-1].said.clear()
    return started[-1]


# Raw sockets


async def opened(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    connected = socket.socket()
    connected.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connected, (host, int(port)))
    return connected


async def said_over(connected: socket.socket, said: bytes) -> None:
    """Say as much of this as the server takes."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(2):
            await asyncio.get_running_loop().sock_sendall(connected, said)


@contextlib.asynccontextmanager
async def holding(address: str, said: bytes, connections: int = 1) -> AsyncIterator[list[socket.socket]]:
    """Say this over so many connections, hear nothing, and hold them while the block lasts."""
    held: list[socket.socket] = []
    try:
        for _ in range(connections):
            held.append(await opened(address))  # noqa: PERF401 - what is open is closed, whatever comes
        await asyncio.gather(*(said_over(each, said) for each in held))
        yield held
    finally:
        for each in held:
            each.close()


def without(name: bytes) -> list[tuple[bytes, bytes]]:
    return [header for header in fields() if header[0] != name]


def replaced(name: bytes, value: bytes) -> list[tuple[bytes, bytes]]:
    return [(each, value if each == name else given) for each, given in fields()]


def listed(*given: tuple[bytes, bytes]) -> bytes:
    """Give a connection whose call has just these headers."""
    return OPENING + headers(block(given)) + data(MESSAGE)


def packed(extra: bytes, before: bytes = b"") -> bytes:
    """Give a connection whose header block is a good one, and these bytes after or before it."""
    return OPENING + headers(before + block(fields()) + extra) + data(MESSAGE)


def setting(number: int, value: int) -> bytes:
    return number.to_bytes(2) + value.to_bytes(4)


def hello() -> bytes:
    """Give a TLS ClientHello."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="bridge").do_handshake()
    return outgoing.read()


FORGED = block([*fields(), (b"x-smuggled", b"1")])
ENTRY = literal(b"x-a", b"z" * 3900, 0x40)  # fills HPACK's table of 4096 bytes
REFERENCES = b"\xbe" * 16_000  # each gives the newest entry again
GZIP = (b"grpc-encoding", b"gzip")
BOMB = gzip.compress(bytes(60_000_000))
ODD_PATHS = {
    "unknown method": SERVICE + b"Nothing",
    "unknown service": b"/nobody.Service/Nothing",
    "no slash": b"nothing",
    "empty": b"",
    "slash": b"/",
    "slashes": b"//",
    "dots": b"/../..",
    "lower case": PATH.lower(),
    "query": PATH + b"?a=b",
    "space": PATH + b" ",
    "NUL": PATH + b"\x00",
    "CR LF": PATH + b"\r\nx-smuggled: 1",
    "7 KB": b"/" + b"a" * 7000,
}

NO_HTTP2 = {
    "HTTP/1.1 GET": b"GET / HTTP/1.1\r\nhost: bridge\r\n\r\n",
    "HTTP/1.1 POST": b"POST /v1/chat/completions HTTP/1.1\r\nhost: bridge\r\ncontent-length: 2\r\n\r\n{}",
    "h2c upgrade": b"GET / HTTP/1.1\r\nhost: bridge\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\n"
    b"http2-settings: AAMAAABkAAQAAP__\r\n\r\n",
    "TLS ClientHello": hello(),
    "zeros": bytes(10_000),
    "all bytes": bytes(range(256)) * 40,
    "preface spoilt": PREFACE[:-1] + b"x" + frame(SETTINGS, 0, 0) + call(MESSAGE),
    "no SETTINGS after the preface": PREFACE + call(MESSAGE),
}

BAD_FRAMES = {
    "frame of 16 MB": OPENING + b"\xff\xff\xff" + bytes([DATA, 0]) + (1).to_bytes(4) + b"x" * 20_000,
    "DATA all padding": OPENING + headers(block(fields())) + frame(DATA, PADDED | END_STREAM, 1, b"\xff" + MESSAGE),
    "HEADERS all padding": OPENING + frame(HEADERS, PADDED | END_HEADERS, 1, b"\xff" + FORGED[:100]),
    "DATA on stream 0": OPENING + frame(DATA, 0, 0, MESSAGE),
    "DATA on an idle stream": OPENING + frame(DATA, END_STREAM, 7, MESSAGE),
    "HEADERS on stream 0": OPENING + headers(FORGED, 0),
    "HEADERS on an even stream": OPENING + headers(FORGED, 2) + data(MESSAGE, 2),
    "HEADERS on a lower stream": OPENING + headers(block(fields()), 5) + headers(FORGED, 3) + data(MESSAGE, 3),
    "PUSH_PROMISE": OPENING + frame(PUSH_PROMISE, END_HEADERS, 1, (2).to_bytes(4) + FORGED),
    "CONTINUATION of nothing": OPENING + frame(CONTINUATION, END_HEADERS, 1, FORGED),
    "PING amid a header block": OPENING + frame(HEADERS, 0, 1, FORGED),
    "20,000 empty CONTINUATIONs": OPENING + frame(HEADERS, 0, 1, FORGED) + frame(CONTINUATION, 0, 1) * 20_000,
    "SETTINGS too short": PREFACE + frame(SETTINGS, 0, 0, b"abcde"),
    "SETTINGS on a stream": PREFACE + frame(SETTINGS, 0, 1),
    "SETTINGS acknowledged with a payload": OPENING + frame(SETTINGS, ACK, 0, setting(1, 1)),
    "SETTINGS: window of 4 GB": PREFACE + frame(SETTINGS, 0, 0, setting(4, 2**32 - 1)),
    "SETTINGS: frames of 0 bytes": PREFACE + frame(SETTINGS, 0, 0, setting(5, 0)),
    "SETTINGS: push is 7": PREFACE + frame(SETTINGS, 0, 0, setting(2, 7)),
    "WINDOW_UPDATE by 0": OPENING + frame(WINDOW_UPDATE, 0, 0, bytes(4)),
    "WINDOW_UPDATE beyond 2 GB": OPENING + frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff") * 2,
    "WINDOW_UPDATE of a stream beyond 2 GB": OPENING
    + headers(block(fields()))
    + frame(WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff") * 2,
    "WINDOW_UPDATE too short": OPENING + frame(WINDOW_UPDATE, 0, 0, b"x"),
    "PING too short": OPENING + frame(PING, 0, 0, b"x"),
    "PING on a stream": OPENING + frame(PING, 0, 1, b"whatever"),
    "PING never asked for": OPENING + frame(PING, ACK, 0, b"whatever") * 1000,
    "RST_STREAM of stream 0": OPENING + frame(RST_STREAM, 0, 0, bytes(4)),
    "RST_STREAM of an idle stream": OPENING + frame(RST_STREAM, 0, 1, bytes(4)),
    "RST_STREAM too short": OPENING + headers(block(fields())) + frame(RST_STREAM, 0, 1, b"x"),
    "PRIORITY too short": OPENING + frame(PRIORITY, 0, 1, b"x"),
    "PRIORITY on itself": OPENING + frame(PRIORITY, 0, 1, b"\x00\x00\x00\x01\x00"),
    "GOAWAY too short": OPENING + frame(GOAWAY, 0, 0, b"x"),
}

BAD_HEADERS = {
    "HPACK: index 0": packed(b"\x80"),
    "HPACK: index far away": packed(b"\xff\xff\xff\xff\x7f"),
    "HPACK: integer without an end": packed(b"\xff" + b"\xff" * 20),
    "HPACK: block cut": OPENING + headers(block(fields())[:-3]) + data(MESSAGE),
    "HPACK: table of 4 GB": packed(b"", before=integer(2**32 - 1, 5, 0x20)),
    "HPACK: 4,000 sizes of the table": packed(b"", before=(integer(0, 5, 0x20) + integer(4096, 5, 0x20)) * 2000),
    "HPACK: 20,000 tiny entries": packed(literal(b"a", b"") * 20_000),
    "HPACK: 62 MB by references": packed(ENTRY + REFERENCES),
    "HPACK: references without an end": OPENING
    + frame(HEADERS, 0, 1, block(fields()) + ENTRY)
    + frame(CONTINUATION, 0, 1, REFERENCES) * 20,
    "name empty": listed(*fields((b"", b"x"))),
    "name in upper case": listed(*fields((b"X-Team", b"x"))),
    "name with CR LF": listed(*fields((b"x-request-id\r\nx-smuggled", b"1"))),
    "name with a colon": listed(*fields((b"x-request-id: 1\nx-smuggled", b"1"))),
    "name with NUL": listed(*fields((b"x-\x00", b"1"))),
    "pseudo-header that is unknown": listed((b":unknown", b"x"), *fields()),
    "no :method": listed(*without(b":method")),
    "no :scheme": listed(*without(b":scheme")),
    "no :path": listed(*without(b":path")),
    "no :authority": listed(*without(b":authority")),
    "no te": listed(*without(b"te")),
    "te with CR LF": listed(*replaced(b"te", b"trailers\r\nx-smuggled: 1")),
    "method GET": listed(*replaced(b":method", b"GET")),
    "method PUT": listed(*replaced(b":method", b"PUT")),
    "method CONNECT": listed(*replaced(b":method", b"CONNECT")),
    "method empty": listed(*replaced(b":method", b"")),
    "method nonsense": listed(*replaced(b":method", b"\xff")),
    "-bin that is no base64": listed(*fields((b"x-team-bin", b"\r\nx-smuggled: 1"))),
    **{
        f"grpc-timeout {value!r}": listed(*fields((b"grpc-timeout", value)))
        for value in (b"", b"1", b"S", b"-1S", b"1.5S", b"1s", b"NaNS", b"\xff", b"1\x00S")
    },
    "grpc-encoding unknown": OPENING + call(message(REQUEST, 1), (b"grpc-encoding", b"br")),
    "grpc-encoding with NUL": OPENING + call(message(REQUEST, 1), (b"grpc-encoding", b"gz\x00ip")),
}

BAD_MESSAGES = {
    "compressed flag 2": OPENING + call(message(REQUEST, 2)),
    "compressed flag 255": OPENING + call(message(REQUEST, 255)),
    "gzip that is none": OPENING + call(message(REQUEST, 1), GZIP),
    "gzip cut": OPENING + call(message(gzip.compress(REQUEST * 50)[:-20], 1), GZIP),
    "gzip twice": OPENING + call(message(gzip.compress(REQUEST) * 2, 1), GZIP),
}

STATUSES = {
    "undecodable": (OPENING + call(message(b"\xff" * 100)), INVALID_ARGUMENT),
    "undecodable stream": (OPENING + call(message(b"\xff" * 100), path=STREAM), INVALID_ARGUMENT),
    "empty message": (OPENING + call(message(b"")), INVALID_ARGUMENT),
    "gzip bomb": (OPENING + call(message(BOMB, 1), GZIP), RESOURCE_EXHAUSTED),
    "length of 4 GB": (OPENING + call(b"\x00\xff\xff\xff\xff" + REQUEST), RESOURCE_EXHAUSTED),
    "3 MB of metadata, SETTINGS never acknowledged": (
        OPENING + call(MESSAGE, *((b"x-%d" % number, b"x" * 15_000) for number in range(200))),
        INVALID_ARGUMENT,  # the bridge's
        RESOURCE_EXHAUSTED,  # the core's, which does not always look in time
    ),
    "64 MB of metadata": (OPENING + call(MESSAGE, (b"x-one", b"x" * 64 * MIB)), RESOURCE_EXHAUSTED),
    "path that is no UTF-8": (OPENING + call(MESSAGE, path=PATH + b"\xff"), UNKNOWN),
    "path that is no UTF-8 at all": (OPENING + call(MESSAGE, path=b"\xff\xfe"), UNKNOWN),
    "grpc-timeout of 0": (listed(*fields((b"grpc-timeout", b"0S"))), DEADLINE_EXCEEDED),
    **{f"path: {name}": (OPENING + call(MESSAGE, path=path), UNIMPLEMENTED) for name, path in ODD_PATHS.items()},
}

HARMLESS = {
    "frames of unknown kinds": OPENING + frame(0xFA, 0xFF, 0, b"x" * 1000) + frame(0xFB, 0, 1, b"x") + call(MESSAGE),
    "SETTINGS: table of 4 GB": PREFACE + frame(SETTINGS, 0, 0, setting(1, 2**32 - 1)) + call(MESSAGE),
    "SETTINGS unknown": PREFACE + frame(SETTINGS, 0, 0, setting(0xFFFF, 1) * 1000) + call(MESSAGE),
    "GOAWAY before the call": OPENING + frame(GOAWAY, 0, 0, bytes(8)) + call(MESSAGE),
    "HPACK: two sizes of the table": packed(b"", before=integer(0, 5, 0x20) + integer(4096, 5, 0x20)),
    "two :method": listed((b":method", b"POST"), *fields()),
    "two :path, the last one good": listed((b":path", b"/nobody.Service/Nothing"), *fields()),
    ":method at the end": listed(*without(b":method"), (b":method", b"POST")),
    "authority empty": listed(*replaced(b":authority", b"")),
    "authority of 5 KB": listed(*replaced(b":authority", b"a" * 5000)),
    "authority with CR LF": listed(*replaced(b":authority", b"a\r\nx-smuggled: 1")),
    "authority that is no UTF-8": listed(*replaced(b":authority", b"\xff")),
    "authority with a user": listed(*replaced(b":authority", b"user:secret@host:99999")),
    "host with CR LF": listed(*fields((b"host", b"a\r\nx-smuggled: 1"))),
    "metadata that stays here with CR LF": listed(*fields((b"x-other", b"a\r\nx-smuggled: 1"))),
    "no content-type": listed(*without(b"content-type")),
    "content-type text/html": listed(*replaced(b"content-type", b"text/html")),
    "content-type with CR LF": listed(*replaced(b"content-type", b"application/grpc\r\nx-smuggled: 1")),
    "two grpc-timeouts, the last one good": listed(*fields((b"grpc-timeout", b"1n"), (b"grpc-timeout", b"10S"))),
    "grpc-timeout of 1 ns": listed(*fields((b"grpc-timeout", b"1n"))),  # some milliseconds, as grpc's core rounds it
    "grpc-timeout of 11,000 years": listed(*fields((b"grpc-timeout", b"99999999H"))),
    "compressed flag without an encoding": OPENING + call(message(REQUEST, 1)),
    "gzip": OPENING + call(message(gzip.compress(REQUEST), 1), GZIP),
    "two messages": OPENING + call(MESSAGE * 2),
    "a second message that can't be decoded": OPENING + call(MESSAGE + message(b"\xff\xff")),
    "bytes after the message": OPENING + call(MESSAGE + b"\x01\x02\x03"),
    "DATA after the end": OPENING + call(MESSAGE) + frame(DATA, 0, 1, b"x" * 100),
    "HEADERS after the end": OPENING + call(MESSAGE) + headers(block(fields())),
    "trailers": OPENING + headers(block(fields())) + frame(DATA, 0, 1, MESSAGE) + headers(b"", 1, END_STREAM),
}

HALF_CALLS = {
    "no message": OPENING + call(b""),
    "no DATA": OPENING + headers(block(fields()), 1, END_STREAM),
    "half a length": OPENING + call(b"\x00\x00\x00"),
    "length of 256 bytes, data of fewer": OPENING + call(b"\x00\x00\x00\x01\x00" + REQUEST),
    "length of 16 MB, data of fewer": OPENING + call(b"\x00\x00\xff\xff\xff" + REQUEST),
    "no message for a stream": OPENING + call(b"", path=STREAM),
}


def cases(table: dict) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", table.values(), ids=list(table))


def sent_up(target: Target) -> Iterator[tuple[str, str]]:
    for exchange in target.emulator.exchanges:
        yield from exchange.headers.items()


def is_clean(target: Target) -> bool:
    """Whether the upstream has seen printable headers, and none that a value smuggled in."""
    return all(
        name != "x-smuggled" and value.isascii() and value.isprintable() and "smuggled" not in value
        for name, value in sent_up(target)
    )


# One connection at a time


@cases(NO_HTTP2 | BAD_FRAMES | BAD_HEADERS | BAD_MESSAGES)
async def test_nonsense_is_refused_and_harms_nobody(target, case):
    answer = await heard(target.address, case + DONE)
    assert grpc_status(answer) != 0
    assert target.emulator.exchanges == []
    await target.is_unharmed()


@cases(STATUSES)
async def test_call_that_cannot_be_served_gets_a_status_of_its_own(target, case):
    said, *statuses = case
    assert grpc_status(await heard(target.address, said)) in statuses
    assert is_clean(target)
    await target.is_unharmed()


@cases(HARMLESS)
async def test_call_that_is_merely_odd_is_served_or_refused(target, case):
    assert grpc_status(await heard(target.address, case)) is not None
    assert len(target.emulator.exchanges) <= 1
    assert is_clean(target)
    await target.is_unharmed()


@cases(HALF_CALLS)
async def test_call_that_ends_before_its_message_gets_a_status(target, case):
    assert grpc_status(await heard(target.address, case)) == INVALID_ARGUMENT
    await eventually(lambda: target.reasons() == ["UNDECODABLE_REQUEST"])
    assert target.emulator.exchanges == []
    await target.is_unharmed()


async def test_what_a_peer_says_in_parting_is_no_line_of_the_log(target):
    forged = b'parting\n{"event": "call", "code": "OK", "reason": "FORGED"}\n'
    said = OPENING + frame(GOAWAY, 0, 0, bytes(4) + (99).to_bytes(4) + forged)
    async with holding(target.address, said):
        await target.answers()
    await target.is_unharmed()
    assert "FORGED" not in target.reasons()
    assert not any("parting" in line for line in target.said)


async def test_everything_at_once_leaves_nothing_behind(target):
    everything = [*(NO_HTTP2 | BAD_FRAMES | BAD_MESSAGES | HARMLESS | HALF_CALLS).values()]

    async def attack() -> None:
        async with contextlib.AsyncExitStack() as stack:
            for said in everything:
                await stack.enter_async_context(holding(target.address, said, 5))
            await target.answers()

    await attack()
    before = target.cost
    await attack()
    await target.is_unharmed()
    await target.is_back(before)
    assert is_clean(target)


CONTROLS = [bytes([code]) for code in (*range(0x20), 0x7F, *range(0x80, 0x100, 9))]


@pytest.mark.parametrize("name", [b"authorization", b"x-request-id", b"traceparent", b"tracestate", b"user-agent"])
async def test_no_control_character_of_a_value_goes_up(target, name):
    calls = [
        call(MESSAGE, (name, b"a" + code + b"x-smuggled: 1"), stream=2 * at + 1) for at, code in enumerate(CONTROLS)
    ]
    async with holding(target.address, OPENING + b"".join(calls)):
        await eventually(lambda: target.reasons().count("INVALID_METADATA") == len(CONTROLS))
    assert target.emulator.exchanges == []
    await target.is_unharmed()


async def test_burst_of_calls_is_answered_call_by_call(target):
    """Beyond a thousand that wait for their turn, grpc's core cancels calls by chance, unless it is told not to."""
    bad = message(b"\xff")
    said = OPENING + b"".join(call(bad, stream=number) for number in range(1, 1400, 2))
    async with holding(target.address, said, 3):
        await target.answers()
        with contextlib.suppress(TimeoutError):
            await eventually(lambda: target.reasons().count("UNDECODABLE_REQUEST") == 2100, timeout_s=ANSWER_S_MAX)
    assert target.reasons().count("UNDECODABLE_REQUEST") == 2100
    await target.is_unharmed()


# Floods


def stream_of(chunks: int, *, window: int, connection_window: int = 0, streams: int = 1) -> bytes:
    """Give a connection of streams that would bring so much, with these windows."""
    body = message(scenario(f"many?chunks={chunks}&bytes=1000").SerializeToString())
    update = frame(WINDOW_UPDATE, 0, 0, connection_window.to_bytes(4)) if connection_window else b""
    calls = (call(body, path=STREAM, stream=2 * number + 1) for number in range(streams))
    return PREFACE + frame(SETTINGS, 0, 0, setting(4, window)) + update + b"".join(calls)


def resets(streams: int, *, body: bool) -> bytes:
    return OPENING + b"".join(
        headers(block(fields()), number)
        + (data(MESSAGE, number) if body else b"")
        + frame(RST_STREAM, 0, number, (8).to_bytes(4))
        for number in range(1, 2 * streams, 2)
    )


class Flood(NamedTuple):
    said: bytes
    connections: int = 1


FLOODS = {
    "undecodable": Flood(
        OPENING + b"".join(call(message(b"\xff" * 1000), stream=number) for number in range(1, 600, 2)),
    ),
    "RST_STREAM": Flood(resets(2000, body=True), 2),
    "RST_STREAM before any message": Flood(resets(5000, body=False), 2),
    "PING": Flood(OPENING + frame(PING, 0, 0, b"whatever") * 100_000, 2),
    "SETTINGS": Flood(PREFACE + frame(SETTINGS, 0, 0, setting(4, 65_535)) * 50_000, 2),
    "SETTINGS of the table": Flood(
        PREFACE + (frame(SETTINGS, 0, 0, setting(1, 0)) + frame(SETTINGS, 0, 0, setting(1, 4096))) * 20_000
    ),
    "WINDOW_UPDATE": Flood(OPENING + frame(WINDOW_UPDATE, 0, 0, (1).to_bytes(4)) * 100_000),
    "PRIORITY": Flood(OPENING + frame(PRIORITY, 0, 1, bytes(5)) * 100_000),
    "empty DATA": Flood(OPENING + headers(block(fields())) + frame(DATA, 0, 1) * 100_000),
    "unknown frames": Flood(OPENING + frame(0x55, 0, 0, b"x" * 16_384) * 500),
    "CONTINUATION": Flood(
        OPENING
        + frame(HEADERS, 0, 1, block(fields()))
        + frame(CONTINUATION, 0, 1, literal(b"x-a", b"y" * 16_000)) * 1000
    ),
    "empty CONTINUATION": Flood(OPENING + frame(HEADERS, 0, 1, FORGED) + frame(CONTINUATION, 0, 1) * 200_000),
    "gzip bombs": Flood(OPENING + call(message(BOMB, 1), GZIP), 5),
    "streams that never say anything": Flood(
        OPENING + b"".join(headers(block(fields()), number) for number in range(1, 3000, 2)), 3
    ),
    "readers of nothing, no window": Flood(stream_of(100_000, window=0), 10),
    "readers of nothing, all the window": Flood(stream_of(100_000, window=2**31 - 1, connection_window=2**30), 10),
    "reader of nothing, 50 streams": Flood(
        stream_of(100_000, window=2**31 - 1, connection_window=2**30, streams=50),
    ),
    "idle connections": Flood(b"", 500),
    "idle connections, after the preface": Flood(OPENING, 500),
}


@cases(FLOODS)
async def test_flood_is_survived_and_its_cost_given_back(target, case):
    async def attack() -> None:
        async with holding(target.address, case.said, case.connections):
            await target.answers()
        await target.answers()

    await attack()
    before = target.cost
    await attack()
    await target.is_unharmed()
    await target.is_back(before)
    await eventually(lambda: all(exchange.finished or exchange.closed_at for exchange in target.emulator.exchanges))


HEAD_FLOODS = {
    "3 MB of metadata": OPENING + call(MESSAGE, *((b"x-%d" % number, b"x" * 15_000) for number in range(200))),
    "3 MB of metadata in one value": OPENING + call(MESSAGE, (b"x-one", b"x" * 3_000_000)),
    "HPACK references": packed(ENTRY + REFERENCES),
}


@cases(HEAD_FLOODS)
async def test_heads_of_megabytes_are_given_back(target, case):
    async def attack() -> None:
        for _ in range(4):
            answers = await asyncio.gather(*(heard(target.address, case) for _ in range(5)))
            assert {grpc_status(answer) for answer in answers} <= {INVALID_ARGUMENT, RESOURCE_EXHAUSTED}

    await attack()
    before = target.cost
    await attack()
    await target.is_unharmed()
    await target.is_back(before)
    assert is_clean(target)


def big(**changed) -> bytes:
    """Give a connection whose call has 8 MB of content, of which gzip makes some KB."""
    body = chat("x" * 8_000_000, **changed).SerializeToString()
    return OPENING + call(message(gzip.compress(body), 1), GZIP)


BIG_CALLS = {
    "undecodable": (OPENING + call(message(gzip.compress(bytes(8_000_000)), 1), GZIP), INVALID_ARGUMENT),
    "invalid": (big(model=""), INVALID_ARGUMENT),
    "refused upstream": (big(model="nobody"), None),
    "failed upstream": (big(model="scenario::error?status=503"), None),
}


@cases(BIG_CALLS)
async def test_big_requests_that_fail_are_given_back(target, case):
    said, status = case

    async def attack() -> None:
        for _ in range(10):
            found = grpc_status(await heard(target.address, said))
            assert found == status if status else found not in {0, None}
            target.emulator.exchanges.clear()

    await attack()
    before = target.cost
    await attack()
    await target.is_unharmed()
    await target.is_back(before)


async def test_big_requests_whose_callers_leave_are_given_back(target):
    said = big(model="scenario::stall?headers=0")

    async def attack() -> None:
        for _ in range(5):
            async with holding(target.address, said):
                exchange = await target.emulator.next_exchange()
            await exchange.wait_closed()
            target.emulator.exchanges.clear()
            del exchange

    await attack()
    before = target.cost
    await attack()
    await target.is_unharmed()
    await target.is_back(before)


async def test_calls_reset_while_they_run_are_cancelled_upstream(target):
    """A reset that comes with its call is seen before any handler runs; these come later."""
    body = message(scenario("stall?headers=0").SerializeToString())
    before = None
    for _ in range(2):
        before = target.cost
        target.emulator.exchanges.clear()
        numbers = range(1, 400, 2)
        async with holding(target.address, OPENING) as (connected,):
            await said_over(connected, b"".join(call(body, stream=number) for number in numbers))
            for _ in numbers:
                exchange = await target.emulator.next_exchange()
            await target.answers()
            await said_over(connected, b"".join(frame(RST_STREAM, 0, number, (8).to_bytes(4)) for number in numbers))
            await exchange.wait_closed()
            stalled = [each for each in target.emulator.exchanges if not each.finished]
            await eventually(lambda: all(each.closed_at for each in stalled))  # noqa: B023
            await target.answers()
        await target.is_unharmed()
    await target.is_back(before)


@pytest.mark.parametrize("said", [b"", OPENING, OPENING + call(MESSAGE)], ids=["nothing", "a preface", "a call"])
async def test_flood_of_connections_cut_at_once_is_survived(target, said):
    async def attack() -> None:
        for _ in range(500):
            connected = await opened(target.address)
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await said_over(connected, said)
            connected.close()
        await target.answers()

    await attack()
    before = target.cost
    await attack()
    await target.is_unharmed()
    await target.is_back(before)


async def test_connections_that_speak_a_byte_at_a_time_are_served_beside_others(target):
    said = OPENING + call(MESSAGE)
    async with contextlib.AsyncExitStack() as stack:
        crowd = [await stack.enter_async_context(holding(target.address, b"")) for _ in range(20)]
        for (connected,) in crowd:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(said)):
            for (connected,) in crowd:
                await said_over(connected, said[at : at + 1])
            if at % 100 == 0:
                await target.answers()
        for (connected,) in crowd:
            answer = b""
            async with asyncio.timeout(5):
                while grpc_status(answer) is None:
                    answer += await asyncio.get_running_loop().sock_recv(connected, 65_536)
            assert grpc_status(answer) == 0
    await target.is_unharmed()


async def test_readers_of_nothing_do_not_make_the_bridge_read_all_of_the_answer(target):
    """Twice 100 MB are to be had; what lies about stays far below."""
    before = target.cost
    async with holding(target.address, stream_of(100_000, window=2**31 - 1, connection_window=2**30), 2):
        exchanges = [await target.emulator.next_exchange() for _ in range(2)]
        sent = [-1]
        while sent != (sent := [exchange.events_sent for exchange in exchanges]):
            await target.answers()
            await asyncio.sleep(0.1)
        assert max(sent) < 50_000
        assert target.cost.resident_bytes - before.resident_bytes < 60 * MIB
    for exchange in exchanges:
        await exchange.wait_closed()
    await target.is_unharmed()


# Limits of the process


async def test_process_without_files_left_serves_again_once_there_are_some(emulator):
    resource = pytest.importorskip("resource")
    if not hasattr(resource, "prlimit"):
        pytest.skip("no prlimit here")
    async with contextlib.AsyncExitStack() as stack:
        target = await _started(emulator, stack)
        limit = target.cost.files + 50
        resource.prlimit(target.bridge.process.pid, resource.RLIMIT_NOFILE, (limit, limit))
        before = target.cost
        async with holding(target.address, OPENING, 200):
            await eventually(lambda: target.cost.files >= limit - 1)
        await eventually(lambda: target.cost.files <= before.files)
        await eventually_answers(target.address)  # the core waits a second before it accepts again
        await target.answers()
        assert target.bridge.process.returncode is None


async def test_connections_beyond_the_most_are_closed_and_those_there_are_served(emulator):
    async with contextlib.AsyncExitStack() as stack:
        bridge = await stack.enter_async_context(served(emulator, connections__connections_max=20))
        assert (await bridge.ask(chat())).failure is None
        async with holding(bridge.address, OPENING, 100) as held:
            loop = asyncio.get_running_loop()
            ends = [asyncio.create_task(loop.sock_recv(each, 1000)) for each in held]
            await eventually(lambda: sum(end.done() and not is_open(end) for end in ends) >= 80)
            await answer_good_call(bridge)
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)
        await eventually_answers(bridge.address)


def is_open(end: asyncio.Task) -> bool:
    return end.exception() is None and end.result() != b""


async def eventually_answers(address: str) -> None:
    began_at = time.monotonic()
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        while (await Bridge(address, channel).ask(chat(), wait_for_ready=True, timeout=4)).failure is not None:
            assert time.monotonic() - began_at < 4


HELD_BACK = {
    "no message yet": OPENING + headers(block(fields())),
    "half a message": OPENING + headers(block(fields())) + frame(DATA, 0, 1, MESSAGE[:-5]),
    "ended without a message": OPENING + call(b""),
    "half a header block": OPENING + frame(HEADERS, 0, 1, block(fields())),
    "half a preface": PREFACE[:10],
    "a reader of nothing": stream_of(100_000, window=0),
}


@cases(HELD_BACK)
async def test_hostile_connections_do_not_hold_the_end_up(emulator, case):
    async with served(emulator, drain_grace_s=0.2, log__level="error") as bridge:
        async with holding(bridge.address, case, 5):
            await answer_good_call(bridge)
            signalled_at = time.monotonic()
            bridge.process.send_signal(signal.SIGTERM)
            assert await bridge.ended() == 0
            assert time.monotonic() - signalled_at < 3
        assert bridge.log == ""


# The death of the serving task

DEATHS = {
    # What grpc's server does for each call, in its one task that takes them; once that fails, it takes no more.
    # In releases from 1.84.0 on, a path that is no UTF-8 makes it fail.
    "the task that takes calls": """
def make(loop, coroutine, **options):
    if coroutine.__qualname__ == "_schedule_rpc_coro":
        coroutine.close()
        raise MemoryError
    return asyncio.Task(coroutine, loop=loop, **options)

def at_start():
    asyncio.get_running_loop().set_task_factory(make)
""",
    "a server that someone stops": """
servers = []
make = grpc.aio.server

def keep(*given, **named):
    servers.append(make(*given, **named))
    return servers[-1]

grpc.aio.server = keep

def at_start():
    asyncio.get_running_loop().create_task(servers[0].stop(None))
""",
    "the teller of the address": """
def at_start():
    raise OSError("standard output is gone")
""",
}
PROGRAM = """
import asyncio, sys, grpc
from bridge.cli.main import main, print_address
{death}
def on_ready(address):
    print_address(address)
    at_start()

sys.exit(main(["serve"], on_ready=on_ready))
"""


@cases(DEATHS)
async def test_death_of_a_serving_task_ends_the_process_with_a_failure(emulator, case):
    command = ("-c", PROGRAM.format(death=case))
    async with served(emulator, command, drain_grace_s=0.2, health__upstream_period_s=0.1) as bridge:
        await bridge.ask(chat(), timeout=1)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(4):
                assert await bridge.ended() not in {0, None}
                return
        pytest.fail("the process lives on")


async def test_port_that_is_taken_ends_the_process_with_a_failure(emulator, target):
    environment = os.environ | {"OLLM_BRIDGE_UPSTREAM__BASE_URL": emulator.url}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bridge", "serve", "--listen", target.address),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(8):
        said, log = await process.communicate()
    assert process.returncode == 2
    assert said == b""
    assert b"\nlisten: expected an address that can be bound" in b"\n" + log
    await target.is_unharmed()


async def test_log_that_nobody_reads_any_more_is_no_reason_to_fail(emulator):
    async with served(emulator) as bridge:
        bridge.process._transport.get_pipe_transport(2).close()
        for _ in range(3):
            await answer_good_call(bridge)
        await heard(bridge.address, OPENING + call(message(b"\xff")))
        await answer_good_call(bridge)
        bridge.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(5):
            assert await bridge.process.wait() == 0
