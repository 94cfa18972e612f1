"""gRPC-Web, binary and as base64 text; and gRPC itself, if the HTTP server below sends trailers.

Both have gRPC's headers, statuses and frames. In gRPC-Web the trailers are the body's last frame, with the flag 0x80
(https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md).
"""

import base64
import binascii
from collections.abc import Collection
from typing import Final

from bridge.core.errors import Code
from bridge.core.headers import Metadata
from bridge.server.protocols import grpc
from bridge.server.protocols.framing import HEAD_BYTES, IDENTITY, MessageError, MessageReader, encode_frame
from bridge.server.protocols.grpc import Header
from bridge.server.protocols.wire import Answer, Status, drop_hop_headers

__all__ = ["GrpcWebTextWire", "GrpcWebWire", "GrpcWire", "read_one"]

_TRAILERS: Final = 0x80
"""The flag of the frame that holds the trailers."""


def read_one(body: bytes, encoding: str, bytes_max: int) -> bytes | None:
    """Return the one message of a body of frames; None if it is not whole. Raises MessageError."""
    if not body:
        raise MessageError(Code.UNIMPLEMENTED, "the method takes one message, and there is none")
    reader = MessageReader(bytes_max, encoding)
    reader.feed(body)
    message = reader.read_message()
    if message is not None and reader.held:
        raise MessageError(Code.UNIMPLEMENTED, "the method takes one message, and there are more")
    return message


class GrpcWire:
    """gRPC, with trailers of HTTP."""

    content_type = b"application/grpc"
    has_http_trailers = True

    def __init__(self, encodings: Collection[str], bytes_max: int) -> None:
        self.metadata: Metadata = ()
        self.timeout_s: float | None = None
        self._encodings = encodings
        self.encoding = IDENTITY
        self._bytes_max = bytes_max

    @property
    def body_bytes_max(self) -> int:
        """The largest body of a request that can be one."""
        return HEAD_BYTES + self._bytes_max

    @property
    def accepted(self) -> tuple[str, str]:
        """The header that says which compressions are accepted."""
        name, value = grpc.encode_encodings(self._encodings)
        return name.decode(), value.decode()

    def read_head(self, headers: list[Header]) -> None:
        """Read a request's headers. Raises MessageError."""
        self.metadata, self.timeout_s, self.encoding = grpc.read_head(drop_hop_headers(headers), self._encodings)

    def read_body(self, body: bytes) -> bytes | None:
        """Return the message of a whole body; None if it is cut. Raises MessageError."""
        return read_one(body, self.encoding, self._bytes_max)

    def encode_start(self, metadata: Metadata) -> list[Header]:
        """Return the headers of a stream."""
        return [(b"content-type", self.content_type), *grpc.encode_metadata(metadata)]

    def encode_message(self, message: bytes) -> bytes:
        """Return a stream's message as it is sent."""
        return encode_frame(message)

    def encode_end(self, status: Status) -> tuple[bytes, list[Header]]:
        """Return the last bytes of a stream, and HTTP's trailers."""
        return b"", grpc.list_trailers(*status)

    def encode_answer(self, metadata: Metadata, message: bytes | None, status: Status) -> Answer:
        """Return an answer of one message, or of none if the call failed."""
        body = self.encode_message(message) if message is not None and not status.code else b""
        end, trailers = self.encode_end(status)
        return Answer(200, self.encode_start(metadata), body + end, trailers)


class GrpcWebWire(GrpcWire):
    """gRPC-Web in bytes."""

    content_type = b"application/grpc-web+proto"
    has_http_trailers = False

    def encode_end(self, status: Status) -> tuple[bytes, list[Header]]:
        """Return the frame of the trailers."""
        lines = b"".join(b"%b: %b\r\n" % trailer for trailer in grpc.list_trailers(*status))
        return encode_frame(lines, _TRAILERS), []


class GrpcWebTextWire(GrpcWebWire):
    """gRPC-Web as base64 text, for clients that read text alone. Each write is padded."""

    content_type = b"application/grpc-web-text+proto"

    @property
    def body_bytes_max(self) -> int:
        """The largest body of a request that can be one."""
        return -(-super().body_bytes_max // 3) * 4

    def read_body(self, body: bytes) -> bytes | None:
        """Return the message of a whole body; None if it is cut. Raises MessageError."""
        try:
            return super().read_body(base64.b64decode(body, validate=True))
        except binascii.Error:
            raise MessageError(Code.INTERNAL, "the body is not base64, as its content type says") from None

    def encode_message(self, message: bytes) -> bytes:
        """Return a stream's message as it is sent."""
        return base64.b64encode(super().encode_message(message))

    def encode_end(self, status: Status) -> tuple[bytes, list[Header]]:
        """Return the frame of the trailers."""
        frame, trailers = super().encode_end(status)
        return base64.b64encode(frame), trailers
