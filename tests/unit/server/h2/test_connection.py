"""Tests of bridge/server/h2/connection.py: whole conversations with hyper-h2, and how a connection ends."""

import h2.config
import h2.connection
import h2.events
import h2.settings
from hypothesis import given
from hypothesis import strategies as st

from bridge.server.h2.connection import Connection
from bridge.server.h2.events import DataReceived, Drained, RequestReceived
from bridge.server.h2.flow import WINDOW_MAX
from bridge.server.h2.frames import ErrorCode, Http2Error
from bridge.server.h2.hpack import encode_headers
from bridge.server.h2.limits import Limits
from tests.kit.http2 import encode_frame
from tests.unit.server.h2.raw import (
    END_HEADERS,
    REQUEST,
    STATUS,
    connect,
    data,
    headers,
    names,
    open_stream,
    read_output,
)

TRAILERS = encode_headers([(b"grpc-status", b"0")])


class Pair:
    """A connection of ours, and a client of hyper-h2's, which checks all that ours says."""

    def __init__(self, **limits: float) -> None:
        self.ours = Connection(Limits(**limits), 0.0)
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
        self.client.initiate_connection()

    def exchange(self) -> tuple[list, list]:
        """Carry what each side has to say; return the events of both."""
        ours, theirs = [], []
        while True:
            out = self.client.data_to_send()
            ours += self.ours.receive(out, 0.0)
            back = self.ours.sender.take_output()
            self.ours.send_more()
            ours += self.ours.take_events()
            if not out and not back:
                return ours, theirs
            theirs += self.client.receive_data(back)


def test_call_is_answered():
    pair = Pair()
    pair.client.send_headers(1, REQUEST)
    pair.client.send_data(1, b"hello", end_stream=True)
    events, _ = pair.exchange()
    assert names(events) == ["RequestReceived", "DataReceived"]
    stream = events[0].stream
    pair.ours.send_headers(stream, STATUS)
    assert pair.ours.send_message(stream, b"reply")
    pair.ours.end(stream, TRAILERS)
    pair.ours.release(stream)
    _, answers = pair.exchange()
    assert [type(answer).__name__ for answer in answers] == [
        "ResponseReceived",
        "DataReceived",
        "TrailersReceived",
        "StreamEnded",
    ]
    assert answers[1].data == b"\0\0\0\0\5reply"
    assert (pair.ours.streams.in_use, pair.ours.held_bytes) == (0, 0)


def test_early_answer_is_followed_by_a_reset_without_an_error():
    pair = Pair()
    pair.client.send_headers(1, REQUEST)
    (event,), _ = pair.exchange()
    pair.ours.end(event.stream, STATUS)
    _, answers = pair.exchange()
    assert [type(answer).__name__ for answer in answers] == ["ResponseReceived", "StreamEnded", "StreamReset"]
    assert answers[2].error_code == ErrorCode.NO_ERROR


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40_000)), max_size=20),
    st.integers(0, 100_000),
    st.lists(st.integers(1, 60_000), max_size=40),
)
def test_answers_arrive_whole_within_the_windows_that_a_client_opens(pieces, window, increments):
    """hyper-h2 raises FlowControlError if a window is exceeded."""
    pair = Pair()
    pair.client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
    for number in (1, 3, 5, 7):
        pair.client.send_headers(number, REQUEST, end_stream=True)
    events, _ = pair.exchange()
    streams = [event.stream for event in events if isinstance(event, RequestReceived)]
    queues: list[list[bytes]] = [[] for _ in streams]
    for number, size in pieces:
        queues[number].append(bytes((number,)) * size)
    wanted = [b"".join(queue) for queue in queues]
    found = [b""] * len(streams)
    for stream in streams:
        pair.ours.send_headers(stream, STATUS)

    def send(number: int) -> None:
        while queues[number] and pair.ours.send_data(streams[number], queues[number].pop(0)):
            pass

    def settle() -> None:
        while True:
            ours, theirs = pair.exchange()
            for event in theirs:
                if isinstance(event, h2.events.DataReceived):
                    found[event.stream_id // 2] += event.data
            drained = [event for event in ours if isinstance(event, Drained)]
            for event in drained:
                send(event.stream.id // 2)
            if not drained:
                return

    for number in range(4):
        send(number)
    settle()
    for at, increment in enumerate(increments):
        pair.client.increment_flow_control_window(increment, stream_id=(1, 3, 5, 7)[at % 4])
        pair.client.increment_flow_control_window(increment)
        settle()
    assert all(wanted[number].startswith(found[number]) for number in range(4))
    for number in (1, 3, 5, 7):
        pair.client.increment_flow_control_window(1_000_000, stream_id=number)
    pair.client.increment_flow_control_window(10_000_000)
    settle()
    assert found == wanted
    assert all(stream.pending is None for stream in streams)


@given(st.lists(st.integers(1, 30_000), max_size=20), st.integers(1, 10))
def test_body_arrives_whole_within_the_windows_that_we_open(sizes, reads):
    """hyper-h2 refuses to send beyond our windows; ours finds a fault in it if it does."""
    pair = Pair()
    pair.client.send_headers(1, REQUEST)
    body = b"".join(bytes((number % 256,)) * size for number, size in enumerate(sizes))
    sent, found = 0, b""
    stream = None
    for turn in range(1000):
        room = min(pair.client.local_flow_control_window(1), len(body) - sent, 16_384)
        if room > 0:
            pair.client.send_data(1, body[sent : sent + room])
            sent += room
        events, _ = pair.exchange()
        for event in events:
            if isinstance(event, RequestReceived):
                stream = event.stream
            elif isinstance(event, DataReceived):
                found += event.data
        if turn % reads == 0:
            pair.ours.open_window(stream, 5_000)
        if found == body:
            break
    assert found == body
    assert pair.ours.fault is None


def test_peer_is_asked_to_go_away_and_then_not_heard():
    connection = connect()
    first = open_stream(connection, 1, END_HEADERS)
    connection.prepare_to_go_away("old")
    goaway, ping = read_output(connection)
    assert goaway == (7, 0, 0, WINDOW_MAX.to_bytes(4) + bytes(4) + b"old")
    assert names(connection.receive(headers(3), 0.0)) == ["RequestReceived"]  # it could not know
    acknowledgement = b"\0\0\x08\6\1\0\0\0\0" + ping[3]
    connection.receive(acknowledgement, 0.0)
    assert read_output(connection) == [ping]
    assert names(connection.receive(headers(5), 0.0)) == ["RequestReceived"]  # opened before it knew, and sent after
    connection.receive(acknowledgement, 0.0)
    assert read_output(connection) == [(7, 0, 0, (5).to_bytes(4) + bytes(4) + b"old")]
    assert connection.receive(headers(7, END_HEADERS) + data(7, b"x"), 0.0) == []
    assert (connection.fault, connection.is_going_away, connection.is_finished) == (None, True, False)
    for stream in (first, connection.streams.live[3], connection.streams.live[5]):
        connection.end(stream, STATUS)
    assert connection.is_finished


def test_going_away_is_said_once():
    connection = connect()
    connection.go_away()
    connection.go_away()
    connection.prepare_to_go_away("again")
    assert [kind for kind, *_ in read_output(connection)] == [7]


def test_fault_ends_all_streams_and_nothing_more_is_sent():
    connection = connect()
    stream = open_stream(connection)
    connection.fail(Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "slow down", "flood"))
    assert names(connection.take_events()) == ["StreamEnded"]
    read_output(connection)
    connection.send_headers(stream, STATUS)
    assert connection.send_message(stream, b"x")
    assert connection.send_data(stream, b"x")
    connection.end(stream, STATUS)
    connection.reset(stream, ErrorCode.CANCEL)
    connection.go_away()
    assert read_output(connection) == []


def test_stream_is_reset_without_an_event_for_the_one_who_does_it():
    connection = connect()
    stream = open_stream(connection)
    connection.reset(stream, ErrorCode.CANCEL)
    assert read_output(connection) == [(3, 0, 1, (8).to_bytes(4))]
    assert connection.take_events() == []


def test_pause_holds_data_and_no_other_frame():
    connection = connect()
    stream = open_stream(connection)
    connection.pause()
    connection.send_headers(stream, STATUS)
    assert not connection.send_message(stream, b"x")
    connection.ping(b"12345678")
    assert [kind for kind, *_ in read_output(connection)] == [1, 6]
    connection.resume()
    assert names(connection.take_events()) == ["Drained"]
    assert [kind for kind, *_ in read_output(connection)] == [0]


def test_part_that_goes_out_is_told_and_so_is_the_last_one():
    connection = connect()
    stream = open_stream(connection)
    connection.send_headers(stream, STATUS)
    connection.pause()
    assert not connection.send_message(stream, bytes(100_000))
    connection.resume()
    assert names(connection.take_events()) == ["Progressed"]
    connection.sender.take_output()
    updates = b"".join(encode_frame(8, 0, stream_id, (50_000).to_bytes(4)) for stream_id in (0, 1))
    assert names(connection.receive(updates, 0.0)) == ["Drained"]


def test_plain_body_ends_its_stream():
    connection = connect()
    stream = open_stream(connection)
    connection.send_headers(stream, STATUS)
    assert connection.send_data(stream, b"text", is_end=True)
    assert not stream.is_live
    assert [kind for kind, *_ in read_output(connection)] == [1, 0, 3]


@given(st.lists(st.binary(max_size=60), max_size=20))
def test_any_bytes_are_events_or_a_fault(parts):
    connection = connect()
    for part in parts:
        connection.receive(part, 0.0)
    connection.abandon()
    for event in connection.take_events():
        connection.release(event.stream)
    assert not connection.streams.live
