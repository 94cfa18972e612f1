"""Tests of bridge/server/h2/streams.py: slots are counted, and the fates of closed streams remembered, not for ever."""

from hypothesis import given
from hypothesis import strategies as st

from bridge.server.h2.states import State
from bridge.server.h2.streams import Streams


def test_slot_is_free_once_its_stream_is_neither_live_nor_held():
    streams = Streams()
    first, second = streams.add(1, State.OPEN, 10), streams.add(3, State.OPEN, 10)
    streams.close(first, State.RESET)
    streams.release(second)
    assert streams.in_use == 2
    streams.release(first)
    streams.release(first)
    streams.close(second, State.ENDED)
    streams.close(second, State.ENDED)
    assert (streams.in_use, streams.live, streams.opened) == (0, {}, 2)


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans())))
def test_slots_are_counted_right_in_any_order(steps):
    streams = Streams()
    opened = [streams.add(2 * number + 1, State.OPEN, 10) for number in range(10)]
    for number, closes in steps:
        if closes:
            streams.close(opened[number], State.ENDED)
        else:
            streams.release(opened[number])
        assert streams.in_use == sum(stream.is_live or stream.is_held for stream in opened)


def test_state_of_any_stream_is_known():
    streams = Streams()
    streams.last_id = 9
    live = streams.add(9, State.OPEN, 10)
    closed = streams.add(7, State.OPEN, 10)
    streams.close(closed, State.RESET)
    found = {number: streams.find_state(number) for number in (1, 2, 7, 9, 11)}
    assert found == {1: State.FORGOTTEN, 2: State.IDLE, 7: State.RESET, 9: live.state, 11: State.IDLE}


def test_fates_are_forgotten_from_the_oldest_on():
    streams = Streams()
    streams.last_id = 10_001
    for number in range(1, 1001, 2):
        streams.set_fate(number, State.ABANDONED)
    known = [number for number in range(1, 1001, 2) if streams.find_state(number) is State.ABANDONED]
    assert known == list(range(601, 1001, 2))
