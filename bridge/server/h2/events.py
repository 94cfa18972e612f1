"""What a connection tells of its peer's doings."""

from typing import NamedTuple, TypeAlias

from bridge.server.h2.headers import Request
from bridge.server.h2.streams import Stream

__all__ = ["DataReceived", "Drained", "Event", "Progressed", "RequestReceived", "StreamEnded"]


class RequestReceived(NamedTuple):
    """A request has begun. The stream's slot is held until `Connection.release`.

    `request` is None if its headers are larger than the limit. `is_end`: no body follows.
    """

    stream: Stream
    request: Request | None
    is_end: bool


class DataReceived(NamedTuple):
    """A part of the body came. `is_end`: it is the last one, and the trailers, if there were some, are dropped."""

    stream: Stream
    data: bytes
    is_end: bool


class StreamEnded(NamedTuple):
    """The stream ended before its answer: the peer has reset it, or broken a rule. Nothing more can be sent."""

    stream: Stream


class Progressed(NamedTuple):
    """A part of what `send_data` or `send_message` had to leave behind is sent now."""

    stream: Stream


class Drained(NamedTuple):
    """All that `send_data` or `send_message` had to leave behind is sent now."""

    stream: Stream


Event: TypeAlias = RequestReceived | DataReceived | StreamEnded | Progressed | Drained
