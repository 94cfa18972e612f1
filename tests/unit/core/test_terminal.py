"""Tests of bridge/core/terminal.py: no text of others controls a terminal."""

from hypothesis import given
from hypothesis import strategies as st

from bridge.core.terminal import escape_controls


@given(st.text(), st.booleans())
def test_only_control_characters_are_escaped(text, one_line):
    escaped = escape_controls(text, one_line=one_line)
    kept = "\t" if one_line else "\n\t"
    assert not any((ord(each) < 32 or 127 <= ord(each) < 160) and each not in kept for each in escaped)
    if one_line:
        assert len(escaped.splitlines()) <= 1
    if text.isprintable():
        assert escaped == text


def test_escaped_character_can_still_be_read():
    assert escape_controls("\x1b]0;title\x07\n") == "\\x1b]0;title\\x07\n"
    assert escape_controls("a\nb\u2028c", one_line=True) == "a\\nb\\u2028c"
