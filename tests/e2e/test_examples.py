"""Each program in examples/ runs in a process of its own, against a bridge; asgi.py, which is no program, runs here."""

import asyncio
import importlib.util
import sys
from pathlib import Path

import pytest

from bridge.emulator import Emulator
from bridge.server.server import run_server
from bridge.settings import load
from tests.kit.client import chat
from tests.kit.processes import run_program_async
from tests.kit.web import REPLIES, SERVICE, encode_request, split_frames

EXAMPLES = Path(__file__).parents[2] / "examples"

CASES = {
    "unary": ([], ["You said: Hello", "4 tokens, finish_reason stop"]),
    "stream": ([], ["You said: Tell me about bridges", "6 tokens", "request id "]),
    "tools": ([], ['get_weather({"location":"Paris"}) gave 21 degrees in Paris', "The tool said: 21 degrees in Paris"]),
    "errors": (
        ["no_such_model"],
        ["NOT_FOUND: Unknown model", "reason UPSTREAM_NOT_FOUND of upstream.ollmbridge", "answered HTTP 404"],
    ),
    "retry": (["scenario::rate_limited?retry_after_ms=20"], ["given up: RESOURCE_EXHAUSTED"]),
}


def test_every_example_has_a_case():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*CASES, "asgi"}


@pytest.mark.parametrize("name", CASES)
async def test_example_prints_the_expected_lines(name):
    arguments, expected = CASES[name]
    async with Emulator() as emulator:
        flags = {"listen": "127.0.0.1:0", "upstream": {"base_url": emulator.url}}
        async with run_server(load(flags=flags, environ={}).settings) as address:
            program = (sys.executable, EXAMPLES / f"{name}.py", address, *arguments)
            code, out, err = await run_program_async(*program)
        assert (code, err) == (0, "")
        for line in expected:
            assert line in out
        if name == "retry":
            assert len(emulator.exchanges) == 4


async def test_asgi_application_speaks_grpc_while_its_server_lives(monkeypatch):
    async with Emulator() as emulator:
        monkeypatch.setenv("OLLM_BRIDGE_UPSTREAM__BASE_URL", emulator.url)
        application = load_example("asgi").application
        life, states = asyncio.Queue(), asyncio.Queue()
        living = asyncio.create_task(application({"type": "lifespan"}, life.get, states.put))
        life.put_nowait({"type": "lifespan.startup"})
        assert (await states.get())["type"] == "lifespan.startup.complete"
        for stream in (False, True):
            events = await call_over_grpc(application, stream=stream)
            body = b"".join(event["body"] for event in events if event["type"] == "http.response.body")
            replies = [REPLIES[stream].FromString(data) for _, data in split_frames(body)]
            assert [choice.finish_reason for choice in replies[-1].choices] == ["stop"]
            assert events[-1]["type"] == "http.response.trailers"
            assert (b"grpc-status", b"0") in events[-1]["headers"]
        life.put_nowait({"type": "lifespan.shutdown"})
        assert (await states.get())["type"] == "lifespan.shutdown.complete"
        await living


def load_example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def call_over_grpc(application, *, stream):
    """Make a call as an ASGI server with trailers hands it over, and return what was sent."""
    method = "StreamChatCompletion" if stream else "CreateChatCompletion"
    scope = {"type": "http", "method": "POST", "path": f"/{SERVICE}/{method}", "client": ("127.0.0.1", 1)}
    scope |= {"headers": [(b"content-type", b"application/grpc")], "extensions": {"http.response.trailers": {}}}
    incoming, events = asyncio.Queue(), []
    incoming.put_nowait({"type": "http.request", "body": encode_request(chat("Hi"), "grpc-web", stream=stream)})

    async def send(event):
        events.append(event)

    await application(scope, incoming.get, send)
    return events
