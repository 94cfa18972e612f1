"""JSON text: parse it, cut values out of it byte for byte, and bound how deep it nests.

What no field of a message holds is kept as the text that came, so that numbers keep their digits and objects their
order. Which values those are is the codec's business.
"""

import json
import re
from typing import Any, Final, TypeAlias

import msgspec
import orjson

__all__ = ["JSON_DEPTH_MAX", "JsonError", "Path", "Source", "find_json_error", "measure_depth", "parse"]

JSON_DEPTH_MAX: Final = 64
"""Deepest nesting of a JSON text that a caller sends, and of a message that is read. Gateways refuse deeper texts, some
by crashing; protobuf parsers refuse messages of more than 100 levels."""

Path: TypeAlias = tuple[str | int, ...]
"""A place in a JSON document: keys and indices from the root."""


class JsonError(ValueError):
    """The bytes are no JSON, or nest deeper than a parser can follow. The text says which and where."""


def parse(text: bytes) -> tuple[Any, bytes]:
    r"""Parse one JSON document. Return its value, and the text that the value stands in.

    That text differs from `text` only if it has a lone surrogate (`"\ud83d"`, as when a delta is cut inside an escaped
    pair), which becomes U+FFFD: protobuf strings can't hold one. Raises JsonError.
    """
    try:
        return orjson.loads(text), text
    except orjson.JSONDecodeError:
        return _parse_slowly(_LONE_SURROGATE.sub(_replace_lone_surrogate, text))


# orjson refuses lone surrogates and numbers beyond a double's range; both are JSON, so the standard library decides.
def _parse_slowly(text: bytes) -> tuple[Any, bytes]:
    try:
        value = json.loads(text.decode(), parse_constant=_refuse_constant, parse_int=_parse_integer)
    except RecursionError:
        raise JsonError("nests too deeply") from None
    except ValueError as error:
        raise JsonError(str(error)) from None
    return value, text


# Every escape is matched in turn, so that a match never begins inside one: `\\ud83d` is a backslash and text.
_LONE_SURROGATE: Final = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)


def _replace_lone_surrogate(match: re.Match[bytes]) -> bytes:
    return b"\\ufffd" if match[1] else match[0]


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


_OBJECT_DECODER: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ARRAY_DECODER: Final = msgspec.json.Decoder(list[msgspec.Raw])


class Source:
    """A JSON document's text, from which values are cut byte for byte.

    A level is sliced only when a value of it is needed, once, and its slices are kept.
    """

    __slots__ = ("_levels", "_text")

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._levels: dict[Path, Any] = {}

    def cut(self, path: Path) -> str:
        """Return the text of the value at a path. Raises JsonError if the value nests too deeply to be sliced."""
        return str(memoryview(self._slice(path)), "utf-8")

    def _slice(self, path: Path) -> bytes | msgspec.Raw:
        if not path:
            return self._text
        parent = path[:-1]
        level = self._levels.get(parent)
        if level is None:
            decoder: Any = _ARRAY_DECODER if isinstance(path[-1], int) else _OBJECT_DECODER
            try:
                level = decoder.decode(self._slice(parent))
            except (RecursionError, msgspec.MsgspecError) as error:
                raise JsonError(f"can't be sliced: {error}") from None
            self._levels[parent] = level
        raw: msgspec.Raw = level[path[-1]]
        return raw
