"""Logs, pages and spans contain no secret and no content, and a log that nobody reads stops nothing."""

import asyncio
import contextlib
import json
import os
import signal
import socket

import aiohttp
import pytest

from ollmbridge.v1.chat_pb2 import ChatMessage, StreamOptions, Tool
from tests.kit.bridges import SERVE, Process, start_bridge_process
from tests.kit.client import build_deadline, chat, scenario
from tests.kit.http2 import encode_connection, exchange_bytes
from tests.kit.processes import build_bridge_environment, run_program_async
from tests.kit.spans import start_collector
from tests.kit.upstreams import FixedUpstream, serve_answers

KEYS = [f"sk-{letter * 24}" for letter in "abcdefghijklmno"]
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CONTENT = ["content-of-the-prompt", "content-of-extra", "content-of-the-answer", "content-of-the-error"]


async def send_secrets_everywhere(bridge: Process) -> None:
    """Send keys and content in everything that can carry them."""
    message = ChatMessage(role="user", text=f"{CONTENT[0]} {KEYS[0]}", name=KEYS[1], extra_json={"x": f'"{KEYS[2]}"'})
    request = chat(
        messages=[message],
        model=f"model-{KEYS[3]}",
        tools=[Tool(raw_json=f'{{"type":"{KEYS[4]}"}}')],
        stream_options=StreamOptions(include_usage=True),
        extra_json={f"x-{KEYS[5]}": f'"{CONTENT[1]} {KEYS[6]}"', "broken": f'{{"{KEYS[7]}'},
    )
    metadata = (
        ("authorization", f"Bearer {KEYS[8]}"),
        ("x-request-id", KEYS[9]),
        ("traceparent", TRACEPARENT),
        ("tracestate", f"vendor={KEYS[10]}"),
        ("baggage", f"key={KEYS[12]}"),
        ("user-agent", KEYS[13]),
    )
    for stream in (False, True):
        await bridge.ask(request, stream=stream, metadata=metadata)
        del request.extra_json["broken"]
        await bridge.ask(request, stream=stream, metadata=metadata)
        request.extra_json["broken"] = f'{{"{KEYS[7]}'
    await exchange_bytes(
        bridge.address, encode_connection(chat(), (b"authorization", b"Bearer \xff" + KEYS[11].encode()))
    )
    await exchange_bytes(bridge.address, encode_connection(chat(), path=b"/\xff" + KEYS[11].encode()))


def make_answers() -> tuple[bytes, ...]:
    error = json.dumps({"error": {"message": f"{CONTENT[3]} {KEYS[0]}", "type": KEYS[1], "code": KEYS[2]}}).encode()
    good = json.dumps({"choices": [{"message": {"content": CONTENT[2]}}], "model": KEYS[3]}).encode()
    event = f'data: {{"choices":[{{"delta":{{"content":"{CONTENT[2]}"}}}}]}}\n\ndata: {KEYS[4]}\n\n'.encode()
    broken = b"HTTP/1.1 200 OK\r\nno colon " + KEYS[5].encode() + b"\r\n\r\n"
    return (
        b"HTTP/1.1 500 No\r\ncontent-length: %d\r\n\r\n%b" % (len(error), error),
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n%b" % (len(event), event),
        b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(good), good),
        broken,
    )


async def read_pages(address: str) -> dict[str, str]:
    """Return every page of the admin port."""
    async with aiohttp.ClientSession(f"http://{address}") as session:
        found = {}
        for path in ("/", "/metrics", "/status.json", "/healthz", f"/{KEYS[0]}"):
            async with session.get(path, headers={"authorization": KEYS[0]}) as answer:
                found[path] = str(answer.headers) + await answer.text()
        return found


@pytest.mark.parametrize(
    ("log_format", "settings"), [("json", {}), ("console", {"upstream__api_key": KEYS[14]})], ids=["json", "own key"]
)
async def test_no_log_line_page_or_span_has_content_or_keys(log_format, settings):
    upstream: FixedUpstream
    async with contextlib.AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(serve_answers(*make_answers()))
        collector = stack.enter_context(start_collector())
        settings |= {"log__format": log_format, "log__level": "debug", "tracing__endpoint": collector.url}
        bridge = await stack.enter_async_context(start_bridge_process(upstream, **settings))
        for _ in range(3):
            await send_secrets_everywhere(bridge)
        pages = await read_pages(bridge.admin_address)
        bridge.process.send_signal(signal.SIGTERM)
        assert await bridge.wait_for_exit() == 0
    spans = "".join(map(str, collector.requests))
    assert len(upstream.requests) >= 5
    assert bridge.log.count("CreateChatCompletion") >= 6
    assert "CreateChatCompletion" in pages["/metrics"]
    assert len(json.loads(pages["/status.json"].partition(")>")[2])["failures"]) >= 6
    assert spans.count("rpc.response.status_code") >= 6
    for secret in [*(key[3:] for key in KEYS), *CONTENT]:
        assert secret not in bridge.log
        assert secret not in spans
        for path, text in pages.items():
            assert secret not in text, path
    if log_format == "json":
        lines = [json.loads(line) for line in bridge.log.splitlines()]
        assert [line["event"] for line in lines if line["event"] != "call"] == ["started", "draining", "stopped"]
        assert {"model-sk-[redacted]"} <= {line.get("model") for line in lines}
        assert TRACEPARENT.split("-")[1] in {line.get("trace_id") for line in lines}


async def test_spans_of_a_stream_and_of_a_whole_answer_name_the_completion(emulator):
    with start_collector() as collector:
        tracing = {"tracing__endpoint": collector.url, "tracing__provider_name": "openai"}
        async with start_bridge_process(emulator, **tracing) as bridge:
            for stream in (True, False):
                assert (await bridge.ask(chat(), stream=stream)).failure is None
            bridge.process.send_signal(signal.SIGTERM)
            assert await bridge.wait_for_exit() == 0
    spans = [{one.key: one.value for one in span.attributes} for span in collector.spans]
    assert len(spans) == 4
    for attributes in spans:
        assert attributes["gen_ai.provider.name"].string_value == "openai"
        assert attributes["gen_ai.response.id"].string_value
        assert attributes["gen_ai.response.model"].string_value
        reasons = attributes["gen_ai.response.finish_reasons"].array_value.values
        assert [reason.string_value for reason in reasons] == ["stop"]


async def test_log_line_of_each_kind_of_end_has_its_code_and_reason(emulator):
    async with start_bridge_process(emulator, log__format="json") as bridge:
        await bridge.ask(chat(), stream=True, metadata=(("x-request-id", "one"),))
        await bridge.ask(scenario("cut?after=3"), stream=True)
        await bridge.ask(scenario("stall?headers=0"), metadata=build_deadline(3))
        call = bridge.stub.CreateChatCompletion(scenario("stall?headers=0"))
        for _ in range(4):
            exchange = await emulator.next_exchange()
        call.cancel()
        await exchange.wait_closed()
        bridge.process.send_signal(signal.SIGTERM)
        assert await bridge.wait_for_exit() == 0
    lines = bridge.calls
    assert [(line["code"], line.get("reason", ""), line["chunks"]) for line in lines] == [
        ("OK", "", 6),
        ("ABORTED", "INCOMPLETE_COMPLETION", 3),
        ("DEADLINE_EXCEEDED", "", 0),
        ("CANCELLED", "", 0),
    ]
    assert lines[0]["request_id"] == "one"
    assert lines[0]["method"] == "StreamChatCompletion"
    assert lines[0]["first_chunk_s"] <= lines[0]["upstream_s"] <= lines[0]["duration_s"]


# A log that nobody reads


@contextlib.contextmanager
def open_full_pipe():
    """Yield the ends of a pipe that has no room."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"." * 4096)
    os.set_blocking(writing, True)
    with os.fdopen(reading, "rb", 0) as one, os.fdopen(writing, "wb", 0) as other:
        yield one, other


async def end(bridge: Process, number: signal.Signals = signal.SIGTERM) -> int:
    bridge.process.send_signal(number)
    return await bridge.wait_for_exit()


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 2), (signal.SIGINT, 1)], ids=["SIGTERM", "SIGINT"])
async def test_log_pipe_that_nobody_reads_stops_neither_calls_nor_the_exit(emulator, number, workers):
    with open_full_pipe() as (_, full):
        async with start_bridge_process(emulator, stderr=full.fileno(), workers=workers) as bridge:
            for _ in range(10):
                answers = await asyncio.gather(*(bridge.ask(chat(), timeout=30) for _ in range(20)))
                assert [answer.failure for answer in answers] == [None] * 20
            assert (await bridge.ask(chat(), stream=True, timeout=30)).failure is None
            assert await end(bridge, number) == 0


async def test_log_pipe_whose_reader_closes_stops_neither_calls_nor_the_exit(emulator):
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", 0) as reader, os.fdopen(writing, "wb", 0) as pipe:
        async with start_bridge_process(emulator, stderr=pipe.fileno()) as bridge:
            pipe.close()
            assert (await bridge.ask(chat(), timeout=30)).failure is None
            events = [json.loads(await asyncio.to_thread(reader.readline))["event"] for _ in range(2)]
            assert events == ["started", "call"]
            reader.close()
            for _ in range(20):
                assert (await bridge.ask(chat(), timeout=30)).failure is None
            assert await end(bridge) == 0


async def test_log_that_is_read_again_has_the_buffered_lines(emulator):
    with open_full_pipe() as (reader, full):
        async with start_bridge_process(emulator, stderr=full.fileno()) as bridge:
            full.close()
            for number in range(100):
                metadata = (("x-request-id", f"r-{number}"),)
                assert (await bridge.ask(chat(), timeout=30, metadata=metadata)).failure is None
            reading = asyncio.create_task(asyncio.to_thread(reader.readall))
            assert await end(bridge) == 0
            lines = (await reading).lstrip(b".").splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["request_id"] for record in records if record["event"] == "call"] == [
        f"r-{number}" for number in range(100)
    ]


async def test_settings_that_cannot_be_used_end_with_2_even_if_the_log_is_full(emulator):
    with socket.create_server(("127.0.0.1", 0)) as listener, open_full_pipe() as (_, full):
        environment = build_bridge_environment(emulator.url, admin_listen=f"127.0.0.1:{listener.getsockname()[1]}")
        assert (await run_program_async(*SERVE, environment=environment, stderr=full.fileno())).code == 2
