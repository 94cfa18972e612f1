"""The bytes of a connection to an answer: the same however they are cut, no failure but the engine's, no excess.

h11 is the second opinion: an answer that is whole to our parser has the same status and body there, and if our
parser says that the connection can serve another call, no bytes remain.

The first byte of an input seeds the cuts, the second says how the connection ends; the rest are its bytes.
"""

import random
from collections.abc import Iterator
from random import Random

import h11

from bridge.upstream.framing import AnswerParser
from tests.kit import vectors
from tests.kit.parsing import HEAD_BYTES_MAX, HEAD_FIELDS_MAX, Parsed, cut, parse

__all__ = ["check", "mutate", "seeds"]

ENDS = ("open", "close", "reset")
BYTE_BY_BYTE_MAX = 3000
SEED_BYTES_MAX = 20_000
LINES = (
    *(b"content-length: 5", b"content-length: 0", b"transfer-encoding: chunked", b"connection: close", b"", b"0", b"5"),
    *(b"HTTP/1.1 200 OK", b"HTTP/1.0 200 OK", b"HTTP/1.1 100 Continue", b"HTTP/1.1 204 No Content", b"5;a=b", b"hello"),
    *(b"HTTP/1.1 304 Not Modified", b"x: " + b"a" * 40_000, b"x : a", b" folded", b"x: a\rb", b"x: \0", b"ZZ", b"-1"),
    *(b"10000000000000005", b"HTTP/1.1 101 Switching Protocols", b"upgrade: h2c", b"x:a\nb", b"\n", b"\r", b"{}"),
)


def seeds() -> Iterator[bytes]:
    for number, path in enumerate(sorted(vectors.FOLDER.glob("*/*.http")) + sorted(vectors.FOLDER.glob("*/*-*.txt"))):
        data = path.read_bytes()
        if len(data) < SEED_BYTES_MAX:
            yield bytes([number % 256, number % len(ENDS)]) + data


def check(data: bytes) -> None:
    if len(data) < 2:
        return
    then, stream = ENDS[data[1] % len(ENDS)], data[2:]
    found = parse([stream], then=then)
    assert parse(cut(stream, random.Random(data[0])), then=then) == found
    if len(stream) < BYTE_BY_BYTE_MAX:
        assert parse((stream[at : at + 1] for at in range(len(stream))), then=then) == found
    assert not (found.is_complete and found.failure)
    assert not found.is_complete or found.status >= 200
    assert len(found.body) <= len(stream)
    _check_held(stream)
    _check_agreement(found, stream, then)


def _check_held(stream: bytes) -> None:
    """`held_bytes` must be the size of the pieces that wait for a reader, since a limit depends on it."""
    parser = AnswerParser(head_bytes_max=HEAD_BYTES_MAX, head_fields_max=HEAD_FIELDS_MAX)
    parser.feed(stream)
    assert parser.held_bytes == sum(map(len, parser.pieces)) <= len(stream)


def _check_agreement(found: Parsed, stream: bytes, then: str) -> None:
    """Compare with h11, which accepts more than our parser and must agree about what ours accepts."""
    if not found.is_complete:
        return
    peer = h11.Connection(h11.CLIENT, max_incomplete_event_size=len(stream) + 1)
    peer.send(h11.Request(method="POST", target="/", headers=[("host", "x"), ("content-length", "0")]))
    peer.send(h11.EndOfMessage())
    body = b""
    status = 0
    try:
        peer.receive_data(stream)
        if then == "close":
            peer.receive_data(b"")
        while not isinstance(event := peer.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
            elif event is h11.NEED_DATA:
                raise AssertionError("h11 waits for more")
    except h11.RemoteProtocolError:
        return
    assert (status, body) == (found.status, found.body)
    if found.is_reusable:
        assert peer.trailing_data[0] == b""
        # h11 never keeps a connection of HTTP/1.0, which our parser does if the answer says keep-alive.
        assert b"HTTP/1.0" in stream or peer.our_state is peer.their_state is h11.DONE


def mutate(data: bytes, chance: Random) -> bytes:
    """Change one line."""
    lines = data[2:].split(b"\r\n")
    at = chance.randrange(len(lines))
    match chance.randrange(6):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, lines[at])
        case 2:
            lines.insert(at, chance.choice(lines))
        case 3:
            lines[at] = chance.choice(LINES)
        case 4:
            lines[at] = b"%x" % chance.choice((0, 1, len(lines[-1]), 2**16, 2**64))
        case _:
            lines.insert(at, chance.choice(LINES))
    return data[:2] + b"\r\n".join(lines)
