"""Tests of bridge/server/cors.py, by https://fetch.spec.whatwg.org/#http-cors-protocol."""

import pytest

from bridge.server.cors import Cors

ORIGIN = b"https://app.example"
CORS = Cors([ORIGIN.decode(), "http://localhost:3000"])
OTHERS = [b"https://app.example:8443", b"http://app.example", b"https://app.example.evil", b"null", b"", b"\xff", b"*"]


def test_origin_on_the_list_is_allowed():
    assert CORS.is_allowed(ORIGIN)
    assert CORS.is_allowed(b"http://localhost:3000")


@pytest.mark.parametrize("origin", OTHERS)
def test_other_origin_is_not(origin):
    assert not CORS.is_allowed(origin)
    assert not Cors(()).is_allowed(origin)
    assert Cors(["*"]).is_allowed(origin)


def test_preflight_allows_the_method_and_the_headers_that_are_asked_for():
    headers = dict(CORS.answer_preflight(ORIGIN, b"content-type, connect-protocol-version,x-a"))
    assert headers == {
        b"access-control-allow-origin": ORIGIN,
        b"vary": b"origin",
        b"access-control-allow-methods": b"POST",
        b"access-control-max-age": b"7200",
        b"access-control-allow-headers": b"content-type, connect-protocol-version,x-a",
    }


@pytest.mark.parametrize("asked", [b"", b"a b", b"a\r\nset-cookie: b", b"a,,b", b"\xff"])
def test_headers_that_are_no_list_of_names_are_not_repeated(asked):
    assert b"access-control-allow-headers" not in dict(CORS.answer_preflight(ORIGIN, asked))


def test_every_header_of_an_answer_can_be_read():
    headers = dict(
        CORS.expose(ORIGIN, [(b"content-type", b"x"), (b"x-ratelimit-limit", b"1"), (b"x-request-id", b"r")])
    )
    assert headers[b"access-control-allow-origin"] == ORIGIN
    names = headers[b"access-control-expose-headers"].split(b", ")
    assert names == [b"grpc-status", b"grpc-message", b"grpc-status-details-bin", b"x-request-id", b"x-ratelimit-limit"]


def test_any_origin_needs_no_variation():
    assert (b"access-control-allow-origin", b"*") in Cors(["*"]).expose(ORIGIN, [])
    assert b"vary" not in dict(Cors(["*"]).expose(ORIGIN, []))
