"""Feeding bytes to an AnswerParser in pieces, and what came of it: for the tests of the parser and of its fuzzing."""

import random
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from bridge.upstream.framing import AnswerParser

HEAD_BYTES_MAX = 64 * 1024
HEAD_FIELDS_MAX = 1000


class Parsed(NamedTuple):
    """What became of an answer. `failure` is the failure's class and text, `known` the status that it knows."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    is_complete: bool
    is_reusable: bool
    failure: str
    known: int | None


def parse(pieces: Iterable[bytes], *, then: str = "open", head_bytes_max: int = HEAD_BYTES_MAX) -> Parsed:
    """Feed the pieces, then an end in order ("close"), a reset ("reset"), or nothing."""
    parser = AnswerParser(head_bytes_max=head_bytes_max, head_fields_max=HEAD_FIELDS_MAX)
    body = b""
    for number, piece in enumerate(pieces):
        parser.feed(piece)
        if number % 3 == 0:
            body += parser.take()
    if then == "close":
        parser.feed_end()
    elif then == "reset":
        parser.fail_as_lost()
    body += parser.take()
    failure = parser.failure
    return Parsed(
        parser.status,
        parser.headers,
        body,
        parser.is_complete,
        parser.is_reusable,
        f"{type(failure).__name__}: {failure}" if failure else "",
        getattr(failure, "status", None),
    )


def cut(data: bytes, source: random.Random) -> Iterator[bytes]:
    """Yield the bytes in pieces of random sizes, some of one byte and some large."""
    at = 0
    while at < len(data):
        size = source.choice((1, 2, 3, source.randint(1, 40), source.randint(1, 4000), len(data)))
        yield data[at : at + size]
        at += size
