"""Tests of bridge/cli/demo.py: what it shows is what `chat` prints for the commands that it names."""

import json
import shlex

from bridge.cli.arguments import build_parser
from bridge.cli.main import main


def run_demo(capsys) -> list[str]:
    assert main(["demo"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def test_demo_shows_four_calls_and_what_the_gateway_got(capsys):
    lines = run_demo(capsys)
    out = "\n".join(lines)
    assert sum(line.startswith("$ ollm-bridge chat ") for line in lines) == 4
    bodies = [json.loads(line.partition("got ")[2]) for line in lines if line.startswith("# the gateway got ")]
    assert [body["messages"][0]["content"] for body in bodies] == [
        "Hello",
        "Tell me about bridges",
        "Weather in Paris?",
        "Hello",
    ]
    assert bodies[0]["ollm::tags"] == {"team": "search"}
    for words in (
        '"content":"You said: Hello"',
        "Let me think about it.\nYou said: Tell me about bridges\ntokens: ",
        'get_weather({"location":"Paris"})',
        "RESOURCE_EXHAUSTED: rate limit exceeded\n  ErrorInfo: ",
        "  RetryInfo: retry_delay { seconds: 2 }",
        "# exit code 5",
    ):
        assert words in out


def test_commands_that_the_demo_shows_can_be_typed(capsys):
    text = "\n".join(run_demo(capsys)).replace(" \\\n    ", " ")
    commands = [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "ollm-bridge"
        assert build_parser().parse_args(arguments).command == "chat"
    assert len(commands) == 4


def test_lines_of_commands_fit_a_terminal(capsys):
    shown = [line for line in run_demo(capsys) if line.startswith(("$ ", "    "))]
    assert max(len(line) for line in shown if "tools=" not in line) <= 110
