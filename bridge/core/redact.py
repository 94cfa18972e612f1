"""What no text may say: keys, by their shape. And how a text is cut to a size.

The rule is to redact first and to truncate then, since the end of a text can be what shows a key: the @ of a URL with
userinfo. What a status, a log line or a detail does with the text is up to them.
"""

import re
from typing import Final

__all__ = ["SCANNED_CHARS_MAX", "redact", "redact_and_truncate", "truncate"]

SCANNED_CHARS_MAX: Final = 16 * 1024
"""How much of a text is searched for keys; what is behind is cut off anyway."""

# Where a key can begin: not inside a word of ASCII. \b would not do, since 钥 is of a word too, and so is the n of "\n"
# in JSON text, which is also why no shape takes in a backslash: what is left must be JSON text still.
_EDGE: Final = r"(?:(?<![A-Za-z0-9])|(?<=\\[bfnrt])|(?<=\\u[0-9A-Fa-f]{4}))"
_KEY_HINT: Final = re.compile(r"(?i:sk-|bearer|basic)|:\\*/")
"""A part of every shape of a key. Most texts have none, and one search is enough for them."""
_KEY_SHAPES: Final = (
    (re.compile(rf"{_EDGE}[sS][kK]-[A-Za-z0-9_\-*.]{{4,}}"), "sk-[redacted]"),
    (re.compile(rf"{_EDGE}((?i:bearer))\s+[^\s\"',;}}\\]+"), r"\1 [redacted]"),
    # "basic" is a word as well; base64 of a name and a password has digits or capitals.
    (re.compile(rf"{_EDGE}((?i:basic))\s+(?=[a-z+/]*[A-Z0-9])[A-Za-z0-9+/]{{6,}}=*"), r"\1 [redacted]"),
    (re.compile(r"([A-Za-z][A-Za-z0-9+.\-]{0,20}:(?:\\*/){2})[^\s/@\"']+@"), r"\1[redacted]@"),
)


def redact(text: str) -> str:
    """Replace everything that is shaped like a key: `sk-…`, `Bearer …`, URLs with userinfo."""
    if _KEY_HINT.search(text):
        for shape, replacement in _KEY_SHAPES:
            text = shape.sub(replacement, text)
    return text


def truncate(text: str, bytes_max: int) -> str:
    """Cut a text to a number of bytes of UTF-8, at the edge of a character."""
    return text.encode("utf-8", "replace")[: max(bytes_max, 0)].decode("utf-8", "ignore")


def redact_and_truncate(text: str, bytes_max: int) -> str:
    """Redact a text and cut it. What is searched is bounded; a key across that bound is cut off with it."""
    return truncate(redact(text[:SCANNED_CHARS_MAX]), bytes_max)
