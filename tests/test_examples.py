"""Each program in examples/ runs in a process of its own, against a bridge."""

import asyncio
import sys
from pathlib import Path

import pytest

from bridge.emulator import Emulator
from bridge.server.server import run_server
from bridge.settings import load

EXAMPLES = Path(__file__).parent.parent / "examples"

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
    assert {path.stem for path in EXAMPLES.glob("*.py")} == CASES.keys()


@pytest.mark.parametrize("name", CASES)
async def test_example_prints_the_expected_lines(name):
    arguments, expected = CASES[name]
    async with Emulator() as emulator:
        flags = {"listen": "127.0.0.1:0", "upstream": {"base_url": emulator.url}}
        async with run_server(load(flags=flags, environ={}).settings) as address:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                EXAMPLES / f"{name}.py",
                address,
                *arguments,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            output, _ = await process.communicate()
        text = output.decode()
        assert process.returncode == 0, text
        for line in expected:
            assert line in text
        if name == "retry":
            assert len(emulator.exchanges) == 4
