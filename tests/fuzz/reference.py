"""What the standards say, written a second time and in the simplest way, to hold the bridge's core against.

Nothing of `bridge` is used here: server-sent events are by the WHATWG's rules over whole bytes, JSON is the standard
library's, and when a stream is whole is by docs/behavior.md.
"""

import itertools
import json
import re
from typing import Any, NamedTuple, NoReturn

__all__ = ["EQUAL_DEPTH_MAX", "Stream", "depth", "document", "events", "streamed"]

EQUAL_DEPTH_MAX = 64
"""Levels of JSON up to which every parser must agree; beyond, each may refuse at a depth of its own."""


def events(stream: bytes) -> list[tuple[str, bytes]]:
    """Give name and data of each event whose blank line has come."""
    found = []
    name, data = "", None
    *lines, _unended = re.split(rb"\r\n|\n|\r", stream.removeprefix(b"\xef\xbb\xbf"))
    for line in lines:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not line:
            if data is not None:
                found.append((name, data))
            name, data = "", None
        elif field == b"data":
            data = value if data is None else data + b"\n" + value
        elif field == b"event":
            name = value.decode("utf-8", "replace")
    return found


def document(text: bytes) -> Any:
    """Give the value of one JSON document. Raises ValueError where the text is none."""
    try:
        return json.loads(text.decode(), parse_constant=_refused)
    except RecursionError:
        raise ValueError("nests too deeply") from None


def _refused(word: str) -> NoReturn:
    raise ValueError(word)


def depth(text: bytes) -> int:
    """Give how deep documents nest, brackets within strings counted too."""
    return max(itertools.accumulate(_STEPS.get(byte, 0) for byte in text), default=0)


_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


class Stream(NamedTuple):
    """What must come of a stream's bytes: the chunks' documents, and how it ends.

    `end` is "whole", "incomplete", "error" (the upstream said one), "invalid" (an event is no chunk).
    """

    chunks: list[bytes]
    end: str


def streamed(stream: bytes) -> Stream:
    """Judge a stream whose body ended after these bytes."""
    chunks: list[bytes] = []
    finished: dict[Any, bool] = {}
    for name, data in events(stream):
        whole = bool(finished) and all(finished.values())
        if name == "error":
            return Stream(chunks, "error")
        if data.strip() == b"[DONE]":
            return Stream(chunks, "whole" if whole else "incomplete")
        try:
            value = document(data)
        except ValueError:
            return Stream(chunks, "invalid")
        if not isinstance(value, dict):
            return Stream(chunks, "invalid")
        if value.get("error"):
            return Stream(chunks, "error")
        chunks.append(data)
        choices = value.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            if isinstance(choice, dict):
                index = json.dumps(choice.get("index") or 0)
                finished[index] = bool(choice.get("finish_reason")) or finished.get(index, False)
    return Stream(chunks, "whole" if finished and all(finished.values()) else "incomplete")
