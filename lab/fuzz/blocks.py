"""Header blocks to headers: as hpack reads them, whatever the bytes, and never more than the limit.

The first byte of an input chooses the limit; the rest is blocks of one connection, each with its length before it in a
byte, so that they share a table.
"""

from collections.abc import Iterator

import hpack
from hpack.exceptions import HPACKError

from bridge.server.h2.hpack import Decoder, HpackError, TooLargeError
from tests.kit.http2 import build_fields

__all__ = ["check", "seeds"]

LIMITS = (32 * 1024, 1000, 100, 0)
UNLIMITED = 1 << 30
OVERHEAD_BYTES = 32
CALL = build_fields((b"authorization", b"Bearer abc"), (b"grpc-timeout", b"5S"), (b"x-bin", b"AAE"))


def seeds() -> Iterator[bytes]:
    encoder = hpack.Encoder()
    for number, huffman in enumerate((True, False, True)):
        blocks = [
            encoder.encode([*CALL, (b"x-request-id", b"%d" % each)], huffman=huffman) for each in range(number + 1)
        ]
        yield bytes((number,)) + b"".join(bytes((len(block),)) + block for block in blocks)
    for block in (
        b"\x20",
        b"\x3f\xe1\x1f",
        b"\x40\x01a\x01b\xbe\xbe",
        b"\x10\x81\x1f\x01c",
        b"\x0f\x2f\x00",
        b"\x82" * 200,
    ):
        yield bytes((1, len(block))) + block


def check(data: bytes) -> None:
    if not data:
        return
    limit = LIMITS[data[0] % len(LIMITS)]
    ours, bounded, theirs = Decoder(UNLIMITED), Decoder(limit), hpack.Decoder(max_header_list_size=UNLIMITED)
    for block in cut_blocks(data[1:]):
        expected = read_theirs(theirs, block)
        try:
            found = ours.decode(block)
        except HpackError:
            assert expected is None or is_stricter(block), (block, expected)
            return
        assert found == expected, (block, expected, found)
        size = sum(len(name) + len(value) + OVERHEAD_BYTES for name, value in found or ())
        try:
            assert bounded.decode(block) == (found if size <= limit else None)
            assert size <= 4 * limit
        except TooLargeError:
            assert size > 4 * limit
            return


def cut_blocks(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        size = data[at]
        yield data[at + 1 : at + 1 + size]
        at += 1 + size


def read_theirs(decoder: hpack.Decoder, block: bytes) -> list[tuple[bytes, bytes]] | None:
    try:
        return [(bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)]
    except (HPACKError, IndexError):  # IndexError: of an integer that is cut off, in some versions
        return None


def is_stricter(block: bytes) -> bool:
    """Whether the block may be one that ours refuses and hpack takes.

    Those are more than two updates of the table's size, and integers above 2^28 or written with needless bytes.
    """
    return block[:1] >= b"\x20" or b"\x80" in block or b"\xff" in block
