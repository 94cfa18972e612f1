"""What a connection can play: a head, a write, a wait, a disconnect; and the plain answers made of them.

An answer is an iterator of steps. Making it does no I/O and takes no time, so that a scenario can say anything, broken
HTTP too: bytes are sent as they are. A refusal is an answer as well: the status and error envelope of a bad request.
How steps reach a socket is the business of `wire`.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

__all__ = [
    "Disconnect",
    "Head",
    "Header",
    "JsonObject",
    "RefusalError",
    "Step",
    "Wait",
    "Write",
    "build_error",
    "choose_error_type",
    "encode_json",
    "format_json",
    "send",
    "send_json",
]

JsonObject = dict[str, Any]
Header = tuple[str, str]

format_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def encode_json(value: Any) -> bytes:
    """Return a value as JSON, without spaces."""
    return format_json(value).encode()


class Head(NamedTuple):
    """A status line and headers; `length` None sends the body in HTTP chunks."""

    status: int
    headers: tuple[Header, ...] = ()
    length: int | None = None


class Write(NamedTuple):
    """Bytes of the body in one write, `events` SSE events among them; `framed` False omits the HTTP chunk's frame."""

    data: bytes
    events: int = 0
    framed: bool = True


class Wait(NamedTuple):
    """A pause; infinity is until the peer disconnects."""

    seconds: float


class Disconnect(NamedTuple):
    """The end of the connection, in the middle of the answer too; by RST if `reset`."""

    reset: bool


Step = Head | Write | Wait | Disconnect


def send(status: int, body: bytes, *headers: Header) -> Iterator[Step]:
    """Send a body whose length is known."""
    yield Head(status, headers, len(body))
    yield Write(body)


def send_json(status: int, value: Any, *headers: Header) -> Iterator[Step]:
    """Send a value as JSON."""
    return send(status, encode_json(value), ("content-type", "application/json"), *headers)


class RefusalError(Exception):
    """A request that is answered by an error envelope."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.envelope = build_error(message, choose_error_type(status), code, param)

    def send(self) -> Iterator[Step]:
        """Send the refusal."""
        return send_json(self.status, {"error": self.envelope})


def build_error(message: str, type_: str, code: str | int | None, param: str | None) -> JsonObject:
    """Return the object under `error` in an envelope, with the keys of the API page."""
    return {"message": message, "type": type_, "code": code, "param": param}


_ERROR_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout",
}


def choose_error_type(status: int) -> str:
    """Return the `type` that goes with a status."""
    return _ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
