"""Tests of bridge/cli/arguments.py: the commands, and help that can be shown."""

import pytest

from bridge.cli.arguments import build_parser
from bridge.emulator import SCENARIOS

COMMANDS = {
    **{command: [] for command in ("serve", "check", "chat", "emulate", "healthcheck", "demo")},
    "completion": ["bash"],
}
"""What a command needs besides its name."""


def show_help(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args([*arguments, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_lists_the_commands(capsys):
    text = show_help(capsys)
    assert all(f"\n    {command}" in text for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_has_a_help_and_its_name(command, capsys):
    assert show_help(capsys, command).startswith(f"usage: ollm-bridge {command}")
    assert build_parser().parse_args([command, *COMMANDS[command]]).command == command


def test_help_of_the_emulator_lists_the_scenarios(capsys):
    text = show_help(capsys, "emulate")
    assert all(name in text for name in SCENARIOS)


def test_arguments_of_chat_have_their_values():
    options = build_parser().parse_args(["chat", "-o", "a=1", "-o", "b=2", "--timeout", "1.5", "Hi"])
    assert (options.options, options.timeout, options.prompt) == (["a=1", "b=2"], 1.5, "Hi")
