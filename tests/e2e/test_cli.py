"""The command line as processes: output and exit codes."""

import asyncio
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from bridge.emulator import Emulator
from tests.conftest import find_free_port
from tests.e2e.commands import run_command, run_listener, start_command


async def test_chat_streams_words_and_shows_usage(bridge, emulator):
    code, out, err = await run_command(
        "chat", "--address", bridge.address, "--system", "Be brief.", "-o", "temperature=0.5", "Hi"
    )
    assert (code, out) == (0, "You said: Hi\n")
    assert err == "usage: prompt_tokens 3, completion_tokens 3, total_tokens 6\n"
    assert emulator.exchanges[-1].json == {
        "model": "near_qwen3_30b",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "temperature": 0.5,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_chat_can_ask_for_the_whole_answer_with_any_key(bridge, emulator):
    options = ("-o", 'ollm::tags={"team":"a"}', "-o", "top_k=40")
    code, out, _ = await run_command("chat", "--address", bridge.address, "--no-stream", *options, "Hi")
    assert (code, out) == (0, "You said: Hi\n")
    assert emulator.exchanges[-1].tags == {"team": "a"}
    assert emulator.exchanges[-1].json["top_k"] == 40
    assert "stream" not in emulator.exchanges[-1].json


async def test_chat_shows_tool_calls_joined(bridge):
    tools = json.dumps([{"type": "function", "function": {"name": "f", "parameters": {}}}])
    code, out, _ = await run_command("chat", "--address", bridge.address, "-o", f"tools={tools}", "Hi")
    assert (code, out) == (0, "f({})\n")


async def test_chat_sends_the_key_of_its_environment(start_bridge):
    async with Emulator(api_key="sk-ollm-a-b") as emulator:
        bridge = await start_bridge(upstream={"base_url": emulator.url})
        chat = ("chat", "--address", bridge.address, "Hi")
        assert (await run_command(*chat, OLLM_API_KEY="sk-ollm-a-b"))[0] == 0
        code, _, err = await run_command(*chat)
    assert code == 1
    assert "UNAUTHENTICATED" in err
    assert "what to do: send a valid key" in err


async def test_chat_shows_an_error_with_its_reason_details_and_what_to_do(bridge):
    code, out, err = await run_command(
        "chat", "--address", bridge.address, "-o", "n=2", "-o", 'ollm::episode_id="x"', "Hi"
    )
    assert (code, out) == (1, "")
    assert err.startswith("INVALID_ARGUMENT: n: expected 1 or no value, found 2 (and 1 more)\n")
    assert 'reason: "INVALID_REQUEST" domain: "ollmbridge"' in err
    assert 'field: "ollm.episode_id"' in err
    assert err.endswith("what to do: fix the listed fields\n")


async def test_chat_reports_that_no_bridge_listens():
    code, _, err = await run_command("chat", "--address", "127.0.0.1:1", "Hi")
    assert code == 1
    assert "what to do: check that a bridge listens at this address" in err


async def test_serve_ends_at_a_file_that_it_cannot_use():
    code, out, err = await run_command("serve", OLLM_BRIDGE_UPSTREAM__API_KEY_FILE="/no/key")
    assert (code, out) == (2, "")
    assert err.startswith("upstream.api_key_file: cannot read the file /no/key: No such file or directory\n")


async def test_emulate_serves_a_scenario():
    async with (
        run_listener("emulate", "--listen", "127.0.0.1:0", "--scenario", "overloaded") as upstream,
        run_listener("serve", "--listen", "127.0.0.1:0", "--upstream", f"http://{upstream}") as address,
    ):
        code, _, err = await run_command("chat", "--address", address, "Hi")
    assert code == 1
    assert err.startswith("UNAVAILABLE")
    assert "UPSTREAM_UNAVAILABLE" in err
    assert (await run_command("emulate", "--scenario", "nope"))[0] == 2


async def test_healthcheck_distinguishes_a_bridge_that_serves_from_one_that_does_not():
    admin = f"127.0.0.1:{find_free_port()}"
    async with (
        Emulator() as emulator,
        run_listener(
            "serve", "--listen", "127.0.0.1:0", "--admin-listen", admin, "--upstream", emulator.url
        ) as address,
    ):
        assert await run_command("healthcheck", "--address", admin) == (0, "SERVING\n", "")
        code, out, err = await run_command("healthcheck", "--address", address)
        assert (code, out) == (1, "")
        assert err.startswith(f"{address}: cannot reach the admin port: ")


CLOSED_PIPES = {
    "check": ("check", "--upstream", "http://127.0.0.1:1"),
    "demo": ("demo",),
    "help": ("emulate", "--help"),
}


@pytest.mark.parametrize("arguments", CLOSED_PIPES.values(), ids=CLOSED_PIPES)
async def test_closed_output_pipe_causes_no_traceback(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    process = await start_command(*arguments, stdout=writer)
    os.close(writer)
    err = await process.stderr.read()
    assert await process.wait() in {0, 1}  # argparse ignores that its help was not read
    assert err == b""


async def test_buf_curl_calls_by_reflection_alone(bridge):
    """An independent client, with the README's request for grpcurl."""
    process = await asyncio.create_subprocess_exec(
        shutil.which("buf", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))),
        *("curl", "--protocol", "grpc", "--http2-prior-knowledge", "-d"),
        '{"model": "near_qwen3_30b", "messages": [{"role": "user", "text": "Hello"}]}',
        f"http://{bridge.address}/ollmbridge.v1.ChatCompletionService/StreamChatCompletion",
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    contents = re.findall(r'"content": "([^"]*)"', out.decode())
    assert "".join(contents) == "You said: Hello"
