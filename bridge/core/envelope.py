"""Is this an error, and what does it say: the one reader for bodies, events and the parts of a completion.

An error has a place in a document: it is the document, a list's first item, the value of a key such as `error`, or a
part of a choice. What is read at the place is the same everywhere: the words, the type, the code, and every other key.
An error in which every value is null, "", 0 or empty is none: gateways send one beside each good completion.

Which HTTP status an error names is in `error_status.py`, what it means to a caller in `http_errors.py`.
"""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, Final, NamedTuple

from bridge.core.json_text import JsonError
from bridge.core.source import Path, Source
from ollmbridge.v1.error_details_pb2 import UpstreamError

__all__ = ["Envelope", "find_error", "read_envelope"]

_WORDS_KEYS: Final = (
    *("message", "msg", "Message", "error", "errors", "detail", "error_message", "error_msg", "errorMessage"),
    *("error_description", "status_msg", "title"),
)
"""The keys under which an error has its words, in the order of preference."""
_JOINED_KEYS: Final = ("message", "msg", "Message")
_SURE_KEYS: Final = ("errors", "detail", "error_message", "error_msg", "errorMessage", "error_description")
"""Those that make an error of a successful answer that has no choices; a message does so beside one of _CODE_KEYS."""
_CODE_KEYS: Final = ("code", "status", "status_code", "statusCode", "error_code", "type")
_NESTED_MAX: Final = 8
"""Of errors in errors, how many are opened."""
_FIELD_KEYS: Final = ("message", "type", "code", "param")
"""Those with a field of their own in UpstreamError."""
_KEYS_MAX: Final = 64
"""Of the keys of an object; more would never fit into a status."""
_SEARCHED_BYTES: Final = 4096
"""Of a text in which the word is looked for, at 1 ns a byte: to look at the value of a longer one costs less."""
_SLICED_MAX: Final = 10_000
"""Items of an object that is cut, at 0.4 µs each; of one with more, only texts and numbers are told."""


class Envelope(NamedTuple):
    """An error that an upstream reports. `layers` are the objects that it was read from, the innermost first."""

    upstream: UpstreamError
    layers: tuple[Mapping[str, Any], ...]


def find_error(value: Any, source: Source, text: bytes | None = None) -> Envelope | None:
    """Return the error that a successful answer, or an event of one, is or has; None if it reports none.

    `text` is the document's, if it is at hand: nearly every chunk has no such word, and needs no other look.
    """
    if text is not None and len(text) <= _SEARCHED_BYTES and _is_plain(value, text):
        return None
    path = _find_place(value)
    return None if path is None else _read_at(value, source, path)


def _is_plain(value: Any, text: bytes) -> bool:
    """Return whether a value is a completion in whose text the word does not occur."""
    is_completion = type(value) is dict and bool(value.get("choices")) and not value.get("base_resp")
    return is_completion and b"error" not in text and b"\\u" not in text


def _find_place(value: Any) -> Path | None:
    if type(value) is list:
        path = _find_place(value[0]) if value and type(value[0]) is dict else None
        return None if path is None else (0, *path)
    if type(value) is not dict:
        return None
    if (error := value.get("error")) and _says_something(error):
        return ("error",) if type(error) is dict else ()
    if value.get("object") == "error" or value.get("type") == "error":
        return ()
    if type(base := value.get("base_resp")) is dict and base.get("status_code"):
        return ("base_resp",)
    choices = value.get("choices")
    if type(choices) is list:
        return _find_in_choices(choices)
    return () if choices is None and _has_words(value) else None


def _has_words(value: Mapping[str, Any]) -> bool:
    """Return whether an object without choices has the words of an error."""
    has_code = any(value.get(key) for key in _CODE_KEYS)
    keys = (*_JOINED_KEYS, *_SURE_KEYS) if has_code else _SURE_KEYS
    return any(type(value.get(key)) in {str, list} and value[key] for key in keys)


def _find_in_choices(choices: list[Any]) -> Path | None:
    for index, choice in enumerate(choices):
        if type(choice) is dict:
            if (error := choice.get("error")) and _says_something(error):
                return ("choices", index, "error")
            for part in ("delta", "message"):
                inner = choice.get(part)
                if type(inner) is dict and (error := inner.get("error")) and _says_something(error):
                    return ("choices", index, part, "error")
    return None


def read_envelope(value: Any, source: Source, *, named: bool) -> Envelope | None:
    """Return what the body of a failed answer says, or an event named `error` (`named`); None if it is no envelope.

    That such a value is an error is known, so any value of an event has words.
    """
    if (path := _find_place(value)) is not None:
        return _read_at(value, source, path)
    if type(value) is dict and (
        named or type(value.get("error")) is dict or any(value.get(key) for key in _WORDS_KEYS)
    ):
        return _read_at(value, source, ("error",) if type(value.get("error")) is dict else ())
    return _read_at(value, source, ()) if named else None


def _says_something(error: Any) -> bool:
    """Return whether a value holds any text, number or true, at any level."""
    pending = [error]
    while pending:
        item = pending.pop()
        if type(item) is dict:
            pending.extend(item.values())
        elif type(item) is list:
            pending.extend(item)
        elif item:
            return True
    return False


def _read_at(value: Any, source: Source, path: Path) -> Envelope:
    """Return the error at a place, with the keys around it, but for those of a completion around a choice's error."""
    layers = list(_list_layers(value, path))
    if path[:1] == ("choices",):
        layers = layers[-1:]
    while len(layers) <= _NESTED_MAX and (inner := _get_inner(layers[-1][1])) is not None:
        path = (*path, inner)
        layers.append((path, layers[-1][1][inner]))
    cuttable = source if all(len(layer) <= _SLICED_MAX for _, layer in layers if type(layer) in {dict, list}) else None
    upstream = UpstreamError()
    seen: set[str] = set()
    skip: str | int | None = None
    for at, layer in reversed(layers):
        if type(layer) is dict:
            _read_fields(upstream, layer, cuttable, at, skip=skip, seen=seen)
        elif at == path:
            _set_words(upstream, layer, cuttable, at, joined=False)
        elif len(layer) > 1:  # a list, of whose items one was read
            _add_extra(upstream, str(at[-1]) if at else "$", cuttable, at)
        skip = at[-1] if at else None
    return Envelope(upstream, tuple(layer for _, layer in reversed(layers) if type(layer) is dict))


def _list_layers(value: Any, path: Path) -> Iterable[tuple[Path, Any]]:
    """Yield each value from the root to the place."""
    yield (), value
    for depth, step in enumerate(path, 1):
        value = value[step]
        yield path[:depth], value


def _get_inner(error: Any) -> str | int | None:
    """Return the key of the error that an error without words of its own holds, if it holds one."""
    if type(error) is list:
        return 0 if error and type(error[0]) is dict else None
    if type(error) is not dict or error.get("message"):
        return None
    for key in ("error", "errors"):
        inner = error.get(key)
        if type(inner) is list and inner and type(inner[0]) is dict:
            return key
        if type(inner) is dict and key == "error" and _says_something(inner):
            return key
    return None


def _read_fields(
    upstream: UpstreamError,
    error: Mapping[str, Any],
    source: Source | None,
    path: Path,
    *,
    skip: str | int | None,
    seen: set[str],
) -> None:
    """Add an object's keys to what is known from the layers inside of it, which is not replaced."""
    has_words = bool(upstream.message)
    words_key = None if has_words else next((key for key in _WORDS_KEYS if key != skip and error.get(key)), None)
    is_innermost = skip is None
    kept = error if len(error) <= _KEYS_MAX else _take_first(error, words_key)
    upstream.truncated = upstream.truncated or kept is not error
    for key, item in kept.items():
        if item is None or key == skip:
            continue
        if key == words_key:
            _set_words(upstream, item, source, (*path, key), joined=key in _JOINED_KEYS)
        elif is_innermost and key in _FIELD_KEYS and type(item) is str:
            setattr(upstream, key, item)
        elif is_innermost and key == "code" and type(item) is int:
            upstream.code = str(item)
        else:
            _add_extra(upstream, f"$.{key}" if key in seen else key, source, (*path, key))
    seen.update(kept)


def _take_first(error: Mapping[str, Any], words_key: str | None) -> Mapping[str, Any]:
    named = {key: error[key] for key in (words_key, *_FIELD_KEYS) if key is not None and key in error}
    return dict(islice(error.items(), _KEYS_MAX)) | named


def _set_words(upstream: UpstreamError, words: Any, source: Source | None, path: Path, *, joined: bool) -> None:
    """Set the message: a text as it is, a list of texts under `message` joined, anything else as JSON text."""
    if type(words) is str:
        upstream.message = words
    elif joined and type(words) is list and all(type(item) is str for item in words):
        upstream.message = "; ".join(words)
    else:
        text = _cut_or_none(source, path)
        upstream.truncated = upstream.truncated or text is None
        upstream.message = text or ""


def _add_extra(upstream: UpstreamError, name: str, source: Source | None, path: Path) -> None:
    text = _cut_or_none(source, path)
    if text is None:
        upstream.truncated = True
    else:
        upstream.extra_json[name] = text


# None if the value nests too deeply to be sliced, which must not cost the caller the rest of the error.
def _cut_or_none(source: Source | None, path: Path) -> str | None:
    try:
        return source.cut(path) if source is not None else None
    except JsonError:
        return None
