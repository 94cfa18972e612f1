"""The states of a stream, and what each kind of frame does to it: the table of RFC 9113, 5.1, from a server's side.

A server that pushes nothing needs few states. It ends its own side only together with the stream: if the peer's side is
still open then, a RST_STREAM follows the answer. So `half-closed (local)` does not occur; `ABANDONED` is a stream that
we have ended first, on which the peer's frames may still be on their way.
"""

import enum
from collections.abc import Mapping
from typing import Final

from bridge.server.h2.frames import ErrorCode, Http2Error, StreamError

__all__ = ["TRANSITIONS", "Received", "State", "transit"]


class State(enum.IntEnum):
    """Where a stream is."""

    IDLE = 0
    OPEN = 1
    HALF_CLOSED = 2  # the peer has ended its side
    ENDED = 3  # both sides have
    RESET = 4  # by the peer
    ABANDONED = 5  # by us
    FORGOTTEN = 6  # closed long ago, or passed over by a higher id


class Received(enum.IntEnum):
    """What comes for a stream; `…_END` has the END_STREAM flag."""

    DATA = 0
    DATA_END = 1
    HEADERS = 2
    HEADERS_END = 3
    RESET = 4
    WINDOW_UPDATE = 5


class Fault(enum.Enum):
    """What a frame is in a state in which it may not come."""

    CONNECTION = ErrorCode.PROTOCOL_ERROR
    CONNECTION_CLOSED = ErrorCode.STREAM_CLOSED
    STREAM = -ErrorCode.PROTOCOL_ERROR
    STREAM_CLOSED = -ErrorCode.STREAM_CLOSED


_CONNECTION, _CLOSED, _STREAM = Fault.CONNECTION, Fault.CONNECTION_CLOSED, Fault.STREAM
_LATE = Fault.STREAM_CLOSED
# fmt: off
_TABLE: Final[Mapping[State, tuple[State | Fault, ...]]] = {
    # by the order of Received: DATA, DATA_END, HEADERS, HEADERS_END, RESET, WINDOW_UPDATE
    State.IDLE: (_CONNECTION, _CONNECTION, State.OPEN, State.HALF_CLOSED, _CONNECTION, _CONNECTION),
    State.OPEN: (State.OPEN, State.HALF_CLOSED, _STREAM, State.HALF_CLOSED, State.RESET, State.OPEN),
    State.HALF_CLOSED: (_LATE, _LATE, _LATE, _LATE, State.RESET, State.HALF_CLOSED),
    State.ENDED: (_LATE, _LATE, _CLOSED, _CLOSED, State.ENDED, State.ENDED),
    State.RESET: (_LATE, _LATE, _CLOSED, _CLOSED, State.RESET, State.RESET),
    State.ABANDONED: (*[State.ABANDONED] * 4, State.RESET, State.ABANDONED),
    State.FORGOTTEN: (State.FORGOTTEN, State.FORGOTTEN, _CONNECTION, _CONNECTION, State.FORGOTTEN, State.FORGOTTEN),
}
# fmt: on
TRANSITIONS: Final[Mapping[tuple[State, Received], State | Fault]] = {
    (state, received): row[received] for state, row in _TABLE.items() for received in Received
}
_ROWS: Final = tuple(_TABLE[state] for state in State)


def transit(stream_id: int, state: State, received: Received) -> State:
    """Return the state of a stream after a frame. Raises Http2Error or StreamError."""
    outcome = _ROWS[state][received]
    if outcome.__class__ is State:
        return outcome
    name = f"{received.name} on a stream that is {state.name}"
    if outcome.value > 0:
        raise Http2Error(outcome.value, name.lower().replace("_", " "))
    raise StreamError(stream_id, -outcome.value)
