"""The web port: the same calls as over gRPC, by Connect and gRPC-Web over real sockets, with the same limits."""

import asyncio
import contextlib
import itertools
import json
import signal
import ssl

import grpc
import httpx2
import pytest

from tests.kit.bridges import start_bridge_process
from tests.kit.certificates import Certificates
from tests.kit.client import chat, scenario
from tests.kit.waiting import WAIT_S, eventually
from tests.kit.web import PROTOCOLS, SERVICE, Web
from tests.kit.windows import WINDOWS, wait_for_backpressure

BY_EACH_PROTOCOL = pytest.mark.parametrize("protocol", PROTOCOLS)
METHODS = pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
MIB = 1024 * 1024
VARYING = {"id", "created", "episode_id"}


@pytest.fixture
async def start_web(start_bridge):
    """Start a bridge with a web port; returns it, and a caller of the web port."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(**settings):
            bridge = await start_bridge(web_listen="127.0.0.1:0", **settings)
            return bridge, await stack.enter_async_context(Web(bridge.web_address))

        yield start


def list_fields(messages):
    """Return the fields of messages that are the same for each call, by message."""
    return [{field.name: value for field, value in each.ListFields() if field.name not in VARYING} for each in messages]


@METHODS
@BY_EACH_PROTOCOL
async def test_call_gives_what_it_gives_over_grpc(start_web, protocol, stream):
    bridge, web = await start_web()
    request = scenario("reasoning", stream_options={"include_usage": True} if stream else None)
    expected = await bridge.ask(request, stream=stream)
    answer = await web.ask(request, protocol, stream=stream, x_request_id="r-1")
    assert (answer.http_status, answer.code) == (200, 0)
    assert list_fields(answer.messages) == list_fields(expected.messages)
    returned = answer.headers if stream else answer.trailers
    assert returned["x-request-id"] == "r-1"
    assert {"x-ratelimit-limit-requests", "openai-processing-ms"} <= returned.keys()
    assert "ollmbridge-upstream-ms" in answer.trailers
    records = [await bridge.records.next() for _ in range(2)]
    assert [(each.code, each.method, each.chunks) for each in records[:1]] == [
        (each.code, each.method, each.chunks) for each in records[1:]
    ]
    assert [each.peer.rpartition(":")[0] for each in records] == ["ipv4:127.0.0.1"] * 2


FAILURES = {
    "of the upstream": scenario("rate_limited?retry_after=2"),
    "not found": chat(model="no_such_model"),
    "of the request": chat(model=""),
    "in mid-stream": scenario("error_event?after=2"),
}
HTTP_STATUSES = {3: 400, 5: 404, 8: 429, 10: 409, 13: 500}


@METHODS
@BY_EACH_PROTOCOL
@pytest.mark.parametrize("request_", FAILURES.values(), ids=FAILURES)
async def test_failure_is_that_of_grpc_with_all_its_details(start_web, request_, protocol, stream):
    bridge, web = await start_web()
    expected = await bridge.ask(request_, stream=stream, metadata=[("x-request-id", "r-1")])
    answer = await web.ask(request_, protocol, stream=stream, x_request_id="r-1")
    failure = expected.failure
    assert (answer.code, answer.message) == (grpc.StatusCode[failure.code].value[0], failure.message)
    assert answer.details == failure.details
    assert list_fields(answer.messages) == list_fields(expected.messages)
    assert answer.trailers.get("grpc-retry-pushback-ms") == failure.pushback_ms
    is_plain = protocol.startswith("connect") and not stream
    assert answer.http_status == (HTTP_STATUSES[answer.code] if is_plain else 200)


async def test_deadline_ends_the_call_and_closes_the_upstream_connection(start_web, emulator):
    bridge, web = await start_web()
    asked = {}
    for protocol, stream in itertools.product(PROTOCOLS, (False, True)):
        limit = {"connect_timeout_ms": "3000"} if protocol.startswith("connect") else {"grpc_timeout": "3S"}
        asked[protocol, stream] = web.ask(scenario("stall?headers=0"), protocol, stream=stream, **limit)
    answers = dict(zip(asked, await asyncio.gather(*asked.values()), strict=True))
    assert {case: answer.code for case, answer in answers.items()} == dict.fromkeys(asked, 4)
    for _ in asked:
        await (await emulator.next_exchange()).wait_closed()
    assert {(await bridge.records.next()).code for _ in asked} == {"DEADLINE_EXCEEDED"}


@BY_EACH_PROTOCOL
async def test_heartbeats_are_empty_messages_as_over_grpc(start_web, protocol):
    _, web = await start_web(heartbeat_s=0.1)
    answer = await web.ask(scenario("slow?delay_s=0.5", max_tokens=1), protocol, stream=True)
    assert (answer.code, answer.messages[0].ByteSize()) == (0, 0)
    assert "".join(choice.delta.content for message in answer.messages for choice in message.choices) == "You"
    assert answer.trailers["x-ollm-gateway-version"] == "emulator"


@pytest.mark.parametrize("window", [name for name in WINDOWS if name != "blocked write"])
async def test_disconnect_closes_the_upstream_connection(start_web, emulator, window):
    bridge, web = await start_web()
    shape = WINDOWS[window]
    task = asyncio.create_task(web.ask(scenario(shape.scenario), stream=shape.stream))
    exchange = await emulator.next_exchange()
    await shape.wait(exchange)
    task.cancel()
    await exchange.wait_closed()
    assert not exchange.finished
    assert (await bridge.records.next()).code == "CANCELLED"


async def test_reader_that_stops_stops_the_gateway(start_web, emulator):
    bridge, web = await start_web()
    request = scenario("many?chunks=20000&bytes=10000")
    async with web.open(request, "connect+proto", stream=True):
        exchange = await emulator.next_exchange()
        sent = await wait_for_backpressure(exchange)
        assert 0 < sent < 20_000
    await exchange.wait_closed()
    assert (await bridge.records.next()).code == "CANCELLED"


async def test_reader_that_takes_nothing_is_ended(start_web, emulator):
    bridge, web = await start_web(write_stall_timeout_s=0.5)
    async with web.open(scenario("many?chunks=20000&bytes=10000"), "connect+proto", stream=True):
        record = await bridge.records.next()
        await (await emulator.next_exchange()).wait_closed()
    assert (record.code, record.reason) == ("DEADLINE_EXCEEDED", "UPSTREAM_TIMEOUT")


async def test_call_that_is_not_admitted_is_refused_before_its_body_comes(start_web, emulator):
    bridge, web = await start_web(calls_max=1)
    held = asyncio.create_task(web.ask(scenario("stall?headers=0")))
    await emulator.next_exchange()
    reader, writer = await asyncio.open_connection(*bridge.web_address.split(":"))
    writer.write(encode_head(3_000_000))
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 429 ")
    assert b"OVERLOADED" in await reader.readuntil(b"]}")
    writer.close()
    held.cancel()


def encode_head(length: int | None, kind: str = "application/json", method: str = "CreateChatCompletion") -> bytes:
    framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    return f"POST /{SERVICE}/{method} HTTP/1.1\r\nhost: a\r\ncontent-type: {kind}\r\n{framing}\r\n\r\n".encode()


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_body_beyond_the_limit_is_refused_before_all_of_it_has_come(start_web, is_chunked):
    bridge, _ = await start_web(request_bytes_max=100_000)
    reader, writer = await asyncio.open_connection(*bridge.web_address.split(":"))
    writer.write(encode_head(None if is_chunked else 3_000_000))
    if is_chunked:
        writer.write(b"186a1\r\n" + bytes(0x186A1))
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 429 ")
    error = json.loads(await reader.readuntil(b"}"))
    assert (error["code"], "request_bytes_max" in error["message"]) == ("resource_exhausted", True)
    writer.close()
    assert (await bridge.records.next()).code == "RESOURCE_EXHAUSTED"


@BY_EACH_PROTOCOL
async def test_large_message_within_the_limit_is_taken(start_web, protocol):
    _, web = await start_web()
    text = "x" * 3_000_000
    answer = await web.ask(chat(text), protocol)
    assert answer.messages[0].choices[0].message.text == f"You said: {text}"


async def test_body_that_does_not_come_in_time_ends_the_call(start_web):
    bridge, _ = await start_web(receive_timeout_s=0.3)
    reader, writer = await asyncio.open_connection(*bridge.web_address.split(":"))
    writer.write(encode_head(100) + b"{")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 504 ")
    writer.close()
    record = await bridge.records.next()
    assert (record.code, record.reason) == ("DEADLINE_EXCEEDED", "UPSTREAM_TIMEOUT")


async def test_caller_that_leaves_with_half_a_body_has_cancelled(start_web):
    bridge, _ = await start_web()
    _, writer = await asyncio.open_connection(*bridge.web_address.split(":"))
    writer.write(encode_head(100) + b"{")
    await eventually(lambda: bridge.records.started)
    writer.close()
    assert (await bridge.records.next()).code == "CANCELLED"


async def test_caller_needs_a_token_as_over_grpc(start_web, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("team-a secret-token\n")
    tokens.chmod(0o600)
    bridge, web = await start_web(tokens_file=tokens, upstream={"api_key": "sk-own"})
    answer = await web.ask(chat())
    assert (answer.http_status, answer.reason) == (401, "CALLER_UNAUTHENTICATED")
    assert (await web.ask(chat(), authorization="Bearer secret-token")).code == 0
    assert [(await bridge.records.next()).caller for _ in range(2)] == ["", "team-a"]


async def test_tls_is_the_call_ports_with_callers_certificates(start_bridge, tmp_path):
    certificates = Certificates(tmp_path)
    tls = certificates.settings | {"client_ca_file": certificates.ca_file, "allowed_identities": ["team-a.example"]}
    bridge = await start_bridge(web_listen="localhost:0", tls=tls)
    for name, code in (("team-a.example", 0), ("team-b.example", 7)):
        context = ssl.create_default_context(cadata=certificates.root.decode())
        certificates.authority.issue_cert(name).configure_cert(context)
        async with Web(bridge.web_address, tls=context) as web:
            assert (await web.ask(chat())).code == code
    record = await bridge.records.next()
    assert record.caller == "team-a.example"
    context = ssl.create_default_context(cadata=certificates.root.decode())
    async with Web(bridge.web_address, tls=context) as web:
        with pytest.raises(httpx2.TransportError):
            await web.ask(chat())


async def test_renewed_certificate_is_used_for_new_connections(start_bridge, tmp_path):
    certificates = Certificates(tmp_path)
    bridge = await start_bridge(web_listen="localhost:0", tls=certificates.settings)
    context = ssl.create_default_context(cadata=certificates.root.decode())
    async with Web(bridge.web_address, tls=context) as web:
        assert (await web.ask(chat())).code == 0
    other = Certificates(tmp_path)  # overwrites the files
    context = ssl.create_default_context(cadata=other.root.decode())
    async with asyncio.timeout(WAIT_S), Web(bridge.web_address, tls=context) as web:
        while True:
            with contextlib.suppress(OSError, httpx2.ConnectError):
                assert (await web.ask(chat())).code == 0
                break


async def test_process_has_the_same_tls(emulator, tmp_path):
    """It runs on uvloop, whose TLS is its own."""
    certificates = Certificates(tmp_path)
    files = {f"tls__{name}": path for name, path in certificates.settings.items()}
    files["tls__client_ca_file"] = certificates.ca_file
    context = ssl.create_default_context(cadata=certificates.root.decode())
    certificates.authority.issue_cert("team-a.example").configure_cert(context)
    async with start_bridge_process(emulator, web_listen="localhost:0", **files) as bridge:
        async with Web(bridge.web_address, tls=context) as web:
            assert (await web.ask(chat("x" * 1_000_000))).code == 0
            answer = await web.ask(scenario("many?chunks=200&bytes=10000"), "grpc-web", stream=True)
            assert len(answer.messages) > 200
        await eventually(lambda: any("team-a.example" in line for line in bridge.log_lines))


async def test_page_of_an_allowed_origin_can_call_and_read(start_web):
    origin = "https://app.example"
    _, web = await start_web(web_allowed_origins=[origin])
    url = f"{web.url}/{SERVICE}/CreateChatCompletion"
    asked = {"origin": origin, "access-control-request-method": "POST"}
    asked["access-control-request-headers"] = "content-type,connect-protocol-version,authorization"
    preflight = await web.client.options(url, headers=asked)
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == origin
    assert preflight.headers["access-control-allow-headers"] == asked["access-control-request-headers"]
    answer = await web.ask(chat(), origin=origin)
    assert answer.code == 0
    assert answer.headers["access-control-allow-origin"] == origin
    exposed = answer.headers["access-control-expose-headers"].split(", ")
    assert {"grpc-status", "grpc-message", "grpc-status-details-bin", "x-request-id"} <= set(exposed)
    assert {name for name in answer.headers if name.startswith("trailer-")} <= set(exposed)


async def test_page_of_another_origin_is_refused(start_web, emulator):
    _, web = await start_web(web_allowed_origins=["https://app.example"])
    for origin in ("https://evil.example", "null", "https://app.example.evil.example"):
        answer = await web.ask(chat(), origin=origin)
        assert answer.http_status == 403
        assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert emulator.exchanges == []


async def test_workers_share_the_web_port_and_drain_it(emulator):
    async with start_bridge_process(emulator, workers=2, web_listen="127.0.0.1:0") as bridge:
        for _ in range(8):
            async with Web(bridge.web_address) as web:
                assert (await web.ask(chat())).code == 0
        async with Web(bridge.web_address) as web:
            slow = asyncio.create_task(web.ask(scenario("slow?delay_s=0.5"), stream=True))
            await eventually(lambda: len(emulator.exchanges) == 9)
            bridge.process.send_signal(signal.SIGTERM)
            assert (await slow).code == 0
        assert await bridge.wait_for_exit() == 0


async def test_drain_lets_calls_finish_and_refuses_new_ones(emulator):
    started = start_bridge_process(emulator, web_listen="127.0.0.1:0")
    async with started as bridge, Web(bridge.web_address) as web:
        held = asyncio.create_task(web.ask(scenario("stall?headers=0")))
        slow = asyncio.create_task(web.ask(scenario("slow?delay_s=0.5"), "grpc-web", stream=True))
        for _ in range(2):
            await emulator.next_exchange()
        bridge.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(WAIT_S):
            while (answer := await web.ask(chat())).code == 0:
                pass
        assert (answer.http_status, answer.reason) == (503, "DRAINING")
        assert (await slow).code == 0
        held.cancel()
        assert await bridge.wait_for_exit() == 0
