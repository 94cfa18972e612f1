"""The arguments of each command, and their help. What a command does is in the module of its name."""

import argparse
from collections.abc import Callable
from pathlib import Path

from bridge import __version__
from bridge.cli.defaults import DEFAULT_ADDRESS, DEFAULT_MODEL, SHELLS

__all__ = ["build_parser"]


class _Parser(argparse.ArgumentParser):
    """A parser whose epilog is made only if it is shown."""

    make_epilog: Callable[[], str] | None = None

    def format_help(self) -> str:
        if self.make_epilog is not None:
            self.epilog = self.make_epilog()
        return super().format_help()


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; `command` is the command that was named."""
    parser = _Parser(prog="ollm-bridge", description="A gRPC front for the Origin gateway.")
    parser.add_argument("--version", action="version", version=f"ollm-bridge {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")

    settings = _Parser(add_help=False)
    settings.add_argument("--config", type=Path, metavar="FILE.toml", help="settings file")
    settings.add_argument("--listen", metavar="HOST:PORT", help="address of the call port; port 0: any free one")
    settings.add_argument("--web-listen", metavar="HOST:PORT", help="address of the web port (Connect, gRPC-Web)")
    settings.add_argument("--admin-listen", metavar="HOST:PORT", help="address of the metrics and the status page")
    settings.add_argument("--upstream", metavar="URL", help="the gateway's root URL, without /v1")

    one = commands.add_parser("serve", parents=[settings], help="serve gRPC until SIGTERM or SIGINT, then drain")
    one.add_argument("--workers", metavar="N", help="processes that share the port, or `auto`: one per CPU core")

    one = commands.add_parser(
        "check", parents=[settings], help="say whether `serve` would start, and whether the gateway answers"
    )
    one.add_argument("--workers", metavar="N", help="as for `serve`")
    one.add_argument("--all", action="store_true", help="show the settings that have their defaults too")
    one.add_argument("--bind", action="store_true", help="try the ports, which must be free")
    one.epilog = (
        "Exit codes: 0 all is well; 1 no gateway answers at upstream.base_url; 2 `serve` would not start; "
        "3 the gateway rejects the bridge's own key; 4 the gateway limits calls or fails."
    )

    one = commands.add_parser("chat", help="send a prompt to a bridge, and show the answer as it comes")
    one.add_argument("--address", default=DEFAULT_ADDRESS, metavar="HOST:PORT", help="the bridge (%(default)s)")
    one.add_argument("--tls", action="store_true", help="use TLS; so do https://HOST:PORT and the files below")
    one.add_argument("--ca-file", type=Path, metavar="FILE.pem", help="authorities to trust (the system's)")
    one.add_argument("--cert-file", type=Path, metavar="FILE.pem", help="the client's certificate, for mTLS")
    one.add_argument("--key-file", type=Path, metavar="FILE.pem", help="its private key")
    one.add_argument("--server-name", metavar="NAME", help="the name in the bridge's certificate (the address's)")
    one.add_argument(
        "--json", action="store_true", help="print the messages as the gateway's API writes them, a line each"
    )
    one.add_argument("--model", default=DEFAULT_MODEL, help="model or function selector (%(default)s)")
    one.add_argument("--no-stream", action="store_true", help="ask for the whole answer at once")
    one.add_argument("--system", metavar="TEXT", help="a system message before the prompt")
    one.add_argument("--timeout", type=float, metavar="S", help="the call's deadline, seconds (none)")
    one.add_argument(
        "-o",
        dest="options",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help='another key of the request, such as -o temperature=0.2 or -o \'ollm::tags={"team":"a"}\'; '
        "a value that is no JSON is a text",
    )
    one.add_argument("prompt", nargs="?", metavar="PROMPT", help="the user's message; none or `-`: standard input")
    one.epilog = (
        "The key, if any, is read from OLLM_API_KEY. Exit codes: 0 OK, 2 usage, 3 the request is wrong, 4 the key is, "
        "5 retry later, 6 out of time, 7 broken off, 1 anything else."
    )

    one = commands.add_parser(
        "emulate", help="serve an emulated gateway over HTTP", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    one.make_epilog = _list_scenarios
    one.add_argument("--listen", default="127.0.0.1:8080", metavar="HOST:PORT", help="(%(default)s)")
    one.add_argument("--scenario", default="", metavar="NAME[?key=value&…]", help="what every request meets")

    one = commands.add_parser("healthcheck", help="ask a bridge whether it is serving: exit code 0 or 1")
    one.add_argument("--address", default="127.0.0.1:9464", metavar="HOST:PORT", help="its admin port (%(default)s)")
    one.add_argument("--timeout", type=float, default=2.0, metavar="S", help="seconds (%(default)s)")

    one = commands.add_parser("completion", help="print what makes a shell complete these commands")
    one.add_argument("shell", choices=SHELLS, help="the shell")
    one.epilog = (
        'In the profile of bash: eval "$(ollm-bridge completion bash)"; of zsh: the same with zsh; of fish: '
        "ollm-bridge completion fish | source"
    )

    commands.add_parser("demo", help="emulated gateway, bridge and client in one: four calls and what they show")
    return parser


def _list_scenarios() -> str:
    from bridge.emulator import SCENARIOS  # noqa: PLC0415 - only this help needs it

    lines = "\n".join(f"  {name:<16} {scenario.help}" for name, scenario in SCENARIOS.items())
    return f"scenarios (a request can choose one too, by the model `scenario::NAME?key=value`):\n{lines}"
