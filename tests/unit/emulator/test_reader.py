"""Tests of bridge/emulator/reader.py: bytes in, requests or refusals out; no socket."""

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.emulator.reader import BODY_BYTES_MAX, HEAD_BYTES_MAX, Request, RequestReader
from bridge.emulator.steps import RefusalError

HOST = b"Host: x\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"


def create_reader(*pieces: bytes) -> RequestReader:
    reader = RequestReader(lambda: None)
    for piece in pieces:
        reader.feed(piece)
    return reader


async def read(*pieces: bytes) -> Request:
    async with asyncio.timeout(30):
        return await create_reader(*pieces).read()


async def test_request_has_its_line_headers_and_body():
    data = b"PUT /a?b HTTP/1.1\r\nHost: x\r\nX-One: a\r\nX-ONE:  \xe9 \r\nContent-Length: 3\r\n\r\nabc"
    exchange, keep_alive = await read(data)
    assert (exchange.method, exchange.path, exchange.body, keep_alive) == ("PUT", "/a?b", b"abc", True)
    assert exchange.headers == {"host": "x", "x-one": "a, é", "content-length": "3"}
    assert (exchange.status, exchange.finished, exchange.closed_at) == (None, False, None)


CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
REQUESTS = (
    POST
    + b"Content-Length: 2\r\n\r\nab"
    + POST
    + CHUNKED
    + b"1;a=b\r\nc\r\n2\r\nde\r\n0\r\nTrailer: x\r\n\r\n"
    + POST
    + b"\r\n"
)


@given(st.lists(st.integers(0, len(REQUESTS)), max_size=20))
def test_requests_are_the_same_however_their_bytes_are_cut(cuts):
    edges = sorted({0, len(REQUESTS), *cuts})
    pieces = [REQUESTS[start:end] for start, end in itertools.pairwise(edges)]

    async def read_bodies() -> list[bytes]:
        reader = create_reader(*pieces)
        bodies = [(await reader.read()).exchange.body for _ in range(3)]
        assert reader.unread_bytes == 0
        return bodies

    assert asyncio.run(read_bodies()) == [b"ab", b"cde", b""]


async def test_request_is_awaited_until_it_is_whole():
    reader = create_reader(POST)
    reading = asyncio.create_task(reader.read())
    for byte in b"Content-Length: 2\r\n\r\na":
        reader.feed(bytes([byte]))
        await asyncio.sleep(0)
    assert not reading.done()
    reader.feed(b"b")
    assert (await reading).exchange.body == b"ab"


@pytest.mark.parametrize(
    ("version", "header", "keep_alive"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"Connection: Close\r\n", False),
        (b"1.1", b"Connection: x, close\r\n", False),
        (b"1.0", b"", False),
        (b"1.0", b"Connection: keep-alive\r\n", True),
    ],
)
async def test_connection_is_kept_as_version_and_header_say(version, header, keep_alive):
    assert (await read(b"GET / HTTP/" + version + b"\r\n" + HOST + header + b"\r\n")).keep_alive is keep_alive


EXPECTING = POST + b"Expect: 100-continue\r\n" + CHUNKED


async def test_continue_is_sent_once_if_the_body_is_still_to_come():
    calls = []
    reader = RequestReader(lambda: calls.append(True))
    reader.feed(EXPECTING)
    reading = asyncio.create_task(reader.read())
    for byte in b"1\r\na\r\n0\r\n\r\n":
        await asyncio.sleep(0)
        assert calls == [True]
        reader.feed(bytes([byte]))
    assert (await reading).exchange.body == b"a"


async def test_continue_is_not_sent_if_the_body_is_there():
    calls = []
    reader = RequestReader(lambda: calls.append(True))
    reader.feed(EXPECTING + b"1\r\na\r\n0\r\n\r\n")
    assert (await reader.read()).exchange.body == b"a"
    assert calls == []


BAD_REQUESTS = {
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "no colon": (POST + b"no colon\r\n\r\n", 400),
    "NUL in a header": (POST + b"A: b\x00c\r\n\r\n", 400),
    "negative length": (POST + b"Content-Length: -1\r\n\r\n", 400),
    "two lengths": (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    "two framings": (POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    "another coding": (POST + b"Transfer-Encoding: gzip\r\n\r\n", 501),
    "chunk of no size": (POST + CHUNKED + b"xyz\r\n", 400),
    "chunk longer than its size": (POST + CHUNKED + b"1\r\nabc\r\n", 400),
    "length above the limit": (POST + b"Content-Length: %d\r\n\r\n" % (BODY_BYTES_MAX + 1), 413),
    "chunk above the limit": (POST + CHUNKED + b"FFFFFFF0\r\n" + bytes(BODY_BYTES_MAX + 1), 413),
    "compressed": (POST + b"Content-Length: 1\r\nContent-Encoding: gzip\r\n\r\n", 415),
    "long header": (POST + b"A: " + b"x" * HEAD_BYTES_MAX + b"\r\n\r\n", 431),
    "endless line": (b"x" * (HEAD_BYTES_MAX + 1), 431),
    "long trailer": (POST + CHUNKED + b"0\r\nA: " + b"x" * HEAD_BYTES_MAX, 431),
}


@pytest.mark.parametrize(("data", "status"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
async def test_bad_request_is_refused(data, status):
    with pytest.raises(RefusalError) as caught:
        await read(data)
    assert caught.value.status == status


async def test_refusal_does_not_repeat_what_the_peer_sent():
    with pytest.raises(RefusalError) as caught:
        await read(POST + b"Authorization sk-ollm-secret\r\n\r\n")
    assert "secret" not in str(caught.value)
