"""The head of a request: which headers it must have and which it must not (RFC 9113, 8.2 and 8.3).

A request that breaks these rules is malformed, and its stream is reset. That it is a gRPC call is another matter.
"""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from bridge.server.h2.hpack import Header

__all__ = ["MalformedError", "Request", "check_trailers", "read_request"]

_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_BAD_IN_VALUES: Final = re.compile(rb"[\0\r\n]")
_KNOWN_NAMES: Final = frozenset(
    {
        *(b"te", b"content-type", b"user-agent", b"authorization", b"accept-encoding", b"x-request-id"),
        *(b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding", b"traceparent", b"tracestate"),
    }
)
"""Names that need no look."""
_OF_ONE_HOP: Final = frozenset({b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"})
_ONCE: Final = frozenset({b"te", b"content-length", b"content-type", b"grpc-timeout", b"grpc-encoding"})
"""Headers that may be repeated only with the same value."""
_LENGTH_DIGITS_MAX: Final = 18


class MalformedError(Exception):
    """A request or its trailers break HTTP's rules."""


class Request(NamedTuple):
    """A request's head. `headers` are those without a colon; `length` is its content-length."""

    method: bytes
    path: bytes
    headers: Sequence[Header]
    length: int | None

    def get(self, name: bytes) -> bytes | None:
        """Return the first value of a header."""
        for other, value in self.headers:
            if other == name:
                return value
        return None


def read_request(headers: Sequence[Header]) -> Request:
    """Return the request that these headers are the head of. Raises MalformedError."""
    pseudo: dict[bytes, bytes] = {}
    for name, value in headers:
        if name[:1] != b":":
            break
        if name in pseudo:
            raise MalformedError("a repeated pseudo-header")
        pseudo[name] = value
    method, path = pseudo.get(b":method"), pseudo.get(b":path")
    if not method or not path or b":scheme" not in pseudo or len(pseudo) != 3 + (b":authority" in pseudo):
        raise MalformedError("not the pseudo-headers of a request")
    rest = headers[len(pseudo) :]
    _check(headers, rest)
    return Request(method, path, rest, _read_length(rest))


def check_trailers(headers: Sequence[Header]) -> None:
    """Raise MalformedError if these can't be trailers."""
    _check(headers, headers)


def _check(headers: Sequence[Header], fields: Sequence[Header]) -> None:
    """Check the values of all headers and the names of these; a pseudo-header among them has a bad name."""
    if _BAD_IN_VALUES.search(b"".join([value for _, value in headers])):
        raise MalformedError("a value with NUL, CR or LF")
    for name, value in fields:
        if name not in _KNOWN_NAMES and (not _NAME.fullmatch(name) or name in _OF_ONE_HOP):
            raise MalformedError("a name that is not allowed")
        if name == b"te" and value != b"trailers":
            raise MalformedError("te is not trailers")


def _read_length(fields: Sequence[Header]) -> int | None:
    """Return the content-length; check that headers that tell how to read the body are not told twice."""
    found: dict[bytes, bytes] = {}
    for name, value in fields:
        if name in _ONCE and found.setdefault(name, value) != value:
            raise MalformedError("a header with two values")
    length = found.get(b"content-length")
    if length is None:
        return None
    if not length.isdigit() or len(length) > _LENGTH_DIGITS_MAX:
        raise MalformedError("content-length is no number")
    return int(length)
