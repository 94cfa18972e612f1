"""The standards, implemented a second time and in the simplest way, to compare the bridge's core with.

It uses nothing of `bridge`: server-sent events follow the WHATWG's rules over whole bytes, JSON is the standard
library's, and docs/behavior.md says when a stream is whole.
"""

import itertools
import json
import re
from typing import Any, NamedTuple, NoReturn

__all__ = ["EQUAL_DEPTH_MAX", "Stream", "judge_stream", "measure_depth", "parse_document", "split_events"]

EQUAL_DEPTH_MAX = 64
"""Levels of JSON up to which every parser must agree; beyond, each may have a limit of its own."""


def split_events(stream: bytes) -> list[tuple[str, bytes]]:
    """Return name and data of each event whose blank line has come."""
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


def parse_document(text: bytes) -> Any:
    """Return the value of one JSON document. Raises ValueError if the text is none."""
    try:
        return json.loads(text.decode(), parse_constant=_reject_constant)
    except RecursionError:
        raise ValueError("nests too deeply") from None


def _reject_constant(word: str) -> NoReturn:
    raise ValueError(word)


def measure_depth(text: bytes) -> int:
    """Return how deep documents nest, brackets within strings included."""
    return max(itertools.accumulate(_STEPS.get(byte, 0) for byte in text), default=0)


_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


class Stream(NamedTuple):
    """The required result of a stream's bytes: the chunks' documents, and how it ends.

    `end` is "whole", "incomplete", "error" (the upstream sent one), "invalid" (an event is no chunk).
    """

    chunks: list[bytes]
    end: str


def judge_stream(stream: bytes) -> Stream:
    """Judge a stream whose body ended after these bytes."""
    chunks: list[bytes] = []
    finished: dict[Any, bool] = {}
    for name, data in split_events(stream):
        whole = bool(finished) and all(finished.values())
        if name == "error":
            return Stream(chunks, "error")
        if data.strip() == b"[DONE]":
            return Stream(chunks, "whole" if whole else "incomplete")
        try:
            value = parse_document(data)
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
