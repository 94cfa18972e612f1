"""Messages with their length before them: gRPC's framing, which gRPC-Web and Connect's streams share.

A frame is a byte of flags, the length in four bytes, and that many bytes. Bytes come in as they arrive, cut anywhere;
frames go out one by one, when they are asked for, so that nobody pays for more than is read. A length above the limit
is refused as soon as it is known, before its bytes have come; and so is a message that inflates beyond the limit.
"""

import contextlib
import struct
import zlib
from typing import Final

from bridge.core.errors import Code

__all__ = [
    "COMPRESSED",
    "HEAD_BYTES",
    "IDENTITY",
    "FrameReader",
    "MessageError",
    "MessageReader",
    "encode_frame",
    "inflate",
]

HEAD_BYTES: Final = 5
COMPRESSED: Final = 0x01
"""The flag of a message that is compressed. gRPC-Web's 0x80 and Connect's 0x02 are their own."""
IDENTITY: Final = "identity"
_WINDOW_BITS: Final = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""How zlib is told of an encoding. gRPC's deflate has the zlib wrapper, as HTTP's has."""
_HEAD: Final = struct.Struct(">BI")

_MEMBERS_MAX: Final = 16
"""Of a message in gzip (RFC 1952, 2.2): each costs a copy of what is behind it."""


class MessageError(Exception):
    """A message that can't be read: `code` is gRPC's, `message` may be told to the caller."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def encode_frame(data: bytes, flags: int = 0) -> bytes:
    """Return a frame."""
    return _HEAD.pack(flags, len(data)) + data


class FrameReader:
    """Cuts frames out of bytes. None may be longer than `bytes_max`."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._buffer = bytearray()

    @property
    def held(self) -> int:
        """How many bytes were fed and not read yet."""
        return len(self._buffer)

    @property
    def missing(self) -> int:
        """How many bytes the next frame lacks, as far as its length is known; 0 if it can be read.

        Raises MessageError if it is too long.
        """
        held = len(self._buffer)
        return max(0, (HEAD_BYTES if held < HEAD_BYTES else HEAD_BYTES + self._read_length()) - held)

    @property
    def has_more(self) -> bool:
        """Whether bytes of a frame after the next one are held, which can be read."""
        return len(self._buffer) > HEAD_BYTES + self._read_length()

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes."""
        self._buffer += data

    def read(self) -> tuple[int, bytes] | None:
        """Return the flags and the data of the next frame; None if it is not whole. Raises MessageError."""
        if self.missing:
            return None
        end = HEAD_BYTES + self._read_length()
        flags = self._buffer[0]
        with memoryview(self._buffer) as view:
            data = bytes(view[HEAD_BYTES:end])
        del self._buffer[:end]
        return flags, data

    def _read_length(self) -> int:
        length: int = _HEAD.unpack_from(self._buffer)[1]
        if length > self._bytes_max:
            raise MessageError(Code.RESOURCE_EXHAUSTED, _too_large(str(length), self._bytes_max))
        return length


class MessageReader(FrameReader):
    """Reads messages out of frames. `encoding` is what compressed ones are compressed with."""

    def __init__(self, bytes_max: int, encoding: str = IDENTITY) -> None:
        super().__init__(bytes_max)
        self._encoding = encoding

    def read_message(self) -> bytes | None:
        """Return the next message; None if it is not whole. Raises MessageError."""
        frame = self.read()
        if frame is None:
            return None
        flags, data = frame
        if not flags:
            return data
        if flags != COMPRESSED:
            raise MessageError(Code.INTERNAL, f"a message has unknown flags (0x{flags:02x})")
        return inflate(data, self._encoding, self._bytes_max)


def inflate(data: bytes, encoding: str, bytes_max: int) -> bytes:
    """Return the data of a compressed message. Raises MessageError if it is malformed, or larger than `bytes_max`."""
    if encoding not in _WINDOW_BITS:
        raise MessageError(Code.INTERNAL, f"a message is compressed, but its encoding is {encoding}")
    inflated = b""
    for _ in range(_MEMBERS_MAX if encoding == "gzip" else 1):
        inflater = zlib.decompressobj(_WINDOW_BITS[encoding])
        with contextlib.suppress(zlib.error):  # then it is not at its end
            inflated += inflater.decompress(data, bytes_max + 1 - len(inflated))
        if len(inflated) > bytes_max:
            raise MessageError(Code.RESOURCE_EXHAUSTED, _too_large("more when decompressed", bytes_max))
        if not inflater.eof:
            break
        data = inflater.unused_data
        if not data:
            return inflated
    raise MessageError(Code.INTERNAL, f"a message can't be decompressed as {encoding}")


def _too_large(found: str, bytes_max: int) -> str:
    return f"the message is larger than request_bytes_max ({found} vs. {bytes_max})"
