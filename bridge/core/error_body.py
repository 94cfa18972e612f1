"""The body of an answer that may be an error: its JSON value, whatever it is wrapped in, and its excerpt.

A body is UTF-8, else in the charset that its header names. What follows the first JSON document is left out, and
behind `data:`, `event:` and the like the first event of a stream counts as the body.
"""

import json
import re
from typing import Any, Final

from bridge.core.json_text import JsonError, parse
from bridge.core.redact import SCANNED_CHARS_MAX
from bridge.core.source import Source
from bridge.core.sse import EventTooLargeError, SseDecoder

__all__ = ["read_document", "read_excerpt"]

_BOM: Final = b"\xef\xbb\xbf"
_SCANNED_BYTES_MAX: Final = 64 * 1024
"""Of a body that is no JSON document as a whole, how much is searched for one."""
_CHARSET: Final = re.compile(r"charset\s*=\s*[\"']?([A-Za-z0-9_.:\-]{1,40})", re.IGNORECASE)
# The charsets of the web; Python has others, some of which cost far more than a look at each byte.
_CHARSETS: Final = re.compile(
    r"utf-?(?:16|32)(?:-?[bl]e)?|(?:us-)?ascii|latin-?1|iso-?8859-?\d{1,2}|(?:windows|cp)-?\d{3,4}|gbk|gb2312|gb18030"
    r"|big5(?:-hkscs)?|euc-?(?:jp|kr)|shift[_-]jis|koi8-[ru]|macintosh",
    re.IGNORECASE,
)
_EVENT_START: Final = re.compile(rb"\s*(?:data|event|error|id|retry)?:")


def read_document(body: bytes, content_type: str = "") -> tuple[Any, Source]:
    """Return the JSON value that a body has, with its text; None if it has none."""
    text = body.removeprefix(_BOM)
    try:
        value, source_text = parse(text)
    except JsonError:
        start = _decode(text[:_SCANNED_BYTES_MAX], content_type)
        return _read_first_document(start) or _read_first_event(start) or (None, Source(b""))
    return value, Source(source_text)


def read_excerpt(body: bytes, content_type: str = "") -> dict[str, Any]:
    """Return the start of a body as fields of UpstreamError."""
    excerpt = _decode(body[:SCANNED_CHARS_MAX], content_type)
    return {"body_excerpt": excerpt, "truncated": len(body) > SCANNED_CHARS_MAX}


def _decode(text: bytes, content_type: str) -> str:
    """Return the text of bytes, which are the start of a body."""
    try:
        found = text.decode()
    except UnicodeDecodeError as error:  # at the end it is a character that was cut
        found = text[: error.start].decode() if error.reason == "unexpected end of data" else ""
    if found and "\0" not in found:
        return found
    charset = _CHARSET.search(content_type)
    name = charset[1] if charset and _CHARSETS.fullmatch(charset[1]) else "utf-8"
    try:
        return text.decode(name, "replace").removeprefix("\ufeff")
    except (LookupError, UnicodeError):
        return text.decode("utf-8", "replace")


def _read_first_document(text: str) -> tuple[Any, Source] | None:
    start = text.lstrip()
    try:
        _, end = _DECODER.raw_decode(start)
        value, source_text = parse(start[:end].encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return (value, Source(source_text)) if type(value) in {dict, list} else None


_DECODER: Final = json.JSONDecoder()


def _read_first_event(text: str) -> tuple[Any, Source] | None:
    data = text.encode("utf-8", "replace")
    if not _EVENT_START.match(data):
        return None
    decoder = SseDecoder()
    try:
        for event in (*decoder.feed(data), *decoder.end()):
            if event.data.strip():
                value, source_text = parse(event.data)
                return value, Source(source_text)
    except (JsonError, EventTooLargeError):
        pass
    return None
