"""The command line, run as a person runs it: processes, their output, their exit codes."""

import asyncio
import json
import os
import re
import shutil
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bridge.cli.main import ADVICE
from bridge.emulator import Emulator
from ollmbridge.v1.error_details_pb2 import ErrorReason
from tests.conftest import canned, free_port


def command(*arguments, **environ):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OLLM_", "PYTEST"))}
    return asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "bridge", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=kept | {"OLLM_BRIDGE_ADMIN_LISTEN": "127.0.0.1:0"} | environ,
    )


async def run(*arguments, **environ):
    process = await command(*arguments, **environ)
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def listening(*arguments, **environ):
    """Start a command that listens, and give its address; afterwards it has ended with 0 on SIGTERM."""
    process = await command(*arguments, **environ)
    try:
        line = (await process.stdout.readline()).decode()
        assert line.startswith("listening on "), (line, (await process.stderr.read()).decode())
        yield line.split()[-1]
        process.send_signal(signal.SIGTERM)
        await process.communicate()
        assert process.returncode == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@asynccontextmanager
async def served(**emulated):
    async with (
        Emulator(**emulated) as emulator,
        listening("serve", "--listen", "127.0.0.1:0", "--upstream", emulator.url) as address,
    ):
        yield emulator, address


async def test_chat_streams_words_and_shows_usage():
    async with served() as (emulator, address):
        code, out, err = await run("chat", "--address", address, "--system", "Be brief.", "-o", "temperature=0.5", "Hi")
        assert (code, out) == (0, "You said: Hi\n")
        assert err == "usage: prompt_tokens 3, completion_tokens 3, total_tokens 6\n"
        assert emulator.exchanges[-1].json == {
            "model": "near_qwen3_30b",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
            "temperature": 0.5,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


async def test_chat_can_ask_for_the_whole_answer_with_any_key():
    async with served() as (emulator, address):
        options = ("-o", 'ollm::tags={"team":"a"}', "-o", "top_k=40")
        code, out, _ = await run("chat", "--address", address, "--no-stream", *options, "Hi")
        assert (code, out) == (0, "You said: Hi\n")
        assert emulator.exchanges[-1].tags == {"team": "a"}
        assert emulator.exchanges[-1].json["top_k"] == 40
        assert "stream" not in emulator.exchanges[-1].json


async def test_chat_shows_tool_calls_joined():
    tools = json.dumps([{"type": "function", "function": {"name": "f", "parameters": {}}}])
    async with served() as (_, address):
        code, out, _ = await run("chat", "--address", address, "-o", f"tools={tools}", "Hi")
    assert (code, out) == (0, "f({})\n")


async def test_chat_sends_the_key_of_its_environment():
    async with served(api_key="sk-ollm-a-b") as (_, address):
        assert (await run("chat", "--address", address, "Hi", OLLM_API_KEY="sk-ollm-a-b"))[0] == 0
        code, _, err = await run("chat", "--address", address, "Hi")
        assert code == 1
        assert "UNAUTHENTICATED" in err
        assert "what to do: send a good key" in err


async def test_chat_shows_an_error_with_its_reason_details_and_what_to_do():
    async with served() as (_, address):
        code, out, err = await run("chat", "--address", address, "-o", "n=2", "-o", 'ollm::episode_id="x"', "Hi")
    assert (code, out) == (1, "")
    assert err.startswith("INVALID_ARGUMENT: n: expected 1 or no value, found 2 (and 1 more)\n")
    assert 'reason: "INVALID_REQUEST" domain: "ollmbridge"' in err
    assert 'field: "ollm.episode_id"' in err
    assert err.endswith("what to do: mend each field named\n")


async def test_chat_says_when_no_bridge_listens():
    code, _, err = await run("chat", "--address", "127.0.0.1:1", "Hi")
    assert code == 1
    assert "what to do: check that a bridge listens at this address" in err


@pytest.mark.parametrize("option", ["temperature", "temperature=warm", "=1"])
async def test_chat_refuses_an_option_that_is_no_json(option):
    code, _, err = await run("chat", "-o", option, "Hi")
    assert code == 2
    assert "expected" in err


async def test_check_shows_masked_settings_with_their_origin_and_whether_the_upstream_answers(tmp_path):
    config = tmp_path / "bridge.toml"
    config.write_text("call_timeout_s = 7\n")
    async with Emulator() as emulator:
        code, out, _ = await run(
            "check", "--config", str(config), "--upstream", emulator.url, OLLM_BRIDGE_UPSTREAM__API_KEY="sk-ollm-secret"
        )
    assert code == 0
    assert "call_timeout_s = 7.0  (file)" in out
    assert "upstream.api_key = set, not shown  (environment)" in out
    assert f'upstream.base_url = "{emulator.url}"  (flag)' in out
    assert "calls_max = 1000  (default)" in out
    assert "refuses an empty request with HTTP 400, as a gateway should" in out
    assert "secret" not in out


async def test_check_fails_where_nothing_or_something_else_answers():
    code, out, _ = await run("check", "--upstream", "http://127.0.0.1:1")
    assert code == 1
    assert "does not answer: UNAVAILABLE UPSTREAM_UNREACHABLE" in out

    async def page(_reader, writer):
        writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-type: text/html\r\ncontent-length: 4\r\n\r\n<p>.")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(page, "127.0.0.1", 0) as server:
        code, out, _ = await run("check", "--upstream", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    assert code == 1
    assert "is the URL right?" in out


@pytest.mark.parametrize(
    ("arguments", "environ", "expected"),
    [
        ((), {"OLLM_BRIDGE_NOPE": "1"}, "OLLM_BRIDGE_NOPE: expected the name of a setting"),
        (("--listen", "here"), {}, "listen: expected HOST:PORT"),
        (("--upstream", "https://h/v1"), {}, "upstream.base_url: expected the gateway's root"),
        (("--config", "/no/such.toml"), {}, "/no/such.toml: expected a readable TOML file"),
        ((), {"OLLM_BRIDGE_UPSTREAM__API_KEY_FILE": "/no/key"}, "upstream.api_key_file: expected a readable file"),
    ],
    ids=["unknown", "address", "url", "file", "key file"],
)
async def test_serve_stops_at_settings_it_can_not_use(arguments, environ, expected):
    code, out, err = await run("serve", *arguments, **environ)
    assert (code, out) == (2, "")
    assert err.startswith(expected)


async def test_emulate_serves_a_scenario():
    async with (
        listening("emulate", "--listen", "127.0.0.1:0", "--scenario", "overloaded") as upstream,
        listening("serve", "--listen", "127.0.0.1:0", "--upstream", f"http://{upstream}") as address,
    ):
        code, _, err = await run("chat", "--address", address, "Hi")
    assert code == 1
    assert err.startswith("UNAVAILABLE")
    assert "UPSTREAM_UNAVAILABLE" in err
    assert (await run("emulate", "--scenario", "nope"))[0] == 2


async def test_healthcheck_asks_the_admin_port_whether_calls_are_taken():
    admin = f"127.0.0.1:{free_port()}"
    async with (
        Emulator() as emulator,
        listening("serve", "--listen", "127.0.0.1:0", "--admin-listen", admin, "--upstream", emulator.url) as address,
    ):
        assert (await run("healthcheck", "--address", admin))[:2] == (0, "SERVING\n")
        code, out, err = await run("healthcheck", "--address", address)
        assert (code, out) == (1, "")
        assert err.startswith(f"{address}: ")
    code, out, err = await run("healthcheck", "--address", admin)
    assert (code, out) == (1, "")
    assert err.startswith(f"{admin}: ")


async def test_healthcheck_fails_while_no_calls_are_taken_and_at_other_servers():
    async with canned(
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 12\r\n\r\nNOT_SERVING\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
    ) as server:
        address = server.url.removeprefix("http://")
        assert (await run("healthcheck", "--address", address))[:2] == (1, "NOT_SERVING\n")
        code, out, err = await run("healthcheck", "--address", address)
        assert (code, out) == (1, "")
        assert err == f"{address}: not an admin port of the bridge: HTTP 200\n"


async def test_demo_shows_four_calls():
    code, out, err = await run("demo")
    assert (code, err) == (0, "")
    assert out.count("===") == 8
    for words in (
        "You said: Hello",
        "reasoning_content",
        'joined: get_weather({"location":"Paris"})',
        "RESOURCE_EXHAUSTED",
        "'grpc-retry-pushback-ms': '2000'",
    ):
        assert words in out


async def test_buf_curl_calls_by_reflection_alone():
    """An independent client, with the request that the README gives to grpcurl."""
    async with served() as (_, address):
        process = await asyncio.create_subprocess_exec(
            shutil.which("buf", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))),
            *("curl", "--protocol", "grpc", "--http2-prior-knowledge", "-d"),
            '{"model": "near_qwen3_30b", "messages": [{"role": "user", "text": "Hello"}]}',
            f"http://{address}/ollmbridge.v1.ChatCompletionService/StreamChatCompletion",
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
    assert process.returncode == 0
    contents = re.findall(r'"content": "([^"]*)"', out.decode())
    assert "".join(contents) == "You said: Hello"


def test_every_reason_has_advice():
    names = {name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()} - {"UNSPECIFIED"}  # noqa: SIM118 - an enum's
    assert ADVICE.keys() == names
