import html
import json
from urllib.parse import quote

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
        ("/x:generateContent?key=AIzaSyA0000&alt=sse", "/x:generateContent?key=[redacted]&alt=sse"),
        ("(AIzaSyA000000000000000)", "(AIza[redacted])"),
        ("gsk_00000000abcd, xai-00000000abcdef, hf_ABCDEFGHIJ", "gsk_[redacted], xai-[redacted], hf_[redacted]"),
        ("AKIAIOSFODNN7EXAMPLE.", "AKIA[redacted]."),
        ("token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", "token [redacted]"),
        (
            "api_key=abc, x-api-key: abc; X-API-Key: abc",
            "api_key=[redacted], x-api-key: [redacted]; X-API-Key: [redacted]",
        ),
        ('{"api_key": "abc", "a": 1}', '{"api_key": "[redacted]", "a": 1}'),
        (r"{\"api_key\":\"abc\"}", r"{\"api_key\":\"[redacted]\"}"),
        ("api-key: a1b2c3d4e5", "api-key: [redacted]"),
        ("password='hush'", "password='[redacted]'"),
        ("api_key: " + "a" * 63 + "1.", "api_key: [redacted]"),
        ("api_key: " + "a" * 64 + " 1", "api_key: [redacted] 1"),
        ("api_key: " + "a" * 500 + "1", "api_key: [redacted]"),
        ("api_key:api_key:a1b2c3d4", "api_key:[redacted]"),
        ("eyJ" + "a" * 255 + ".bb.cc, x", "[redacted], x"),
        ("eyJ" + "a" * 5000 + ".bb.cc, x", "[redacted], x"),
        ("x-eyJ" + "a" * 256 + " x", "x-[redacted] x"),
        *(
            (text, text)
            for text in (
                *(
                    "api_key: " + "a" * 63 + " 1",
                    "api_key: abc1",
                    "eyJ" + "a" * 255,
                    "eyJabcd.bb",
                    "eyJabcde.b",
                    "eyJabcde bb",
                ),
                *("using Bearer auth (i.e.", "a Bearer token.", "the Bearer scheme is", 'Bearer error="invalid_token"'),
                *("api_key: Field required", "no API key provided", "max_tokens: 12345678", "keyboard=1", "a hf_model"),
                *("task-force", "a risk-averse disk-based desk-lamp", "sk-", "sk-ab", "must start with 'Bearer '"),
                *("https://host/a@b", "mail me@host", "http://127.0.0.1:9/v1", "The basic plan has ended", ""),
            )
        ),
    ],
)
def test_text_that_is_shaped_like_a_key_is_redacted(text, clean):
    assert redact(text) == clean


def escape_all(text: str, form: str) -> str:
    """Return a text whose characters are escaped, but for those that nothing escapes."""
    return "".join(char if char.isalnum() or char in "-_." else form.format(ord(char)) for char in text)


SPELLINGS = {
    "as it is": str,
    "JSON text": lambda text: json.dumps(text)[1:-1],
    "JSON text of PHP's": lambda text: json.dumps(text)[1:-1].replace("/", r"\/"),
    "JSON text in JSON text": lambda text: json.dumps(json.dumps(text)[1:-1])[1:-1],
    "JSON text of PHP's in such": lambda text: json.dumps(json.dumps(text)[1:-1].replace("/", r"\/"))[1:-1],
    "Unicode escapes": lambda text: escape_all(text, "\\u{:04x}"),
    "Unicode escapes in JSON text": lambda text: escape_all(text, "\\\\u{:04X}"),
    "percent-encoded": lambda text: quote(text, safe=""),
    "percent-encoded in lower case": lambda text: escape_all(text, "%{:02x}"),
    "percent-encoded twice": lambda text: quote(quote(text, safe=""), safe=""),
    "HTML": html.escape,
    "HTML in HTML": lambda text: html.escape(html.escape(text)),
    "HTML by numbers": lambda text: escape_all(text, "&#{};"),
    "HTML by hexadecimal numbers": lambda text: escape_all(text, "&#x{:X};"),
}


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize(
    "secret", ["s3cr3t-of-the-bridge", 'a/b"c\\d+e=f', "<&>'\\/\\\\/x~1*", "own", "correct-horse", "%41%42%43%44"]
)
def test_exact_secret_is_redacted_however_it_is_spelled(secret, spell):
    form = spell(secret)
    assert redact(f"key {form}, and {form}", ["another-one", secret]) == "key [redacted], and [redacted]"
    assert redact(f'"{form}"', [secret]) == '"[redacted]"'
    assert redact(f"x={form}&y", [secret]) == "x=[redacted]&y"
    assert redact("nothing of it", [secret]) == "nothing of it"


@given(st.text(alphabet="aA1-_.~+/=\"\\%&<'", min_size=8, max_size=24), st.sampled_from(list(SPELLINGS.values())))
def test_any_secret_is_redacted_in_any_spelling(secret, spell):
    assert redact(f"({spell(secret)})", [secret]) == "([redacted])"


def test_short_secret_inside_a_word_is_part_of_the_word():
    assert redact("no known own key, own", ["own"]) == "no known [redacted] key, [redacted]"


def test_long_secret_inside_a_word_is_redacted():
    assert redact("xcorrect-horsex", ["correct-horse"]) == "x[redacted]x"


@given(st.text(alphabet='aA1-_.~+/="\\%', min_size=8, max_size=24), st.text(max_size=20), st.text(max_size=20))
def test_any_secret_is_redacted_in_any_text(secret, before, after):
    assert secret not in redact(before + secret + after, [secret]).replace("[redacted]", "\n")


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


@pytest.mark.parametrize("secrets", [(), ("correct-horse-battery",)])
def test_key_across_the_limit_of_the_search_never_shows_its_start(secrets):
    key = secrets[0] if secrets else "sk-" + "ab12" * 5
    many = f"{key} " * (SCANNED_CHARS_MAX // (len(key) + 1))
    for missing in range(1, len(key)):
        text = many[: SCANNED_CHARS_MAX - len(key) + missing].rpartition(" ")[0]
        text += " " * (SCANNED_CHARS_MAX - len(key) + missing - len(text)) + key + " tail"
        found = redact_and_truncate(text, SCANNED_CHARS_MAX, secrets)
        assert set(found.split()) <= {"[redacted]", "sk-[redacted]"}


def test_text_behind_the_limit_of_the_search_is_dropped():
    assert redact_and_truncate("x" * SCANNED_CHARS_MAX + "sk-abcdef", 2 * SCANNED_CHARS_MAX) == "x" * SCANNED_CHARS_MAX
