"""JSON text: parse it, and bound what that costs.

A text of a few MiB can have millions of values, each of which costs time and memory. So the values are counted before
they are parsed. What is to be walked or cut of a parsed text is bounded in `source.py`.
"""

import json
import re
from typing import Any, Final

import orjson

__all__ = [
    "JSON_DEPTH_MAX",
    "JSON_VALUES_MAX",
    "JsonError",
    "JsonTooLargeError",
    "count_values",
    "find_json_error",
    "measure_depth",
    "parse",
    "replace_lone_surrogates",
]

JSON_DEPTH_MAX: Final = 64
"""Deepest nesting of a JSON text that a caller sends, and of a message that is read. Gateways refuse deeper texts, some
by crashing; protobuf parsers refuse messages of more than 100 levels."""

JSON_VALUES_MAX: Final = 600_000
"""Values of a JSON text: objects, arrays, and what stands in them. As many take 20 to 100 ms to parse; as many have
3,500 tokens with 20 log probabilities each."""
SLOW_BYTES_MAX: Final = 8 * 1024 * 1024
"""Of a text that the standard library parses, at 6 ms a MiB: one that is no JSON, or has a number like 1e999."""
STEP_BYTES: Final = 256 * 1024
"""Of what is searched in one go, which no other thread can interrupt."""


class JsonError(ValueError):
    """The bytes are no JSON, or nest deeper than a parser can follow. The text says which and where."""


class JsonTooLargeError(JsonError):
    """The text has more values than may be read. The text of the error names the limit."""


def parse(text: bytes) -> tuple[Any, bytes]:
    r"""Parse one JSON document. Return its value, and the text that the value stands in.

    That text differs from `text` only if it has a lone surrogate (`"\ud83d"`, as when a delta is cut inside an escaped
    pair), which becomes U+FFFD: protobuf strings can't hold one. Raises JsonError; JsonTooLargeError, before anything
    is parsed, if it has more than JSON_VALUES_MAX values.
    """
    if len(text) > JSON_VALUES_MAX and count_values(text, JSON_VALUES_MAX) > JSON_VALUES_MAX:
        raise JsonTooLargeError(f"it has more than {JSON_VALUES_MAX} values")
    try:
        return orjson.loads(text), text
    except orjson.JSONDecodeError:
        return _parse_again(replace_lone_surrogates(text))


def count_values(text: bytes, enough: int, step_bytes: int = STEP_BYTES) -> int:
    """Return how many values a JSON text has, or a larger number than `enough` as soon as it is known to have more.

    Each value is the first in its array or object, behind a bracket, or stands behind a comma. Both also occur in
    strings, so these are left out if they matter. Nothing here takes more than a few ns a byte.
    """
    found = 1 + _count_separators(text)
    if found <= enough:
        return found
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    found, is_inside = 1, False
    for start in range(0, len(text), step_bytes):
        parts = text[start : start + step_bytes].split(b'"')
        found += _count_separators(b"".join(parts[is_inside::2]))
        is_inside ^= len(parts) % 2 == 0
        if found > enough:
            break
    return found


def _count_separators(text: bytes) -> int:
    return text.count(b",") + text.count(b"{") + text.count(b"[")


# orjson also refuses numbers beyond a double's range; they are JSON, so the standard library decides.
def _parse_again(text: bytes) -> tuple[Any, bytes]:
    try:
        return orjson.loads(text), text
    except orjson.JSONDecodeError as error:
        if len(text) > SLOW_BYTES_MAX:
            raise JsonError(str(error)) from None
    try:
        value = json.loads(text.decode(), parse_constant=_refuse_constant, parse_int=_parse_integer)
    except RecursionError:
        raise JsonError("nests too deeply") from None
    except ValueError as error:
        raise JsonError(str(error)) from None
    return value, text


_HIGH: Final = rb"\\u[dD][89abAB][0-9a-fA-F]{2}"
_LOW: Final = rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_LONE_SURROGATE: Final = re.compile(rb"%b(?!%b)|(?<!%b)%b" % (_HIGH, _LOW, _HIGH.replace(b"{2}", b"[0-9a-fA-F]"), _LOW))
_ESCAPED_BACKSLASH: Final = b"\\\\"
_STAND_IN: Final = b"\0\0"


def replace_lone_surrogates(text: bytes, step_bytes: int = STEP_BYTES) -> bytes:
    r"""Replace escapes of half a pair. `\\ud83d` is none, but a backslash and text."""
    if b"\\u" not in text or b"\0" in text:  # a NUL is no part of JSON
        return text
    text = text.replace(_ESCAPED_BACKSLASH, _STAND_IN)  # now each backslash begins an escape
    parts = []
    start = 0
    while start < len(text):
        end = _find_edge(text, start + step_bytes)
        parts.append(_LONE_SURROGATE.sub(rb"\\ufffd", text[start:end]))
        start = end
    return b"".join(parts).replace(_STAND_IN, _ESCAPED_BACKSLASH)


def _find_edge(text: bytes, end: int) -> int:
    """Return a place at or shortly before `end` that is inside of no escape and of no pair of them."""
    if end >= len(text):
        return len(text)
    escape = text.rfind(b"\\", end - 5, end)
    end = end if escape < 0 else escape
    return end - 6 if re.fullmatch(_HIGH, text[end - 6 : end]) else end


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def _parse_integer(digits: str) -> int | float:
    return int(digits) if len(digits) < 4000 else float(digits)  # int() refuses more than 4300 digits


def find_json_error(text: str) -> str | None:
    """Return why a text is not exactly one JSON document of bounded depth, or None if it is."""
    try:
        value, _ = parse(text.encode())
    except JsonError as error:
        excerpt = repr(text if len(text) <= 40 else text[:40] + "…")
        return f"expected one JSON document, found {excerpt}: {error}"
    if text.count("[") + text.count("{") > JSON_DEPTH_MAX and (depth := measure_depth(value)) > JSON_DEPTH_MAX:
        return f"expected JSON of at most {JSON_DEPTH_MAX} levels, found {depth}"
    return None


def measure_depth(value: Any) -> int:
    """Return how many levels of arrays and objects a value has; a scalar has none."""
    depth, level = 0, [value]
    while level := [child for child in level if isinstance(child, (dict, list))]:
        depth += 1
        level = [leaf for child in level for leaf in (child.values() if isinstance(child, dict) else child)]
    return depth
