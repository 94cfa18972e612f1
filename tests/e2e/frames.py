"""A call in raw HTTP/2, by hand: what no stock client sends (RFC 9113; RFC 7541, 6.2.2 for the literal headers)."""

import asyncio

from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY, CONTINUATION = 0, 1, 3, 4, 7, 9
END_STREAM, END_HEADERS = 1, 4
PATH = b"/ollmbridge.v1.ChatCompletionService/CreateChatCompletion"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def integer(value: int) -> bytes:
    """Give a string's length, with the 7-bit prefix of RFC 7541, 5.1 and no Huffman coding."""
    if value < 127:
        return bytes([value])
    out, value = bytearray([127]), value - 127
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


def literal(name: bytes, value: bytes) -> bytes:
    return b"\x00" + integer(len(name)) + name + integer(len(value)) + value


def connection(request: CreateChatCompletionRequest, *headers: tuple[bytes, bytes], path: bytes = PATH) -> bytes:
    """Give the bytes of a whole connection with one unary call."""
    fields = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"bridge"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        *headers,
    ]
    block = b"".join(literal(*field) for field in fields)
    pieces = [block[at : at + 16_384] for at in range(0, len(block), 16_384)]
    message = request.SerializeToString()
    return b"".join(
        [
            PREFACE,
            frame(SETTINGS, 0, 0),
            *(
                frame(CONTINUATION if at else HEADERS, END_HEADERS if at == len(pieces) - 1 else 0, 1, piece)
                for at, piece in enumerate(pieces)
            ),
            frame(DATA, END_STREAM, 1, b"\x00" + len(message).to_bytes(4) + message),
        ]
    )


async def heard(address: str, said: bytes) -> bytes:
    """Say these bytes, and give what the server answers up to the end of the stream, or of the connection."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(said)
    answer = b""
    async with asyncio.timeout(5):
        while head := await reader.read(9):
            head += await reader.readexactly(9 - len(head))
            payload = await reader.readexactly(int.from_bytes(head[:3]))
            answer += head + payload
            if head[3] in {RST_STREAM, GOAWAY} or (head[3] == HEADERS and head[4] & END_STREAM):
                break
    writer.close()
    await writer.wait_closed()
    return answer
