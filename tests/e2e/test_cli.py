"""The command line as processes: output and exit codes."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest

from bridge.emulator import Emulator
from tests.kit.certificates import Certificates
from tests.kit.forks import run_command
from tests.kit.processes import (
    BRIDGE,
    clean_environment,
    find_free_port,
    find_program,
    run_program_async,
    start_command,
    start_program_async,
)
from tests.kit.upstreams import answer_with, start_server


async def test_chat_streams_words_and_shows_usage(bridge, emulator):
    code, out, err = await run_command(
        "chat", "--address", bridge.address, "--system", "Be brief.", "-o", "temperature=0.5", "Hi"
    )
    assert (code, out) == (0, "You said: Hi\n")
    assert err == "tokens: prompt 3, completion 3, total 6\n"
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


async def test_chat_shows_reasoning_apart_from_the_answer(bridge):
    for options in ((), ("--no-stream",)):
        chat = ("chat", "--address", bridge.address, "--model", "scenario::reasoning", *options)
        code, out, err = await run_command(*chat, "Hi")
        assert (code, out) == (0, "You said: Hi\n")
        assert err.startswith("Let me think about it.\ntokens: ")


async def test_chat_shows_choices_in_turn(bridge):
    chat = ("chat", "--address", bridge.address, "--model", "scenario::two_choices", "Hi")
    assert (await run_command(*chat))[:2] == (0, "You said: Hi\n" * 2)


async def test_chat_prints_the_messages_as_the_api_writes_them(bridge):
    for options, kind in ((("--json",), "chat.completion.chunk"), (("--json", "--no-stream"), "chat.completion")):
        code, out, err = await run_command("chat", "--address", bridge.address, *options, "Hi")
        assert (code, err) == (0, "")
        assert {json.loads(line)["object"] for line in out.splitlines()} == {kind}


async def test_chat_prints_what_a_provider_sent_as_a_string_if_it_is_no_json(start_bridge):
    choice = {"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}
    event = json.dumps({"id": "c", "choices": [choice], "ollm_raw_chunk": "event: text\ndata: Hi"})
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    async with start_server(answer_with(head, f"data: {event}\n\ndata: [DONE]\n\n".encode(), then="close")) as upstream:
        bridge = await start_bridge(upstream={"base_url": upstream.url})
        code, out, err = await run_command("chat", "--address", bridge.address, "--json", "Hi")
    assert (code, err) == (0, "")
    assert json.loads(out)["ollm_raw_chunk"] == "event: text\ndata: Hi"


async def test_chat_speaks_tls_with_a_certificate_of_its_own(start_bridge, tmp_path):
    certificates = Certificates(tmp_path)
    client = certificates.authority.issue_cert("team-a.example")
    client.cert_chain_pems[0].write_to_path(tmp_path / "client.pem")
    client.private_key_pem.write_to_path(tmp_path / "client-key.pem")
    bridge = await start_bridge(tls=certificates.settings | {"client_ca_file": certificates.ca_file})
    chat = ("chat", "--address", f"https://localhost:{bridge.address.rpartition(':')[2]}", "--ca-file")
    trusted = (*chat, str(certificates.ca_file))
    own = ("--cert-file", str(tmp_path / "client.pem"), "--key-file", str(tmp_path / "client-key.pem"))
    assert (await run_command(*trusted, *own, "Hi"))[:2] == (0, "You said: Hi\n")
    assert (await run_command(*trusted, "Hi"))[0] == 5  # no certificate: the handshake fails


async def test_chat_sends_the_key_of_its_environment(start_bridge):
    async with Emulator(api_key="sk-ollm-a-b") as emulator:
        bridge = await start_bridge(upstream={"base_url": emulator.url})
        chat = ("chat", "--address", bridge.address, "Hi")
        assert (await run_command(*chat, OLLM_API_KEY="sk-ollm-a-b"))[0] == 0
        code, _, err = await run_command(*chat)
    assert code == 4
    assert "UNAUTHENTICATED" in err
    assert "what to do: send a valid key" in err


@pytest.mark.parametrize("key", ["sk-ollm\na", "sk ollm", "sk-ö"])
async def test_key_of_the_environment_that_no_metadata_can_have_is_not_sent_and_not_shown(bridge, key):
    code, out, err = await run_command("chat", "--address", bridge.address, "Hi", OLLM_API_KEY=key)
    message = "OLLM_API_KEY: the key must be printable ASCII without spaces (value not shown)\n"
    assert (code, out, err) == (2, "", message)


async def test_chat_shows_an_error_with_its_reason_details_and_what_to_do(bridge):
    code, out, err = await run_command(
        "chat", "--address", bridge.address, "-o", "n=2", "-o", 'ollm::episode_id="x"', "Hi"
    )
    assert (code, out) == (3, "")
    assert err.startswith("INVALID_ARGUMENT: n: expected 1 or no value, found 2 (and 1 more)\n")
    assert 'reason: "INVALID_REQUEST" domain: "ollmbridge"' in err
    assert 'field: "ollm.episode_id"' in err
    assert err.endswith("what to do: fix the listed fields\n")


async def test_chat_reports_that_no_bridge_listens():
    code, _, err = await run_command("chat", "--address", "127.0.0.1:1", "Hi")
    assert code == 5
    assert "what to do: check that a bridge listens at this address" in err


async def test_serve_ends_at_a_file_that_it_cannot_use():
    code, out, err = await run_command("serve", OLLM_BRIDGE_UPSTREAM__API_KEY_FILE="/no/key")
    assert (code, out) == (2, "")
    assert err.startswith("upstream.api_key_file: cannot read the file /no/key: No such file or directory\n")


async def test_emulate_serves_a_scenario():
    async with (
        start_command("emulate", "--listen", "127.0.0.1:0", "--scenario", "overloaded") as upstream,
        start_command("serve", "--listen", "127.0.0.1:0", "--upstream", f"http://{upstream}") as address,
    ):
        code, _, err = await run_command("chat", "--address", address, "Hi")
    assert code == 5
    assert err.startswith("UNAVAILABLE")
    assert "UPSTREAM_UNAVAILABLE" in err
    assert (await run_command("emulate", "--scenario", "nope"))[0] == 2


async def test_healthcheck_distinguishes_a_bridge_that_serves_from_one_that_does_not():
    admin = f"127.0.0.1:{find_free_port()}"
    async with (
        Emulator() as emulator,
        start_command(
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
    async with start_program_async(*BRIDGE, *arguments, stdout=writer) as process:
        os.close(writer)
        assert await process.stderr.read() == b""
        assert await process.wait() in {0, 1}  # argparse ignores that its help was not read


OUTPUTS = {
    "a closed pipe behind the first line": ("| head -1", {}),
    "a full disk": ("> /dev/full", {}),
    "a full disk for errors": ("2> /dev/full", {}),
    "a closed standard output": (">&-", {}),
    "a closed standard error": ("2>&-", {}),
    "an ASCII terminal": ("", {"PYTHONIOENCODING": "ascii"}),
    "an ASCII locale": ("", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(("redirection", "environment"), OUTPUTS.values(), ids=OUTPUTS)
@pytest.mark.parametrize("options", ["", "--json", "--no-stream"])
async def test_output_of_any_kind_causes_no_traceback(bridge, emulator, options, redirection, environment):
    chat = f"{shlex.join(BRIDGE)} chat --address {bridge.address} --model scenario::reasoning {options} 'Grüße 世界'"
    code, _, err = await run_program_async(
        "sh", "-c", f"{chat} {redirection}", environment=clean_environment() | environment
    )
    assert "Traceback" not in err
    assert code in {0, 1}
    assert emulator.exchanges[-1].json["messages"][0]["content"] == "Grüße 世界"


async def test_buf_curl_calls_by_reflection_alone(bridge):
    """An independent client, with the README's request for grpcurl."""
    code, out, err = await run_program_async(
        *(find_program("buf"), "curl", "--protocol", "grpc", "--http2-prior-knowledge", "-d"),
        '{"model": "near_qwen3_30b", "messages": [{"role": "user", "text": "Hello"}]}',
        f"http://{bridge.address}/ollmbridge.v1.ChatCompletionService/StreamChatCompletion",
    )
    assert code == 0, err
    contents = re.findall(r'"content": "([^"]*)"', out)
    assert "".join(contents) == "You said: Hello"
