"""Tests of bridge/server/h2/events.py: each event names its stream, so that its user can find the call."""

from bridge.server.h2 import events
from bridge.server.h2.states import State
from bridge.server.h2.streams import Stream


def test_each_event_has_its_stream():
    stream = Stream(1, State.OPEN, 10)
    made = [
        events.RequestReceived(stream, None, is_end=True),
        events.DataReceived(stream, b"", is_end=False),
        events.StreamEnded(stream),
        events.Progressed(stream),
        events.Drained(stream),
    ]
    assert {event.stream for event in made} == {stream}
    assert {type(event).__name__ for event in made} == set(events.__all__) - {"Event"}
