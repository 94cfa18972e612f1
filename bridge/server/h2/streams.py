"""The streams of a connection: those that live, the fate of the last that died, and the slots that they take."""

from typing import Any, Final

from bridge.server.h2.flow import ReceiveWindow, SendWindow
from bridge.server.h2.states import State

__all__ = ["Stream", "Streams"]

_FATES_MAX: Final = 200
"""How many closed streams are remembered: frames for them may be on their way."""


class Stream:
    """One stream. `call` belongs to the user of the connection.

    `pending` is what could not be sent yet, `ends_after_pending` whether the stream ends with it.
    """

    __slots__ = (
        *("call", "ends_after_pending", "expected_bytes", "has_headers", "id", "is_held", "is_live"),
        *("pending", "receive_window", "received_bytes", "send_window", "state"),
    )

    def __init__(self, stream_id: int, state: State, send_window: int) -> None:
        self.id = stream_id
        self.state = state
        self.send_window = SendWindow(send_window)
        self.receive_window = ReceiveWindow()
        self.expected_bytes: int | None = None
        self.received_bytes = 0
        self.pending: memoryview | None = None
        self.ends_after_pending = False
        self.has_headers = False
        self.is_live = True
        self.is_held = True
        self.call: Any = None


class Streams:
    """`live` has the streams by their ids; `in_use` counts slots: a stream has one while it is live or held.

    `opened` counts streams.
    """

    def __init__(self) -> None:
        self.live: dict[int, Stream] = {}
        self.in_use = 0
        self.opened = 0
        self.last_id = 0
        self._fates: dict[int, State] = {}

    def find_state(self, stream_id: int) -> State:
        """Return the state of any stream that a peer may name."""
        stream = self.live.get(stream_id)
        if stream is not None:
            return stream.state
        if stream_id > self.last_id or not stream_id & 1:
            return State.IDLE
        return self._fates.get(stream_id, State.FORGOTTEN)

    def add(self, stream_id: int, state: State, send_window: int) -> Stream:
        """Add a stream, which takes a slot."""
        stream = self.live[stream_id] = Stream(stream_id, state, send_window)
        self.in_use += 1
        self.opened += 1
        return stream

    def refuse(self, stream_id: int, state: State) -> None:
        """Count a stream that takes no slot, and remember how it ended."""
        self.opened += 1
        self.set_fate(stream_id, state)

    def close(self, stream: Stream, state: State) -> None:
        """Remove a stream from the living."""
        if not stream.is_live:
            return
        del self.live[stream.id]
        stream.is_live = False
        stream.state = state
        stream.pending = None
        self.set_fate(stream.id, state)
        if not stream.is_held:
            self.in_use -= 1

    def release(self, stream: Stream) -> None:
        """Let go of a stream's slot."""
        if stream.is_held:
            stream.is_held = False
            if not stream.is_live:
                self.in_use -= 1

    def set_fate(self, stream_id: int, state: State) -> None:
        """Remember how a stream ended."""
        self._fates[stream_id] = state
        if len(self._fates) > _FATES_MAX:
            del self._fates[next(iter(self._fates))]
