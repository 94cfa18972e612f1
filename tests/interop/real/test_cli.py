"""`serve` and `chat` as processes of their own, in front of real servers of other projects."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tests.interop.real.clients import PROMPT, http_client
from tests.kit.processes import BRIDGE, read_address, start_program_async
from tests.kit.real import servers

# The same options as in `clients.py`.
COLD = ("-o", "temperature=0", "-o", "seed=1", "-o", "max_tokens=4")


@dataclass(frozen=True)
class Served:
    """A running `serve`."""

    process: asyncio.subprocess.Process
    address: str

    async def stop(self) -> list[dict[str, Any]]:
        """Send SIGTERM, and return the log's lines. Fails unless the process exits with 0."""
        self.process.send_signal(signal.SIGTERM)
        stdout, log = await self.process.communicate()
        assert (self.process.returncode, stdout) == (0, b""), log
        return [record for record in map(json.loads, log.splitlines()) if record["event"] == "call"]


@asynccontextmanager
async def serve(upstream_url: str, **environment: str) -> AsyncIterator[Served]:
    async with run_command(
        "serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--upstream", upstream_url, **environment
    ) as process:
        yield Served(process, await read_address(process))


def chat(served: Served, *options: str, **environment: str) -> Any:
    return run_command("chat", "--address", served.address, *options, PROMPT, **environment)


def run_command(*arguments: str, **environment: str) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    return start_program_async(*BRIDGE, *arguments, environment={**servers.build_environment(), **environment})


async def test_chat_prints_the_words_of_the_real_model(llama_url: str):
    async with http_client() as http:
        raw = (await http.unary(llama_url, max_tokens=4)).json()
    words = raw["choices"][0]["message"]["content"]
    async with serve(llama_url, OLLM_BRIDGE_UPSTREAM__KEEPALIVE_S="0") as served:
        for how in ([], ["--no-stream"]):
            async with chat(served, *COLD, "--model", "gemma3-270m", *how) as process:
                stdout, stderr = await process.communicate()
            assert process.returncode == 0, stderr
            assert stdout.decode() == f"{words}\n"
            assert stderr.decode().startswith("tokens: prompt 26, completion 4, total 30")
        log = await served.stop()
    assert [(line["method"], line["code"], line["model"]) for line in log] == [
        ("StreamChatCompletion", "OK", "gemma3-270m"),
        ("CreateChatCompletion", "OK", "gemma3-270m"),
    ]
    assert [line["completion_tokens"] for line in log] == [4, 4]
    assert PROMPT not in json.dumps(log)


async def test_chat_prints_words_as_they_come(llmock: servers.Llmock):
    stall = {"type": "stream_fault", "kind": "stall", "after_chunks": 3, "stall_seconds": 30}
    await llmock.scenario({"type": "reply", "text": "one two three four five"}, stall)
    async with serve(llmock.url) as served:
        async with chat(served) as process:
            assert await process.stdout.readexactly(len("one two ")) == b"one two "
            # The rest is still to come; a caller that stops now stops the upstream too.
            process.send_signal(signal.SIGINT)
            await process.wait()
        [request] = await llmock.requests()
        assert (request["completed"], (request["stall_waited"] or 0) < 5) == (False, True)
        [line] = await served.stop()
    assert line["code"] == "CANCELLED"


async def test_chat_prints_a_refusal_and_advice(gateway_url: str, gateway_key: str):
    async with serve(gateway_url) as served:
        async with chat(served, *COLD) as process:
            stdout, stderr = await process.communicate()
        assert (process.returncode, stdout.strip()) == (4, b"")
        assert stderr.decode().startswith("UNAUTHENTICATED: no API key was given")
        assert "UPSTREAM_UNAUTHENTICATED" in stderr.decode()
        async with chat(served, *COLD, OLLM_API_KEY=gateway_key) as process:
            stdout, stderr = await process.communicate()
        assert (process.returncode, stdout) == (0, b"Say hello.<|\n"), stderr
        log = await served.stop()
    assert [(line["code"], line.get("reason")) for line in log] == [
        ("UNAUTHENTICATED", "UPSTREAM_UNAUTHENTICATED"),
        ("OK", None),
    ]
    assert gateway_key not in json.dumps(log)


async def test_check_finds_the_upstream_and_shows_no_key(llama_url: str, gateway_url: str, gateway_key: str):
    for url in (llama_url, gateway_url):
        async with run_command("check", "--upstream", url, OLLM_BRIDGE_UPSTREAM__API_KEY=gateway_key) as process:
            stdout, stderr = await process.communicate()
        assert process.returncode == 0, (stdout, stderr)
        assert "and refuses an empty request as it should (HTTP 400: " in stdout.decode()
        assert gateway_key not in (stdout + stderr).decode()
