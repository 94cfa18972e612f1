import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.redact import SCANNED_CHARS_MAX, redact, redact_and_truncate, truncate


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("key sk-ollm-abc-def.", "key sk-[redacted]"),
        ("Incorrect API key provided: sk-abcd***wxyz, see", "Incorrect API key provided: sk-[redacted], see"),
        ("(SK-ABCDEF)", "(sk-[redacted])"),
        ("密钥sk-ollm-abc123无效", "密钥sk-[redacted]无效"),
        ("api_key_sk-abcdef", "api_key_sk-[redacted]"),
        (r'"line\nsk-abcdef"', r'"line\nsk-[redacted]"'),
        (r'"\u003ask-abcdef"', r'"\u003ask-[redacted]"'),
        ("Authorization: Bearer abc.def==", "Authorization: Bearer [redacted]"),
        ("BEARER\tabc", "BEARER [redacted]"),
        ("令牌Bearer abcdef", "令牌Bearer [redacted]"),
        (r"{\"auth\":\"Bearer abc\"}", r"{\"auth\":\"Bearer [redacted]\"}"),
        ("https://user:pass@host/x", "https://[redacted]@host/x"),
        ("redis://:pass@host", "redis://[redacted]@host"),
        ("https://token@host", "https://[redacted]@host"),
        (r"https:\/\/user:pass@host\/x", r"https:\/\/[redacted]@host\/x"),
        *(
            (text, text)
            for text in (
                *("task-force", "a risk-averse disk-based desk-lamp", "sk-", "sk-ab", "must start with 'Bearer '"),
                *("https://host/a@b", "mail me@host", "http://127.0.0.1:9/v1", "The basic plan has ended", ""),
            )
        ),
    ],
)
def test_text_that_is_shaped_like_a_key_is_redacted(text, clean):
    assert redact(text) == clean


@given(st.text(), st.integers(-1, 30))
def test_any_text_is_cut_at_the_edge_of_a_character(text, bytes_max):
    cut = truncate(text, bytes_max)
    assert text.startswith(cut)
    assert len(cut.encode()) <= max(bytes_max, 0)
    rest = text[len(cut) :]
    assert not rest or len((cut + rest[0]).encode()) > bytes_max


def test_surrogate_is_replaced_since_utf8_has_none():
    assert truncate("a\ud800b", 3) == "a?b"


def test_key_is_redacted_before_the_text_is_cut():
    assert redact_and_truncate("https://user:secret@host", 18) == "https://[redacted]"


def test_text_behind_the_limit_of_the_search_is_dropped():
    assert redact_and_truncate("x" * SCANNED_CHARS_MAX + "sk-abcdef", 2 * SCANNED_CHARS_MAX) == "x" * SCANNED_CHARS_MAX
