"""Frames: cut out of bytes, and written (RFC 9113, 4 and 6). What they mean for a connection is not decided here."""

import struct
from collections.abc import Iterator, Mapping
from typing import Final

__all__ = [
    "CONTINUATION",
    "DATA",
    "END_HEADERS",
    "END_STREAM",
    "FRAME_BYTES_MAX",
    "GOAWAY",
    "HEADERS",
    "PING",
    "PREFACE",
    "PRIORITY",
    "PUSH_PROMISE",
    "RST_STREAM",
    "SETTINGS",
    "WINDOW_UPDATE",
    "ErrorCode",
    "FrameCutter",
    "Http2Error",
    "StreamError",
    "encode_data",
    "encode_frame",
    "encode_goaway",
    "encode_headers_frames",
    "encode_message",
    "encode_reset",
    "encode_settings",
    "encode_window_update",
    "strip_padding",
    "strip_priority",
]

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_BYTES_MAX: Final = 16384
"""Of a frame's payload, both ways: HTTP/2's default, and the least that a peer must accept."""
HEAD_BYTES: Final = 9

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITIZED: Final = 0x20
_STREAM_ID: Final = 0x7FFF_FFFF
_PRIORITY_BYTES: Final = 5

_HEAD: Final = struct.Struct(">IBI")  # the length in the upper 24 bits, the type below; flags; the stream's id
_MESSAGE_HEAD: Final = struct.Struct(">IBIBI")  # the head of a DATA frame, and that of a gRPC message in it
_LONG: Final = struct.Struct(">I")
_PAIR: Final = struct.Struct(">II")
_SETTING: Final = struct.Struct(">HI")
SETTING_BYTES: Final = _SETTING.size
_read_head, _write_head, _write_message_head = _HEAD.unpack_from, _HEAD.pack, _MESSAGE_HEAD.pack


class ErrorCode:
    """Error codes (RFC 9113, 7)."""

    NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR, SETTINGS_TIMEOUT, STREAM_CLOSED = range(6)
    FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, CONNECT_ERROR, ENHANCE_YOUR_CALM = range(6, 12)


class Http2Error(Exception):
    """The peer broke a rule so that the connection has to end. `reason` is a word for operators to count by."""

    def __init__(self, code: int, message: str, reason: str = "protocol_error") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason


class StreamError(Exception):
    """The peer broke a rule so that one stream has to be reset."""

    def __init__(self, stream_id: int, code: int) -> None:
        super().__init__(stream_id, code)
        self.stream_id = stream_id
        self.code = code


class FrameCutter:
    """Cuts the frames out of a peer's bytes; at most one unfinished frame is kept."""

    def __init__(self) -> None:
        self._rest = b""
        self._has_preface = False

    @property
    def held(self) -> int:
        """How many bytes are kept for later."""
        return len(self._rest)

    def cut(self, data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield the type, the flags, the stream's id and the payload of each frame. Raises Http2Error."""
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        self._rest = b""
        if not self._has_preface:
            if not PREFACE.startswith(data[: len(PREFACE)]):
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "not the preface of HTTP/2")
            if end < len(PREFACE):
                self._rest = data
                return
            at, self._has_preface = len(PREFACE), True
        while end - at >= HEAD_BYTES:
            length_and_type, flags, stream_id = _read_head(data, at)
            length = length_and_type >> 8
            if length > FRAME_BYTES_MAX:
                raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "a frame larger than SETTINGS_MAX_FRAME_SIZE")
            stop = at + HEAD_BYTES + length
            if stop > end:
                break
            yield length_and_type & 0xFF, flags, stream_id & _STREAM_ID, data[at + HEAD_BYTES : stop]
            at = stop
        self._rest = data[at:]


def strip_padding(payload: bytes, flags: int) -> bytes:
    """Return the payload of a DATA or HEADERS frame without its padding. Raises Http2Error."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise Http2Error(ErrorCode.PROTOCOL_ERROR, "padding longer than its frame")
    return payload[1 : len(payload) - payload[0]]


def strip_priority(payload: bytes, flags: int, stream_id: int) -> bytes:
    """Return the payload of a HEADERS frame without its priority. Raises Http2Error."""
    if not flags & PRIORITIZED:
        return payload
    if len(payload) < _PRIORITY_BYTES:
        raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "HEADERS cut off in its priority")
    if read_long(payload) & _STREAM_ID == stream_id:
        raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a stream that depends on itself")
    return payload[_PRIORITY_BYTES:]


def check_priority(payload: bytes, stream_id: int) -> None:
    """Check a PRIORITY frame, which says nothing to us. Raises Http2Error or StreamError."""
    if not stream_id:
        raise Http2Error(ErrorCode.PROTOCOL_ERROR, "PRIORITY without a stream")
    if len(payload) != _PRIORITY_BYTES:
        raise StreamError(stream_id, ErrorCode.FRAME_SIZE_ERROR)
    if read_long(payload) & _STREAM_ID == stream_id:
        raise StreamError(stream_id, ErrorCode.PROTOCOL_ERROR)


def read_long(payload: bytes) -> int:
    """Return the first four bytes as a number."""
    value: int = _LONG.unpack_from(payload)[0]
    return value


def iterate_settings(payload: bytes) -> Iterator[tuple[int, int]]:
    """Yield each setting's number and value. Raises Http2Error."""
    if len(payload) % _SETTING.size:
        raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS cut off")
    return _SETTING.iter_unpack(payload)


def encode_frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """Return a frame."""
    return _write_head(len(payload) << 8 | kind, flags, stream_id) + payload


def encode_data(stream_id: int, data: bytes | memoryview, *, is_end: bool = False) -> bytes:
    """Return a DATA frame."""
    return _write_head(len(data) << 8, END_STREAM if is_end else 0, stream_id) + data


def encode_message(stream_id: int, message: bytes) -> bytes:
    """Return a DATA frame with a whole gRPC message, which is not compressed."""
    length = len(message)
    return _write_message_head((length + 5) << 8, 0, stream_id, 0, length) + message


def encode_headers_frames(stream_id: int, block: bytes, *, is_end: bool) -> bytes:
    """Return a header block as a HEADERS frame, with CONTINUATION frames if it is large."""
    end = END_STREAM if is_end else 0
    if len(block) <= FRAME_BYTES_MAX:
        return _write_head(len(block) << 8 | HEADERS, end | END_HEADERS, stream_id) + block
    parts = [block[at : at + FRAME_BYTES_MAX] for at in range(0, len(block), FRAME_BYTES_MAX)]
    frames = [encode_frame(HEADERS, end, stream_id, parts[0])]
    frames += [encode_frame(CONTINUATION, 0, stream_id, part) for part in parts[1:-1]]
    return b"".join([*frames, encode_frame(CONTINUATION, END_HEADERS, stream_id, parts[-1])])


def encode_settings(settings: Mapping[int, int]) -> bytes:
    """Return a SETTINGS frame."""
    return encode_frame(SETTINGS, 0, 0, b"".join([_SETTING.pack(*setting) for setting in settings.items()]))


def encode_window_update(stream_id: int, increment: int) -> bytes:
    """Return a WINDOW_UPDATE frame; stream 0 is the connection."""
    return encode_frame(WINDOW_UPDATE, 0, stream_id, _LONG.pack(increment))


def encode_reset(stream_id: int, code: int) -> bytes:
    """Return a RST_STREAM frame."""
    return encode_frame(RST_STREAM, 0, stream_id, _LONG.pack(code))


def encode_goaway(last_stream_id: int, code: int, message: str = "") -> bytes:
    """Return a GOAWAY frame."""
    return encode_frame(GOAWAY, 0, 0, _PAIR.pack(last_stream_id, code) + message.encode())


SETTINGS_ACK: Final = encode_frame(SETTINGS, ACK, 0, b"")
