"""The command line: `ollm-bridge serve | emulate | chat | check | healthcheck | demo`.

It parses the arguments, runs the command's module, and turns its end into an exit code: 0; 1 if a call or a check has
failed; 2 if the command or its settings can't be used. Results go to standard output, all else to standard error.
"""

import argparse
import errno
import importlib
import io
import sys
from collections.abc import Callable, Sequence
from os import O_WRONLY, devnull, dup2
from os import open as open_descriptor
from pathlib import Path
from typing import Final

from bridge import __version__
from bridge.cli.defaults import DEFAULT_ADDRESS, DEFAULT_MODEL, UsageError

__all__ = ["main", "print_address"]

_INTERRUPTED: Final = 130
_OUTPUT_ERRORS: Final = frozenset({errno.EPIPE, errno.ENOSPC, errno.EIO})


def print_address(address: str) -> None:
    """Print the line that tells a person, or a program that has started this one, where it listens."""
    print(f"listening on {address}", flush=True)


def main(arguments: Sequence[str] | None = None, *, on_ready: Callable[[str], None] = print_address) -> int:
    """Run one command and return its exit code.

    `on_ready` is called with the address, on the event loop, once `serve` or `emulate` accepts connections.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # whatever a model writes can be shown on any terminal
    try:
        try:
            return _run(arguments, on_ready)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # at its exit Python could only complain
    except OSError as error:
        if error.errno not in _OUTPUT_ERRORS:
            raise
        return _end_output(error)


def _run(arguments: Sequence[str] | None, on_ready: Callable[[str], None]) -> int:
    options = _build_parser().parse_args(arguments, argparse.Namespace(on_ready=on_ready))
    try:
        code: int = importlib.import_module(f"bridge.cli.{options.command}").run(options)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return _INTERRUPTED
    return code


def _end_output(error: OSError) -> int:
    """Discard what can't be written, since Python would try again at its exit, and return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            dup2(open_descriptor(devnull, O_WRONLY), stream.fileno())
    if error.errno != errno.EPIPE:  # a reader that has closed the pipe, such as `head`, has all it wants
        print(f"cannot write the output: {error.strerror}", file=sys.stderr)
    return 1


class _Parser(argparse.ArgumentParser):
    """A parser whose epilog is made only if it is shown."""

    make_epilog: Callable[[], str] | None = None

    def format_help(self) -> str:
        if self.make_epilog is not None:
            self.epilog = self.make_epilog()
        return super().format_help()


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="ollm-bridge", description="A gRPC front for the Origin gateway.")
    parser.add_argument("--version", action="version", version=f"ollm-bridge {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")

    settings = _Parser(add_help=False)
    settings.add_argument("--config", type=Path, metavar="FILE.toml", help="settings file")
    settings.add_argument("--listen", metavar="HOST:PORT", help="address of the call port; port 0: any free one")
    settings.add_argument("--admin-listen", metavar="HOST:PORT", help="address of the metrics and the status page")
    settings.add_argument("--upstream", metavar="URL", help="the gateway's root URL, without /v1")

    one = commands.add_parser("serve", parents=[settings], help="serve gRPC until SIGTERM or SIGINT, then drain")
    one.add_argument("--workers", metavar="N", help="processes that share the port, or `auto`: one per CPU core")

    commands.add_parser("check", parents=[settings], help="show the settings, and whether the gateway answers")

    one = commands.add_parser("chat", help="send a prompt to a bridge, and show the answer as it comes")
    one.add_argument("--address", default=DEFAULT_ADDRESS, metavar="HOST:PORT", help="the bridge (%(default)s)")
    one.add_argument("--model", default=DEFAULT_MODEL, help="model or function selector (%(default)s)")
    one.add_argument("--no-stream", action="store_true", help="ask for the whole answer at once")
    one.add_argument("--system", metavar="TEXT", help="a system message before the prompt")
    one.add_argument("--timeout", type=float, metavar="S", help="the call's deadline, seconds (none)")
    one.add_argument(
        "-o",
        dest="options",
        action="append",
        default=[],
        metavar="KEY=JSON",
        help='another key of the request\'s JSON, such as -o temperature=0.2 or -o \'ollm::tags={"team":"a"}\'',
    )
    one.add_argument("prompt", metavar="PROMPT", help="the user's message; the key, if any, is read from OLLM_API_KEY")

    one = commands.add_parser(
        "emulate", help="serve an emulated gateway over HTTP", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    one.make_epilog = _list_scenarios
    one.add_argument("--listen", default="127.0.0.1:8080", metavar="HOST:PORT", help="(%(default)s)")
    one.add_argument("--scenario", default="", metavar="NAME[?key=value&…]", help="what every request meets")

    one = commands.add_parser("healthcheck", help="ask a bridge whether it is serving: exit code 0 or 1")
    one.add_argument("--address", default="127.0.0.1:9464", metavar="HOST:PORT", help="its admin port (%(default)s)")
    one.add_argument("--timeout", type=float, default=2.0, metavar="S", help="seconds (%(default)s)")

    commands.add_parser("demo", help="emulated gateway, bridge and client in one: four calls and what they show")
    return parser


def _list_scenarios() -> str:
    from bridge.emulator import SCENARIOS  # noqa: PLC0415 - only this help needs it

    lines = "\n".join(f"  {name:<16} {scenario.help}" for name, scenario in SCENARIOS.items())
    return f"scenarios (a request can choose one too, by the model `scenario::NAME?key=value`):\n{lines}"
