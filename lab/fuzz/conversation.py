"""The bytes of a caller's connection to our HTTP/2: the same events however they are cut, and no window exceeded.

Nothing but a fault may come of any bytes, and nothing of them may be left. hyper-h2 is the second opinion: bytes that
it takes without an error are no fault to ours, unless of a limit or a rule that hyper-h2 does not have.

The first byte of an input seeds the cuts, the second what is answered; the rest comes after the connection's preface.
"""

import itertools
import random
from collections.abc import Iterable, Iterator
from random import Random
from typing import TypeAlias

import h2.config
import h2.connection
import h2.exceptions

from bridge.server.h2.connection import Connection
from bridge.server.h2.events import DataReceived, RequestReceived, StreamEnded
from bridge.server.h2.flow import INITIAL
from bridge.server.h2.frames import PREFACE, ErrorCode, FrameCutter, Http2Error
from bridge.server.h2.hpack import encode_headers
from bridge.server.h2.limits import SLOTS_PER_STREAM, Limits
from lab.fuzz import http2
from lab.fuzz.sse import cut
from tests.kit.http2 import (
    OPENING,
    build_fields,
    encode_block,
    encode_call,
    encode_frame,
)
from tests.kit.http2 import (
    encode_headers as encode_head,
)

__all__ = ["check", "mutate", "seeds"]

LIMITS = Limits(
    streams_max=5, list_bytes_max=4000, block_bytes_max=8000, window_bytes=100_000, control_burst=50, reset_burst=20
)
"""Small, so that inputs of a few kilobytes reach them."""
HEAD = encode_headers([(b":status", b"200")])
TRAILERS = encode_headers([(b"grpc-status", b"0")])
REFUSAL = HEAD + encode_headers([(b"grpc-status", b"8")])
BYTE_BY_BYTE_MAX = 2000
SEED_BYTES_MAX = 4000
INITIAL_WINDOW_SIZE = 4
WINDOW_UPDATE, SETTINGS, DATA = 8, 4, 0
OF_OUR_LIMITS = {ErrorCode.ENHANCE_YOUR_CALM, ErrorCode.FLOW_CONTROL_ERROR}
STRICTER = (
    "a frame larger than",  # hyper-h2 waits for its payload first
    "reset on a stream that is idle",
    "headers on a stream that is reset",  # RFC 9113, 5.1 leaves it to us; hyper-h2 resets the stream once more
    "headers end on a stream that is reset",
    "HEADERS on a stream that is not a client's",  # hyper-h2 waits for its CONTINUATION first
    "CONTINUATION without HEADERS",
    "PUSH_PROMISE from a client",  # the same
    "a stream that depends on itself",  # the same; and it does not look at the priority on a stream that was reset
    "SETTINGS_",  # of a setting that comes twice, hyper-h2 looks at the last value
)
"""Faults that hyper-h2 lets pass."""
Fault: TypeAlias = tuple[int, str] | None


def seeds() -> Iterator[bytes]:
    call = encode_call(b"\0\0\0\0\5hello")
    yield b"\0\0" + call
    yield b"\1\1" + call + encode_call(b"\0\0\0\0\0", stream=3) + encode_frame(3, 0, 3, bytes(4))
    yield b"\2\2" + encode_frame(SETTINGS, 0, 0, b"\0\4\0\0\0\3") + call + encode_frame(8, 0, 1, b"\0\0\0\5")
    block = encode_block(build_fields())
    yield b"\3\3" + encode_frame(1, 0, 1, block[:20]) + encode_frame(9, 4, 1, block[20:]) + encode_head(block, 3, 1)
    for number in range(40):
        data = http2.build_conversation(Random(f"seed {number}"))
        if data.startswith(OPENING) and len(data) < SEED_BYTES_MAX:
            yield bytes((number, number)) + data[len(OPENING) :]


def check(data: bytes) -> None:
    if len(data) < 2:
        return
    stream = OPENING + data[2:]
    at_once = run([stream], answers=False)
    assert run(cut(stream, data[0]), answers=False) == at_once
    if len(stream) < BYTE_BY_BYTE_MAX:
        assert run((stream[at : at + 1] for at in range(len(stream))), answers=False) == at_once
    run(cut(stream, data[1]), answers=True)
    run(cut(stream, data[1]), answers=True, refuses=True)
    _check_agreement(stream, at_once[1])


def run(
    pieces: Iterable[bytes], *, answers: bool, refuses: bool = False
) -> tuple[list[tuple[object, ...]], Fault, bytes]:
    """Return the events, the fault and the output of a connection. `refuses`: every second request as it comes."""
    turns = itertools.cycle((REFUSAL, None))
    connection = Connection(LIMITS, 0.0, lambda _path: next(turns) if refuses else None)
    told, held, output, received = [], [], b"", b""
    for piece in pieces:
        received += piece
        for event in connection.receive(piece, 0.0):
            told.append(_describe(event))
            if isinstance(event, RequestReceived):
                held.append(event.stream)
            if answers:
                _answer(connection, event)
        assert len(connection.streams.live) <= LIMITS.streams_max
        assert connection.streams.in_use <= SLOTS_PER_STREAM * LIMITS.streams_max
        if answers:
            output += connection.sender.take_output()
            connection.send_more()
    output += connection.sender.take_output()
    fault = connection.fault and (connection.fault.code, connection.fault.message)
    _check_windows(received, output)
    _check_nothing_is_left(connection, held)
    return told, fault, output


def _describe(event: object) -> tuple[object, ...]:
    number = event.stream.id
    if isinstance(event, RequestReceived):
        return ("request", number, event.request and (event.request.path, *event.request.headers), event.is_end)
    if isinstance(event, DataReceived):
        return ("data", number, event.data, event.is_end)
    return (type(event).__name__, number)


def _answer(connection: Connection, event: object) -> None:
    """Answer a request with a few messages as it ends, and let more of it come before."""
    stream = event.stream
    if isinstance(event, StreamEnded):
        connection.release(stream)
    elif isinstance(event, DataReceived | RequestReceived) and stream.is_live:
        connection.open_window(stream, 1000)
        if event.is_end and not stream.has_headers:
            connection.send_headers(stream, HEAD)
            if connection.send_message(stream, bytes(100)) and connection.send_message(stream, bytes(20_000)):
                connection.end(stream, TRAILERS)
                connection.release(stream)


def _check_windows(received: bytes, output: bytes) -> None:
    """No more DATA may go out than all windows that were ever offered."""
    offered: dict[int, int] = {}
    initial = INITIAL
    for kind, flags, number, payload in _cut(received):
        if kind == WINDOW_UPDATE and len(payload) == 4:
            offered[number] = offered.get(number, 0) + (int.from_bytes(payload) & 0x7FFFFFFF)
        elif kind == SETTINGS and not flags & 1:
            pairs = [payload[at : at + 6] for at in range(0, len(payload), 6)]
            values = [int.from_bytes(each[2:]) for each in pairs if int.from_bytes(each[:2]) == INITIAL_WINDOW_SIZE]
            initial = max(initial, *values, 0)
    sent: dict[int, int] = {}
    for kind, _, number, payload in _cut(PREFACE + output):
        if kind == DATA:
            sent[number] = sent.get(number, 0) + len(payload)
    assert sum(sent.values()) <= INITIAL + offered.get(0, 0)
    assert all(size <= initial + offered.get(number, 0) for number, size in sent.items())


def _cut(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    try:
        yield from FrameCutter().cut(data)
    except Http2Error:
        return


def _check_nothing_is_left(connection: Connection, held: list) -> None:
    connection.abandon()
    for event in connection.take_events():
        assert isinstance(event, StreamEnded)
    for stream in held:
        connection.release(stream)
    assert (connection.streams.live, connection.streams.in_use, connection.sender.blocked) == ({}, 0, 0)


def _check_agreement(stream: bytes, fault: Fault) -> None:
    if fault is None or fault[0] in OF_OUR_LIMITS or fault[1].startswith(STRICTER):
        return
    peer = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
    peer.initiate_connection()
    try:
        peer.receive_data(stream)
    except (h2.exceptions.ProtocolError, ValueError, IndexError, KeyError):
        return
    raise AssertionError(f"a fault that hyper-h2 does not find: {fault}")


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Change one frame, leave it out, repeat it or put another before it."""
    pieces = [encode_frame(*frame) for frame in _cut(PREFACE + data[2:])]
    if not pieces:
        return data
    at = chance.randrange(len(pieces))
    match chance.randrange(5):
        case 0 | 1:
            pieces[at] = http2.change(pieces[at], chance)
        case 2:
            del pieces[at]
        case 3:
            pieces.insert(at, pieces[at])
        case _:
            pieces.insert(at, chance.choice(http2.STRAY)(chance))
    return data[:2] + b"".join(pieces)
