"""Hostile clients, over raw sockets, against a bridge in a process of its own.

After each attack a stock client's call succeeds, over its old connection and over a new one; the process runs; its log
has nothing but lines of calls; and open files and memory are freed, measured from the second attack of a kind on: the
first one warms allocators up. All attacks run against one process; if an attack kills it, the next test starts another.

`make test` runs a subset of the attacks on grpc's own HTTP/2 parser (SUBSET); the option --all-attacks runs all.
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
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
import pytest_asyncio

from bridge.emulator import Emulator
from tests.conftest import WAIT_S, Bridge, chat, eventually, scenario
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
    build_fields,
    encode_block,
    encode_call,
    encode_data,
    encode_frame,
    encode_headers,
    encode_integer,
    encode_literal,
    encode_message,
    exchange_bytes,
    parse_grpc_status,
)
from tests.e2e.process import Process, start_bridge_process
from tests.e2e.windows import wait_for_backpressure
from tests.kit.health import answer_good_call, is_expected

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1024 * 1024
GROWTH_BYTES_MAX = 30 * MIB
"""Growth of the resident set from one attack to the next of its kind, which allocators may keep in their arenas."""
ATTACKS_MAX = 4
FILES_GROWTH_MAX = 8
"""Growth of the number of open files: grpc's own pollers open and close some."""
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0

REQUEST = chat().SerializeToString()
MESSAGE = encode_message(REQUEST)
STREAM = SERVICE + b"StreamChatCompletion"
DONE = encode_frame(PING, 0, 0, b"the last")
"""The server answers it when it has processed all that was sent before."""
UNKNOWN, INVALID_ARGUMENT, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNIMPLEMENTED = 2, 3, 4, 8, 12


# The process under attack


class Cost(NamedTuple):
    """The memory and open files of a process; zeros if there is no /proc."""

    resident_bytes: int
    files: int


@dataclass(eq=False)
class Target:
    """The bridge and its upstream."""

    emulator: Emulator
    bridge: Process

    @property
    def log_lines(self) -> list[str]:
        return self.bridge.log_lines

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
    def unexpected_lines(self) -> list[str]:
        return [line for line in self.log_lines if not is_expected(line)]

    def list_reasons(self) -> list[str]:
        return [json.loads(line).get("reason", "") for line in self.log_lines if line.startswith("{")]

    async def check_service(self) -> str:
        """Make a call over the open connection and one over a new one, and return the request id of the last."""
        await answer_good_call(self.bridge)
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self.address, options=options) as channel:
            return await answer_good_call(Bridge(self.address, channel))

    async def check_unharmed(self) -> None:
        last = await self.check_service()
        await eventually(lambda: any(last in line for line in self.log_lines))  # so the log has all earlier lines
        assert self.bridge.process.returncode is None
        assert self.unexpected_lines == []

    async def check_cost_freed(self, attack: Callable[[], Awaitable[None]]) -> None:
        """Repeat an attack until one leaves no more memory behind than there was before it, and no open files.

        What allocators keep depends on how much ran at once, so one attack may leave more; a leak does each time.
        """
        start = before = self.cost
        await attack()
        for _ in range(ATTACKS_MAX):
            await self.check_unharmed()
            before = self.cost
            await attack()
            await self.check_unharmed()
            with contextlib.suppress(TimeoutError):
                await eventually(lambda: self._is_freed(before.resident_bytes, start.files), timeout_s=5)  # noqa: B023
                return
        growth = self.cost.resident_bytes - before.resident_bytes
        pytest.fail(f"{growth / MIB:.0f} MiB and {self.cost.files - start.files} files are not freed")

    def _is_freed(self, resident_bytes: int, files: int) -> bool:
        cost = self.cost
        return cost.resident_bytes - resident_bytes < GROWTH_BYTES_MAX and cost.files - files <= FILES_GROWTH_MAX


async def _start_target(emulator: Emulator, stack: contextlib.AsyncExitStack) -> Target:
    bridge = await stack.enter_async_context(start_bridge_process(emulator, upstream__keepalive_s=0))
    target = Target(emulator, bridge)
    await target.check_service()
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
    stack, targets = _targets
    if not targets or targets[-1].bridge.process.returncode is not None:
        targets.append(await _start_target(emulator, stack))
    emulator.exchanges.clear()
    targets[-1].log_lines.clear()
    return targets[-1]


# Raw sockets


async def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    connected = socket.socket()
    connected.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connected, (host, int(port)))
    return connected


async def send_what_fits(connected: socket.socket, payload: bytes) -> None:
    """Send as many of these bytes as the server reads within a second."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(1):
            await asyncio.get_running_loop().sock_sendall(connected, payload)


@contextlib.asynccontextmanager
async def hold_connections(address: str, payload: bytes, connections: int = 1) -> AsyncIterator[list[socket.socket]]:
    """Send this over so many connections, read nothing, and keep them open while the block lasts."""
    sockets: list[socket.socket] = []
    try:
        for _ in range(connections):
            sockets.append(await connect(address))  # noqa: PERF401 - those already open are closed in any case
        await asyncio.gather(*(send_what_fits(each, payload) for each in sockets))
        yield sockets
    finally:
        for each in sockets:
            each.close()


def drop_header(name: bytes) -> list[tuple[bytes, bytes]]:
    return [header for header in build_fields() if header[0] != name]


def replace_header(name: bytes, value: bytes) -> list[tuple[bytes, bytes]]:
    return [(each, value if each == name else default) for each, default in build_fields()]


def encode_call_with(*fields: tuple[bytes, bytes]) -> bytes:
    """Return a connection whose call has exactly these headers."""
    return OPENING + encode_headers(encode_block(fields)) + encode_data(MESSAGE)


def encode_call_around(extra: bytes, before: bytes = b"") -> bytes:
    """Return a connection whose header block is a valid one with these bytes after or before it."""
    return OPENING + encode_headers(before + BLOCK + extra) + encode_data(MESSAGE)


def encode_setting(number: int, value: int) -> bytes:
    return number.to_bytes(2) + value.to_bytes(4)


def create_client_hello() -> bytes:
    """Return a TLS ClientHello."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="bridge").do_handshake()
    return outgoing.read()


BLOCK = encode_block(build_fields())
HEAD = encode_headers(BLOCK)
FORGED = encode_block([*build_fields(), (b"x-smuggled", b"1")])
ENTRY = encode_literal(b"x-a", b"z" * 3900, 0x40)  # fills HPACK's table of 4096 bytes
REFERENCES = b"\xbe" * 16_000  # each repeats the newest entry
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
    "TLS ClientHello": create_client_hello(),
    "zeros": bytes(10_000),
    "all bytes": bytes(range(256)) * 40,
    "invalid preface": PREFACE[:-1] + b"x" + encode_frame(SETTINGS, 0, 0) + encode_call(MESSAGE),
    "no SETTINGS after the preface": PREFACE + encode_call(MESSAGE),
}

BAD_FRAMES = {
    "frame of 16 MB": OPENING + b"\xff\xff\xff" + bytes([DATA, 0]) + (1).to_bytes(4) + b"x" * 20_000,
    "DATA all padding": OPENING + HEAD + encode_frame(DATA, PADDED | END_STREAM, 1, b"\xff" + MESSAGE),
    "HEADERS all padding": OPENING + encode_frame(HEADERS, PADDED | END_HEADERS, 1, b"\xff" + FORGED[:100]),
    "DATA on stream 0": OPENING + encode_frame(DATA, 0, 0, MESSAGE),
    "DATA on an idle stream": OPENING + encode_frame(DATA, END_STREAM, 7, MESSAGE),
    "HEADERS on stream 0": OPENING + encode_headers(FORGED, 0),
    "HEADERS on an even stream": OPENING + encode_headers(FORGED, 2) + encode_data(MESSAGE, 2),
    "HEADERS on a lower stream": OPENING
    + encode_headers(BLOCK, 5)
    + encode_headers(FORGED, 3)
    + encode_data(MESSAGE, 3),
    "PUSH_PROMISE": OPENING + encode_frame(PUSH_PROMISE, END_HEADERS, 1, (2).to_bytes(4) + FORGED),
    "CONTINUATION of nothing": OPENING + encode_frame(CONTINUATION, END_HEADERS, 1, FORGED),
    "PING amid a header block": OPENING + encode_frame(HEADERS, 0, 1, FORGED),
    "20,000 empty CONTINUATIONs": OPENING
    + encode_frame(HEADERS, 0, 1, FORGED)
    + encode_frame(CONTINUATION, 0, 1) * 20_000,
    "SETTINGS too short": PREFACE + encode_frame(SETTINGS, 0, 0, b"abcde"),
    "SETTINGS on a stream": PREFACE + encode_frame(SETTINGS, 0, 1),
    "SETTINGS acknowledged with a payload": OPENING + encode_frame(SETTINGS, ACK, 0, encode_setting(1, 1)),
    "SETTINGS: window of 4 GB": PREFACE + encode_frame(SETTINGS, 0, 0, encode_setting(4, 2**32 - 1)),
    "SETTINGS: frames of 0 bytes": PREFACE + encode_frame(SETTINGS, 0, 0, encode_setting(5, 0)),
    "SETTINGS: push is 7": PREFACE + encode_frame(SETTINGS, 0, 0, encode_setting(2, 7)),
    "WINDOW_UPDATE by 0": OPENING + encode_frame(WINDOW_UPDATE, 0, 0, bytes(4)),
    "WINDOW_UPDATE beyond 2 GB": OPENING + encode_frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff") * 2,
    "WINDOW_UPDATE of a stream beyond 2 GB": OPENING
    + HEAD
    + encode_frame(WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff") * 2,
    "WINDOW_UPDATE too short": OPENING + encode_frame(WINDOW_UPDATE, 0, 0, b"x"),
    "PING too short": OPENING + encode_frame(PING, 0, 0, b"x"),
    "PING on a stream": OPENING + encode_frame(PING, 0, 1, b"whatever"),
    "PING answers without a PING": OPENING + encode_frame(PING, ACK, 0, b"whatever") * 1000,
    "RST_STREAM of stream 0": OPENING + encode_frame(RST_STREAM, 0, 0, bytes(4)),
    "RST_STREAM of an idle stream": OPENING + encode_frame(RST_STREAM, 0, 1, bytes(4)),
    "RST_STREAM too short": OPENING + HEAD + encode_frame(RST_STREAM, 0, 1, b"x"),
    "PRIORITY too short": OPENING + encode_frame(PRIORITY, 0, 1, b"x"),
    "PRIORITY on itself": OPENING + encode_frame(PRIORITY, 0, 1, b"\x00\x00\x00\x01\x00"),
    "GOAWAY too short": OPENING + encode_frame(GOAWAY, 0, 0, b"x"),
}

BAD_HEADERS = {
    "HPACK: index 0": encode_call_around(b"\x80"),
    "HPACK: index far away": encode_call_around(b"\xff\xff\xff\xff\x7f"),
    "HPACK: integer without an end": encode_call_around(b"\xff" + b"\xff" * 20),
    "HPACK: block truncated": OPENING + encode_headers(BLOCK[:-3]) + encode_data(MESSAGE),
    "HPACK: table of 4 GB": encode_call_around(b"", before=encode_integer(2**32 - 1, 5, 0x20)),
    "HPACK: 4,000 sizes of the table": encode_call_around(
        b"", before=(encode_integer(0, 5, 0x20) + encode_integer(4096, 5, 0x20)) * 2000
    ),
    "HPACK: 20,000 tiny entries": encode_call_around(encode_literal(b"a", b"") * 20_000),
    "HPACK: 62 MB by references": encode_call_around(ENTRY + REFERENCES),
    "HPACK: references without an end": OPENING
    + encode_frame(HEADERS, 0, 1, BLOCK + ENTRY)
    + encode_frame(CONTINUATION, 0, 1, REFERENCES) * 20,
    "name empty": encode_call_with(*build_fields((b"", b"x"))),
    "name in upper case": encode_call_with(*build_fields((b"X-Team", b"x"))),
    "name with CR LF": encode_call_with(*build_fields((b"x-request-id\r\nx-smuggled", b"1"))),
    "name with a colon": encode_call_with(*build_fields((b"x-request-id: 1\nx-smuggled", b"1"))),
    "name with NUL": encode_call_with(*build_fields((b"x-\x00", b"1"))),
    "unknown pseudo-header": encode_call_with((b":unknown", b"x"), *build_fields()),
    "no :method": encode_call_with(*drop_header(b":method")),
    "no :scheme": encode_call_with(*drop_header(b":scheme")),
    "no :path": encode_call_with(*drop_header(b":path")),
    "no :authority": encode_call_with(*drop_header(b":authority")),
    "no te": encode_call_with(*drop_header(b"te")),
    "te with CR LF": encode_call_with(*replace_header(b"te", b"trailers\r\nx-smuggled: 1")),
    "method GET": encode_call_with(*replace_header(b":method", b"GET")),
    "method PUT": encode_call_with(*replace_header(b":method", b"PUT")),
    "method CONNECT": encode_call_with(*replace_header(b":method", b"CONNECT")),
    "method empty": encode_call_with(*replace_header(b":method", b"")),
    "method nonsense": encode_call_with(*replace_header(b":method", b"\xff")),
    "-bin that is not base64": encode_call_with(*build_fields((b"x-team-bin", b"\r\nx-smuggled: 1"))),
    **{
        f"grpc-timeout {value!r}": encode_call_with(*build_fields((b"grpc-timeout", value)))
        for value in (b"", b"1", b"S", b"-1S", b"1.5S", b"1s", b"NaNS", b"\xff", b"1\x00S")
    },
    "grpc-encoding unknown": OPENING + encode_call(encode_message(REQUEST, 1), (b"grpc-encoding", b"br")),
    "grpc-encoding with NUL": OPENING + encode_call(encode_message(REQUEST, 1), (b"grpc-encoding", b"gz\x00ip")),
}

BAD_MESSAGES = {
    "compressed flag 2": OPENING + encode_call(encode_message(REQUEST, 2)),
    "compressed flag 255": OPENING + encode_call(encode_message(REQUEST, 255)),
    "gzip that is not gzip": OPENING + encode_call(encode_message(REQUEST, 1), GZIP),
    "gzip truncated": OPENING + encode_call(encode_message(gzip.compress(REQUEST * 50)[:-20], 1), GZIP),
    "gzip twice": OPENING + encode_call(encode_message(gzip.compress(REQUEST) * 2, 1), GZIP),
}

STATUSES = {
    "undecodable": (OPENING + encode_call(encode_message(b"\xff" * 100)), INVALID_ARGUMENT),
    "undecodable stream": (OPENING + encode_call(encode_message(b"\xff" * 100), path=STREAM), INVALID_ARGUMENT),
    "empty message": (OPENING + encode_call(encode_message(b"")), INVALID_ARGUMENT),
    "gzip bomb": (OPENING + encode_call(encode_message(BOMB, 1), GZIP), RESOURCE_EXHAUSTED),
    "length of 4 GB": (OPENING + encode_call(b"\x00\xff\xff\xff\xff" + REQUEST), RESOURCE_EXHAUSTED),
    "3 MB of metadata, SETTINGS never acknowledged": (
        OPENING + encode_call(MESSAGE, *((b"x-%d" % number, b"x" * 15_000) for number in range(200))),
        INVALID_ARGUMENT,  # the bridge's
        RESOURCE_EXHAUSTED,  # the core's, which does not always check in time
    ),
    "64 MB of metadata": (OPENING + encode_call(MESSAGE, (b"x-one", b"x" * 64 * MIB)), RESOURCE_EXHAUSTED),
    "path that is not UTF-8": (OPENING + encode_call(MESSAGE, path=PATH + b"\xff"), UNKNOWN),
    "path without any UTF-8": (OPENING + encode_call(MESSAGE, path=b"\xff\xfe"), UNKNOWN),
    "grpc-timeout of 0": (encode_call_with(*build_fields((b"grpc-timeout", b"0S"))), DEADLINE_EXCEEDED),
    **{f"path: {name}": (OPENING + encode_call(MESSAGE, path=path), UNIMPLEMENTED) for name, path in ODD_PATHS.items()},
}

HARMLESS = {
    "frames of unknown kinds": OPENING
    + encode_frame(0xFA, 0xFF, 0, b"x" * 1000)
    + encode_frame(0xFB, 0, 1, b"x")
    + encode_call(MESSAGE),
    "SETTINGS: table of 4 GB": PREFACE
    + encode_frame(SETTINGS, 0, 0, encode_setting(1, 2**32 - 1))
    + encode_call(MESSAGE),
    "SETTINGS unknown": PREFACE + encode_frame(SETTINGS, 0, 0, encode_setting(0xFFFF, 1) * 1000) + encode_call(MESSAGE),
    "GOAWAY before the call": OPENING + encode_frame(GOAWAY, 0, 0, bytes(8)) + encode_call(MESSAGE),
    "HPACK: two sizes of the table": encode_call_around(
        b"", before=encode_integer(0, 5, 0x20) + encode_integer(4096, 5, 0x20)
    ),
    "two :method": encode_call_with((b":method", b"POST"), *build_fields()),
    "two :path, the last one good": encode_call_with((b":path", b"/nobody.Service/Nothing"), *build_fields()),
    ":method at the end": encode_call_with(*drop_header(b":method"), (b":method", b"POST")),
    "authority empty": encode_call_with(*replace_header(b":authority", b"")),
    "authority of 5 KB": encode_call_with(*replace_header(b":authority", b"a" * 5000)),
    "authority with CR LF": encode_call_with(*replace_header(b":authority", b"a\r\nx-smuggled: 1")),
    "authority that is not UTF-8": encode_call_with(*replace_header(b":authority", b"\xff")),
    "authority with a user": encode_call_with(*replace_header(b":authority", b"user:secret@host:99999")),
    "host with CR LF": encode_call_with(*build_fields((b"host", b"a\r\nx-smuggled: 1"))),
    "metadata that is not forwarded, with CR LF": encode_call_with(*build_fields((b"x-other", b"a\r\nx-smuggled: 1"))),
    "no content-type": encode_call_with(*drop_header(b"content-type")),
    "content-type text/html": encode_call_with(*replace_header(b"content-type", b"text/html")),
    "content-type with CR LF": encode_call_with(*replace_header(b"content-type", b"application/grpc\r\nx-smuggled: 1")),
    "two grpc-timeouts, the last one good": encode_call_with(
        *build_fields((b"grpc-timeout", b"1n"), (b"grpc-timeout", b"10S"))
    ),
    "grpc-timeout of 1 ns": encode_call_with(
        *build_fields((b"grpc-timeout", b"1n"))
    ),  # some milliseconds, as grpc's core rounds it
    "grpc-timeout of 11,000 years": encode_call_with(*build_fields((b"grpc-timeout", b"99999999H"))),
    "compressed flag without an encoding": OPENING + encode_call(encode_message(REQUEST, 1)),
    "gzip": OPENING + encode_call(encode_message(gzip.compress(REQUEST), 1), GZIP),
    "two messages": OPENING + encode_call(MESSAGE * 2),
    "a second message that can't be decoded": OPENING + encode_call(MESSAGE + encode_message(b"\xff\xff")),
    "bytes after the message": OPENING + encode_call(MESSAGE + b"\x01\x02\x03"),
    "DATA after the end": OPENING + encode_call(MESSAGE) + encode_frame(DATA, 0, 1, b"x" * 100),
    "HEADERS after the end": OPENING + encode_call(MESSAGE) + HEAD,
    "trailers": OPENING + HEAD + encode_frame(DATA, 0, 1, MESSAGE) + encode_headers(b"", 1, END_STREAM),
}

HALF_CALLS = {
    "no message": OPENING + encode_call(b""),
    "no DATA": OPENING + encode_headers(BLOCK, 1, END_STREAM),
    "half a length": OPENING + encode_call(b"\x00\x00\x00"),
    "length of 256 bytes, data of fewer": OPENING + encode_call(b"\x00\x00\x00\x01\x00" + REQUEST),
    "length of 16 MB, data of fewer": OPENING + encode_call(b"\x00\x00\xff\xff\xff" + REQUEST),
    "no message for a stream": OPENING + encode_call(b"", path=STREAM),
}


SUBSET = {
    # of BAD_FRAMES
    *("frame of 16 MB", "DATA all padding", "DATA on stream 0", "HEADERS on a lower stream", "PUSH_PROMISE"),
    *("CONTINUATION of nothing", "PING amid a header block", "SETTINGS too short", "WINDOW_UPDATE beyond 2 GB"),
    "RST_STREAM of an idle stream",
    # of BAD_HEADERS
    *("HPACK: index far away", "HPACK: integer without an end", "HPACK: references without an end"),
    *("name with CR LF", "name with NUL", "no :path", "method nonsense", "-bin that is not base64"),
    *("grpc-timeout b'-1S'", "grpc-encoding unknown"),
    # of FLOODS
    *("undecodable", "RST_STREAM", "PING", "SETTINGS", "CONTINUATION", "gzip bombs", "streams without a message"),
    *("streams without a reader, the largest window", "50 streams without a reader on one connection"),
    "idle connections, after the preface",
}
"""The attacks on grpc's own parser that `make test` runs."""


def parametrize_cases(table: dict, subset: Container[str] | None = None) -> pytest.MarkDecorator:
    """Run the test with each case of the table; those outside the subset only with --all-attacks."""
    rows = [
        pytest.param(case, id=name, marks=[] if subset is None or name in subset else pytest.mark.all_attacks)
        for name, case in table.items()
    ]
    return pytest.mark.parametrize("case", rows)


def iterate_sent_headers(target: Target) -> Iterator[tuple[str, str]]:
    for exchange in target.emulator.exchanges:
        yield from exchange.headers.items()


def is_clean(target: Target) -> bool:
    """Return whether the upstream received only printable headers, and none that a value smuggled in."""
    return all(
        name != "x-smuggled" and value.isascii() and value.isprintable() and "smuggled" not in value
        for name, value in iterate_sent_headers(target)
    )


# One connection at a time


@parametrize_cases(NO_HTTP2 | BAD_FRAMES | BAD_HEADERS | BAD_MESSAGES, SUBSET | NO_HTTP2.keys() | BAD_MESSAGES.keys())
async def test_invalid_bytes_are_refused_and_harm_no_other_call(target, case):
    answer = await exchange_bytes(target.address, case + DONE)
    assert parse_grpc_status(answer) != 0
    assert target.emulator.exchanges == []
    await target.check_unharmed()


@parametrize_cases(STATUSES)
async def test_call_that_cannot_be_served_gets_a_status_of_its_own(target, case):
    payload, *statuses = case
    assert parse_grpc_status(await exchange_bytes(target.address, payload)) in statuses
    assert is_clean(target)
    await target.check_unharmed()


@parametrize_cases(HARMLESS)
async def test_unusual_call_is_answered_or_refused(target, case):
    assert parse_grpc_status(await exchange_bytes(target.address, case)) is not None
    assert len(target.emulator.exchanges) <= 1
    assert is_clean(target)
    await target.check_unharmed()


@parametrize_cases(HALF_CALLS)
async def test_call_without_a_whole_message_gets_a_status(target, case):
    assert parse_grpc_status(await exchange_bytes(target.address, case)) == INVALID_ARGUMENT
    await eventually(lambda: target.list_reasons() == ["UNDECODABLE_REQUEST"])
    assert target.emulator.exchanges == []
    await target.check_unharmed()


async def test_debug_data_of_a_goaway_is_not_in_the_log(target):
    forged = b'debug data\n{"event": "call", "code": "OK", "reason": "FORGED"}\n'
    payload = OPENING + encode_frame(GOAWAY, 0, 0, bytes(4) + (99).to_bytes(4) + forged)
    async with hold_connections(target.address, payload):
        await target.check_service()
    await target.check_unharmed()
    assert "FORGED" not in target.list_reasons()
    assert not any("debug data" in line for line in target.log_lines)


async def test_all_connections_at_once_are_freed(target):
    everything = [*(NO_HTTP2 | BAD_FRAMES | BAD_MESSAGES | HARMLESS | HALF_CALLS).values()]

    async def attack() -> None:
        async with contextlib.AsyncExitStack() as stack:
            for payload in everything:
                await stack.enter_async_context(hold_connections(target.address, payload, 5))
            await target.check_service()

    await target.check_cost_freed(attack)
    assert is_clean(target)


CONTROLS = [bytes([code]) for code in (*range(0x20), 0x7F, *range(0x80, 0x100, 9))]


@pytest.mark.parametrize("name", [b"authorization", b"x-request-id", b"traceparent", b"tracestate", b"user-agent"])
async def test_value_with_a_control_character_never_reaches_the_gateway(target, name):
    calls = [
        encode_call(MESSAGE, (name, b"a" + code + b"x-smuggled: 1"), stream=2 * at + 1)
        for at, code in enumerate(CONTROLS)
    ]
    async with hold_connections(target.address, OPENING + b"".join(calls)):
        await eventually(lambda: target.list_reasons().count("INVALID_METADATA") == len(CONTROLS))
    assert target.emulator.exchanges == []
    await target.check_unharmed()


async def test_every_call_of_a_burst_is_answered(target):
    """If more than a thousand wait, grpc's core cancels calls by chance, unless an option forbids it."""
    bad = encode_message(b"\xff")
    payload = OPENING + b"".join(encode_call(bad, stream=number) for number in range(1, 1400, 2))
    async with hold_connections(target.address, payload, 3):
        await target.check_service()
        with contextlib.suppress(TimeoutError):
            await eventually(lambda: target.list_reasons().count("UNDECODABLE_REQUEST") == 2100)
    assert target.list_reasons().count("UNDECODABLE_REQUEST") == 2100
    await target.check_unharmed()


# Floods


def encode_streams(chunks: int, *, window: int, connection_window: int = 0, streams: int = 1) -> bytes:
    """Return a connection with streams of so many chunks, and with these windows."""
    body = encode_message(scenario(f"many?chunks={chunks}&bytes=1000").SerializeToString())
    update = encode_frame(WINDOW_UPDATE, 0, 0, connection_window.to_bytes(4)) if connection_window else b""
    calls = (encode_call(body, path=STREAM, stream=2 * number + 1) for number in range(streams))
    return PREFACE + encode_frame(SETTINGS, 0, 0, encode_setting(4, window)) + update + b"".join(calls)


def encode_resets(streams: int, *, body: bool) -> bytes:
    return OPENING + b"".join(
        encode_headers(BLOCK, number)
        + (encode_data(MESSAGE, number) if body else b"")
        + encode_frame(RST_STREAM, 0, number, (8).to_bytes(4))
        for number in range(1, 2 * streams, 2)
    )


class Flood(NamedTuple):
    payload: bytes
    connections: int = 1


FLOODS = {
    "undecodable": Flood(
        OPENING + b"".join(encode_call(encode_message(b"\xff" * 1000), stream=number) for number in range(1, 600, 2)),
    ),
    "RST_STREAM": Flood(encode_resets(2000, body=True), 2),
    "RST_STREAM before any message": Flood(encode_resets(5000, body=False), 2),
    "PING": Flood(OPENING + encode_frame(PING, 0, 0, b"whatever") * 100_000, 2),
    "SETTINGS": Flood(PREFACE + encode_frame(SETTINGS, 0, 0, encode_setting(4, 65_535)) * 50_000, 2),
    "SETTINGS of the table": Flood(
        PREFACE
        + (encode_frame(SETTINGS, 0, 0, encode_setting(1, 0)) + encode_frame(SETTINGS, 0, 0, encode_setting(1, 4096)))
        * 20_000
    ),
    "WINDOW_UPDATE": Flood(OPENING + encode_frame(WINDOW_UPDATE, 0, 0, (1).to_bytes(4)) * 100_000),
    "PRIORITY": Flood(OPENING + encode_frame(PRIORITY, 0, 1, bytes(5)) * 100_000),
    "empty DATA": Flood(OPENING + HEAD + encode_frame(DATA, 0, 1) * 100_000),
    "unknown frames": Flood(OPENING + encode_frame(0x55, 0, 0, b"x" * 16_384) * 500),
    "CONTINUATION": Flood(
        OPENING
        + encode_frame(HEADERS, 0, 1, BLOCK)
        + encode_frame(CONTINUATION, 0, 1, encode_literal(b"x-a", b"y" * 16_000)) * 1000
    ),
    "empty CONTINUATION": Flood(
        OPENING + encode_frame(HEADERS, 0, 1, FORGED) + encode_frame(CONTINUATION, 0, 1) * 200_000
    ),
    "gzip bombs": Flood(OPENING + encode_call(encode_message(BOMB, 1), GZIP), 5),
    "streams without a message": Flood(
        OPENING + b"".join(encode_headers(BLOCK, number) for number in range(1, 3000, 2)), 3
    ),
    "streams without a reader, no window": Flood(encode_streams(100_000, window=0), 10),
    "streams without a reader, the largest window": Flood(
        encode_streams(100_000, window=2**31 - 1, connection_window=2**30), 10
    ),
    "50 streams without a reader on one connection": Flood(
        encode_streams(100_000, window=2**31 - 1, connection_window=2**30, streams=50),
    ),
    "idle connections": Flood(b"", 500),
    "idle connections, after the preface": Flood(OPENING, 500),
}


@parametrize_cases(FLOODS, SUBSET)
async def test_memory_and_files_of_a_flood_are_freed(target, case):
    async def attack() -> None:
        async with hold_connections(target.address, case.payload, case.connections):
            await target.check_service()
        await target.check_service()

    await target.check_cost_freed(attack)
    await eventually(lambda: all(exchange.finished or exchange.closed_at for exchange in target.emulator.exchanges))


HEAD_FLOODS = {
    "3 MB of metadata": OPENING + encode_call(MESSAGE, *((b"x-%d" % number, b"x" * 15_000) for number in range(200))),
    "3 MB of metadata in one value": OPENING + encode_call(MESSAGE, (b"x-one", b"x" * 3_000_000)),
    "HPACK references": encode_call_around(ENTRY + REFERENCES),
}


@parametrize_cases(HEAD_FLOODS)
async def test_memory_of_large_heads_is_freed(target, case):
    async def attack() -> None:
        for _ in range(4):
            answers = await asyncio.gather(*(exchange_bytes(target.address, case) for _ in range(5)))
            assert {parse_grpc_status(answer) for answer in answers} <= {INVALID_ARGUMENT, RESOURCE_EXHAUSTED}

    await target.check_cost_freed(attack)
    assert is_clean(target)


def encode_big_call(**fields) -> bytes:
    """Return a connection whose call has 8 MB of content, a few KB in gzip."""
    body = chat("x" * 8_000_000, **fields).SerializeToString()
    return OPENING + encode_call(encode_message(gzip.compress(body), 1), GZIP)


BIG_CALLS = {
    "undecodable": (OPENING + encode_call(encode_message(gzip.compress(bytes(8_000_000)), 1), GZIP), INVALID_ARGUMENT),
    "invalid": (encode_big_call(model=""), INVALID_ARGUMENT),
    "refused upstream": (encode_big_call(model="nobody"), None),
    "failed upstream": (encode_big_call(model="scenario::error?status=503"), None),
}


@parametrize_cases(BIG_CALLS)
async def test_memory_of_big_requests_that_fail_is_freed(target, case):
    payload, status = case

    async def attack() -> None:
        for _ in range(10):
            found = parse_grpc_status(await exchange_bytes(target.address, payload))
            assert found == status if status else found not in {0, None}
            target.emulator.exchanges.clear()

    await target.check_cost_freed(attack)


async def test_memory_of_big_requests_whose_callers_disconnect_is_freed(target):
    payload = encode_big_call(model="scenario::stall?headers=0")

    async def attack() -> None:
        for _ in range(5):
            async with hold_connections(target.address, payload):
                exchange = await target.emulator.next_exchange()
            await exchange.wait_closed()
            target.emulator.exchanges.clear()
            del exchange

    await target.check_cost_freed(attack)


async def test_calls_reset_while_they_run_are_cancelled_upstream(target):
    """These resets come after the handlers have started, unlike a reset that comes with its call."""
    body = encode_message(scenario("stall?headers=0").SerializeToString())

    async def attack() -> None:
        target.emulator.exchanges.clear()
        numbers = range(1, 400, 2)
        async with hold_connections(target.address, OPENING) as (connected,):
            await send_what_fits(connected, b"".join(encode_call(body, stream=number) for number in numbers))
            for _ in numbers:
                exchange = await target.emulator.next_exchange()
            await target.check_service()
            await send_what_fits(
                connected, b"".join(encode_frame(RST_STREAM, 0, number, (8).to_bytes(4)) for number in numbers)
            )
            await exchange.wait_closed()
            stalled = [each for each in target.emulator.exchanges if not each.finished]
            await eventually(lambda: all(each.closed_at for each in stalled))
            await target.check_service()

    await target.check_cost_freed(attack)


@pytest.mark.parametrize(
    "payload", [b"", OPENING, OPENING + encode_call(MESSAGE)], ids=["nothing", "a preface", "a call"]
)
async def test_memory_and_files_of_connections_reset_at_once_are_freed(target, payload):
    async def attack() -> None:
        for _ in range(500):
            connected = await connect(target.address)
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await send_what_fits(connected, payload)
            connected.close()
        await target.check_service()

    await target.check_cost_freed(attack)


async def test_calls_sent_byte_by_byte_are_answered_beside_others(target):
    payload = OPENING + encode_call(MESSAGE)
    async with contextlib.AsyncExitStack() as stack:
        crowd = [await stack.enter_async_context(hold_connections(target.address, b"")) for _ in range(20)]
        for (connected,) in crowd:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(payload)):
            for (connected,) in crowd:
                await send_what_fits(connected, payload[at : at + 1])
            if at % 100 == 0:
                await target.check_service()
        for (connected,) in crowd:
            answer = b""
            async with asyncio.timeout(WAIT_S):
                while parse_grpc_status(answer) is None:
                    answer += await asyncio.get_running_loop().sock_recv(connected, 65_536)
            assert parse_grpc_status(answer) == 0
    await target.check_unharmed()


async def test_streams_without_a_reader_do_not_make_the_bridge_read_the_whole_answer(target):
    """The gateway has 100 MB for each of two streams; the bridge buffers far less."""
    before = target.cost
    async with hold_connections(target.address, encode_streams(100_000, window=2**31 - 1, connection_window=2**30), 2):
        exchanges = [await target.emulator.next_exchange() for _ in range(2)]
        assert max([await wait_for_backpressure(exchange) for exchange in exchanges]) < 50_000
        assert target.cost.resident_bytes - before.resident_bytes < 60 * MIB
    for exchange in exchanges:
        await exchange.wait_closed()
    await target.check_unharmed()


# Limits of the process


async def test_process_without_free_file_descriptors_recovers(emulator):
    resource = pytest.importorskip("resource")
    if not hasattr(resource, "prlimit"):
        pytest.skip("no prlimit here")
    async with contextlib.AsyncExitStack() as stack:
        target = await _start_target(emulator, stack)
        limit = target.cost.files + 50
        resource.prlimit(target.bridge.process.pid, resource.RLIMIT_NOFILE, (limit, limit))
        before = target.cost
        async with hold_connections(target.address, OPENING, 200):
            await eventually(lambda: target.cost.files >= limit - 1)
        await eventually(lambda: target.cost.files <= before.files)
        await wait_for_service(target.address)  # the core waits a second before it accepts again
        await target.check_service()
        assert target.bridge.process.returncode is None


async def test_connections_above_the_limit_are_closed_and_the_others_are_served(emulator):
    async with contextlib.AsyncExitStack() as stack:
        bridge = await stack.enter_async_context(start_bridge_process(emulator, connections__connections_max=20))
        assert (await bridge.ask(chat())).failure is None
        async with hold_connections(bridge.address, OPENING, 100) as sockets:
            loop = asyncio.get_running_loop()
            ends = [asyncio.create_task(loop.sock_recv(each, 1000)) for each in sockets]
            await eventually(lambda: sum(end.done() and not is_open(end) for end in ends) >= 80)
            await answer_good_call(bridge)
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)
        await wait_for_service(bridge.address)


def is_open(end: asyncio.Task) -> bool:
    return end.exception() is None and end.result() != b""


async def wait_for_service(address: str) -> None:
    """Repeat a call until it succeeds."""
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        async with asyncio.timeout(WAIT_S):
            while (await Bridge(address, channel).ask(chat(), wait_for_ready=True)).failure is not None:
                pass


STALLED = {
    "no message yet": OPENING + HEAD,
    "half a message": OPENING + HEAD + encode_frame(DATA, 0, 1, MESSAGE[:-5]),
    "ended without a message": OPENING + encode_call(b""),
    "half a header block": OPENING + encode_frame(HEADERS, 0, 1, BLOCK),
    "half a preface": PREFACE[:10],
    "a stream without a reader": encode_streams(100_000, window=0),
}


async def test_stalled_connections_do_not_delay_the_exit(emulator):
    async with contextlib.AsyncExitStack() as stack:
        settings = {"drain_grace_s": 0.2, "log__level": "error"}
        bridge = await stack.enter_async_context(start_bridge_process(emulator, **settings))
        for payload in STALLED.values():
            await stack.enter_async_context(hold_connections(bridge.address, payload, 5))
        await answer_good_call(bridge)
        bridge.process.send_signal(signal.SIGTERM)
        assert await bridge.wait_for_exit() == 0
        assert bridge.log == ""


# The end of the serving task

FAILURES_OF_THE_SERVING_TASK = {
    # grpc's server accepts calls in one task; if that fails, it accepts no more.
    # In releases from 1.84.0 on, a path that is not UTF-8 makes it fail.
    "the task that accepts calls": """
def create_task(loop, coroutine, **options):
    if coroutine.__qualname__ == "_schedule_rpc_coro":
        coroutine.close()
        raise MemoryError
    return asyncio.Task(coroutine, loop=loop, **options)

def at_start():
    asyncio.get_running_loop().set_task_factory(create_task)
""",
    "the server is stopped": """
servers = []
create_server = grpc.aio.server

def create_and_keep(*arguments, **options):
    servers.append(create_server(*arguments, **options))
    return servers[-1]

grpc.aio.server = create_and_keep

def at_start():
    asyncio.get_running_loop().create_task(servers[0].stop(None))
""",
    "the function that prints the address": """
def at_start():
    raise OSError("standard output is closed")
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


@parametrize_cases(FAILURES_OF_THE_SERVING_TASK)
async def test_end_of_the_serving_task_ends_the_process_with_an_error(emulator, case):
    command = ("-c", PROGRAM.format(death=case))
    async with start_bridge_process(emulator, command, drain_grace_s=0.2, health__upstream_period_s=0.1) as bridge:
        await bridge.ask(chat(), timeout=1)
        assert await bridge.wait_for_exit() not in {0, None}


async def test_port_in_use_ends_the_process_with_an_error(emulator, target):
    environment = os.environ | {"OLLM_BRIDGE_UPSTREAM__BASE_URL": emulator.url}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bridge", "serve", "--listen", target.address),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(WAIT_S):
        output, log = await process.communicate()
    assert process.returncode == 2
    assert output == b""
    assert b"\nlisten: expected an address that can be bound" in b"\n" + log
    await target.check_unharmed()
