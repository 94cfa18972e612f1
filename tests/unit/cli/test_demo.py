"""Tests of bridge/cli/demo.py."""

from bridge.cli.main import main


def test_demo_shows_four_calls(capsys):
    assert main(["demo"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("===") == 8
    for words in (
        "You said: Hello",
        "reasoning_content",
        'joined: get_weather({"location":"Paris"})',
        "RESOURCE_EXHAUSTED",
        "'grpc-retry-pushback-ms': '2000'",
    ):
        assert words in out
