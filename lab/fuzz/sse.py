"""Bytes to events: the same events however the bytes are cut, and the events of the WHATWG's rules.

The first byte of an input seeds the cuts, the second chooses the limit of an event's size; the rest is the stream.
"""

import random
from collections.abc import Iterable, Iterator

from bridge.core.sse import EventTooLargeError, SseDecoder
from tests.kit import oracle, vectors

__all__ = ["check", "cut", "seeds"]

LIMITS = (1 << 20, 1024, 16, 1)


def seeds() -> Iterator[bytes]:
    for number, case in enumerate(vectors.read_sse_cases()):
        yield bytes([number, 0]) + case["stream"].encode("utf-8", "surrogatepass")
    for number, name in enumerate(vectors.list_names("streams")):
        yield bytes([number, number % len(LIMITS)]) + vectors.read_answer("streams", name).body


def check(data: bytes) -> None:
    if len(data) < 2:
        return
    limit, stream = LIMITS[data[1] % len(LIMITS)], data[2:]
    at_once = decode([stream], limit)
    assert decode((stream[at : at + 1] for at in range(len(stream))), limit) == at_once
    assert decode(cut(stream, data[0]), limit) == at_once

    found, too_large = at_once
    expected = oracle.split_events(stream)
    assert found == expected[: len(found)]
    assert too_large or len(found) == len(expected)
    assert not too_large or measure_longest(stream) > limit
    assert all(len(text) <= limit for _, text in found)


def decode(pieces: Iterable[bytes], limit: int) -> tuple[list[tuple[str, bytes]], bool]:
    """Return the events, and whether one was too large."""
    decoder = SseDecoder(event_bytes_max=limit)
    found = []
    try:
        for piece in pieces:
            for event in decoder.feed(piece):
                found.append(tuple(event))  # noqa: PERF401 - what came before the error counts
    except EventTooLargeError:
        return found, True
    return found, False


def cut(data: bytes, seed: int) -> Iterator[bytes]:
    """Yield the bytes in pieces, empty ones too."""
    chance = random.Random(seed)
    at = 0
    while at < len(data):
        size = chance.choice((0, 1, 2, 3, 7, 100, 5000))
        yield data[at : at + size]
        at += size


def measure_longest(stream: bytes) -> int:
    """Return a bound of an event's size: the most bytes between two blank lines."""
    text = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return max(map(len, text.split(b"\n\n")))
