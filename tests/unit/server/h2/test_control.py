"""Tests of bridge/server/h2/control.py: SETTINGS and PING, and what of them a peer may cost us."""

import pytest

from bridge.server.h2.connection import Connection
from bridge.server.h2.flow import INITIAL, WINDOW_MAX, SendWindow
from bridge.server.h2.frames import ErrorCode
from tests.kit.http2 import encode_frame
from tests.unit.server.h2.raw import (
    STATUS,
    connect,
    data,
    headers,
    long,
    open_stream,
    read_output,
    reset,
    settings,
    window_update,
)

PING = encode_frame(6, 0, 0, b"12345678")


def read_fault(connection: Connection, payload: bytes) -> tuple[int, str] | None:
    connection.receive(payload, 0.0)
    fault = connection.fault
    return (fault.code, fault.reason) if fault is not None else None


BAD = {
    "SETTINGS on a stream": (encode_frame(4, 0, 1, b""), ErrorCode.PROTOCOL_ERROR),
    "SETTINGS cut off": (encode_frame(4, 0, 0, b"12345"), ErrorCode.FRAME_SIZE_ERROR),
    "acknowledgement with settings": (encode_frame(4, 1, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
    "push that is neither on nor off": (settings(push=2), ErrorCode.PROTOCOL_ERROR),
    "window too large": (settings(window=WINDOW_MAX + 1), ErrorCode.FLOW_CONTROL_ERROR),
    "frame size too small": (settings(frame=16_383), ErrorCode.PROTOCOL_ERROR),
    "frame size too large": (settings(frame=1 << 24), ErrorCode.PROTOCOL_ERROR),
    "PING on a stream": (encode_frame(6, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "PING of seven bytes": (encode_frame(6, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
    "GOAWAY on a stream": (encode_frame(7, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    "GOAWAY cut off": (encode_frame(7, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
    "PUSH_PROMISE": (encode_frame(5, 4, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR),
    "PRIORITY without a stream": (encode_frame(2, 0, 0, bytes(5)), ErrorCode.PROTOCOL_ERROR),
    "PRIORITY cut off on an idle stream": (encode_frame(2, 0, 1, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
}


@pytest.mark.parametrize(("payload", "code"), BAD.values(), ids=BAD)
def test_bad_frame_ends_the_connection(payload, code):
    connection = connect()
    assert read_fault(connection, payload) == (code, "protocol_error")
    assert read_output(connection)[-1][0] == 7


def test_settings_and_pings_are_answered():
    connection = connect()
    assert read_fault(connection, settings(window=10) + PING + encode_frame(6, 1, 0, b"an echo!")) is None
    assert read_output(connection) == [(4, 1, 0, b""), (6, 1, 0, b"12345678")]
    assert not connection.is_acknowledged
    connection.receive(encode_frame(4, 1, 0, b""), 0.0)
    assert connection.is_acknowledged


def test_initial_window_moves_the_windows_of_open_streams():
    connection = connect()
    stream = open_stream(connection)
    assert read_fault(connection, settings(window=10)) is None
    assert stream.send_window.size == 10
    assert read_fault(connection, window_update(1, WINDOW_MAX - 10)) is None
    assert read_fault(connection, settings(window=11)) == (ErrorCode.FLOW_CONTROL_ERROR, "protocol_error")


def initial_windows(*sizes: int) -> bytes:
    return encode_frame(4, 0, 0, b"".join((4).to_bytes(2) + long(size) for size in sizes))


class CountingWindow(SendWindow):
    changes = 0

    def widen(self, increment: int) -> bool:
        self.changes += 1
        return super().widen(increment)


def test_initial_window_that_changes_often_in_one_frame_costs_one_pass():
    connection = connect()
    stream = open_stream(connection)
    stream.send_window = window = CountingWindow()
    assert read_fault(connection, initial_windows(*range(100), 70_000, 7)) is None
    assert (window.size, window.changes, open_stream(connection, 3).send_window.size) == (7, 1, 7)


def test_window_may_be_too_wide_for_none_of_the_settings_of_a_frame():
    connection = connect()
    open_stream(connection)
    assert read_fault(connection, initial_windows(10) + window_update(1, WINDOW_MAX - 10)) is None
    assert read_fault(connection, initial_windows(11, 10)) == (ErrorCode.FLOW_CONTROL_ERROR, "protocol_error")


def test_window_that_has_become_narrow_may_be_set_wider_in_the_same_frame():
    connection = connect()
    stream = open_stream(connection)
    assert read_fault(connection, window_update(1, 1000) + initial_windows(0, INITIAL)) is None
    assert stream.send_window.size == INITIAL + 1000


COSTLY = {
    "settings": (initial_windows(*[9, 10] * 20), 5),
    "streams": (initial_windows(9), 20),
}


@pytest.mark.parametrize(("frame", "count"), COSTLY.values(), ids=COSTLY)
def test_settings_count_by_what_they_cost(frame, count):
    connection = connect(control_burst=110, control_per_s=0.001)
    for number in range(1, 81, 2):
        open_stream(connection, number)
    assert read_fault(connection, frame) is None
    assert read_fault(connection, frame * count) == (ErrorCode.ENHANCE_YOUR_CALM, "control_flood")


def test_smaller_table_of_the_peer_is_acknowledged_in_the_next_block():
    connection = connect()
    stream = open_stream(connection)
    connection.receive(settings(table=0), 0.0)
    connection.sender.take_output()
    connection.send_headers(stream, STATUS)
    connection.end(stream, STATUS)
    blocks = [payload for kind, _, _, payload in read_output(connection) if kind == 1]
    assert blocks == [b"\x20" + STATUS, STATUS]


NOTHINGS = {
    "PING": PING,
    "SETTINGS": settings(),
    "PRIORITY": encode_frame(2, 0, 1, bytes(5)),
    "GOAWAY": encode_frame(7, 0, 0, bytes(8)),
    "unknown type": encode_frame(99, 0, 0, b"x"),
    "empty DATA": data(1, b""),
    "WINDOW_UPDATE": window_update(0, 1),
}


@pytest.mark.parametrize("frame", NOTHINGS.values(), ids=NOTHINGS)
def test_flood_of_frames_that_carry_nothing_ends_the_connection(frame):
    connection = connect(control_burst=10, control_per_s=10)
    open_stream(connection)
    for second in range(3):
        connection.receive(frame * 9, float(second))
        assert connection.fault is None
    assert read_fault(connection, frame * 30) == (ErrorCode.ENHANCE_YOUR_CALM, "control_flood")
    assert (connection.streams.live, connection.held_bytes - connection.sender.output_bytes) == ({}, 0)


def test_window_updates_that_are_due_are_no_flood():
    connection = connect(control_burst=5, control_per_s=0.001)
    for number in range(1, 100, 2):
        stream = open_stream(connection, number)
        connection.send_message(stream, b"x")
        connection.receive(window_update(0, 6) + window_update(number, 6), 0.0)
        connection.end(stream, STATUS)
        connection.receive(window_update(number, 6), 0.0)
        connection.release(stream)
    assert connection.fault is None


def test_frames_that_a_small_window_cuts_earn_by_their_bytes():
    connection = connect(control_burst=5, control_per_s=0.001)
    connection.receive(settings(window=0), 0.0)
    stream = open_stream(connection)
    connection.send_message(stream, bytes(100_000))
    connection.receive(window_update(1, 1000) * 60, 0.0)
    assert connection.fault is None
    assert read_fault(connection, window_update(1, 1) * 300) == (ErrorCode.ENHANCE_YOUR_CALM, "control_flood")


def test_pings_that_measure_what_was_sent_are_no_flood():
    """A client that estimates its bandwidth, as grpc-go does, sends a PING as DATA comes, if it awaits none."""
    connection = connect(control_burst=5, control_per_s=0.001)
    stream = open_stream(connection)
    for _ in range(200):
        connection.send_message(stream, b"x")
        connection.receive(PING + window_update(0, 6) + window_update(1, 6), 0.0)
    assert connection.fault is None
    assert read_fault(connection, PING * 300) == (ErrorCode.ENHANCE_YOUR_CALM, "control_flood")


SETTINGS_ACK, PING_ACK = encode_frame(4, 1, 0, b""), encode_frame(6, 1, 0, b"12345678")


def test_acknowledgements_of_what_was_sent_are_no_flood():
    connection = connect(control_burst=5, control_per_s=0.001)
    for _ in range(100):
        connection.ping(b"12345678")
        connection.receive(PING_ACK, 0.0)
    assert read_fault(connection, SETTINGS_ACK) is None


@pytest.mark.parametrize("frame", [SETTINGS_ACK, PING_ACK], ids=["SETTINGS", "PING"])
def test_acknowledgements_of_what_was_not_sent_are_a_flood(frame):
    connection = connect(control_burst=5, control_per_s=0.001)
    connection.ping(b"12345678")
    assert read_fault(connection, frame * 5) is None
    assert read_fault(connection, frame) == (ErrorCode.ENHANCE_YOUR_CALM, "control_flood")


RESETS = {
    "rapid reset": lambda number: headers(number) + reset(number),
    "faults that make us reset": lambda number: headers(number, flags=4) + data(number, b"x", 1) + data(number, b"y"),
    "malformed requests": lambda number: headers(number, block=b"\x82"),
    "streams above the limit": headers,
}


@pytest.mark.parametrize("make", RESETS.values(), ids=RESETS)
def test_flood_of_resets_ends_the_connection_and_leaves_nothing(make):
    connection = connect(reset_burst=50, reset_per_s=1, streams_max=10)
    started = []
    for number in range(1, 400, 2):
        started += [event for event in connection.receive(make(number), 0.0) if hasattr(event, "request")]
    assert (connection.fault.code, connection.fault.reason) == (ErrorCode.ENHANCE_YOUR_CALM, "rapid_reset")
    assert connection.streams.in_use <= 20
    for event in started:
        connection.release(event.stream)
    assert (connection.streams.in_use, connection.streams.live) == (0, {})
    connection.sender.take_output()
    assert connection.held_bytes == 0


ENDED = {
    "whole": (headers, lambda connection, stream: connection.end(stream, STATUS)),
    "early": (lambda number: headers(number, 4), lambda connection, stream: connection.end(stream, STATUS)),
    "reset by us": (headers, lambda connection, stream: connection.reset(stream, ErrorCode.CANCEL)),
}


@pytest.mark.parametrize(("make", "end"), ENDED.values(), ids=ENDED)
def test_resets_of_streams_that_have_ended_are_no_flood(make, end):
    """A proxy resets a stream whose answer is complete before its request (RFC 9113, 8.1)."""
    connection = connect(reset_burst=5, reset_per_s=0.001, control_burst=5, control_per_s=0.001)
    for number in range(1, 2000, 2):
        (event,) = connection.receive(make(number), 0.0)
        end(connection, event.stream)
        connection.release(event.stream)
        if number > 400:  # these resets come late, for streams that are forgotten
            connection.receive(reset(number - 400), 0.0)
    assert connection.fault is None


def test_resets_of_one_stream_that_has_ended_are_a_flood():
    connection = connect(control_burst=5, control_per_s=0.001)
    connection.end(open_stream(connection), STATUS)
    assert read_fault(connection, reset(1) * 20) == (ErrorCode.ENHANCE_YOUR_CALM, "control_flood")


def test_answers_that_are_not_read_end_the_connection():
    connection = connect(control_burst=1e9, unsent_answers_bytes_max=1000)
    connection.receive(PING * 100, 0.0)
    connection.sender.take_output()
    connection.pause()
    connection.receive(PING * 30, 0.0)
    connection.resume()
    connection.pause()
    assert read_fault(connection, PING * 30) is None
    assert read_fault(connection, PING * 60) == (ErrorCode.ENHANCE_YOUR_CALM, "unread_answers")


def test_unknown_setting_is_ignored():
    assert read_fault(connect(), encode_frame(4, 0, 0, (99).to_bytes(2) + long(1))) is None
