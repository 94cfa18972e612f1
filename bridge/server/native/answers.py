"""Answers as coded header blocks. Those that do not depend on the call are coded once."""

from collections.abc import Iterable
from typing import Final

from bridge.core.errors import Code
from bridge.core.headers import Metadata
from bridge.core.status import GrpcStatus
from bridge.server.h2.hpack import encode_header, encode_headers
from bridge.server.protocols.grpc import CONTENT_TYPE, encode_encodings, list_trailers

__all__ = [
    "HEAD",
    "NO_TRAILERS",
    "OK",
    "PLAIN_BODY",
    "TOO_LARGE",
    "UNKNOWN_METHOD",
    "PlainAnswer",
    "Refusals",
    "encode_refusal",
    "encode_trailers",
    "encode_unsupported_encoding",
]

_STATUS_200: Final = b"\x88"  # the static table's eighth entry
HEAD: Final = _STATUS_200 + encode_header(b"content-type", CONTENT_TYPE)
OK: Final = encode_header(b"grpc-status", b"0")
PLAIN_BODY: Final = b"this port speaks gRPC alone\n"


class PlainAnswer:
    """Answers to requests that are no gRPC, which curl and browsers send."""

    NOT_POST: Final = encode_headers([(b":status", b"405"), (b"allow", b"POST"), (b"content-type", b"text/plain")])
    NOT_GRPC: Final = encode_headers([(b":status", b"415"), (b"content-type", b"text/plain")])


TOO_LARGE: Final = HEAD + encode_headers(
    list_trailers(Code.RESOURCE_EXHAUSTED, "the metadata is larger than the limit", ())
)
UNKNOWN_METHOD: Final = HEAD + encode_headers(list_trailers(Code.UNIMPLEMENTED, "Method not found!", ()))
NO_TRAILERS: Final = HEAD + encode_headers(
    list_trailers(Code.INTERNAL, "the header te: trailers is missing: a proxy in between may not know trailers", ())
)


class Refusals:
    """Statuses with which many calls are refused, each coded once."""

    def __init__(self) -> None:
        self._status: GrpcStatus | None = None
        self._block = b""

    def encode(self, status: GrpcStatus) -> bytes:
        """Return the whole answer; of the status that was refused with last, the bytes are there."""
        if status is not self._status:
            self._status = status
            self._block = encode_refusal(status.code, status.message, status.trailers)
        return self._block


def encode_trailers(code: int, message: str, metadata: Metadata) -> bytes:
    """Return the trailers of a call that ends with a status."""
    return encode_headers(list_trailers(code, message, metadata)) if code or metadata else OK


def encode_refusal(code: int, message: str, metadata: Metadata = ()) -> bytes:
    """Return an answer that is a status alone."""
    return HEAD + encode_trailers(code, message, metadata)


def encode_unsupported_encoding(message: str, encodings: Iterable[str]) -> bytes:
    """Return the answer to a call with an encoding that is not accepted: it has to say which are."""
    return encode_refusal(Code.UNIMPLEMENTED, message) + encode_header(*encode_encodings(encodings))
