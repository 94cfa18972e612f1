"""Tests of bridge/upstream/client.py: what the network does, by real sockets, and what becomes of it."""

import asyncio
import contextlib
import gzip
import socket
import zlib
from typing import Any

import pytest

from bridge.core.errors import BridgeError
from bridge.core.headers import HeaderPolicy
from bridge.emulator import Emulator
from bridge.settings import UpstreamSettings
from bridge.upstream.call import UpstreamCall as Call
from bridge.upstream.client import Upstream
from tests.conftest import canned, eventually, free_port

OK = b"HTTP/1.1 200 OK\r\n"
BODY = b'{"model":"echo","messages":[{"role":"user","content":"hi"}]}'
REQUEST = pytest.mark.parametrize("method", ["complete", "stream"])


@contextlib.asynccontextmanager
async def upstream_at(url: str, *, connections_max: int = 10, **settings: Any):
    policy = HeaderPolicy(product="test/1")
    async with Upstream(
        UpstreamSettings(base_url=url, **settings), policy, connections_max=connections_max
    ) as upstream:
        yield upstream


async def fetched(upstream: Upstream, method: str = "complete", body: bytes = BODY) -> bytes:
    call = Call(headers=[])
    if method == "complete":
        return await upstream.complete(body, call)
    async with upstream.stream(body, call) as pieces:
        return b"".join([piece async for piece in pieces])


async def failure(upstream: Upstream, method: str = "complete") -> tuple[str, str]:
    with pytest.raises(BridgeError) as caught:
        await fetched(upstream, method)
    return caught.value.code.name, caught.value.reason_name


def answer(body: bytes, *headers: str, kind: str = "application/json") -> bytes:
    lines = [f"content-type: {kind}", f"content-length: {len(body)}", *headers]
    return OK + "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body


# What the network does

UNREACHABLE = ("UNAVAILABLE", "UPSTREAM_UNREACHABLE")
DISCONNECTED = ("ABORTED", "UPSTREAM_DISCONNECTED")
INVALID = ("INTERNAL", "INVALID_UPSTREAM_RESPONSE")


@REQUEST
async def test_refused_connection_is_unreachable(method):
    async with upstream_at(f"http://127.0.0.1:{free_port()}") as upstream:
        assert await failure(upstream, method) == UNREACHABLE


@REQUEST
async def test_name_that_does_not_resolve_is_unreachable(method, monkeypatch):
    def fail(*_args, **_named):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)  # the resolver of the machine may take seconds
    async with upstream_at("http://gateway.invalid", plaintext=True) as upstream:
        assert await failure(upstream, method) == UNREACHABLE


@REQUEST
async def test_tls_to_a_server_without_it_is_unreachable(emulator, method):
    async def answer(_reader, writer):
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with upstream_at(url) as upstream:
            assert await failure(upstream, method) == UNREACHABLE


@REQUEST
async def test_connect_that_hangs_is_unreachable_after_its_timeout(method):
    with socket.socket() as full, contextlib.ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):  # the backlog is full after one or two; the kernel then drops what comes
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        async with upstream_at(url, connect_timeout_s=0.1) as upstream, asyncio.timeout(2):
            assert await failure(upstream, method) == UNREACHABLE


@REQUEST
async def test_proxy_that_refuses_is_unreachable_and_its_password_is_not_told(method):
    proxy = f"http://user:sesame@127.0.0.1:{free_port()}"
    async with upstream_at("http://127.0.0.1:9", proxy=proxy) as upstream:
        with pytest.raises(BridgeError, match="expected a connection") as caught:
            await fetched(upstream, method)
    assert caught.value.reason_name == "UPSTREAM_UNREACHABLE"
    assert "sesame" not in str(caught.value)


LOST = {
    "no answer": (b"", DISCONNECTED),
    "half a status line": (b"HTTP/1.1 2", DISCONNECTED),
    "half the headers": (OK + b"content-type: application/json\r\n", DISCONNECTED),
    "half the body": (OK + b"content-type: application/json\r\ncontent-length: 100\r\n\r\n{", DISCONNECTED),
    "half a chunk": (OK + b"transfer-encoding: chunked\r\n\r\nFF\r\n{", DISCONNECTED),
    "no last chunk": (OK + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n", DISCONNECTED),
    "a chunk without a size": (OK + b"transfer-encoding: chunked\r\n\r\nxyz\r\n{\r\n", INVALID),
    "another protocol": (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", INVALID),
    "a header that is none": (OK + b"no colon here\r\n\r\n", INVALID),
    "a header of 100 KB": (OK + b"x-long: " + b"x" * 100_000 + b"\r\n\r\n", INVALID),
}


@REQUEST
@pytest.mark.parametrize(("said", "expected"), LOST.values(), ids=LOST)
async def test_answer_that_breaks_off_or_is_no_http_has_its_code(said, expected, method):
    said = said.replace(b"application/json", b"text/event-stream") if method == "stream" else said
    if b"transfer-encoding" in said and method == "stream":
        said = said.replace(OK, OK + b"content-type: text/event-stream\r\n")
    async with canned(said) as server, upstream_at(server.url) as upstream:
        assert await failure(upstream, method) == expected
        assert len(server.requests) == 1  # nothing is repeated behind the caller's back


async def test_error_body_that_breaks_off_leaves_the_status_to_speak():
    said = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 100\r\n\r\n{"
    async with canned(said) as server, upstream_at(server.url) as upstream:
        assert await failure(upstream) == ("UNAVAILABLE", "UPSTREAM_UNAVAILABLE")


@REQUEST
async def test_reason_phrase_that_is_no_text_is_passed_over(method):
    kind = "text/event-stream" if method == "stream" else "application/json"
    said = answer(b"{}", kind=kind).replace(b"200 OK", b"200 \xff\xfe")
    async with canned(said) as server, upstream_at(server.url) as upstream:
        assert await fetched(upstream, method) == b"{}"


# Bodies


TEXT = b'{"text":"' + b"abc" * 100_000 + b'"}'
ENCODED = {
    "identity": ("identity", TEXT),
    "gzip": ("gzip", gzip.compress(TEXT)),
    "x-gzip": ("X-GZip", gzip.compress(TEXT)),
    "deflate": ("deflate", zlib.compress(TEXT)),
    "gzip of two members": ("gzip", gzip.compress(TEXT[:1000]) + gzip.compress(TEXT[1000:])),
}


@REQUEST
@pytest.mark.parametrize(("encoding", "body"), ENCODED.values(), ids=ENCODED)
async def test_encoded_body_is_decoded(encoding, body, method):
    kind = "text/event-stream" if method == "stream" else "application/json"
    said = answer(body, f"content-encoding: {encoding}", kind=kind)
    async with canned(said) as server, upstream_at(server.url) as upstream:
        assert await fetched(upstream, method) == TEXT
        assert b"accept-encoding: identity\r\n" in server.requests[0].lower()


UNDECODABLE = {
    "br": ("br", b"\x0b\x02\x80{}\x03"),
    "two encodings": ("gzip, gzip", gzip.compress(gzip.compress(TEXT))),
    "gzip that is none": ("gzip", b"{}"),
    "gzip with a broken sum": ("gzip", gzip.compress(TEXT)[:-8] + bytes(8)),
    "gzip and more": ("gzip", gzip.compress(TEXT) + b"more"),
}


@REQUEST
@pytest.mark.parametrize(("encoding", "body"), UNDECODABLE.values(), ids=UNDECODABLE)
async def test_body_that_cannot_be_decoded_is_no_answer(encoding, body, method):
    kind = "text/event-stream" if method == "stream" else "application/json"
    said = answer(body, f"content-encoding: {encoding}", kind=kind)
    async with canned(said) as server, upstream_at(server.url) as upstream:
        assert await failure(upstream, method) == INVALID


@pytest.mark.parametrize("size", [1024, 1025, 5_000_000])
async def test_response_over_its_limit_is_too_large(size):
    body = b'"' + b"x" * (size - 2) + b'"'
    async with canned(answer(body)) as server, upstream_at(server.url, response_bytes_max=1024) as upstream:
        if size == 1024:
            assert await fetched(upstream) == body
        else:
            assert await failure(upstream) == ("INTERNAL", "UPSTREAM_RESPONSE_TOO_LARGE")


async def test_gzip_bomb_is_stopped_at_the_limit():
    body = gzip.compress(bytes(100_000_000))
    async with (
        canned(answer(body, "content-encoding: gzip")) as server,
        upstream_at(server.url, response_bytes_max=1_000_000) as upstream,
        asyncio.timeout(2),
    ):
        assert await failure(upstream) == ("INTERNAL", "UPSTREAM_RESPONSE_TOO_LARGE")


async def test_decoded_pieces_of_a_stream_are_small_whatever_they_were_encoded_to():
    said = answer(gzip.compress(bytes(10_000_000)), "content-encoding: gzip", kind="text/event-stream")
    async with (
        canned(said) as server,
        upstream_at(server.url) as upstream,
        upstream.stream(BODY, Call(headers=[])) as pieces,
    ):
        sizes = [len(piece) async for piece in pieces]
    assert sum(sizes) == 10_000_000
    assert max(sizes) <= 64 * 1024


async def test_error_body_of_any_size_is_read_only_so_far():
    body = b'{"error":{"message":"' + b"x" * 50_000_000
    said = f"HTTP/1.1 400 Bad Request\r\ncontent-length: {len(body) + 3}\r\n\r\n".encode() + body + b'"}}'
    async with canned(said) as server, upstream_at(server.url) as upstream:
        assert await failure(upstream) == ("INVALID_ARGUMENT", "UPSTREAM_INVALID_REQUEST")


# The pool, and what is not taken from around


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
async def test_proxy_variables_of_the_environment_are_ignored(emulator, monkeypatch, name):
    monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("no_proxy", "")
    async with upstream_at(emulator.url) as upstream:
        assert b"chat.completion" in await fetched(upstream)


async def test_proxy_of_the_settings_is_asked_with_its_password():
    async with canned(answer(b"{}")) as proxy:
        proxy_url = proxy.url.replace("//", "//user:sesame@")
        async with upstream_at("http://gateway.invalid", proxy=proxy_url, plaintext=True) as upstream:
            assert await fetched(upstream) == b"{}"
    head = proxy.requests[0].lower()
    assert head.startswith(b"post http://gateway.invalid/v1/chat/completions http/1.1\r\n")
    assert b"proxy-authorization: basic dxnlcjpzzxnhbwu=" in head


async def test_environments_netrc_is_not_sent(emulator, monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password sesame")
    monkeypatch.setenv("NETRC", str(netrc))
    async with upstream_at(emulator.url) as upstream:
        await fetched(upstream)
    assert "authorization" not in emulator.exchanges[0].headers


@pytest.mark.parametrize(("keepalive_s", "connections"), [(0, 3), (15, 1)])
async def test_keepalive_of_zero_is_a_connection_a_call(emulator, keepalive_s, connections):
    async with upstream_at(emulator.url, keepalive_s=keepalive_s) as upstream:
        for _ in range(3):
            await fetched(upstream)
    assert emulator.connections_opened == connections


async def test_unused_connection_is_closed_after_its_keepalive(emulator):
    async with upstream_at(emulator.url, keepalive_s=0.1) as upstream:
        await fetched(upstream)
        await emulator.exchanges[0].wait_closed()


async def test_leaving_the_pool_closes_its_connections(emulator):
    async with upstream_at(emulator.url) as upstream:
        await fetched(upstream)
        assert emulator.exchanges[0].closed_at is None
    await emulator.exchanges[0].wait_closed()


async def test_connection_that_the_gateway_closed_while_unused_is_not_used_again():
    async with canned(answer(b"{}")) as server, upstream_at(server.url) as upstream:
        for _ in range(3):
            assert await fetched(upstream) == b"{}"
            await eventually(lambda: not server.transports)
        assert len(server.requests) == 3


async def test_cookies_are_never_sent_back():
    said = answer(b"{}", "set-cookie: session=1; Path=/", "connection: close")
    async with canned(said) as server, upstream_at(server.url) as upstream:
        await fetched(upstream)
        await fetched(upstream)
    assert len(server.requests) == 2
    assert not any(b"cookie" in request.lower() for request in server.requests)


async def test_path_of_the_base_url_is_kept():
    async with canned(answer(b"{}")) as server, upstream_at(f"{server.url}/team/a%20b/") as upstream:
        await fetched(upstream)
    assert server.requests[0].startswith(b"POST /team/a%20b/v1/chat/completions HTTP/1.1\r\n")


async def test_more_calls_than_connections_wait_no_longer_than_a_connect_may_take():
    async with (
        Emulator(scenario="stall?headers=0") as emulator,
        upstream_at(emulator.url, connections_max=1, connect_timeout_s=0.1) as upstream,
    ):
        first = asyncio.create_task(fetched(upstream))
        await emulator.next_exchange()
        assert await failure(upstream) == UNREACHABLE
        first.cancel()
        await asyncio.wait([first])
