"""Connections in raw HTTP/2 that begin as good ones and go wrong, by a seed.

A conversation has a valid preface, settings and calls; then some of its frames are changed, left out, sent twice or in
another order, and frames that should not be are put between (RFC 9113; RFC 7541 for the header blocks).
"""

from collections.abc import Callable
from random import Random

from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest
from tests.e2e import frames
from tests.e2e.frames import (
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

__all__ = ["conversation"]

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


def conversation(chance: Random) -> bytes:
    """Give the bytes of one connection, which may stop anywhere."""
    said = [each for number in range(chance.randint(1, CALLS_MAX)) for each in call(chance, 2 * number + 1)]
    for _ in range(chance.randint(1, FRAMES_MAX)):
        at = chance.randrange(len(said) + 1)
        match chance.randrange(8):
            case 0 | 1 if at < len(said):
                said[at] = changed(said[at], chance)
            case 2 if at < len(said):
                del said[at]
            case 3 if at < len(said):
                said.insert(at, said[at])
            case 4:
                chance.shuffle(said)
            case _:
                said.insert(at, chance.choice(STRAY)(chance))
    whole = frames.OPENING + b"".join(said)
    return whole[: chance.randrange(len(whole))] if chance.random() < 0.1 else whole


def call(chance: Random, stream: int) -> list[bytes]:
    """Give the frames of a call that is good but for, at times, a header or its message."""
    request = CreateChatCompletionRequest(model=chance.choice(MODELS))
    request.messages.add(role="user", text="hello " * chance.choice((1, 1, 1, 1000)))
    body = request.SerializeToString()
    odd = chance.random()
    message = frames.encode_message(body)
    if odd < 0.05:
        message = frames.encode_message(body, flag=1)  # compressed, it says
    elif odd < 0.1:
        message = b"\0" + chance.choice((0, 1, 2**24, 2**32 - 1)).to_bytes(4) + body  # of another length than it says
    elif odd < 0.15:
        message = frames.encode_message(chance.randbytes(len(body)))
    elif odd < 0.2:
        message = message * 3
    more = [(chance.choice(NAMES), chance.choice(VALUES)) for _ in range(chance.choice((0, 0, 0, 1, 3)))]
    path = chance.choice(PATHS) if chance.random() < 0.2 else chance.choice(PATHS[:2])
    fields = frames.build_fields(*more, path=path)
    if chance.random() < 0.1:
        chance.shuffle(fields)
    if chance.random() < 0.1:
        del fields[chance.randrange(len(fields))]
    block = frames.encode_block(fields)
    if chance.random() < 0.05:
        block = chance.choice(PREFIXES) + block
    cut = chance.randrange(len(block)) if chance.random() < 0.2 else len(block)
    head = [encode_frame(HEADERS, END_HEADERS if cut == len(block) else 0, stream, block[:cut])]
    if cut < len(block):
        head.append(encode_frame(CONTINUATION, END_HEADERS, stream, block[cut:]))
    pieces = [message[at : at + 1000] for at in range(0, len(message), 1000)]
    return [*head, *(encode_frame(DATA, 0, stream, piece) for piece in pieces), encode_frame(DATA, END_STREAM, stream)]


def changed(whole: bytes, chance: Random) -> bytes:
    """Give a frame of which one thing is another; what is too short for one stays."""
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
            return chance.randrange(2**24).to_bytes(3) + whole[3:]  # longer or shorter than it says
        case 4:
            return encode_frame(kind, flags, stream, payload[: chance.randrange(len(payload) + 1)])
        case 5:
            return encode_frame(kind, flags | PADDED, stream, bytes([chance.randrange(256)]) + payload)
        case _:
            flipped = bytearray(payload or b"\0")
            flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
            return encode_frame(kind, flags, stream, bytes(flipped))


def _settings(chance: Random) -> bytes:
    entries = [
        (chance.choice((1, 2, 3, 4, 5, 6, 0xFE03, 99)), chance.choice(SETTINGS_VALUES))
        for _ in range(chance.randint(0, 4))
    ]
    return encode_frame(
        frames.SETTINGS, chance.choice((0, 0, 1)), 0, b"".join(k.to_bytes(2) + v.to_bytes(4) for k, v in entries)
    )


def _window(chance: Random) -> bytes:
    return encode_frame(
        frames.WINDOW_UPDATE, 0, chance.choice(STREAMS), chance.choice((0, 1, 2**31 - 1, 2**32 - 1)).to_bytes(4)
    )


def _reset(chance: Random) -> bytes:
    return encode_frame(frames.RST_STREAM, 0, chance.choice(STREAMS), chance.choice((0, 7, 8, 2**32 - 1)).to_bytes(4))


def _ping(chance: Random) -> bytes:
    return encode_frame(PING, chance.choice((0, 0, 1)), 0, bytes(chance.choice((8, 8, 7, 0)))) * chance.choice(
        (1, 1, 100)
    )


def _continuation(chance: Random) -> bytes:
    return encode_frame(
        CONTINUATION, chance.choice((0, END_HEADERS)), chance.choice(STREAMS), chance.choice((b"", *PREFIXES))
    ) * chance.choice((1, 50))


def _priority(chance: Random) -> bytes:
    stream = chance.choice(STREAMS)
    return encode_frame(frames.PRIORITY, 0, stream, stream.to_bytes(4) + b"\xff")  # it depends on itself


def _other(chance: Random) -> bytes:
    kind = chance.choice((frames.PUSH_PROMISE, frames.GOAWAY, *range(10, 256)))
    return encode_frame(
        kind, chance.randrange(256), chance.choice(STREAMS), chance.randbytes(chance.choice((0, 8, 100, 16_384)))
    )


def _noise(chance: Random) -> bytes:
    return chance.randbytes(chance.choice((1, 9, 100, 5000)))


STRAY: tuple[Callable[[Random], bytes], ...] = (
    _settings,
    _window,
    _reset,
    _ping,
    _continuation,
    _priority,
    _other,
    _noise,
)
