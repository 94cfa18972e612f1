"""Tests of the bytes that each engine puts on the wire, and that it takes nothing from the environment."""

import asyncio

import pytest

from tests.kit.upstreams import OK, answer_with, start_server
from tests.unit.upstream.engines import PATH, Outcome, exchange, open_engine

HEADERS = [("x-one", "1"), ("authorization", "Bearer k"), ("x-two", "a: b,c"), ("x-one", "3")]


async def test_request_is_what_was_posted_and_what_the_connection_needs(engine_kind):
    async with start_server(answer_with(OK)) as server, open_engine(engine_kind, server.url) as engine:
        assert await exchange(engine, b'{"a":1}', HEADERS) == Outcome(200, b"{}")
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    line, *fields = head.decode("ascii").split("\r\n")
    assert line == f"POST {PATH} HTTP/1.1"
    pairs = [tuple(field.split(": ", 1)) for field in fields]
    address = server.url.removeprefix("http://")
    own = [("host", address), ("content-length", "7")]
    assert [pair for pair in pairs if pair not in own and pair != ("connection", "close")] == HEADERS
    assert set(own) < set(pairs)
    assert body == b'{"a":1}'


@pytest.mark.parametrize(
    "header",
    [
        *(("x-one", value) for value in ("a\r\nx-two: 2", "a\nx-two: 2", "a\rb", "a\0b", "a\r\n\r\nGET / HTTP/1.1")),
        ("x-one\r\nx-two", "2"),
    ],
)
async def test_header_that_would_be_two_is_never_sent(engine_kind, header):
    async def serve(peer):
        assert await peer.read_to_end() == b""

    async with start_server(serve) as server, open_engine(engine_kind, server.url) as engine:
        with pytest.raises(ValueError, match="line"):
            await engine.post([header], b"{}", timeout_s=5)
    assert not server.requests


async def test_headers_of_an_answer_keep_order_and_bytes_and_are_lower_case(engine_kind):
    fields = b"X-B: 1\r\nx-a:  2 \r\nX-B: 3\r\nx-l: caf\xe9\r\n"
    serve = answer_with(b"HTTP/1.1 200 OK\r\n" + fields + b"content-length: 2\r\n\r\n{}")
    async with start_server(serve) as server, open_engine(engine_kind, server.url) as engine:
        answer = await engine.post((), b"{}", timeout_s=5)
        answer.close()
    assert answer.headers == [
        (b"x-b", b"1"),
        (b"x-a", b"2"),
        (b"x-b", b"3"),
        (b"x-l", b"caf\xe9"),
        (b"content-length", b"2"),
    ]


async def test_redirect_is_not_followed_and_no_cookie_is_sent_back(engine_kind):
    answer = b"HTTP/1.1 302 Found\r\nlocation: /x\r\nset-cookie: a=b; Path=/\r\ncontent-length: 2\r\n\r\n{}"
    async with (
        start_server(answer_with(answer)) as server,
        open_engine(engine_kind, server.url, keepalive_s=0) as engine,
    ):
        for _ in range(2):
            assert await exchange(engine) == Outcome(302, b"{}")
    assert len(server.requests) == 2
    assert not any(b"cookie" in request.lower() for request in server.requests)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
async def test_environment_is_not_asked(engine_kind, monkeypatch, tmp_path, name, closed_address):
    (tmp_path / "netrc").write_text("default login me password sesame")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv(name, f"http://{closed_address}")
    monkeypatch.setenv("no_proxy", "")
    async with start_server(answer_with(OK)) as server, open_engine(engine_kind, server.url) as engine:
        assert await exchange(engine) == Outcome(200, b"{}")
    assert b"authorization" not in server.requests[0].lower()


async def test_exchanges_at_once_do_not_mix(engine_kind):
    """Each answer names its request, and the answers come in another order than the requests."""

    async def serve(peer):
        while True:
            request = await peer.read_request()
            text = request.partition(b"\r\n\r\n")[2]
            for _ in range(int(text.rpartition(b" ")[2]) % 7):
                await asyncio.sleep(0)
            await peer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(text), text))

    async with (
        start_server(serve) as server,
        open_engine(engine_kind, server.url, connections_max=10, connect_timeout_s=30) as engine,
    ):
        bodies = [b"question %d" % number for number in range(200)]
        outcomes = await asyncio.gather(*(exchange(engine, body) for body in bodies))
        assert outcomes == [Outcome(200, body) for body in bodies]
        assert engine.connections <= 10
