"""Calls in raw HTTP/2 (RFC 9113; RFC 7541, 6.2.2 for the literal headers), for bytes that no stock client sends."""

import asyncio
import base64
import contextlib
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import hpack

from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
ACK, END_STREAM, END_HEADERS, PADDED, PRIORITISED = 1, 1, 4, 8, 32
SERVICE = b"/ollmbridge.v1.ChatCompletionService/"
PATH = SERVICE + b"CreateChatCompletion"
WATCH = b"/grpc.health.v1.Health/Watch"
FRAME_BYTES_MAX = 16_384


def encode_frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def encode_opening(initial_window: int | None = None) -> bytes:
    """Return how a client begins: its SETTINGS, and the acknowledgement of the server's.

    It comes before the client has read what it acknowledges, which the server can't see: it sends its own SETTINGS
    first. Without it the server closes the connection after `settings_timeout_s`, however busy the machine is.
    """
    settings = b"" if initial_window is None else (4).to_bytes(2) + initial_window.to_bytes(4)
    return PREFACE + encode_frame(SETTINGS, 0, 0, settings) + encode_frame(SETTINGS, ACK, 0)


OPENING = encode_opening()
UNACKNOWLEDGED = PREFACE + encode_frame(SETTINGS, 0, 0)
"""An opening whose sender does not acknowledge the server's SETTINGS, or does so later."""


def encode_integer(value: int, prefix: int = 7, first: int = 0) -> bytes:
    """Return an integer in the form of RFC 7541, 5.1, such as a string's length without Huffman coding."""
    full = 2**prefix - 1
    if value < full:
        return bytes([first | value])
    out, value = bytearray([first | full]), value - full
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


def encode_literal(name: bytes, value: bytes, first: int = 0) -> bytes:
    """Return a header. `first` is 0x00: not indexed, 0x10: never indexed, 0x40: added to the table."""
    return bytes([first]) + encode_integer(len(name)) + name + encode_integer(len(value)) + value


def build_fields(*headers: tuple[bytes, bytes], path: bytes = PATH) -> list[tuple[bytes, bytes]]:
    """Return the header list of a valid call, followed by these headers."""
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"bridge"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        *headers,
    ]


def encode_block(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join(encode_literal(*header) for header in headers)


def encode_headers(packed: bytes, stream: int = 1, flags: int = 0) -> bytes:
    """Return a header block's HEADERS, with CONTINUATIONs if it is large."""
    pieces = [packed[at : at + FRAME_BYTES_MAX] for at in range(0, len(packed), FRAME_BYTES_MAX)] or [b""]
    return b"".join(
        encode_frame(
            CONTINUATION if at else HEADERS,
            (0 if at else flags) | (END_HEADERS if at == len(pieces) - 1 else 0),
            stream,
            piece,
        )
        for at, piece in enumerate(pieces)
    )


def encode_message(data: bytes, flag: int = 0) -> bytes:
    """Return a gRPC message: its flag, its length, its bytes."""
    return bytes([flag]) + len(data).to_bytes(4) + data


def encode_data(body: bytes, stream: int = 1) -> bytes:
    """Return the DATA of a whole request body."""
    pieces = [body[at : at + FRAME_BYTES_MAX] for at in range(0, len(body), FRAME_BYTES_MAX)] or [b""]
    last = len(pieces) - 1
    return b"".join(
        encode_frame(DATA, END_STREAM if at == last else 0, stream, piece) for at, piece in enumerate(pieces)
    )


def encode_call(body: bytes, *more: tuple[bytes, bytes], path: bytes = PATH, stream: int = 1) -> bytes:
    """Return the frames of one call; `body` is what its DATA carries."""
    return encode_headers(encode_block(build_fields(*more, path=path)), stream) + encode_data(body, stream)


def encode_connection(request: CreateChatCompletionRequest, *more: tuple[bytes, bytes], path: bytes = PATH) -> bytes:
    """Return the bytes of a whole connection with one unary call."""
    return OPENING + encode_call(encode_message(request.SerializeToString()), *more, path=path)


async def exchange_bytes(address: str, request: bytes, timeout_s: float = 30, last_stream: int | None = None) -> bytes:
    """Send these bytes, and return what the server answers up to the end of a stream, or of the connection.

    The answer to a PING is an end, too: the server has then processed all that was sent before it. With `last_stream`,
    nothing but the end of that stream, or of the connection, is one.
    """
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    answer = b""
    try:
        async with asyncio.timeout(timeout_s):
            writer.write(request)
            is_done = False
            while not is_done:
                answer += (frame := await read_frame(reader))
                is_done = is_last(frame) and last_stream in {None, int.from_bytes(frame[5:9])}
    except (ConnectionError, asyncio.IncompleteReadError):
        pass  # the server closed the connection, which is an answer too
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return answer


@contextlib.asynccontextmanager
async def hold_stalled_watch(address: str) -> AsyncIterator[None]:
    """Hold a Health.Watch of the server whose caller takes none of its messages, from the head of the answer on."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(encode_opening(initial_window=0) + encode_call(encode_message(b""), path=WATCH))
        async with asyncio.timeout(30):
            while (await read_frame(reader))[3] != HEADERS:
                pass
        yield
    finally:
        writer.close()


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """Return the next frame, with its head. Raises IncompleteReadError if the connection ends before."""
    head = await reader.readexactly(9)
    return head + await reader.readexactly(int.from_bytes(head[:3]))


def is_last(head: bytes) -> bool:
    """Return whether a frame that begins so ends a stream or a connection, or answers a PING."""
    kind, flags = head[3:5]
    ended = kind in {HEADERS, DATA} and flags & END_STREAM
    return bool(ended) or kind in {RST_STREAM, GOAWAY} or (kind, flags) == (PING, ACK)


def parse_grpc_status(answer: bytes) -> int | None:
    """Return the status of a connection's first call; grpc's core writes it as a plain literal."""
    found = re.search(rb"grpc-status[\x01\x02](\d+)", answer)
    return int(found[1]) if found else None


def parse_trailers(answer: bytes, stream: int = 1) -> dict[bytes, bytes]:
    """Return the last headers of a stream: binary ones decoded, those that a stock client keeps to itself too."""
    decoder, found = hpack.Decoder(), []
    for frame in split_frames(answer):
        if frame.kind == HEADERS:  # of any stream, since all change the decoder's table
            fields = decoder.decode(frame.payload, raw=True)
            found += [fields] if frame.stream == stream else []
    return {name: decode_binary(value) if name.endswith(b"-bin") else value for name, value in found[-1]}


def decode_binary(value: bytes) -> bytes:
    """Return the value of a `-bin` header: base64, or the bytes behind a NUL if the peer allows that."""
    return value[1:] if value.startswith(b"\0") else base64.b64decode(value + b"=" * (-len(value) % 4))


def find_goaway(answer: bytes) -> int | None:
    """Return the code of the last GOAWAY among the frames of a connection, None if there is none."""
    return _find_code(answer, GOAWAY, 4)


def find_reset(answer: bytes) -> int | None:
    """Return the code of the last RST_STREAM among the frames of a connection, None if there is none."""
    return _find_code(answer, RST_STREAM, 0)


def _find_code(answer: bytes, kind: int, place: int) -> int | None:
    codes = [frame.payload[place : place + 4] for frame in split_frames(answer) if frame.kind == kind]
    return int.from_bytes(codes[-1]) if codes else None


# Frames that were recorded


class Frame(NamedTuple):
    """A frame by RFC 9113, 4.1, without the reserved bit."""

    kind: int
    flags: int
    stream: int
    payload: bytes


def split_frames(data: bytes) -> Iterator[Frame]:
    """Yield the frames that are whole; one that is cut at the end is left out."""
    at = 0
    while (begin := at + 9) <= len(data):
        at = begin + int.from_bytes(data[begin - 9 : begin - 6])
        if at <= len(data):
            stream = int.from_bytes(data[begin - 4 : begin]) & 0x7FFFFFFF
            yield Frame(data[begin - 6], data[begin - 5], stream, data[begin:at])


def split_messages(data: bytes, *, preface: bool) -> list[list[bytes]]:
    """Return the messages of each stream, by its DATA frames; bytes that do not parse end the reading.

    The bytes of a DATA frame that was cut count: gRPC reads a message as soon as its bytes are there.
    """
    at = data.find(b"SM\r\n\r\n") + 6 if preface else 0
    bodies: dict[int, bytearray] = defaultdict(bytearray)
    while at + 9 <= len(data):
        size, kind, flags = int.from_bytes(data[at : at + 3]), data[at + 3], data[at + 4]
        stream = int.from_bytes(data[at + 5 : at + 9]) & 0x7FFFFFFF
        payload = data[at + 9 : at + 9 + size]
        if len(payload) < size and kind != DATA:
            break
        if kind == DATA:
            bodies[stream] += payload[1 : len(payload) - payload[0]] if flags & PADDED and payload else payload
        at += 9 + size
    return [_cut_messages(bytes(body)) for body in bodies.values()]


def _cut_messages(body: bytes) -> list[bytes]:
    messages, at = [], 0
    while at + 5 <= len(body):
        size = int.from_bytes(body[at + 1 : at + 5])
        if body[at] != 0 or at + 5 + size > len(body):
            break
        messages.append(body[at + 5 : at + 5 + size])
        at += 5 + size
    return messages


def parse_streams(kind: Any, streams: Sequence[Sequence[bytes]]) -> list[list[Any]]:
    """Return the messages decoded, without the streams that have a broken one."""
    found = []
    for messages in streams:
        try:
            found.append([kind.FromString(each) for each in messages])
        except Exception:  # noqa: BLE001 - protobuf's own, of either implementation
            continue
    return found
