"""What each engine makes of an odd answer: a table of bytes and how the connection ends, with what must come of it.

The same bytes mean the same however they are cut. Where the engines differ, `httpx` has the other outcome; each such
row is one of the table in engines.py.
"""

import gzip
import random
from dataclasses import dataclass

import pytest

from bridge.upstream.exchange import ConnectionLostError, InvalidAnswerError
from tests.kit.upstreams import CHUNKED, answer_with, cut, start_server
from tests.unit.upstream.engines import Outcome, exchange, open_engine


@dataclass(frozen=True)
class Row:
    data: bytes
    then: str
    native: Outcome
    httpx: Outcome | None = None

    def outcome(self, kind: str) -> Outcome:
        return self.httpx or self.native if kind == "httpx" else self.native


def good(body: bytes = b"{}", status: int = 200) -> Outcome:
    return Outcome(status, body)


def lost(body: bytes = b"", status: int | None = 200) -> Outcome:
    return Outcome(status, body, ConnectionLostError)


def invalid(body: bytes = b"", status: int | None = None) -> Outcome:
    return Outcome(status, body, InvalidAnswerError)


HELLO = b"5\r\nhello\r\n"
END = b"0\r\n\r\n"
ZIPPED = gzip.compress(b"x" * 1000, mtime=0)


def with_fields(*lines: bytes, body: bytes = b"{}") -> bytes:
    return b"HTTP/1.1 200 OK\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


LENGTH = b"content-length: 2"

ROWS = {
    "chunked, FIN after a chunk": Row(CHUNKED + HELLO, "close", lost(b"hello")),
    "chunked, FIN inside a chunk": Row(CHUNKED + b"5\r\nhel", "close", lost(b"hel")),
    "chunked, FIN after the last size": Row(CHUNKED + HELLO + b"0\r\n", "close", lost(b"hello")),
    "chunked, FIN inside a size": Row(CHUNKED + HELLO + b"5", "close", lost(b"hello")),
    "chunked, RST": Row(CHUNKED + HELLO, "reset", lost(b"hello")),
    "content-length 10, 5 come, FIN": Row(with_fields(b"content-length: 10", body=b"hello"), "close", lost(b"hello")),
    "content-length 10, 5 come, RST": Row(with_fields(b"content-length: 10", body=b"hello"), "reset", lost(b"hello")),
    "FIN inside the head": Row(b"HTTP/1.1 200 OK\r\ncontent-le", "close", lost(status=None)),
    "FIN, no byte": Row(b"", "close", lost(status=None)),
    "RST, no byte": Row(b"", "reset", lost(status=None)),
    "no framing, FIN": Row(with_fields(body=b"hello"), "close", good(b"hello")),
    "no framing, RST": Row(with_fields(body=b"hello"), "reset", lost(b"hello")),
    "lone LF: head": Row(b"HTTP/1.1 200 OK\ncontent-length: 2\n\n{}", "open", invalid(), good()),
    "lone LF: one field": Row(b"HTTP/1.1 200 OK\r\nx: 1\ncontent-length: 2\r\n\r\n{}", "open", invalid(), good()),
    "lone LF: chunk size": Row(CHUNKED + b"5\nhello\r\n" + END, "open", invalid(status=200)),
    "lone LF: after a chunk": Row(CHUNKED + b"5\r\nhello\n" + END, "open", invalid(b"hello", 200)),
    "lone CR in a value": Row(with_fields(b"x: a\rb", LENGTH), "open", invalid()),
    "NUL in a value": Row(with_fields(b"x: a\0b", LENGTH), "open", invalid()),
    "obs-fold": Row(with_fields(b"x: a\r\n b", LENGTH), "open", invalid(), good()),
    "space before colon": Row(with_fields(b"x : a", LENGTH), "open", invalid()),
    "no colon": Row(with_fields(b"xa", LENGTH), "open", invalid()),
    "both CL and TE": Row(
        with_fields(LENGTH, b"transfer-encoding: chunked", body=HELLO + END), "open", invalid(), good(b"hello")
    ),
    "two CL, different": Row(with_fields(LENGTH, b"content-length: 3", body=b"{}\n"), "open", invalid()),
    "two CL, same": Row(with_fields(LENGTH, LENGTH), "open", invalid(), good()),
    "CL: 2, 2": Row(with_fields(b"content-length: 2, 2"), "open", invalid(), good()),
    "CL: +2": Row(with_fields(b"content-length: +2"), "open", invalid()),
    "CL: -2": Row(with_fields(b"content-length: -2"), "open", invalid()),
    "CL: 2^64+2": Row(with_fields(b"content-length: 18446744073709551618"), "close", invalid(), lost(b"{}")),
    "chunk size 0x5": Row(CHUNKED + b"0x5\r\nhello\r\n" + END, "open", invalid(status=200)),
    "chunk size +5": Row(CHUNKED + b"+5\r\nhello\r\n" + END, "open", invalid(status=200)),
    "chunk size -5": Row(CHUNKED + b"-5\r\nhello\r\n" + END, "open", invalid(status=200)),
    "chunk size 2^64+5": Row(
        CHUNKED + b"10000000000000005\r\nhello\r\n" + END, "close", invalid(status=200), lost(HELLO[3:] + END)
    ),
    "chunk longer than its size": Row(CHUNKED + b"5\r\nhelloXX" + END, "open", invalid(b"hello", 200)),
    "chunk extension": Row(CHUNKED + b"5;a=b\r\nhello\r\n" + END, "open", good(b"hello")),
    "chunk extension of 1 MB": Row(
        CHUNKED + b"5;a=" + b"x" * 1_000_000 + b"\r\nhello\r\n" + END, "open", invalid(status=200)
    ),
    "TE: gzip, chunked": Row(with_fields(b"transfer-encoding: gzip, chunked", body=HELLO + END), "open", invalid()),
    "TE: identity": Row(with_fields(b"transfer-encoding: identity", body=b"hello"), "close", invalid()),
    "header of 100 kB": Row(with_fields(b"x: " + b"a" * 100_000, LENGTH), "open", invalid(), good()),
    "header of 1 MB": Row(with_fields(b"x: " + b"a" * 1_000_000, LENGTH), "open", invalid()),
    "1,000 headers": Row(with_fields(*[b"x: a"] * 1000, LENGTH), "open", invalid(), good()),
    "trailers": Row(CHUNKED + HELLO + b"0\r\nx-a: 1\r\n\r\n", "open", good(b"hello")),
    "trailers of 1 MB": Row(
        CHUNKED + HELLO + b"0\r\nx-a: " + b"a" * 1_000_000 + b"\r\n\r\n", "open", invalid(b"hello", 200)
    ),
    "10,000 trailers": Row(
        CHUNKED + HELLO + b"0\r\n" + b"x-a: a\r\n" * 10_000 + b"\r\n", "open", invalid(b"hello", 200), good(b"hello")
    ),
    "100, then 200": Row(b"HTTP/1.1 100 Continue\r\n\r\n" + with_fields(LENGTH), "open", good()),
    "103, then 200": Row(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + with_fields(LENGTH), "open", good()),
    "1,000 x 103": Row(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000 + with_fields(LENGTH), "open", invalid(), good()),
    "101, unasked": Row(
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nhello", "open", invalid()
    ),
    "HTTP/0.9": Row(b"hello\r\n", "close", invalid(), lost(status=None)),
    "HTTP/2 settings": Row(b"\0\0\x12\4\0\0\0\0\0\0\3\0\0\0\x80\0\4\0\1\0\0\0\5\0\xff\xff\xff", "close", invalid()),
    "HTTP/3.0": Row(b"HTTP/3.0 200 OK\r\ncontent-length: 2\r\n\r\n{}", "open", invalid(), good()),
    "status of two digits": Row(b"HTTP/1.1 20 OK\r\ncontent-length: 2\r\n\r\n{}", "open", invalid()),
    "status of four digits": Row(b"HTTP/1.1 2000 OK\r\ncontent-length: 2\r\n\r\n{}", "open", invalid()),
    "status 099": Row(b"HTTP/1.1 099 OK\r\ncontent-length: 2\r\n\r\n{}", "open", invalid()),
    "204 with a content-length": Row(b"HTTP/1.1 204 No Content\r\ncontent-length: 2\r\n\r\n{}", "open", good(b"", 204)),
    "304 with a content-length": Row(b"HTTP/1.1 304 Not Modified\r\ncontent-length: 2\r\n\r\n", "open", good(b"", 304)),
    "no reason phrase": Row(b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\n{}", "open", good()),
    "gzip stays as it is": Row(
        with_fields(b"content-encoding: gzip", b"content-length: %d" % len(ZIPPED), body=ZIPPED), "open", good(ZIPPED)
    ),
    "HTTP/1.0": Row(b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}", "open", good()),
    "HTTP/1.0 without framing": Row(b"HTTP/1.0 200 OK\r\n\r\nhello", "close", good(b"hello")),
    "bytes behind a content-length": Row(with_fields(LENGTH, body=b"{}GARBAGE"), "open", good()),
    "bytes behind the last chunk": Row(CHUNKED + HELLO + END + b"extra", "open", good(b"hello")),
    "an answer behind the answer": Row(with_fields(LENGTH) + with_fields(LENGTH, body=b"[]"), "open", good()),
    "no JSON, no HTTP, in a chunk's place": Row(
        CHUNKED + HELLO + b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "close", invalid(b"hello", 200)
    ),
    "empty body": Row(with_fields(b"content-length: 0", body=b""), "open", good(b"")),
}
SMALL = {name: row for name, row in ROWS.items() if len(row.data) < 2000}
"""Those that can be cut at each byte in little time."""


@pytest.mark.parametrize("name", ROWS)
async def test_odd_answer_has_one_outcome(engine_kind, name):
    row = ROWS[name]
    async with start_server(answer_with(row.data, then=row.then)) as server, open_engine(engine_kind, server.url) as e:
        assert await exchange(e) == row.outcome(engine_kind)
    assert len(server.requests) == 1


@pytest.mark.parametrize("name", SMALL)
async def test_odd_answer_has_the_same_outcome_in_any_cut(engine_kind, name):
    row = SMALL[name]
    chance = random.Random(name)
    cuts = [[1] * len(row.data), *([chance.randint(1, 20) for _ in row.data] for _ in range(3))]
    for sizes in cuts:
        serve = answer_with(*cut(row.data, sizes), then=row.then)
        async with start_server(serve) as server, open_engine(engine_kind, server.url) as engine:
            assert await exchange(engine) == row.outcome(engine_kind)
