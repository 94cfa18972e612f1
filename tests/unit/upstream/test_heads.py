"""Tests of bridge/upstream/heads.py: what a head may be, and in which words it is refused otherwise."""

import pytest

from bridge.upstream.exchange import InvalidAnswerError
from bridge.upstream.framing import AnswerParser
from bridge.upstream.heads import INTERIM_ANSWERS_MAX
from tests.kit.parsing import HEAD_BYTES_MAX, HEAD_FIELDS_MAX, parse

OK = b"HTTP/1.1 200 OK\r\n"
END = b"content-length: 0\r\n\r\n"
SECRET = b"set-cookie: session=sesame\r\n"

GOOD = {
    "plain": (OK + END, 200),
    "no reason phrase": (b"HTTP/1.1 200\r\n" + END, 200),
    "an empty reason phrase": (b"HTTP/1.1 404 \r\n" + END, 404),
    "a reason phrase that is no text": (b"HTTP/1.1 200 \xff\xfe\r\n" + END, 200),
    "a status that nobody knows": (b"HTTP/1.1 799 Odd\r\n" + END, 799),
    "a redirect": (b"HTTP/1.1 302 Found\r\nlocation: /other\r\n" + END, 302),
    "interim answers": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nlink: </x>\r\n\r\n" + OK + END, 200),
    "as many interim answers as may be": (b"HTTP/1.1 102 Wait\r\n\r\n" * INTERIM_ANSWERS_MAX + OK + END, 200),
    "as many fields as may be": (OK + b"x: y\r\n" * (HEAD_FIELDS_MAX - 1) + END, 200),
    "a field of 60 KB": (OK + b"x: " + b"y" * 60_000 + b"\r\n" + END, 200),
}


@pytest.mark.parametrize(("data", "status"), GOOD.values(), ids=GOOD)
def test_head_that_is_http_is_taken(data, status):
    found = parse([data])
    assert (found.failure, found.status, found.is_complete) == ("", status, True)


def test_fields_have_lower_case_names_and_their_order():
    data = OK + b"X-B: 1\r\nx-a:  two words \t\r\nX-B: 3\r\nx-l: caf\xe9\r\nx-e:\r\n" + END
    assert parse([data]).headers[:-1] == [
        (b"x-b", b"1"), (b"x-a", b"two words"), (b"x-b", b"3"), (b"x-l", b"caf\xe9"), (b"x-e", b"")
    ]  # fmt: skip


def test_fields_of_interim_answers_are_dropped():
    assert parse([b"HTTP/1.1 103 Hints\r\nlink: </x>\r\n\r\n" + OK + END]).headers == [(b"content-length", b"0")]


MALFORMED = "its head is malformed: "
BAD = {
    # bytes, the failure's words, the status that is known
    "another protocol": (b"SSH-2.0-OpenSSH_9.6\r\n", "it does not begin with HTTP/", None),
    "a TLS alert": (b"\x15\x03\x01\0\x02\x02F", "it does not begin with HTTP/", None),
    "HTTP/2": (b"\0\0\x12\4\0\0\0\0\0", "it does not begin with HTTP/", None),
    "HTTP/0.9": (b"hello\r\n", "it does not begin with HTTP/", None),
    "RTSP": (b"RTSP/1.0 200 OK\r\n\r\n", "it does not begin with HTTP/", None),
    "a blank line before it": (b"\r\n" + OK + END, "it does not begin with HTTP/", None),
    "a word like HTTP": (b"HTML\r\n", MALFORMED + "expected HTTP/, RTSP/ or ICE/", None),
    "a version to come": (b"HTTP/3.0 200 OK\r\n" + END, MALFORMED + "invalid HTTP version", None),
    "the version of another framing": (b"HTTP/2.0 200 OK\r\n" + END, "its version is HTTP/2.0, not HTTP/1.1", None),
    "the oldest version": (b"HTTP/0.9 200 OK\r\n" + END, "its version is HTTP/0.9, not HTTP/1.1", None),
    "a status of two digits": (b"HTTP/1.1 99 X\r\n" + END, "its status is not a number of three digits", None),
    "a status of four digits": (b"HTTP/1.1 2000 X\r\n" + END, "its status is not a number of three digits", None),
    "a status of zero": (b"HTTP/1.1 000 X\r\n" + END, "its status is below 100", None),
    "no colon": (OK + SECRET + b"bad\r\n\r\n", MALFORMED + "invalid header token", 200),
    "no name": (OK + b": v\r\n\r\n", MALFORMED + "invalid header token", 200),
    "a space before the colon": (b"HTTP/1.1 429 Slow\r\nx : a\r\n\r\n", MALFORMED + "invalid header token", 429),
    "a folded line": (OK + b"x: a\r\n b\r\n\r\n", MALFORMED + "unexpected whitespace after header value", 200),
    "a lone LF after the status line": (
        b"HTTP/1.1 503 No\nx: 1\n\n",
        MALFORMED + "missing expected CR after response line",
        503,
    ),
    "a lone LF after a field": (OK + b"x: 1\ny: 2\r\n\r\n", MALFORMED + "missing expected CR after header value", 200),
    "a lone CR in a value": (OK + b"x: a\rb\r\n\r\n", MALFORMED + "missing expected LF after header value", 200),
    "a NUL in a value": (OK + b"x: a\0b\r\n\r\n", MALFORMED + "invalid header value char", 200),
    "two lengths": (
        OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\n",
        MALFORMED + "duplicate Content-Length",
        200,
    ),
    "two equal lengths": (
        OK + b"content-length: 2\r\ncontent-length: 2\r\n\r\n",
        MALFORMED + "duplicate Content-Length",
        200,
    ),
    "a list of lengths": (OK + b"content-length: 2, 2\r\n\r\n", MALFORMED + "invalid character in Content-Length", 200),
    "a length with a sign": (
        OK + b"content-length: +2\r\n\r\n",
        MALFORMED + "invalid character in Content-Length",
        200,
    ),
    "a length above 64 bits": (
        OK + b"content-length: 18446744073709551618\r\n\r\n",
        MALFORMED + "Content-Length overflow",
        200,
    ),
    "no length": (OK + b"content-length: \r\n\r\n", MALFORMED + "empty Content-Length", 200),
    "101": (b"HTTP/1.1 101 Go\r\n\r\n", "it switches protocols (HTTP 101), which nobody asked for", None),
    "101 with an upgrade": (
        b"HTTP/1.1 101 Go\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
        "it switches protocols (HTTP 101), which nobody asked for",
        None,
    ),
    "too many interim answers": (
        b"HTTP/1.1 103 Hints\r\n\r\n" * 17 + OK + END,
        "more than 16 interim answers (HTTP 1xx) came before it",
        None,
    ),
    "too many fields": (
        b"HTTP/1.1 500 No\r\n" + b"x: y\r\n" * (HEAD_FIELDS_MAX + 1) + b"\r\n",
        f"its head has more than {HEAD_FIELDS_MAX} fields (upstream.head_fields_max)",
        500,
    ),
    "a head too large": (
        b"HTTP/1.1 503 No\r\n" + b"x: " + b"y" * HEAD_BYTES_MAX,
        f"its head has more than {HEAD_BYTES_MAX} bytes (upstream.head_bytes_max)",
        503,
    ),
    "interim heads too large together": (
        (b"HTTP/1.1 103 Hints\r\nx: " + b"y" * 10_000 + b"\r\n\r\n") * 7,
        f"its head has more than {HEAD_BYTES_MAX} bytes (upstream.head_bytes_max)",
        None,
    ),
}


@pytest.mark.parametrize(("data", "words", "known"), BAD.values(), ids=BAD)
def test_head_that_is_no_http_is_refused_in_plain_words(data, words, known):
    found = parse([data])
    assert (found.failure, found.known) == (f"InvalidAnswerError: {words}", known)
    assert (found.status, found.body, found.is_complete) == (0, b"", False)
    assert "sesame" not in found.failure


@pytest.mark.parametrize("data", [case[0] for case in BAD.values()], ids=BAD)
def test_refusal_does_not_depend_on_the_cuts(data):
    expected = parse([data])
    assert parse(data[at : at + 1] for at in range(len(data))) == expected
    step = max(1, len(data) // 300)
    for at in range(1, len(data), step):
        assert parse([data[:at], data[at:]]) == expected


def test_limit_of_the_head_counts_its_last_byte():
    head = OK + b"x: " + b"y" * 2000 + b"\r\n" + END
    assert parse([head], head_bytes_max=len(head)).status == 200
    assert parse([head], head_bytes_max=len(head) - 1).known == 200
    assert parse([head[:-1]], head_bytes_max=len(head) - 1).failure == ""


@pytest.mark.parametrize("lines", [b"x: y\r\n" * 2000, b"x: " + b"y" * HEAD_BYTES_MAX + b"\r\n"])
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_head_above_a_limit_leaves_the_fields_within_it(lines, size):
    data = b"HTTP/1.1 429 No\r\nRetry-After: 3\r\n" + lines + b"\r\n"
    parser = AnswerParser(head_bytes_max=HEAD_BYTES_MAX, head_fields_max=HEAD_FIELDS_MAX)
    for at in range(0, len(data), size):
        parser.feed(data[at : at + size])
    assert isinstance(parser.failure, InvalidAnswerError)
    assert parser.failure.headers[0] == (b"retry-after", b"3")
