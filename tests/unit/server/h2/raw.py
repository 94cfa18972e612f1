"""A connection of the core and raw frames for it, for the tests of bridge/server/h2.

Frames are written and read by the kit, not by what is tested.
"""

from bridge.server.h2.connection import Connection
from bridge.server.h2.events import Event, RequestReceived
from bridge.server.h2.limits import Limits
from bridge.server.h2.streams import Stream
from tests.kit.http2 import PREFACE, Frame, encode_block, encode_frame, split_frames

REQUEST = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/service/method"),
    (b":authority", b"here"),
    (b"te", b"trailers"),
]
BLOCK = encode_block(REQUEST)
STATUS = encode_block([(b":status", b"200")])
OPENING = PREFACE + encode_frame(4, 0, 0, b"")
END, END_HEADERS = 1, 4


def headers(stream_id: int, flags: int = END | END_HEADERS, block: bytes = BLOCK) -> bytes:
    return encode_frame(1, flags, stream_id, block)


def data(stream_id: int, payload: bytes, flags: int = 0) -> bytes:
    return encode_frame(0, flags, stream_id, payload)


def long(value: int) -> bytes:
    return value.to_bytes(4)


def reset(stream_id: int) -> bytes:
    return encode_frame(3, 0, stream_id, long(8))


def window_update(stream_id: int, increment: int) -> bytes:
    return encode_frame(8, 0, stream_id, long(increment))


def settings(**values: int) -> bytes:
    numbers = {"table": 1, "push": 2, "streams": 3, "window": 4, "frame": 5}
    return encode_frame(4, 0, 0, b"".join(numbers[name].to_bytes(2) + long(each) for name, each in values.items()))


def connect(**limits: float) -> Connection:
    """Return a connection that has begun; what it wrote of its own is taken."""
    connection = Connection(Limits(**limits), 0.0)
    connection.receive(OPENING, 0.0)
    connection.sender.take_output()
    return connection


def open_stream(connection: Connection, stream_id: int = 1, flags: int = END_HEADERS) -> Stream:
    event = connection.receive(headers(stream_id, flags), 0.0)[0]
    assert isinstance(event, RequestReceived)
    return event.stream


def names(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


def read_output(connection: Connection) -> list[Frame]:
    """Return the frames that the connection wrote."""
    return list(split_frames(connection.sender.take_output()))
