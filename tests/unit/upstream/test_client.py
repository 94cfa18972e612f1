"""Tests of bridge/upstream/client.py: what the network does, by real sockets, and what becomes of it."""

import asyncio
import contextlib
import gzip
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bridge.core.errors import BridgeError
from bridge.core.headers import HeaderPolicy
from bridge.emulator import Emulator
from bridge.settings import SettingsError, UpstreamSettings
from bridge.upstream.call import UpstreamCall
from bridge.upstream.client import Upstream
from bridge.upstream.failures import with_answer
from tests.kit.certificates import ca_file
from tests.kit.upstreams import CHUNKED, answer_with, serve_answers, start_server
from tests.kit.waiting import WAIT_S, eventually

OK = b"HTTP/1.1 200 OK\r\n"
BODY = b'{"model":"echo","messages":[{"role":"user","content":"hi"}]}'
METHODS = pytest.mark.parametrize("method", ["complete", "stream"])
KINDS = {"complete": "application/json", "stream": "text/event-stream"}


@contextlib.asynccontextmanager
async def open_upstream(url: str, *, connections_max: int = 10, **settings: Any) -> AsyncIterator[Upstream]:
    policy = HeaderPolicy(product="test/1")
    async with Upstream(
        UpstreamSettings(**{"base_url": url, "ca_file": ca_file()} | settings), policy, connections_max=connections_max
    ) as upstream:
        yield upstream


async def fetch(upstream: Upstream, method: str = "complete", call: UpstreamCall | None = None) -> bytes:
    """Return what a call brings; raise what it fails with, as the service does."""
    call = call or UpstreamCall(headers=[])
    if method == "complete":
        return await upstream.complete(BODY, call)
    async with upstream.stream(BODY, call) as body:
        data = b"".join([piece async for piece in body])
        if body.failure is not None:
            raise body.failure
        return data


async def fail(upstream: Upstream, method: str = "complete", call: UpstreamCall | None = None) -> BridgeError:
    with pytest.raises(BridgeError) as caught:
        await fetch(upstream, method, call)
    return caught.value


def name(error: BridgeError) -> tuple[str, str]:
    return error.code.name, error.reason_name


def answer(body: bytes, *headers: str, method: str = "complete") -> bytes:
    lines = [f"content-type: {KINDS[method]}", f"content-length: {len(body)}", *headers]
    return OK + "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body


UNREACHABLE = ("UNAVAILABLE", "UPSTREAM_UNREACHABLE")
DISCONNECTED = ("ABORTED", "UPSTREAM_DISCONNECTED")
INVALID = ("INTERNAL", "INVALID_UPSTREAM_RESPONSE")
TIMEOUT = ("DEADLINE_EXCEEDED", "UPSTREAM_TIMEOUT")


# Failures


@METHODS
async def test_refused_connection_is_unreachable(method, closed_address):
    call = UpstreamCall(headers=[])
    async with open_upstream(f"http://{closed_address}") as upstream:
        error = await fail(upstream, method, call)
    assert name(error) == UNREACHABLE
    assert error.message == "can't connect to the gateway: connection refused"
    assert (error.upstream, call.http_status) == (None, None)


async def test_reach_says_why_it_does_not_reach(closed_address):
    async with open_upstream(f"http://{closed_address}") as upstream:
        with pytest.raises(BridgeError, match="can't connect to the gateway: connection refused") as caught:
            await upstream.reach()
    assert name(caught.value) == UNREACHABLE
    async with (
        start_server(lambda peer: peer.read_to_end()) as server,
        open_upstream(server.url) as upstream,
    ):
        await upstream.reach()


IN_CHUNKS = OK + b"content-type: KIND\r\ntransfer-encoding: chunked\r\n\r\n"
BROKEN = {
    # bytes, code and reason, the status that is known, words of the message
    "no answer": (b"", DISCONNECTED, None, "before the answer"),
    "half a status line": (b"HTTP/1.1 2", DISCONNECTED, None, "in the head of the answer"),
    "half the headers": (OK + b"content-type: KIND\r\n", DISCONNECTED, None, "in the head of the answer"),
    "half the body": (OK + b"content-type: KIND\r\ncontent-length: 100\r\n\r\n{", DISCONNECTED, 200, "in the body"),
    "half a chunk": (IN_CHUNKS + b"FF\r\n{", DISCONNECTED, 200, "in the body"),
    "no last chunk": (IN_CHUNKS + b"1\r\n{\r\n", DISCONNECTED, 200, "in the body"),
    "a chunk without a size": (
        IN_CHUNKS + b"1\r\n{\r\nxyz\r\n",
        INVALID,
        200,
        "its chunked body is malformed: invalid character in chunk size",
    ),
    "another protocol": (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", INVALID, None, "it does not begin with HTTP/"),
    "a header that is none": (OK + b"set-cookie: sesame\r\nno colon\r\n\r\n", INVALID, 200, "its head is malformed"),
    "a head of 100 KB": (
        OK + b"x-long: " + b"x" * 100_000,
        INVALID,
        200,
        "its head has more than 65536 bytes (upstream.head_bytes_max)",
    ),
    "a refusal with a bad head": (
        b"HTTP/1.1 429 Slow Down\r\nno colon\r\n\r\n",
        ("RESOURCE_EXHAUSTED", "UPSTREAM_RATE_LIMITED"),
        429,
        "the gateway answered HTTP 429, but not in valid HTTP: its head is malformed: invalid header token",
    ),
}


@METHODS
@pytest.mark.parametrize(("data", "expected", "status", "words"), BROKEN.values(), ids=BROKEN)
async def test_answer_that_breaks_off_or_is_no_http_has_its_code_and_its_status(data, expected, status, words, method):
    call = UpstreamCall(headers=[])
    async with (
        serve_answers(data.replace(b"KIND", KINDS[method].encode())) as server,
        open_upstream(server.url) as upstream,
    ):
        error = await fail(upstream, method, call)
        assert len(server.requests) == 1  # nothing is repeated behind the caller's back
        assert upstream.connections == 0
    assert name(error) == expected
    assert (error.upstream.http_status if error.upstream else None, call.http_status) == (status, status)
    assert words in error.message
    assert "sesame" not in error.message


async def test_stream_yields_what_came_before_it_broke_off():
    async with serve_answers(CHUNKED + b"5\r\nhello\r\nxyz\r\n") as server, open_upstream(server.url) as upstream:
        async with upstream.stream(BODY, UpstreamCall(headers=[])) as body:
            assert [piece async for piece in body] == [b"hello"]
        assert body.failure is not None
        assert name(body.failure) == INVALID


async def test_error_body_that_breaks_off_leaves_the_status_to_speak():
    data = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 100\r\n\r\n{"
    async with serve_answers(data) as server, open_upstream(server.url) as upstream:
        assert name(await fail(upstream)) == ("UNAVAILABLE", "UPSTREAM_UNAVAILABLE")


ENVELOPE = b'{"error": {"message": "model retired"}}'
REFUSED_IN_A_CODING = {
    # coding, body, message, excerpt
    "unreadable": (b"br", b"\x0b\x02\x80", "the gateway's body can't be decoded: content-encoding br, 3 bytes", None),
    "an envelope in br that is plain": (b"br", ENVELOPE, "model retired", None),
    "an envelope in gzip that is plain": (b"gzip", ENVELOPE, "model retired", None),
    "an envelope in a coding that is none": (b"none", ENVELOPE, "model retired", None),
    "an envelope in gzip": (b"gzip", gzip.compress(ENVELOPE), "model retired", None),
    "a page in zstd that is plain": (
        b"zstd",
        b"<h1>Gone",
        "the gateway's body can't be decoded: content-encoding zstd, 8 bytes",
        "<h1>Gone",
    ),
}


@METHODS
@pytest.mark.parametrize(
    ("coding", "body", "message", "excerpt"), REFUSED_IN_A_CODING.values(), ids=REFUSED_IN_A_CODING
)
async def test_refusal_in_any_coding_keeps_its_row_and_its_words(coding, body, message, excerpt, method):
    head = b"HTTP/1.1 410 Gone\r\ncontent-encoding: %b\r\nretry-after: 7\r\ncontent-length: %d\r\n\r\n"
    async with serve_answers(head % (coding, len(body)) + body) as server, open_upstream(server.url) as upstream:
        error = await fail(upstream, method)
    assert name(error)[1] == ("UPSTREAM_NOT_FOUND" if message == "model retired" else "UPSTREAM_REFUSED")
    assert error.message.endswith(message)
    assert "empty" not in error.message
    assert (error.upstream.http_status, error.retry_after_ms) == (410, 7000)
    assert (error.upstream.body_excerpt if error.upstream.HasField("body_excerpt") else None) == excerpt


@METHODS
@pytest.mark.parametrize("fault", [b"x: " + b"y" * 100_000, b"x: y\r\n" * 1001])
async def test_refusal_whose_head_is_too_large_keeps_its_status_and_its_wait(fault, method):
    data = b"HTTP/1.1 429 Slow Down\r\nretry-after: 3\r\n" + fault + b"\r\n\r\n"
    call = UpstreamCall()
    async with serve_answers(data) as server, open_upstream(server.url) as upstream:
        error = with_answer(await fail(upstream, method, call), call)
    assert name(error) == ("RESOURCE_EXHAUSTED", "UPSTREAM_RATE_LIMITED")
    assert (error.upstream.http_status, error.retry_after_ms) == (429, 3000)


@METHODS
@pytest.mark.parametrize("lines", [b"x: " + b"y" * 9000 + b"\r\n", b"x: y\r\n" * 500])
async def test_answer_with_a_large_head_is_read(lines, method):
    data = answer(b"{}", method=method).replace(b"\r\n", b"\r\n" + lines, 1)
    async with serve_answers(data) as server, open_upstream(server.url) as upstream:
        assert await fetch(upstream, method) == b"{}"


TYPES = [
    ("text/event-stream", "text/event-stream; charset=utf-8"),
    ("text/event-stream; charset=utf-8", "text/event-stream"),
    ("text/event-stream", "text/event-stream"),
    ("text/event-stream, text/event-stream;charset=utf-8",),
    ("application/json", "text/event-stream"),
]


@pytest.mark.parametrize("types", TYPES)
async def test_stream_whose_type_is_given_twice_is_a_stream(types):
    lines = "".join(f"Content-Type: {value}\r\n" for value in types).encode()
    data = OK + lines + b"content-length: 2\r\n\r\n{}"
    async with serve_answers(data) as server, open_upstream(server.url) as upstream:
        assert await fetch(upstream, "stream") == b"{}"


@METHODS
async def test_excess_after_an_answer_does_not_spoil_it(method):
    async with serve_answers(answer(b"{}", method=method) + b"more") as server, open_upstream(server.url) as upstream:
        assert await fetch(upstream, method) == b"{}"
        assert upstream.connections == 0


@METHODS
async def test_silence_in_a_body_is_a_timeout_that_names_its_setting(method):
    head = answer(b"{}", method=method)[:-1]
    async with (
        start_server(answer_with(head)) as server,
        open_upstream(server.url, idle_timeout_s=0.05) as upstream,
    ):
        error = await fail(upstream, method, UpstreamCall(first_chunk_at=0))
    assert name(error) == TIMEOUT
    assert error.message == "no data from the gateway for 0.05 s (upstream.idle_timeout_s)"
    assert error.upstream.http_status == 200


@pytest.mark.parametrize("data", [b"", CHUNKED, CHUNKED + b"5\r\n: hi\n\r\n"], ids=["no head", "a head", "a comment"])
async def test_late_first_chunk_is_a_timeout_that_names_its_setting(data):
    url_settings = {"first_chunk_timeout_s": 0.1}
    async with (
        start_server(answer_with(data)) as server,
        open_upstream(server.url, **url_settings) as upstream,
    ):
        error = await fail(upstream, "stream")
    assert name(error) == TIMEOUT
    assert error.message == "no first chunk from the gateway for 0.1 s (upstream.first_chunk_timeout_s)"


async def test_first_chunk_that_has_come_is_waited_for_no_more():
    call = UpstreamCall(headers=[], first_chunk_at=0)
    settings = {"first_chunk_timeout_s": 0.05, "idle_timeout_s": 0.1}
    async with (
        start_server(answer_with(CHUNKED)) as server,
        open_upstream(server.url, **settings) as upstream,
    ):
        error = await fail(upstream, "stream", call)
    assert error.message == "no data from the gateway for 0.1 s (upstream.idle_timeout_s)"


@METHODS
async def test_more_calls_than_connections_wait_no_longer_than_a_connect_may_take(method):
    async with (
        Emulator(scenario="stall?headers=0") as emulator,
        open_upstream(emulator.url, connections_max=1, connect_timeout_s=1) as upstream,
    ):
        first = asyncio.create_task(fetch(upstream))
        await emulator.next_exchange()
        assert name(await fail(upstream, method)) == UNREACHABLE
        first.cancel()
        await asyncio.wait([first])


async def test_body_of_a_refused_stream_has_the_idle_timeout():
    data = b"HTTP/1.1 400 No\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"
    settings = {"first_chunk_timeout_s": 60, "idle_timeout_s": 0.05}
    async with start_server(answer_with(data)) as server, open_upstream(server.url, **settings) as upstream:
        error = await fail(upstream, "stream")
    assert name(error) == ("INVALID_ARGUMENT", "UPSTREAM_INVALID_REQUEST")


# What is sent, and what is known


@METHODS
@pytest.mark.parametrize(("unit", "least", "most"), [("ms", 3_540_000, 3_600_000), ("s", 3540, 3600)])
async def test_gateway_is_told_what_is_left_of_the_calls_time(method, unit, least, most):
    call = UpstreamCall(deadline_at=time.monotonic() + 3600)
    settings = {"deadline_header": "x-time-left", "deadline_header_unit": unit}
    async with (
        serve_answers(answer(b"{}", method=method)) as server,
        open_upstream(server.url, **settings) as upstream,
    ):
        await fetch(upstream, method, call)
    [value] = [line for line in server.requests[0].decode().split("\r\n") if line.startswith("x-time-left: ")]
    left = value.removeprefix("x-time-left: ")
    assert least <= float(left) <= most
    assert ("." in left) is (unit == "s")


async def test_gateway_is_told_of_no_time_unless_the_setting_names_a_header():
    async with serve_answers(answer(b"{}")) as server, open_upstream(server.url) as upstream:
        await fetch(upstream, "complete", UpstreamCall(deadline_at=time.monotonic() + 30))
        await fetch(upstream, "complete", UpstreamCall())
    with_deadline, without = server.requests
    assert with_deadline == without


async def test_request_has_its_headers_and_asks_for_no_encoding():
    async with (
        serve_answers(answer(b"{}", method="stream")) as server,
        open_upstream(f"{server.url}/team/a%20b/") as upstream,
    ):
        await fetch(upstream, "stream", UpstreamCall(headers=[("authorization", "Bearer key")]))
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.decode().split("\r\n") == [
        "POST /team/a%20b/v1/chat/completions HTTP/1.1",
        f"host: {server.url.removeprefix('http://')}",
        f"content-length: {len(BODY)}",
        "authorization: Bearer key",
        "accept: text/event-stream",
        "accept-encoding: identity",
        "content-type: application/json",
    ]
    assert body == BODY


@METHODS
async def test_call_knows_status_headers_and_times(method):
    call = UpstreamCall(headers=[])
    data = answer(b"{}", "X-Request-Id: 7", "set-cookie: no", method=method)
    async with serve_answers(data) as server, open_upstream(server.url) as upstream:
        await fetch(upstream, method, call)
    assert (call.http_status, call.content_type, call.streamed) == (200, KINDS[method], method == "stream")
    assert call.returned == [("x-request-id", "7")]
    assert call.sent_at is not None
    assert call.ended_at is not None
    assert call.sent_at <= call.ended_at


async def test_retry_after_of_a_refusal_is_in_its_error():
    data = b"HTTP/1.1 429 Slow Down\r\nRetry-After: 3 \r\ncontent-length: 0\r\n\r\n"
    async with serve_answers(data) as server, open_upstream(server.url) as upstream:
        assert (await fail(upstream)).retry_after_ms == 3000


async def test_stream_that_is_no_event_stream_is_an_error_of_its_body():
    async with (
        serve_answers(answer(b'{"error":{"message":"no","code":"429"}}')) as server,
        open_upstream(server.url) as upstream,
    ):
        error = await fail(upstream, "stream")
    assert (error.code.name, error.message) == ("RESOURCE_EXHAUSTED", "no")


@METHODS
async def test_reason_phrase_that_is_no_text_is_passed_over(method):
    data = answer(b"{}", method=method).replace(b"200 OK", b"200 \xff\xfe")
    async with serve_answers(data) as server, open_upstream(server.url) as upstream:
        assert await fetch(upstream, method) == b"{}"


# Limits


@pytest.mark.parametrize("size", [1024, 1025, 5_000_000])
async def test_response_over_its_limit_is_too_large(size):
    body = b'"' + b"x" * (size - 2) + b'"'
    async with serve_answers(answer(body)) as server, open_upstream(server.url, response_bytes_max=1024) as upstream:
        if size == 1024:
            assert await fetch(upstream) == body
        else:
            error = await fail(upstream)
            assert name(error) == ("INTERNAL", "UPSTREAM_RESPONSE_TOO_LARGE")
            assert error.message == "the gateway's answer has more than 1024 bytes (upstream.response_bytes_max)"
            assert error.upstream.http_status == 200


async def test_gzip_bomb_is_stopped_at_the_limit():
    data = answer(gzip.compress(bytes(100_000_000)), "content-encoding: gzip")
    async with serve_answers(data) as server, open_upstream(server.url, response_bytes_max=1_000_000) as upstream:
        assert name(await fail(upstream)) == ("INTERNAL", "UPSTREAM_RESPONSE_TOO_LARGE")


async def test_error_body_of_any_size_is_read_only_so_far():
    body = b'{"error":{"message":"' + b"x" * 50_000_000
    data = f"HTTP/1.1 400 Bad Request\r\ncontent-length: {len(body) + 3}\r\n\r\n".encode() + body + b'"}}'
    async with serve_answers(data) as server, open_upstream(server.url) as upstream:
        assert name(await fail(upstream)) == ("INVALID_ARGUMENT", "UPSTREAM_INVALID_REQUEST")


# The pool, and what is not taken from around


async def test_stream_whose_completion_is_whole_is_read_on_for_its_end():
    """The last chunk of a body comes a moment after the last event."""

    async def serve(peer):
        while True:
            await peer.read_request()
            await peer.write(CHUNKED + b"5\r\nhello\r\n")
            await read.wait()
            read.clear()
            await peer.write(b"0\r\n\r\n")

    read = asyncio.Event()
    async with start_server(serve) as server, open_upstream(server.url) as upstream:
        calls = 0
        async with asyncio.timeout(WAIT_S):
            while len(server.peers) == calls:  # until one is kept: 20 ms may be too short on a busy machine
                async with upstream.stream(BODY, UpstreamCall(headers=[])) as body:
                    async for piece in body:
                        assert piece == b"hello"
                        break
                    read.set()
                calls += 1


async def test_stream_that_is_left_ends_its_connection_at_once():
    async def serve(peer):
        await peer.read_request()
        await peer.write(CHUNKED + b"5\r\nhello\r\n")
        await peer.read_to_end()
        left.set()

    left = asyncio.Event()
    async with start_server(serve) as server, open_upstream(server.url) as upstream:
        with contextlib.suppress(KeyError):
            async with upstream.stream(BODY, UpstreamCall(headers=[])) as body:
                async for _ in body:
                    raise KeyError
        assert upstream.connections == 0
        await asyncio.wait_for(left.wait(), WAIT_S)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
async def test_proxy_variables_of_the_environment_are_ignored(emulator, monkeypatch, variable, closed_address):
    monkeypatch.setenv(variable, f"http://{closed_address}")
    monkeypatch.setenv("no_proxy", "")
    async with open_upstream(emulator.url) as upstream:
        assert b"chat.completion" in await fetch(upstream)


async def test_proxy_of_the_settings_is_used_with_its_password():
    async with serve_answers(answer(b"{}")) as proxy:
        proxy_url = proxy.url.replace("//", "//user:sesame@")
        async with open_upstream("http://gateway.invalid", proxy=proxy_url, plaintext=True) as upstream:
            assert await fetch(upstream) == b"{}"
    head = proxy.requests[0].lower()
    assert head.startswith(b"post http://gateway.invalid/v1/chat/completions http/1.1\r\n")
    assert b"proxy-authorization: basic dxnlcjpzzxnhbwu=" in head


async def test_netrc_of_the_environment_is_not_sent(emulator, monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password sesame")
    monkeypatch.setenv("NETRC", str(netrc))
    async with open_upstream(emulator.url) as upstream:
        await fetch(upstream)
    assert "authorization" not in emulator.exchanges[0].headers


@pytest.mark.parametrize(("keepalive_s", "connections"), [(0, 3), (15, 1)])
async def test_keepalive_of_zero_is_a_connection_a_call(emulator, keepalive_s, connections):
    async with open_upstream(emulator.url, keepalive_s=keepalive_s) as upstream:
        for _ in range(3):
            await fetch(upstream)
    assert emulator.connections_opened == connections


async def test_unused_connection_is_closed_after_its_keepalive(emulator):
    async with open_upstream(emulator.url, keepalive_s=0.1) as upstream:
        await fetch(upstream)
        await emulator.exchanges[0].wait_closed()


async def test_leaving_the_pool_closes_its_connections(emulator):
    async with open_upstream(emulator.url) as upstream:
        await fetch(upstream)
        assert emulator.exchanges[0].closed_at is None
    await emulator.exchanges[0].wait_closed()


async def test_connection_that_the_gateway_closed_while_unused_is_not_used_again():
    async with serve_answers(answer(b"{}")) as server, open_upstream(server.url) as upstream:
        for _ in range(3):
            assert await fetch(upstream) == b"{}"
            await eventually(lambda: not server.transports)
        assert len(server.requests) == 3


async def test_cookies_are_never_sent_back():
    data = answer(b"{}", "set-cookie: session=1; Path=/", "connection: close")
    async with serve_answers(data) as server, open_upstream(server.url) as upstream:
        await fetch(upstream)
        await fetch(upstream)
    assert len(server.requests) == 2
    assert not any(b"cookie" in request.lower() for request in server.requests)


async def test_gateway_on_a_unix_socket_is_reached(tmp_path):
    path = tmp_path / "gateway.sock"
    async with start_server(answer_with(answer(b"{}")), unix=path), open_upstream(f"unix:{path}") as upstream:
        await upstream.reach()
        assert await fetch(upstream) == b"{}"


async def test_files_that_can_not_be_used_are_refused_at_the_start(tmp_path):
    with pytest.raises(SettingsError, match=r"upstream\.ca_file"):
        async with open_upstream("https://gateway.test", ca_file=tmp_path / "none.pem"):
            pass
