"""Write bridge/cli/shell/: what shells need to complete the commands. `make generate` runs it, in .venv-generate."""

from argparse import ArgumentParser, _SubParsersAction
from pathlib import Path

import shtab

from bridge.cli.arguments import build_parser
from bridge.cli.defaults import SHELLS

TARGET = Path(__file__).parents[1] / "bridge" / "cli" / "shell"


def complete_files(parser: ArgumentParser) -> None:
    """Let arguments that are paths be completed by names of files, in the commands too."""
    for action in parser._actions:  # noqa: SLF001 - argparse has no other list of them
        if isinstance(action, _SubParsersAction):
            for command in action.choices.values():
                complete_files(command)
        elif action.type is Path:
            action.complete = shtab.FILE


if __name__ == "__main__":
    parser = build_parser()
    complete_files(parser)
    for shell in SHELLS:
        text = shtab.complete(parser, shell).rstrip() + "\n"
        (TARGET / f"ollm-bridge.{shell}").write_text(text, encoding="utf-8")
