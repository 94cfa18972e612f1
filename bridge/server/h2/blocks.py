"""Header blocks: put together from HEADERS and CONTINUATION frames, and decoded, within bounds."""

from collections.abc import Sequence
from typing import NamedTuple

from bridge.server.h2 import frames
from bridge.server.h2.frames import ErrorCode, Http2Error
from bridge.server.h2.hpack import Decoder, Header, HpackError, TooLargeError
from bridge.server.h2.limits import Limits

__all__ = ["BlockReader", "HeaderBlock"]


class HeaderBlock(NamedTuple):
    """A whole header block. `headers` is None if they are larger than the limit."""

    stream_id: int
    headers: Sequence[Header] | None
    is_end: bool


class BlockReader:
    """Reads the header blocks of one connection. `is_open`: one has begun, so only its CONTINUATION may come."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._decoder = Decoder(limits.list_bytes_max)
        self.is_open = False
        self._stream_id = 0
        self._is_end = False
        self._parts = bytearray()
        self._count = 0

    @property
    def held(self) -> int:
        """How many bytes of an unfinished block are kept."""
        return len(self._parts)

    def take_headers(self, flags: int, stream_id: int, payload: bytes) -> HeaderBlock | None:
        """Take a HEADERS frame; return its block if it is whole. Raises Http2Error."""
        if not stream_id & 1:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "HEADERS on a stream that is not a client's")
        data = payload
        if flags & (frames.PADDED | frames.PRIORITIZED):
            data = frames.strip_priority(frames.strip_padding(payload, flags), flags, stream_id)
        is_end = bool(flags & frames.END_STREAM)
        if flags & frames.END_HEADERS:
            return self._decode(stream_id, data, is_end=is_end)
        self._stream_id, self._is_end, self._parts, self._count = stream_id, is_end, bytearray(data), 0
        self.is_open = True
        return None

    def take_continuation(self, flags: int, stream_id: int, payload: bytes) -> HeaderBlock | None:
        """Take a CONTINUATION frame; return its block if it is whole. Raises Http2Error."""
        if not self.is_open or stream_id != self._stream_id:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._parts += payload
        self._count += 1
        if self._count > self._limits.continuations_max or len(self._parts) > self._limits.block_bytes_max:
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "a header block without end", "continuation_flood")
        if not flags & frames.END_HEADERS:
            return None
        data, self._parts, self.is_open = bytes(self._parts), bytearray(), False
        return self._decode(stream_id, data, is_end=self._is_end)

    def _decode(self, stream_id: int, data: bytes, *, is_end: bool) -> HeaderBlock:
        try:
            return HeaderBlock(stream_id, self._decoder.decode(data), is_end)
        except HpackError as error:
            raise Http2Error(ErrorCode.COMPRESSION_ERROR, f"a header block: {error}") from None
        except TooLargeError:
            message = "a header block that stands for too much"
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, message, "header_bomb") from None
