"""Tests of bridge/server/h2/sending.py: windows are never exceeded, no byte is lost, and nobody holds up another."""

from hypothesis import example, given
from hypothesis import strategies as st

from bridge.server.h2.flow import INITIAL
from bridge.server.h2.frames import FRAME_BYTES_MAX
from bridge.server.h2.sending import Sender
from bridge.server.h2.states import State
from bridge.server.h2.streams import Stream
from tests.kit.http2 import split_frames

STREAMS = 4
STEP = st.one_of(
    st.tuples(st.just("send"), st.integers(0, STREAMS - 1), st.integers(0, 60_000)),
    st.tuples(st.just("message"), st.integers(0, STREAMS - 1), st.integers(0, 60_000)),
    st.tuples(st.just("widen"), st.integers(0, STREAMS - 1), st.integers(1, 50_000)),
    st.tuples(st.just("widen all"), st.just(0), st.integers(1, 100_000)),
    st.tuples(st.just("shrink"), st.just(0), st.integers(1, 30_000)),
    st.tuples(st.just("pause"), st.just(0), st.just(0)),
    st.tuples(st.just("resume"), st.just(0), st.just(0)),
    st.tuples(st.just("take"), st.just(0), st.just(0)),
)


@given(st.lists(STEP, max_size=60))
@example([("shrink", 0, 20_001), ("send", 0, 0)])  # an empty frame needs no window, and gives none back
def test_no_window_is_exceeded_and_no_byte_is_lost_in_any_interleaving(steps):
    sender = Sender()
    streams = [Stream(2 * number + 1, State.OPEN, 20_000) for number in range(STREAMS)]
    wanted = {stream.id: b"" for stream in streams}
    allowed = {stream.id: 20_000 for stream in streams}
    allowed_all = INITIAL
    output = b""
    counter = 0
    for step, number, size in steps:
        stream = streams[number]
        if step in {"send", "message"} and stream.pending is None:
            counter += 1
            content = bytes((counter % 256,)) * size
            if step == "send":
                wanted[stream.id] += content
                is_sent = sender.send_data(stream, content)
            else:
                wanted[stream.id] += b"\0" + size.to_bytes(4) + content
                is_sent = sender.send_message(stream, content)
            assert is_sent == (stream.pending is None)
        elif step == "widen":
            allowed[stream.id] += size
            sender.widen(stream, size)
        elif step == "widen all":
            allowed_all += size
            sender.window.widen(size)
        elif step == "shrink":
            for each in streams:
                allowed[each.id] -= size
                sender.widen(each, -size)
        elif step == "pause":
            sender.is_paused = True
        elif step == "resume":
            sender.is_paused = False
        elif step == "take":
            output += sender.take_output()
        waiting = {each: len(each.pending) for each in streams if each.pending is not None}
        moved = sender.send_blocked()
        assert set(moved) == {each for each in waiting if each.pending is None or len(each.pending) < waiting[each]}
        assert sender.blocked == sum(each.pending is not None for each in streams)
    sent = read_data(output + sender.take_output())
    for stream in streams:
        pending = bytes(stream.pending or b"")
        assert sent.get(stream.id, b"") + pending == wanted[stream.id]
    assert sum(map(len, sent.values())) == INITIAL + (allowed_all - INITIAL) - sender.window.size
    for stream in streams:
        assert len(sent.get(stream.id, b"")) == allowed[stream.id] - stream.send_window.size
    assert sender.window.size >= 0


def read_data(output: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    for kind, _, stream_id, payload in split_frames(output):
        assert kind == 0
        assert len(payload) <= FRAME_BYTES_MAX
        found[stream_id] = found.get(stream_id, b"") + payload
    return found


@given(st.lists(st.integers(1, 5_000), max_size=20))
def test_window_is_never_exceeded_at_any_time(increments):
    sender = Sender()
    stream = Stream(1, State.OPEN, 0)
    assert not sender.send_data(stream, bytes(1_000_000))
    granted = 0
    for increment in increments:
        granted += increment
        sender.widen(stream, increment)
        sender.send_blocked()
        assert 1_000_000 - len(stream.pending) == min(granted, INITIAL)


def test_stream_without_a_window_holds_up_no_other():
    sender = Sender()
    stuck, free = Stream(1, State.OPEN, 0), Stream(3, State.OPEN, INITIAL)
    assert not sender.send_message(stuck, b"x")
    assert sender.send_message(free, b"y")
    assert read_data(sender.take_output()) == {3: b"\0\0\0\0\1y"}


def test_streams_share_the_connections_window_in_turns():
    sender = Sender()
    first, second = (Stream(number, State.OPEN, 1 << 20) for number in (1, 3))
    sender.window.size = 0
    for stream in (first, second):
        assert not sender.send_data(stream, bytes(100_000))
    sender.window.size = 2 * FRAME_BYTES_MAX
    sender.send_blocked()
    assert {key: len(each) for key, each in read_data(sender.take_output()).items()} == dict.fromkeys(
        (1, 3), FRAME_BYTES_MAX
    )


def test_turns_go_on_where_the_last_one_ended():
    sender = Sender()
    streams = [Stream(2 * number + 1, State.OPEN, 1 << 20) for number in range(3)]
    sender.window.size = 0
    for stream in streams:
        assert not sender.send_data(stream, bytes(100_000))
    turns = []
    for _ in range(6):
        sender.window.widen(FRAME_BYTES_MAX)
        sender.send_blocked()
        turns += read_data(sender.take_output())
    assert turns == [1, 3, 5] * 2


def test_streams_share_the_transport_in_turns():
    sender = Sender()
    streams = [Stream(2 * number + 1, State.OPEN, 1 << 20) for number in range(10)]
    sender.window.size = 1 << 30
    sender.is_paused = True
    for stream in streams:
        assert not sender.send_data(stream, bytes(1_000_000))
    sender.is_paused = False
    for _ in range(5):  # four frames each
        sender.send_blocked()
        sender.take_output()
    assert {len(stream.pending) for stream in streams} == {1_000_000 - 2 * FRAME_BYTES_MAX}


class Untouched:
    """A window that nobody may look at."""

    @property
    def size(self) -> int:
        raise AssertionError("looked at a stream for which nothing has changed")


def test_window_that_opens_costs_no_look_at_streams_that_gain_nothing():
    """A peer may open windows by a byte at a time, which must not cost us a walk of all that waits (CVE-2019-9511)."""
    sender = Sender()
    stuck, *others = (Stream(2 * number + 1, State.OPEN, 0) for number in range(10))
    first, second, *queued = (Stream(2 * number + 101, State.OPEN, 1000) for number in range(10))
    sender.window.size = 0
    for stream in (stuck, *others, first, second, *queued):
        assert not sender.send_data(stream, b"content")
    for stream in (*others, *queued):
        stream.send_window = Untouched()
    sender.widen(stuck, 1)
    sender.window.widen(1)
    sender.send_blocked()
    assert read_data(sender.take_output()) == {first.id: b"c"}


def test_empty_frame_that_waited_for_the_transport_needs_no_window():
    sender = Sender()
    first, second = Stream(1, State.OPEN, 5), Stream(3, State.OPEN, 0)
    sender.window.size = 0
    sender.is_paused = True
    for stream, content in ((first, b"x"), (second, b"")):
        assert not sender.send_data(stream, content, is_end=True)
    sender.is_paused = False
    assert sender.send_blocked() == [second]


def test_output_that_is_not_taken_is_a_bound():
    sender = Sender()
    sender.window.size = 1 << 30
    stream = Stream(1, State.OPEN, 1 << 30)
    assert not sender.send_data(stream, bytes(10_000_000))
    assert sender.output_bytes < 100_000
    taken = 0
    while sender.blocked:
        taken += len(sender.take_output())
        sender.send_blocked()
    assert taken + sender.output_bytes > 10_000_000


def test_last_frame_ends_the_stream():
    sender = Sender()
    stream = Stream(1, State.OPEN, 5)
    assert not sender.send_data(stream, b"1234567", is_end=True)
    sender.widen(stream, 10)
    assert sender.send_blocked() == [stream]
    flags = [flags for _, flags, _, _ in split_frames(sender.take_output())]
    assert flags == [0, 1]


def test_empty_data_needs_no_window():
    sender = Sender()
    assert sender.send_data(Stream(1, State.OPEN, -5), b"", is_end=True)


def test_what_waits_can_be_dropped():
    sender = Sender()
    stream = Stream(1, State.OPEN, 0)
    sender.send_data(stream, b"x")
    sender.drop(stream)
    assert (stream.pending, sender.blocked, sender.take_output()) == (None, 0, b"")
