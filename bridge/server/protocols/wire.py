"""What a protocol on HTTP is for `asgi.py`: how a request's headers and body are read, and how an answer is written.

A request is one message. An answer is either written at once, with its status, or as a stream: a start, messages, an
end. A wire has the state of one call; bytes are its business, when they travel is not.
"""

from typing import NamedTuple, Protocol

from google.protobuf.message import Message

from bridge.core.headers import Metadata
from bridge.server.protocols.grpc import Header

__all__ = ["Answer", "Status", "Types", "Wire", "drop_hop_headers"]


class Types(NamedTuple):
    """The types of a method's messages."""

    request: type[Message]
    reply: type[Message]


class Status(NamedTuple):
    """How a call ends: `code` is gRPC's number, 0 for OK."""

    code: int
    message: str
    trailers: Metadata = ()


class Answer(NamedTuple):
    """A whole answer. `trailers` are HTTP's, behind the body."""

    http_status: int
    headers: list[Header]
    body: bytes
    trailers: list[Header] = []  # noqa: RUF012 - nobody changes it


class Wire(Protocol):
    """One call's protocol. `metadata`, `timeout_s` and `encoding` are known once `read_head` has been called."""

    metadata: Metadata
    timeout_s: float | None
    encoding: str
    has_http_trailers: bool

    @property
    def body_bytes_max(self) -> int:
        """The largest body of a request that can be one."""
        ...

    @property
    def accepted(self) -> tuple[str, str]:
        """The header that says which compressions are accepted."""
        ...

    def read_head(self, headers: list[Header]) -> None:
        """Read a request's headers. Raises MessageError."""
        ...

    def read_body(self, body: bytes) -> bytes | None:
        """Return the message of a whole body; None if it is cut. Raises MessageError and BridgeError."""
        ...

    def encode_start(self, metadata: Metadata) -> list[Header]:
        """Return the headers of a stream, whose HTTP status is 200."""
        ...

    def encode_message(self, message: bytes) -> bytes:
        """Return a stream's message as it is sent."""
        ...

    def encode_end(self, status: Status) -> tuple[bytes, list[Header]]:
        """Return the last bytes of a stream, and HTTP's trailers."""
        ...

    def encode_answer(self, metadata: Metadata, message: bytes | None, status: Status) -> Answer:
        """Return an answer of one message, or of none if the call failed."""
        ...


_OF_THE_HOP = frozenset(
    {
        *(b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"expect", b"trailer", b"http2-settings"),
        *(b"cookie", b"origin", b"referer", b"accept", b"accept-language", b"cache-control", b"pragma", b"dnt"),
        *(b"priority", b"x-grpc-web"),
    }
)


def drop_hop_headers(headers: list[Header]) -> list[Header]:
    """Return the headers but for those of the connection and of the browser, which are no metadata.

    Cookies are for others, and the metadata of a call has a bound.
    """
    return [header for header in headers if header[0] not in _OF_THE_HOP and not header[0].startswith(b"sec-")]
