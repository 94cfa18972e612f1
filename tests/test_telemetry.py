"""Tests of bridge/telemetry: what a call's line says, and what neither a line nor a page nor a span ever says."""

import contextlib
import json
import logging
import signal

import aiohttp
import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from bridge.settings import LogSettings
from bridge.telemetry import CallRecord
from bridge.telemetry.logs import CallLog, _fit_to_log, configure
from ollmbridge.v1.chat_pb2 import ChatMessage, StreamOptions, Tool
from tests.conftest import Canned, canned, chat, free_port, scenario
from tests.e2e.frames import connection, heard
from tests.e2e.process import Process, served

KEYS = [f"sk-{letter * 24}" for letter in "abcdefghijklmno"]
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CONTENT = ["content-of-the-prompt", "content-of-extra", "content-of-the-answer", "content-of-the-error"]
RECORD = CallRecord(
    method="CreateChatCompletion",
    code="OK",
    reason="",
    model="echo",
    request_id="r-1",
    peer="ipv4:127.0.0.1:1",
    duration_s=0.123456789,
    upstream_status=200,
    upstream_s=0.1,
    first_chunk_s=None,
    chunks=0,
    prompt_tokens=2,
    completion_tokens=None,
    request_bytes=27,
    response_bytes=177,
    translation_s=0.00012345678,
    trace_id="0af7651916cd43dd8448eb211c80319c",
    caller="team-a",
)


@pytest.fixture
def logged(capsys):
    """Configure the log as a process does, and give what it wrote, a line an item."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def lines(record: CallRecord, **settings):
        configure(LogSettings(**{"format": "json"} | settings))
        CallLog().ended(record)
        return capsys.readouterr().err.splitlines()

    yield lines
    root.handlers[:] = handlers
    root.setLevel(level)


def test_call_is_one_line_with_the_records_fields_but_those_that_are_empty(logged):
    (line,) = logged(RECORD)
    fields = json.loads(line)
    assert fields.pop("timestamp").endswith("Z")
    assert fields == {
        "event": "call",
        "level": "info",
        "method": "CreateChatCompletion",
        "code": "OK",
        "model": "echo",
        "request_id": "r-1",
        "peer": "ipv4:127.0.0.1:1",
        "duration_s": 0.123457,
        "upstream_status": 200,
        "upstream_s": 0.1,
        "chunks": 0,
        "prompt_tokens": 2,
        "request_bytes": 27,
        "response_bytes": 177,
        "translation_s": 0.000123,
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "caller": "team-a",
    }


LEVELS = {
    "OK": "info",
    "CANCELLED": "info",
    "DEADLINE_EXCEEDED": "info",
    "NOT_FOUND": "info",
    "RESOURCE_EXHAUSTED": "info",
    "UNAVAILABLE": "info",
    "INTERNAL": "warning",
    "UNIMPLEMENTED": "warning",
}


@pytest.mark.parametrize(("code", "level"), LEVELS.items(), ids=LEVELS)
def test_level_follows_the_code(logged, code, level):
    record = CallRecord(**RECORD._asdict() | {"code": code})
    assert [json.loads(line)["level"] for line in logged(record)] == [level]
    assert len(logged(record, level="warning")) == (1 if level == "warning" else 0)
    assert logged(record, level="error") == []


def test_fault_is_logged_with_its_type_and_place_and_without_its_text(logged):
    def broken():
        local_secret = KEYS[0]
        raise ValueError(local_secret)

    with pytest.raises(ValueError) as caught:
        broken()
    record = CallRecord(**RECORD._asdict() | {"code": "INTERNAL", "reason": "BRIDGE_FAULT", "fault": caught.value})
    (line,) = logged(record)
    assert json.loads(line)["fault"] == "ValueError"
    assert "in broken" in json.loads(line)["stack"]
    assert KEYS[0] not in line


def test_line_for_a_terminal_has_the_same_fields(logged):
    (line,) = logged(RECORD, format="console")
    assert "call" in line
    assert "request_id" in line


def test_text_of_the_callers_is_one_line_whatever_it_holds(logged):
    (line,) = logged(CallRecord(**RECORD._asdict() | {"model": 'a\n{"level":"error"}\u2028\x1b[31m'}))
    assert json.loads(line)["model"] == 'a\n{"level":"error"}\u2028\x1b[31m'


class ExecuteBatchError(Exception):
    """By the name of grpc's own."""


@pytest.mark.parametrize(
    ("name", "kind", "kept"),
    [
        ("grpc._cython.cygrpc", UnicodeDecodeError, False),
        ("grpc._cython.cygrpc", ExecuteBatchError, False),
        ("grpc._cython.cygrpc", ValueError, True),
        ("grpc._cython.cygrpc", None, True),
        ("asyncio", UnicodeDecodeError, True),
    ],
)
def test_what_grpc_says_of_callers_who_leave_or_send_no_text_is_not_logged(name, kind, kept):
    info = None if kind is None else (kind, None, None)
    assert _fit_to_log(logging.LogRecord(name, logging.ERROR, "", 0, "text", None, info)) is kept


async def said_all_over(bridge: Process) -> None:
    """Send keys and content through everything that can hold them."""
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
    await heard(bridge.address, connection(chat(), (b"authorization", b"Bearer \xff" + KEYS[11].encode())))
    await heard(bridge.address, connection(chat(), path=b"/\xff" + KEYS[11].encode()))


def answers() -> tuple[bytes, ...]:
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


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """A collector of spans that keeps what it gets."""

    def __init__(self) -> None:
        self.got: list[trace_service_pb2.ExportTraceServiceRequest] = []

    async def Export(self, request, _context):
        self.got.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()


@contextlib.asynccontextmanager
async def collecting():
    """Run a collector and give it and its URL."""
    collector = Collector()
    server = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield collector, f"http://127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def pages(port: int) -> dict[str, str]:
    """Give all that the admin port shows."""
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        found = {}
        for path in ("/", "/metrics", "/status.json", "/healthz", f"/{KEYS[0]}"):
            async with session.get(path, headers={"authorization": KEYS[0]}) as answer:
                found[path] = str(answer.headers) + await answer.text()
        return found


@pytest.mark.parametrize(
    ("log_format", "settings"), [("json", {}), ("console", {"upstream__api_key": KEYS[14]})], ids=["json", "own key"]
)
async def test_neither_content_nor_keys_get_into_a_line_a_page_or_a_span(log_format, settings):
    upstream: Canned
    port = free_port()
    async with contextlib.AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(canned(*answers()))
        collector, endpoint = await stack.enter_async_context(collecting())
        settings |= {"log__format": log_format, "log__level": "debug", "tracing__endpoint": endpoint}
        bridge = await stack.enter_async_context(served(upstream, admin_listen=f"127.0.0.1:{port}", **settings))
        for _ in range(3):
            await said_all_over(bridge)
        shown = await pages(port)
        bridge.process.send_signal(signal.SIGTERM)
        assert await bridge.ended() == 0
    spans = "".join(map(str, collector.got))
    assert len(upstream.requests) >= 5
    assert bridge.log.count("CreateChatCompletion") >= 6
    assert "CreateChatCompletion" in shown["/metrics"]
    assert len(json.loads(shown["/status.json"].partition(")>")[2])["failures"]) >= 6
    assert spans.count("rpc.response.status_code") >= 6
    for secret in [*(key[3:] for key in KEYS), *CONTENT]:
        assert secret not in bridge.log
        assert secret not in spans
        for path, text in shown.items():
            assert secret not in text, path
    if log_format == "json":
        lines = [json.loads(line) for line in bridge.log.splitlines()]
        assert {line["event"] for line in lines} == {"call"}
        assert {"model-sk-[redacted]"} <= {line.get("model") for line in lines}
        assert TRACEPARENT.split("-")[1] in {line.get("trace_id") for line in lines}


async def test_line_of_each_kind_of_end_has_its_code_and_reason(emulator):
    async with served(emulator, log__format="json") as bridge:
        await bridge.ask(chat(), stream=True, metadata=(("x-request-id", "one"),))
        await bridge.ask(scenario("cut?after=3"), stream=True)
        await bridge.ask(scenario("stall?headers=0"), timeout=0.2)
        call = bridge.stub.CreateChatCompletion(scenario("stall?headers=0"))
        for _ in range(4):
            exchange = await emulator.next_exchange()
        call.cancel()
        await exchange.wait_closed()
        bridge.process.send_signal(signal.SIGTERM)
        assert await bridge.ended() == 0
    lines = [json.loads(line) for line in bridge.log.splitlines()]
    assert [(line["code"], line.get("reason", ""), line["chunks"]) for line in lines] == [
        ("OK", "", 6),
        ("ABORTED", "INCOMPLETE_STREAM", 3),
        ("DEADLINE_EXCEEDED", "", 0),
        ("CANCELLED", "", 0),
    ]
    assert lines[0]["request_id"] == "one"
    assert lines[0]["method"] == "StreamChatCompletion"
    assert lines[0]["first_chunk_s"] <= lines[0]["upstream_s"] <= lines[0]["duration_s"]
