"""Tests of bridge/cli/terminal.py: color for people alone, and no control characters of others."""

import io
import json

import pytest

from bridge.cli.terminal import dim, emphasize, make_json_safe, make_safe, warn


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _set_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_terminal_gets_faint_bold_and_red_letters():
    assert dim("a", Terminal()) == "\x1b[2ma\x1b[0m"
    assert emphasize("a", Terminal()) == "\x1b[1ma\x1b[0m"
    assert warn("a", Terminal()) == "\x1b[31ma\x1b[0m"
    assert dim("", Terminal()) == ""


def test_other_outputs_get_no_color():
    assert dim("a", io.StringIO()) == "a"


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_color_can_be_forbidden(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    assert dim("a", Terminal()) == "a"


def test_only_a_terminal_is_spared_control_characters():
    assert make_safe("a\x1b[2J", Terminal()) == "a\\x1b[2J"
    assert make_safe("a\x1b[2J", io.StringIO()) == "a\x1b[2J"


def test_json_is_escaped_only_for_a_stream_that_cannot_show_it():
    text = '{"a":"Grüße, 世界 🌍\\u0001 9007199254740993"}'
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    escaped = make_json_safe(text, ascii_only)
    assert escaped.isascii()
    assert json.loads(escaped) == json.loads(text)
    assert make_json_safe(text, io.TextIOWrapper(io.BytesIO(), encoding="utf-8")) == text
    assert make_json_safe(text, io.StringIO()) == text


def test_terminal_is_spared_the_control_characters_that_json_allows():
    assert make_json_safe('"ü\x9b2J\x7f"', Terminal()) == '"ü\\u009b2J\\u007f"'
    assert make_json_safe('"\x9b"', io.StringIO()) == '"\x9b"'
