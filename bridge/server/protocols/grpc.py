"""gRPC over HTTP, but for its frames (`framing.py`): headers, metadata, timeouts and trailers.

Headers are pairs of bytes, as HTTP/2 and ASGI have them; metadata is text, or bytes if its name ends in `-bin`. Rules:
https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md. Headers that belong to the transport are no metadata.
"""

import base64
import binascii
import re
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple, TypeAlias
from urllib.parse import quote

from bridge.core.errors import Code
from bridge.core.headers import Metadata
from bridge.server.protocols.framing import IDENTITY, MessageError

__all__ = [
    "CONTENT_TYPE",
    "Header",
    "RequestHead",
    "decode_binary",
    "encode_binary",
    "encode_encodings",
    "encode_metadata",
    "encode_text",
    "is_content_type",
    "list_trailers",
    "parse_timeout",
    "read_head",
    "read_metadata",
]

Header: TypeAlias = tuple[bytes, bytes]
"""A header's name in lower case, and its value."""

CONTENT_TYPE: Final = b"application/grpc"
_BINARY: Final = b"-bin"
_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_UNQUOTED: Final = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
"""What percent-encoding leaves as it is in grpc-message, beside letters and digits."""
_TRANSPORTS: Final = frozenset(
    {
        *(b"te", b"content-type", b"content-length", b"host", b"accept-encoding", b"content-encoding"),
        *(b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding"),
    }
)
"""Headers that are no metadata."""
_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e]")


class RequestHead(NamedTuple):
    """What the headers of a call say."""

    metadata: Metadata
    timeout_s: float | None
    encoding: str


def is_content_type(value: bytes, expected: bytes = CONTENT_TYPE) -> bool:
    """Return whether a content type is gRPC's, with a format or parameters or without."""
    return value == expected or (value.startswith(expected) and value[len(expected) : len(expected) + 1] in b"+;")


def read_head(headers: Iterable[Header], encodings: Collection[str]) -> RequestHead:
    """Return what a call's headers say; pseudo-headers are skipped. Raises MessageError.

    `encodings` are the compressions of messages to accept, besides none. The error's code is UNIMPLEMENTED for another:
    the answer then has to say in `grpc-accept-encoding` which are accepted (`encode_encodings`).
    """
    timeout_s, encoding = None, IDENTITY
    metadata: list[tuple[str, str | bytes]] = []
    for name, value in headers:
        if name in _TRANSPORTS or name[:1] == b":":
            if name == b"grpc-timeout":
                timeout_s = parse_timeout(value)
            elif name == b"grpc-encoding":
                encoding = _decode(value)
                if encoding != IDENTITY and encoding not in encodings:
                    raise MessageError(Code.UNIMPLEMENTED, f"grpc-encoding {encoding[:40]!a} is not accepted")
        elif name.endswith(_BINARY):
            metadata += _read_binary(name, value)
        else:
            metadata.append((_decode(name), _decode(value)))
    return RequestHead(metadata, timeout_s, encoding)


def encode_encodings(encodings: Iterable[str]) -> Header:
    """Return the header that says which compressions are accepted."""
    return b"grpc-accept-encoding", ",".join((IDENTITY, *encodings)).encode("ascii")


def read_metadata(headers: Iterable[Header]) -> Metadata:
    """Return the metadata among headers. Raises MessageError for a `-bin` value that is not base64."""
    return read_head((header for header in headers if header[0] not in _TRANSPORTS), ()).metadata


def parse_timeout(value: bytes) -> float:
    """Return the seconds of a `grpc-timeout`. Raises MessageError."""
    match = _TIMEOUT.fullmatch(value)
    if match is None:
        raise MessageError(Code.INTERNAL, "the header grpc-timeout can't be read")
    return int(match[1]) * _UNITS_S[match[2]]


def encode_binary(value: bytes) -> bytes:
    """Return the value of a `-bin` header, without padding as the rules ask."""
    return base64.b64encode(value).rstrip(b"=")


def decode_binary(value: bytes) -> bytes:
    """Return the bytes of the value of a `-bin` header, padded or not. Raises ValueError."""
    bare = value.rstrip(b"=")
    if len(value) - len(bare) > 2:
        raise ValueError("too much padding")
    return base64.b64decode(bare + b"=" * (-len(bare) % 4), validate=True)


def _read_binary(name: bytes, value: bytes) -> list[tuple[str, str | bytes]]:
    """Return the entries of a `-bin` header: several may be joined by commas."""
    try:
        return [(_decode(name), decode_binary(each.strip())) for each in value.split(b",")]
    except (ValueError, binascii.Error):
        raise MessageError(Code.INTERNAL, f"the metadata {_decode(name)[:80]!a} is not base64") from None


def _decode(value: bytes) -> str:
    """Return a value as text, as grpc.aio does: UTF-8 if it can be, though the rules know ASCII alone."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def encode_text(message: str) -> bytes:
    """Return the value of `grpc-message`: UTF-8, percent-encoded."""
    return quote(message, safe=_UNQUOTED).encode("ascii")


def encode_metadata(metadata: Metadata) -> list[Header]:
    """Return metadata as headers. Characters that a header can't have become `?`."""
    return [(name.encode("ascii"), _encode_value(name, value)) for name, value in metadata]


def _encode_value(name: str, value: str | bytes) -> bytes:
    if isinstance(value, bytes):
        return encode_binary(value) if name.endswith("-bin") else _encode_value(name, value.decode("latin-1"))
    return _UNPRINTABLE.sub("?", value).encode("ascii")


def list_trailers(code: int, message: str, metadata: Metadata) -> list[Header]:
    """Return the trailers of a call that ends with a status: `code` is gRPC's number, 0 for OK."""
    trailers = [(b"grpc-status", b"%d" % code)]
    if message:
        trailers.append((b"grpc-message", encode_text(message)))
    return [*trailers, *encode_metadata(metadata)] if metadata else trailers
