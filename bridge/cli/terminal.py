"""What a terminal may be sent: color if a person looks at it, and no control characters that others have chosen."""

import json
import re
from typing import Final, TextIO

from bridge.core.terminal import escape_controls
from bridge.settings import allows_color

__all__ = ["dim", "emphasize", "make_json_safe", "make_safe", "warn"]

_CONTROLS: Final = re.compile(r"[\x7f-\x9f]")
"""Those that JSON text may have as they are."""
_NOT_ASCII: Final = re.compile(r"[^\x00-\x7e]")


def dim(text: str, stream: TextIO) -> str:
    """Return the text in faint letters if the stream is a terminal that may be sent color."""
    return _paint(text, "2", stream)


def emphasize(text: str, stream: TextIO) -> str:
    """Return the text in bold letters, as above."""
    return _paint(text, "1", stream)


def warn(text: str, stream: TextIO) -> str:
    """Return the text in red letters, as above."""
    return _paint(text, "31", stream)


def _paint(text: str, style: str, stream: TextIO) -> str:
    return f"\x1b[{style}m{text}\x1b[0m" if text and stream.isatty() and allows_color() else text


def make_safe(text: str, stream: TextIO) -> str:
    """Return a text as the stream may get it: a terminal, without control characters; others, as it is."""
    return escape_controls(text) if stream.isatty() else text


def make_json_safe(text: str, stream: TextIO) -> str:
    """Return JSON text as the stream may get it, and still as JSON: what it can't show is escaped, as above."""
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        escaped = _NOT_ASCII
    else:
        if not stream.isatty():
            return text
        escaped = _CONTROLS
    return escaped.sub(lambda found: json.dumps(found[0])[1:-1], text)
