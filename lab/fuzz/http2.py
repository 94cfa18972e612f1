"""Connections in raw HTTP/2 that start as good ones and go wrong, by a seed.

A conversation has a valid preface, settings and calls; then some of its frames are changed, left out, sent twice or in
another order, and illegal frames are inserted (RFC 9113; RFC 7541 for the header blocks).
"""

from collections.abc import Callable
from random import Random

from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest
from tests.kit import http2
from tests.kit.http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    PATH,
    PING,
    SERVICE,
    encode_frame,
)

__all__ = ["build_conversation"]

FRAME_HEAD_BYTES = 9
CALLS_MAX = 4
FRAMES_MAX = 8
MODELS = ("echo", "scenario::many?chunks=20&bytes=100", "scenario::error?status=500", "scenario::cut", "")
PATHS = (PATH, SERVICE + b"StreamChatCompletion", SERVICE + b"Nothing", b"/", b"", b"\xff\xfe", b"*", b"/a" * 2000)
NAMES = (
    b"x",
    b"X-Upper",
    b"",
    b"a b",
    b"te",
    b":status",
    b":path",
    b"connection",
    b"grpc-timeout",
    b"x-request-id",
    b"x-bin",
)
NAMES += (
    b"content-length",
    b"grpc-encoding",
    b"authorization",
    b"\x00",
    b"transfer-encoding",
    b"grpc-message-type",
    b"user-agent",
)
VALUES = (
    b"",
    b"1",
    b"a\r\nb",
    b"\x00",
    b"\xff\xfe",
    b"99999999S",
    b"1n",
    b"-1S",
    b"gzip",
    b"trailers",
    b"a" * 9000,
    b"AAAA=",
    b"0",
)
SETTINGS_VALUES = (0, 1, 2, 100, 16_383, 16_384, 2**24 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
STREAMS = (0, 1, 2, 3, 5, 7, 101, 2**31 - 1, 2**32 - 1)
PREFIXES = (
    b"\xff\xff\xff\xff\xff\x7f",
    b"\x80",
    b"\xbf\xff",
    b"\x3f\xff\xff\xff\x0f",
    b"\x00\xff\xff\x7f",
    b"\x40\x85\xff\xff\xff\xff\xff",
)
"""Of header blocks: integers without end, index 0 or of no entry, a table or a name too large, bad Huffman codes."""


def build_conversation(chance: Random) -> bytes:
    """Return the bytes of one connection, which may stop anywhere."""
    pieces = [each for number in range(chance.randint(1, CALLS_MAX)) for each in build_call(chance, 2 * number + 1)]
    for _ in range(chance.randint(1, FRAMES_MAX)):
        at = chance.randrange(len(pieces) + 1)
        match chance.randrange(8):
            case 0 | 1 if at < len(pieces):
                pieces[at] = change(pieces[at], chance)
            case 2 if at < len(pieces):
                del pieces[at]
            case 3 if at < len(pieces):
                pieces.insert(at, pieces[at])
            case 4:
                chance.shuffle(pieces)
            case _:
                pieces.insert(at, chance.choice(STRAY)(chance))
    whole = http2.OPENING + b"".join(pieces)
    return whole[: chance.randrange(len(whole))] if chance.random() < 0.1 else whole


def build_call(chance: Random, stream: int) -> list[bytes]:
    """Return the frames of a call that is good except, at times, for a header or its message."""
    request = CreateChatCompletionRequest(model=chance.choice(MODELS))
    request.messages.add(role="user", text="hello " * chance.choice((1, 1, 1, 1000)))
    body = request.SerializeToString()
    odd = chance.random()
    message = http2.encode_message(body)
    if odd < 0.05:
        message = http2.encode_message(body, flag=1)  # claims to be compressed
    elif odd < 0.1:
        message = b"\0" + chance.choice((0, 1, 2**24, 2**32 - 1)).to_bytes(4) + body  # claims another length
    elif odd < 0.15:
        message = http2.encode_message(chance.randbytes(len(body)))
    elif odd < 0.2:
        message = message * 3
    more = [(chance.choice(NAMES), chance.choice(VALUES)) for _ in range(chance.choice((0, 0, 0, 1, 3)))]
    path = chance.choice(PATHS) if chance.random() < 0.2 else chance.choice(PATHS[:2])
    fields = http2.build_fields(*more, path=path)
    if chance.random() < 0.1:
        chance.shuffle(fields)
    if chance.random() < 0.1:
        del fields[chance.randrange(len(fields))]
    block = http2.encode_block(fields)
    if chance.random() < 0.05:
        block = chance.choice(PREFIXES) + block
    cut = chance.randrange(len(block)) if chance.random() < 0.2 else len(block)
    head = [encode_frame(HEADERS, END_HEADERS if cut == len(block) else 0, stream, block[:cut])]
    if cut < len(block):
        head.append(encode_frame(CONTINUATION, END_HEADERS, stream, block[cut:]))
    pieces = [message[at : at + 1000] for at in range(0, len(message), 1000)]
    return [*head, *(encode_frame(DATA, 0, stream, piece) for piece in pieces), encode_frame(DATA, END_STREAM, stream)]


def change(whole: bytes, chance: Random) -> bytes:
    """Return a frame with one change; bytes too short for a frame stay."""
    if len(whole) < FRAME_HEAD_BYTES:
        return whole
    kind, flags, stream, payload = whole[3], whole[4], int.from_bytes(whole[5:9]), whole[9:]
    match chance.randrange(7):
        case 0:
            return encode_frame(chance.randrange(256), flags, stream, payload)
        case 1:
            return encode_frame(kind, chance.randrange(256), stream, payload)
        case 2:
            return encode_frame(kind, flags, chance.choice(STREAMS), payload)
        case 3:
            return chance.randrange(2**24).to_bytes(3) + whole[3:]  # claims to be longer or shorter
        case 4:
            return encode_frame(kind, flags, stream, payload[: chance.randrange(len(payload) + 1)])
        case 5:
            return encode_frame(kind, flags | PADDED, stream, bytes([chance.randrange(256)]) + payload)
        case _:
            flipped = bytearray(payload or b"\0")
            flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
            return encode_frame(kind, flags, stream, bytes(flipped))


def _build_settings(chance: Random) -> bytes:
    entries = [
        (chance.choice((1, 2, 3, 4, 5, 6, 0xFE03, 99)), chance.choice(SETTINGS_VALUES))
        for _ in range(chance.randint(0, 4))
    ]
    return encode_frame(
        http2.SETTINGS, chance.choice((0, 0, 1)), 0, b"".join(k.to_bytes(2) + v.to_bytes(4) for k, v in entries)
    )


def _build_window(chance: Random) -> bytes:
    return encode_frame(
        http2.WINDOW_UPDATE, 0, chance.choice(STREAMS), chance.choice((0, 1, 2**31 - 1, 2**32 - 1)).to_bytes(4)
    )


def _build_reset(chance: Random) -> bytes:
    return encode_frame(http2.RST_STREAM, 0, chance.choice(STREAMS), chance.choice((0, 7, 8, 2**32 - 1)).to_bytes(4))


def _build_pings(chance: Random) -> bytes:
    ping = encode_frame(PING, chance.choice((0, 0, 1)), 0, bytes(chance.choice((8, 8, 7, 0))))
    return ping * chance.choice((1, 1, 100))


def _build_continuations(chance: Random) -> bytes:
    return encode_frame(
        CONTINUATION, chance.choice((0, END_HEADERS)), chance.choice(STREAMS), chance.choice((b"", *PREFIXES))
    ) * chance.choice((1, 50))


def _build_priority(chance: Random) -> bytes:
    stream = chance.choice(STREAMS)
    return encode_frame(http2.PRIORITY, 0, stream, stream.to_bytes(4) + b"\xff")  # depends on itself


def _build_other(chance: Random) -> bytes:
    kind = chance.choice((http2.PUSH_PROMISE, http2.GOAWAY, *range(10, 256)))
    return encode_frame(
        kind, chance.randrange(256), chance.choice(STREAMS), chance.randbytes(chance.choice((0, 8, 100, 16_384)))
    )


def _build_noise(chance: Random) -> bytes:
    return chance.randbytes(chance.choice((1, 9, 100, 5000)))


STRAY: tuple[Callable[[Random], bytes], ...] = (
    _build_settings,
    _build_window,
    _build_reset,
    _build_pings,
    _build_continuations,
    _build_priority,
    _build_other,
    _build_noise,
)
