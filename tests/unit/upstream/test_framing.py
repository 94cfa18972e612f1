"""Tests of bridge/upstream/framing.py: bytes in, an answer out, the same however they are cut."""

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.upstream.framing import FRAMING_BYTES_MAX
from tests.kit.parsing import cut, parse

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
TWO = OK + b"content-length: 2\r\n\r\n"
VECTORS = sorted((Path(__file__).parents[2] / "vectors").glob("*/*.http"))
CUTS = 10_000
"""Random cuts of the recorded answers, all together."""

WHOLE: dict[str, tuple[bytes, str, bytes, bool]] = {
    # bytes, how the connection goes on, body, whether the connection is reusable
    "a length": (TWO + b"{}", "open", b"{}", True),
    "a length of zero": (OK + b"content-length: 0\r\n\r\n", "open", b"", True),
    "a length with spaces": (OK + b"content-length:  2 \r\n\r\n{}", "open", b"{}", True),
    "a length and an end": (TWO + b"{}", "close", b"{}", True),
    "a length and a reset": (TWO + b"{}", "reset", b"{}", True),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", "open", b"", True),
    "204 with a length": (b"HTTP/1.1 204 No Content\r\ncontent-length: 2\r\n\r\n", "open", b"", True),
    "304 in chunks": (b"HTTP/1.1 304 Not Modified\r\ntransfer-encoding: chunked\r\n\r\n", "open", b"", True),
    "chunks": (CHUNKED + b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", "open", b"hello!", True),
    "chunks of a padded size": (CHUNKED + b"5  \r\nhello\r\n0\r\n\r\n", "open", b"hello", True),
    "chunks of a size with zeros": (CHUNKED + b"0005\r\nhello\r\n000\r\n\r\n", "open", b"hello", True),
    "chunks of an upper-case size": (CHUNKED + b"A\r\n0123456789\r\n0\r\n\r\n", "open", b"0123456789", True),
    "chunk extensions": (CHUNKED + b'5;a=b;c="d e"\r\nhello\r\n0;z\r\n\r\n', "open", b"hello", True),
    "trailers": (CHUNKED + b"5\r\nhello\r\n0\r\nx-a: 1\r\nx-b:\r\n\r\n", "open", b"hello", True),
    "to the end": (OK + b"\r\nhello", "close", b"hello", False),
    "to the end of 1.0": (b"HTTP/1.0 200 OK\r\n\r\nhello", "close", b"hello", False),
    "nothing to the end": (OK + b"\r\n", "close", b"", False),
    "connection: close": (OK + b"Connection: Close\r\ncontent-length: 2\r\n\r\n{}", "open", b"{}", False),
    "connection: close among others": (OK + b"connection: x, close\r\ncontent-length: 0\r\n\r\n", "open", b"", False),
    "1.0": (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}", "open", b"{}", False),
    "1.0 kept": (b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\n{}", "open", b"{}", True),
    "an upgrade that is offered": (
        OK + b"upgrade: h2c\r\nconnection: upgrade\r\ncontent-length: 0\r\n\r\n",
        "open",
        b"",
        True,
    ),
    "excess after a length": (TWO + b"{}X", "open", b"{}", False),
    "a line break after a length": (TWO + b"{}\r\n", "open", b"{}", False),
    "an answer after a length": (TWO + b"{}" + TWO + b"{}", "open", b"{}", False),
    "excess after 204": (b"HTTP/1.1 204 No Content\r\n\r\n{}", "open", b"", False),
    "excess after chunks": (CHUNKED + b"1\r\nx\r\n0\r\n\r\nHTTP", "open", b"x", False),
    "junk after chunks": (CHUNKED + b"1\r\nx\r\n0\r\n\r\n\0", "open", b"x", False),
    "a line break after chunks": (CHUNKED + b"1\r\nx\r\n0\r\n\r\n\r\n", "open", b"x", False),
    "a line feed after chunks": (CHUNKED + b"1\r\nx\r\n0\r\n\r\n\n", "open", b"x", False),
    "line breaks after chunks": (CHUNKED + b"1\r\nx\r\n0\r\n\r\n\r\n\r\n\r\n", "open", b"x", False),
    "an answer after chunks": (CHUNKED + b"1\r\nx\r\n0\r\n\r\n" + TWO + b"{}", "open", b"x", False),
    "an answer after the last chunks": (
        OK + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n" + TWO,
        "open",
        b"x",
        False,
    ),
    "extensions just within their limit": (
        CHUNKED + b"1;" + b"x" * (FRAMING_BYTES_MAX - 10) + b"\r\nx\r\n0\r\n\r\n",
        "open",
        b"x",
        True,
    ),
    "many trailers": (CHUNKED + b"0\r\n" + b"x: y\r\n" * 1000 + b"\r\n", "open", b"", True),
}


@pytest.mark.parametrize(("data", "then", "body", "is_reusable"), WHOLE.values(), ids=WHOLE)
def test_answer_that_is_framed_well_is_whole(data, then, body, is_reusable):
    found = parse([data], then=then)
    assert (found.failure, found.is_complete, found.body, found.is_reusable) == ("", True, body, is_reusable)


MALFORMED = "InvalidAnswerError: its chunked body is malformed: "
LOST = "ConnectionLostError: it ended "
BROKEN: dict[str, tuple[bytes, str, bytes, str]] = {
    # bytes, how the connection goes on, the body before it broke, the failure
    "a short body": (OK + b"content-length: 10\r\n\r\nhello", "close", b"hello", LOST + "in the body of the answer"),
    "no last chunk": (CHUNKED + b"5\r\nhello\r\n", "close", b"hello", LOST + "in the body of the answer"),
    "half a chunk": (CHUNKED + b"5\r\nhel", "close", b"hel", LOST + "in the body of the answer"),
    "half a last chunk": (CHUNKED + b"5\r\nhello\r\n0\r\n", "close", b"hello", LOST + "in the body of the answer"),
    "a reset before the end": (OK + b"\r\nhello", "reset", b"hello", LOST + "in the body of the answer"),
    "half a head": (OK + b"content-le", "close", b"", LOST + "in the head of the answer"),
    "half a status line": (b"HTTP/1", "reset", b"", LOST + "in the head of the answer"),
    "nothing": (b"", "close", b"", LOST + "before the answer"),
    "interim answers alone": (b"HTTP/1.1 100 Continue\r\n\r\n", "close", b"", LOST + "before the answer"),
    "a size that is none": (
        CHUNKED + b"5\r\nhello\r\nxyz\r\n",
        "open",
        b"hello",
        MALFORMED + "invalid character in chunk size",
    ),
    "a negative size": (
        CHUNKED + b"5\r\nhello\r\n-5\r\n",
        "open",
        b"hello",
        MALFORMED + "invalid character in chunk size",
    ),
    "a size with a sign": (CHUNKED + b"+5\r\nhello", "open", b"", MALFORMED + "invalid character in chunk size"),
    "a size with 0x": (CHUNKED + b"0x5\r\nhello", "open", b"", MALFORMED + "invalid character in chunk size"),
    "a size above 64 bits": (CHUNKED + b"10000000000000005\r\nhello", "open", b"", MALFORMED + "chunk size overflow"),
    "an empty size": (CHUNKED + b"5\r\nhello\r\n\r\n", "open", b"hello", MALFORMED + "invalid character in chunk size"),
    "a lone line feed after a size": (
        CHUNKED + b"5\nhello",
        "open",
        b"",
        MALFORMED + "missing expected CR after chunk size",
    ),
    "a lone line feed after a chunk": (
        CHUNKED + b"5\r\nhello\n0\r\n\r\n",
        "open",
        b"hello",
        MALFORMED + "missing expected CR after chunk data",
    ),
    "a chunk longer than its size": (
        CHUNKED + b"5\r\nhelloXX",
        "open",
        b"hello",
        MALFORMED + "expected LF after chunk data",
    ),
    "an error page in the body": (
        CHUNKED + b"5\r\nhello\r\nHTTP/1.1 502 Bad Gateway\r\n\r\n",
        "open",
        b"hello",
        MALFORMED + "invalid character in chunk size",
    ),
    "an event without a size": (
        CHUNKED + b"5\r\nhello\r\ndata: {}\n\n",
        "open",
        b"hello",
        MALFORMED + "invalid character in chunk size",
    ),
    "NULs": (CHUNKED + b"5\r\nhello\r\n\0\0", "open", b"hello", MALFORMED + "invalid character in chunk size"),
    "a trailer that is none": (
        CHUNKED + b"5\r\nhello\r\n0\r\nbad\r\n\r\n",
        "open",
        b"hello",
        MALFORMED + "invalid header token",
    ),
    "extensions above their limit": (
        CHUNKED + b"5\r\nhello\r\n5;" + b"x" * 2 * FRAMING_BYTES_MAX + b"\r\nhello\r\n0\r\n\r\n",
        "open",
        b"hello",
        f"InvalidAnswerError: it has {FRAMING_BYTES_MAX} bytes of chunk extensions or trailers in a row",
    ),
    "a size with a million zeros": (
        CHUNKED + b"0" * 1_000_000 + b"\r\n\r\n",
        "open",
        b"",
        f"InvalidAnswerError: it has {FRAMING_BYTES_MAX} bytes of chunk extensions or trailers in a row",
    ),
    "trailers above their limit": (
        CHUNKED + b"5\r\nhello\r\n0\r\nx-a: " + b"a" * 2 * FRAMING_BYTES_MAX + b"\r\n\r\n",
        "open",
        b"hello",
        f"InvalidAnswerError: it has {FRAMING_BYTES_MAX} bytes of chunk extensions or trailers in a row",
    ),
    "ten thousand trailers": (
        CHUNKED + b"5\r\nhello\r\n0\r\n" + b"x: y\r\n" * 10_000 + b"\r\n",
        "open",
        b"hello",
        f"InvalidAnswerError: it has {FRAMING_BYTES_MAX} bytes of chunk extensions or trailers in a row",
    ),
    "a length and chunks": (
        OK + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        "open",
        b"",
        "InvalidAnswerError: its head is malformed: Transfer-Encoding can't be present with Content-Length",
    ),
    "gzip in chunks": (
        OK + b"transfer-encoding: gzip, chunked\r\n\r\n",
        "open",
        b"",
        "InvalidAnswerError: its Transfer-Encoding is not chunked, or not of HTTP/1.1",
    ),
    "chunks of HTTP/1.0": (
        b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        "open",
        b"",
        "InvalidAnswerError: its Transfer-Encoding is not chunked, or not of HTTP/1.1",
    ),
    "chunked twice": (
        OK + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
        "open",
        b"",
        "InvalidAnswerError: its Transfer-Encoding is not chunked, or not of HTTP/1.1",
    ),
}


@pytest.mark.parametrize(("data", "then", "body", "failure"), BROKEN.values(), ids=BROKEN)
def test_answer_that_breaks_off_keeps_what_came_before(data, then, body, failure):
    found = parse([data], then=then)
    assert (found.body, found.failure) == (body, failure)
    assert not found.is_complete
    assert not found.is_reusable


TABLE: dict[str, Any] = {name: case[:2] for name, case in {**WHOLE, **BROKEN}.items()}


@pytest.mark.parametrize(("data", "then"), TABLE.values(), ids=TABLE)
def test_outcome_is_the_same_byte_by_byte(data, then):
    pieces = (data[at : at + 1] for at in range(len(data)))
    assert parse(pieces, then=then) == parse([data], then=then)


@pytest.mark.parametrize(("data", "then"), TABLE.values(), ids=TABLE)
def test_outcome_is_the_same_at_every_cut_in_two(data, then):
    expected = parse([data], then=then)
    step = max(1, len(data) // 300)
    for at in range(1, len(data), step):
        assert parse([data[:at], data[at:]], then=then) == expected


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_recorded_answer_is_the_same_at_any_cut(path):
    data = path.read_bytes()
    expected = parse([data], then="close")
    assert expected.status
    source = random.Random(path.stem)
    for _ in range(CUTS // len(VECTORS) + 1):
        assert parse(cut(data, source), then="close") == expected


PARTS = (
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.0 503 No\r\n",
    b"content-length: 3\r\n",
    b"\r\n",
    b"transfer-encoding: chunked\r\n",
    b"connection: close\r\n",
    b"x: y\r\n",
    b"x : y\r\n",
    b"3\r\nabc\r\n",
    b"0\r\n\r\n",
    b"0\r\n",
    b"abc",
    b"\n",
    b"\r",
    b"z",
    b"5;a\r\n",
    b"HTTP/1.1 204 No\r\n",
    b"\0",
    b"3",
    b" ",
)


@given(
    parts=st.lists(st.sampled_from(PARTS) | st.binary(max_size=3), max_size=12),
    then=st.sampled_from(["open", "close", "reset"]),
    seed=st.integers(0, 2**32),
    starts_well=st.booleans(),
)
def test_outcome_of_any_bytes_does_not_depend_on_their_cuts(parts, then, seed, starts_well):
    data = (CHUNKED if starts_well else b"") + b"".join(parts)
    assert parse(cut(data, random.Random(seed)), then=then) == parse([data] if data else [], then=then)


@given(body=st.lists(st.binary(min_size=1, max_size=300), max_size=20), seed=st.integers(0, 2**32))
def test_any_content_comes_through_chunks_as_it_is(body, seed):
    data = CHUNKED + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in body) + b"0\r\n\r\n"
    found = parse(cut(data, random.Random(seed)))
    assert (found.body, found.is_complete, found.is_reusable) == (b"".join(body), True, True)
