"""Header blocks (HPACK, RFC 7541): decoding within bounds, and literals that touch no table.

A block of a few bytes can stand for megabytes, since one byte may refer to an entry of the table. So what a block
stands for is counted as it is decoded: headers beyond `list_bytes_max` are dropped and only the table is kept right;
beyond four times that the connection has to end.

Why a decoder of our own: the one of `hpack` takes 22 µs for a call's block, that of `jh2` too by its public interface,
and its inner one, in Rust, panics on integers that are cut off; this one takes 5.

What a server of gRPC sends are the same few headers and short texts, so an encoder with a table would save bytes but
cost time: each header is a literal that is never indexed.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

from bridge.server.h2.huffman import decode_huffman

__all__ = ["Decoder", "Header", "HpackError", "TooLargeError", "encode_header", "encode_headers"]

Header: TypeAlias = tuple[bytes, bytes]

TABLE_BYTES_MAX: Final = 4096
"""Of the dynamic table: HTTP/2's default, which SETTINGS leaves as it is."""
HEADER_OVERHEAD_BYTES: Final = 32
"""What a header counts beside its name and value (RFC 7541, 4.1; RFC 9113, 6.5.2)."""
_ABSOLUTE_MAX: Final = 4
"""How many times `list_bytes_max` ends the connection."""
_INTEGER_BITS_MAX: Final = 28
_UPDATES_MAX: Final = 2
"""Of the table's size, at the beginning of a block (RFC 7541, 4.2)."""

# fmt: off
_STATIC_NAMES: Final = (
    b"accept-charset", b"accept-encoding", b"accept-language", b"accept-ranges", b"accept",
    b"access-control-allow-origin", b"age", b"allow", b"authorization", b"cache-control", b"content-disposition",
    b"content-encoding", b"content-language", b"content-length", b"content-location", b"content-range",
    b"content-type", b"cookie", b"date", b"etag", b"expect", b"expires", b"from", b"host", b"if-match",
    b"if-modified-since", b"if-none-match", b"if-range", b"if-unmodified-since", b"last-modified", b"link",
    b"location", b"max-forwards", b"proxy-authenticate", b"proxy-authorization", b"range", b"referer", b"refresh",
    b"retry-after", b"server", b"set-cookie", b"strict-transport-security", b"transfer-encoding", b"user-agent",
    b"vary", b"via", b"www-authenticate",
)
_STATIC: Final[tuple[Header, ...]] = (
    (b"", b""),  # indexes begin with 1
    (b":authority", b""), (b":method", b"GET"), (b":method", b"POST"), (b":path", b"/"), (b":path", b"/index.html"),
    (b":scheme", b"http"), (b":scheme", b"https"), (b":status", b"200"), (b":status", b"204"), (b":status", b"206"),
    (b":status", b"304"), (b":status", b"400"), (b":status", b"404"), (b":status", b"500"),
    *((name, b"gzip, deflate" if name == b"accept-encoding" else b"") for name in _STATIC_NAMES),
)
# fmt: on
_STATIC_SIZE: Final = len(_STATIC)
_REPEATED_BYTES_MAX: Final = 1024
"""Of the block that is kept with its headers, in case that it comes again: what a connection costs that is silent."""


class HpackError(Exception):
    """A block that can't be decoded: the connection has to end, since the table is lost."""


class TooLargeError(Exception):
    """A block that stands for far more than is allowed."""


class Decoder:
    """Decodes the blocks of one connection, in their order."""

    def __init__(self, list_bytes_max: int) -> None:
        self._list_bytes_max = list_bytes_max
        self._table: deque[Header] = deque()  # the newest last
        self._table_bytes = 0
        self._table_bytes_max = TABLE_BYTES_MAX
        self._has_changed = False  # the table, by the present block
        self._last: tuple[bytes, list[Header] | None] = (b"", [])

    def decode(self, block: bytes) -> Sequence[Header] | None:
        """Return the headers of a block, None if they are larger than the limit. Raises HpackError or TooLargeError.

        A caller's calls have mostly the same headers, which are soon all in the table: a block of the same bytes as the
        last one, with the table unchanged by it, stands for the same.
        """
        last, headers = self._last
        if block == last:
            return headers
        self._has_changed = False
        try:
            headers = self._decode(block)
        except (IndexError, ValueError) as error:
            raise HpackError(str(error) or "cut off") from None
        is_kept = not self._has_changed and len(block) <= _REPEATED_BYTES_MAX
        self._last = (block, headers) if is_kept else (b"", [])
        return headers

    def _decode(self, block: bytes) -> list[Header] | None:
        headers: list[Header] = []
        size = at = 0
        end = len(block)
        absolute_max = self._list_bytes_max * _ABSOLUTE_MAX
        updates = 0
        while at < end:
            first = block[at]
            if first & 0x80:
                if first == 0xFF:
                    index, at = _read_integer(block, at, 0x7F)
                else:
                    index, at = first & 0x7F, at + 1
                header = self._get(index)
            elif first & 0x40:
                header, at = self._read_literal(block, at, 0x3F)
                self._add(header)
            elif first & 0x20:
                updates += 1
                if headers or updates > _UPDATES_MAX:
                    raise HpackError("an update of the table's size among headers")
                table_bytes_max, at = _read_integer(block, at, 0x1F)
                if table_bytes_max > TABLE_BYTES_MAX:
                    raise HpackError("a table larger than allowed")
                self._table_bytes_max = table_bytes_max
                self._has_changed = True
                self._evict()
                continue
            else:
                header, at = self._read_literal(block, at, 0x0F)
            size += len(header[0]) + len(header[1]) + HEADER_OVERHEAD_BYTES
            if size > absolute_max:
                raise TooLargeError
            headers.append(header)
        return headers if size <= self._list_bytes_max else None

    def _get(self, index: int) -> Header:
        if index < _STATIC_SIZE:
            if not index:
                raise HpackError("index 0")
            return _STATIC[index]
        return self._table[_STATIC_SIZE - 1 - index]  # a negative index: from the newest on

    def _read_literal(self, block: bytes, at: int, mask: int) -> tuple[Header, int]:
        index = block[at] & mask
        if index == mask:
            index, at = _read_integer(block, at, mask)
        else:
            at += 1
        if index:
            name = self._get(index)[0]
        else:
            name, at = _read_string(block, at)
        value, at = _read_string(block, at)
        return (name, value), at

    def _add(self, header: Header) -> None:
        self._has_changed = True
        self._table.append(header)
        self._table_bytes += len(header[0]) + len(header[1]) + HEADER_OVERHEAD_BYTES
        if self._table_bytes > self._table_bytes_max:
            self._evict()

    def _evict(self) -> None:
        while self._table_bytes > self._table_bytes_max:
            name, value = self._table.popleft()
            self._table_bytes -= len(name) + len(value) + HEADER_OVERHEAD_BYTES


def _read_integer(block: bytes, at: int, mask: int) -> tuple[int, int]:
    """Return an integer whose first byte has a prefix of this mask, and the place after it."""
    value = block[at] & mask
    at += 1
    if value < mask:
        return value, at
    for shift in range(0, _INTEGER_BITS_MAX, 7):
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise HpackError("an integer too large")


def _read_string(block: bytes, at: int) -> tuple[bytes, int]:
    first = block[at]
    length = first & 0x7F
    if length == 0x7F:
        length, at = _read_integer(block, at, 0x7F)
    else:
        at += 1
    end = at + length
    if end > len(block):
        raise HpackError("a string that is cut off")
    text = block[at:end]
    return (decode_huffman(text) if first & 0x80 else text), end


def encode_header(name: bytes, value: bytes) -> bytes:
    """Return a header as a literal without indexing, with a new name."""
    return b"\0" + _encode_length(len(name)) + name + _encode_length(len(value)) + value


def encode_headers(headers: Iterable[Header]) -> bytes:
    """Return headers as literals."""
    return b"".join([encode_header(name, value) for name, value in headers])


def _encode_length(length: int) -> bytes:
    if length < 0x7F:
        return bytes((length,))
    rest, encoded = length - 0x7F, bytearray((0x7F,))
    while rest > 0x7F:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded)
