"""Calls in raw HTTP/2, by hand: what no stock client sends (RFC 9113; RFC 7541, 6.2.2 for the literal headers)."""

import asyncio
import contextlib
import re
from collections.abc import Iterable

from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
ACK, END_STREAM, END_HEADERS, PADDED, PRIORITISED = 1, 1, 4, 8, 32
SERVICE = b"/ollmbridge.v1.ChatCompletionService/"
PATH = SERVICE + b"CreateChatCompletion"
FRAME_BYTES_MAX = 16_384


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


OPENING = PREFACE + frame(SETTINGS, 0, 0)


def integer(value: int, prefix: int = 7, first: int = 0) -> bytes:
    """Give an integer as RFC 7541, 5.1 has it, such as a string's length without Huffman coding."""
    full = 2**prefix - 1
    if value < full:
        return bytes([first | value])
    out, value = bytearray([first | full]), value - full
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


def literal(name: bytes, value: bytes, first: int = 0) -> bytes:
    """Give a header. `first` is 0x00: not indexed, 0x10: never indexed, 0x40: kept in the table."""
    return bytes([first]) + integer(len(name)) + name + integer(len(value)) + value


def fields(*headers: tuple[bytes, bytes], path: bytes = PATH) -> list[tuple[bytes, bytes]]:
    """Give a good call's header list, and these after it."""
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"bridge"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        *headers,
    ]


def block(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join(literal(*header) for header in headers)


def headers(packed: bytes, stream: int = 1, flags: int = 0) -> bytes:
    """Give a header block's HEADERS and as many CONTINUATIONs as it takes."""
    pieces = [packed[at : at + FRAME_BYTES_MAX] for at in range(0, len(packed), FRAME_BYTES_MAX)] or [b""]
    return b"".join(
        frame(
            CONTINUATION if at else HEADERS,
            (0 if at else flags) | (END_HEADERS if at == len(pieces) - 1 else 0),
            stream,
            piece,
        )
        for at, piece in enumerate(pieces)
    )


def message(data: bytes, flag: int = 0) -> bytes:
    """Give a gRPC message: its flag, its length, itself."""
    return bytes([flag]) + len(data).to_bytes(4) + data


def data(body: bytes, stream: int = 1) -> bytes:
    """Give the DATA of a whole request body."""
    pieces = [body[at : at + FRAME_BYTES_MAX] for at in range(0, len(body), FRAME_BYTES_MAX)] or [b""]
    last = len(pieces) - 1
    return b"".join(frame(DATA, END_STREAM if at == last else 0, stream, piece) for at, piece in enumerate(pieces))


def call(body: bytes, *more: tuple[bytes, bytes], path: bytes = PATH, stream: int = 1) -> bytes:
    """Give the frames of one call; `body` is that of its DATA."""
    return headers(block(fields(*more, path=path)), stream) + data(body, stream)


def connection(request: CreateChatCompletionRequest, *more: tuple[bytes, bytes], path: bytes = PATH) -> bytes:
    """Give the bytes of a whole connection with one unary call."""
    return OPENING + call(message(request.SerializeToString()), *more, path=path)


async def heard(address: str, said: bytes, wait_s: float = 5) -> bytes:
    """Say these bytes, and give what the server answers up to the end of a stream, or of the connection.

    That end may be the answer to a PING, too: the server has then worked through all that was said before it.
    """
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    answer = b""
    try:
        async with asyncio.timeout(wait_s):
            writer.write(said)
            while head := await reader.read(9):
                head += await reader.readexactly(9 - len(head))
                answer += head + await reader.readexactly(int.from_bytes(head[:3]))
                if is_last(head):
                    break
    except (ConnectionError, asyncio.IncompleteReadError):
        pass  # cut off, which is an answer too
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return answer


def is_last(head: bytes) -> bool:
    """Whether a frame of this head ends a stream or a connection, or answers a PING."""
    kind, flags = head[3:5]
    ended = kind in {HEADERS, DATA} and flags & END_STREAM
    return bool(ended) or kind in {RST_STREAM, GOAWAY} or (kind, flags) == (PING, ACK)


def grpc_status(answer: bytes) -> int | None:
    """Give the status that a connection's first call ended in; grpc's core writes it as a plain literal."""
    found = re.search(rb"grpc-status[\x01\x02](\d+)", answer)
    return int(found[1]) if found else None
