"""`demo`: an emulated gateway and a bridge in one process, and what `chat` shows of four calls.

Each call is a command line that a person can type, parsed and run as `chat` does. Standard error goes to standard
output meanwhile, so that a pipe keeps the order.
"""

import argparse
import contextlib
import shlex
import sys
from collections.abc import Iterator
from typing import Final

from bridge.cli.arguments import build_parser
from bridge.cli.chat import call
from bridge.cli.chat_request import read_request
from bridge.cli.interrupts import run_interruptibly
from bridge.cli.terminal import dim, emphasize
from bridge.emulator import Emulator
from bridge.server.server import run_server
from bridge.settings import load

__all__ = ["CALLS", "run"]

_LINE_CHARS_MAX: Final = 100
_WEATHER: Final = (
    '[{"type": "function", "function": {"name": "get_weather", "parameters": '
    '{"type": "object", "properties": {"location": {"type": "string"}}}}}]'
)
CALLS: Final = (
    (
        "A unary call with a tag for the spend log, its reply as the API writes it",
        ["--no-stream", "--json", "-o", 'ollm::tags={"team": "search"}', "Hello"],
    ),
    (
        "A stream: reasoning, then the answer; OK means that every choice had its finish_reason",
        ["--model", "scenario::reasoning", "Tell me about bridges"],
    ),
    ("A tool call, joined from its fragments", ["-o", f"tools={_WEATHER}", "Weather in Paris?"]),
    (
        "An error with its details: what to act on, how long to wait, the gateway's own words",
        ["--model", "scenario::rate_limited?retry_after=2", "Hello"],
    ),
)


def run(_options: argparse.Namespace) -> int:
    """Show the calls, and return the exit code."""
    with contextlib.redirect_stderr(sys.stdout):
        return run_interruptibly(_show_calls())


async def _show_calls() -> int:
    async with Emulator() as emulator:
        loaded = load(flags={"listen": "127.0.0.1:0", "upstream": {"base_url": emulator.url}}, environ={})
        async with run_server(loaded.settings) as address:
            print(f"An emulated gateway answers at {emulator.url}, and a bridge in front of it at {address} (gRPC).")
            for title, arguments in CALLS:
                print(f"\n{dim(f'# {title}', sys.stdout)}")
                await _show_call(emulator, ["chat", "--address", address, *arguments])
    print("\nNext: `ollm-bridge serve --upstream URL`, and `ollm-bridge chat PROMPT`.")
    return 0


async def _show_call(emulator: Emulator, arguments: list[str]) -> None:
    """Print a command line, what it prints, and the request that the gateway got for it."""
    print(emphasize("$ " + " \\\n    ".join(_wrap(["ollm-bridge", *arguments])), sys.stdout))
    options = build_parser().parse_args(arguments)
    code = await call(read_request(options), options)
    body = emulator.exchanges[-1].body.decode()
    print(dim(f"# the gateway got {body}", sys.stdout))
    if code:
        print(dim(f"# exit code {code}", sys.stdout))


def _wrap(arguments: list[str]) -> Iterator[str]:
    """Yield the lines of a command; an option and its value stay together."""
    line = ""
    words = iter(arguments)
    for word in words:
        part = shlex.quote(word)
        if word.startswith("-") and word not in {"--no-stream", "--json"}:
            part += " " + shlex.quote(next(words))
        if line and len(line) + len(part) >= _LINE_CHARS_MAX:
            yield line
            line = part
        else:
            line = f"{line} {part}" if line else part
    yield line
