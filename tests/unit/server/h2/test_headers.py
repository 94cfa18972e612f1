"""Tests of bridge/server/h2/headers.py: the rules of RFC 9113, 8.2 and 8.3, one by one."""

import pytest

from bridge.server.h2.headers import MalformedError, check_trailers, read_request

GOOD = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a"), (b":authority", b"here"), (b"te", b"trailers")]


def test_request_has_its_method_path_headers_and_length():
    request = read_request([*GOOD, (b"content-length", b"12"), (b"x-a", b"1"), (b"x-a", b"2")])
    assert (request.method, request.path, request.length) == (b"POST", b"/a", 12)
    assert request.headers == [(b"te", b"trailers"), (b"content-length", b"12"), (b"x-a", b"1"), (b"x-a", b"2")]
    assert (request.get(b"x-a"), request.get(b"x-b")) == (b"1", None)


def test_request_needs_no_authority():
    assert read_request(GOOD[:3]).length is None


REPEATABLE = [(b"content-length", b"1"), (b"content-length", b"1")]


def test_header_that_says_the_same_twice_is_accepted():
    assert read_request([*GOOD, *REPEATABLE]).length == 1


FAULTS = {
    "nothing": [],
    "no method": GOOD[1:],
    "no scheme": [GOOD[0], *GOOD[2:]],
    "no path": [*GOOD[:2], *GOOD[3:]],
    "empty path": [*GOOD[:2], (b":path", b""), GOOD[3]],
    "method twice": [GOOD[0], *GOOD],
    "unknown pseudo-header": [(b":test", b"1"), *GOOD],
    "pseudo-header of an answer": [(b":status", b"200"), *GOOD],
    "pseudo-header after a header": [*GOOD, (b":authority", b"here")],
    "upper case": [*GOOD, (b"X-A", b"1")],
    "name with a space": [*GOOD, (b"x a", b"1")],
    "name that is empty": [*GOOD, (b"", b"1")],
    "connection": [*GOOD, (b"connection", b"close")],
    "transfer-encoding": [*GOOD, (b"transfer-encoding", b"chunked")],
    "te that is not trailers": [*GOOD[:4], (b"te", b"gzip")],
    "NUL in a value": [*GOOD, (b"x-a", b"1\x002")],
    "CR in a value": [*GOOD, (b"x-a", b"1\r2")],
    "LF in a value": [*GOOD, (b"x-a", b"1\n2")],
    "LF in the path": [*GOOD[:2], (b":path", b"/\n"), GOOD[3]],
    "content-length that is no number": [*GOOD, (b"content-length", b"-1")],
    "content-length that is too long": [*GOOD, (b"content-length", b"1" * 19)],
    "two content-lengths": [*GOOD, (b"content-length", b"1"), (b"content-length", b"2")],
    "two timeouts": [*GOOD, (b"grpc-timeout", b"1S"), (b"grpc-timeout", b"2S")],
}


@pytest.mark.parametrize("headers", FAULTS.values(), ids=FAULTS)
def test_malformed_request_is_found(headers):
    with pytest.raises(MalformedError):
        read_request(headers)


def test_trailers_are_headers_without_pseudo_headers():
    check_trailers([(b"x-a", b"1")])
    for headers in ([(b":path", b"/")], [(b"X", b"1")], [(b"x", b"\n")]):
        with pytest.raises(MalformedError):
            check_trailers(headers)
