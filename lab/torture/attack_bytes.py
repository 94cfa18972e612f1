"""The bytes of the attacks on an HTTP/2 server: one connection each, as tables, and what builds them.

What must come of them says `attacks.py`.
"""

import contextlib
import gzip
import ssl
from typing import NamedTuple

from tests.kit.client import chat, scenario
from tests.kit.http2 import (
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
    UNACKNOWLEDGED,
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
)

__all__ = [
    "BAD_FRAMES",
    "BAD_HEADERS",
    "BAD_MESSAGES",
    "FLOODS",
    "HARMLESS",
    "HEAD_FLOODS",
    "NO_HTTP2",
    "PATHS",
    "PING_AT_THE_END",
    "Flood",
]

MIB = 1024 * 1024
REQUEST = chat().SerializeToString()
MESSAGE = encode_message(REQUEST)
STREAM = SERVICE + b"StreamChatCompletion"
PING_AT_THE_END = encode_frame(PING, 0, 0, b"the last")
"""The server answers it when it has processed all that was sent before."""


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
    "SETTINGS acknowledged with a payload": UNACKNOWLEDGED + encode_frame(SETTINGS, ACK, 0, encode_setting(1, 1)),
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
    "gzip with more behind it": OPENING + encode_call(encode_message(gzip.compress(REQUEST) + b"more", 1), GZIP),
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

PATHS = {
    "path that is not UTF-8": OPENING + encode_call(MESSAGE, path=PATH + b"\xff"),
    "path without any UTF-8": OPENING + encode_call(MESSAGE, path=b"\xff\xfe"),
    **{f"path: {name}": OPENING + encode_call(MESSAGE, path=path) for name, path in ODD_PATHS.items()},
}
"""Of no method: the status says so."""


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


LISTS = encode_message(gzip.compress(REQUEST + b"\x12\x00" * 9990), 1)
"""90 bytes, and some 35 ms of work."""


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
    "lists of 9,990 empty messages, in gzip": Flood(
        OPENING + b"".join(encode_call(LISTS, GZIP, stream=number) for number in range(1, 200, 2)), 4
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


HEAD_FLOODS = {"62 MB by HPACK's references": encode_call_around(ENTRY + REFERENCES)}
