"""Tests of bridge/server/h2/receiving.py: frames become events, by the states of their streams."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.server.h2.connection import Connection
from bridge.server.h2.flow import INITIAL, WINDOW_MAX
from bridge.server.h2.frames import ErrorCode
from bridge.server.h2.hpack import encode_headers
from bridge.server.h2.limits import Limits
from tests.kit.http2 import encode_frame
from tests.unit.server.h2.raw import (
    BLOCK,
    END,
    END_HEADERS,
    OPENING,
    REQUEST,
    STATUS,
    connect,
    data,
    headers,
    names,
    open_stream,
    read_output,
    reset,
    window_update,
)

PROTOCOL_ERROR, STREAM_CLOSED = ErrorCode.PROTOCOL_ERROR, ErrorCode.STREAM_CLOSED


def test_request_and_its_body_are_events():
    connection = connect()
    events = connection.receive(headers(1, END_HEADERS) + data(1, b"ab") + data(1, b"c", END), 0.0)
    assert names(events) == ["RequestReceived", "DataReceived", "DataReceived"]
    assert events[0].request.path == b"/service/method"
    assert [(event.data, event.is_end) for event in events[1:]] == [(b"ab", False), (b"c", True)]


def test_request_without_a_body_ends_with_its_head():
    (event,) = connect().receive(headers(1), 0.0)
    assert event.is_end


def test_trailers_end_the_body():
    events = connect().receive(headers(1, END_HEADERS) + headers(1, block=encode_headers([(b"x", b"1")])), 0.0)
    assert (events[1].data, events[1].is_end) == (b"", True)


CONVERSATION = (
    OPENING
    + headers(1, END_HEADERS)
    + data(1, b"hello")
    + encode_frame(1, END, 3, BLOCK[:10])
    + encode_frame(9, END_HEADERS, 3, BLOCK[10:])
    + data(1, b"x" * 300, END)
    + reset(3)
    + window_update(0, 5)
)


@given(st.lists(st.integers(0, len(CONVERSATION)), max_size=40))
def test_bytes_cut_anywhere_are_the_same_events(places):
    connection = Connection(Limits(), 0.0)
    edges = sorted({0, len(CONVERSATION), *places})
    events = [
        event
        for start, stop in itertools.pairwise(edges)
        for event in connection.receive(CONVERSATION[start:stop], 0.0)
    ]
    assert names(events) == ["RequestReceived", "DataReceived", "RequestReceived", "DataReceived", "StreamEnded"]
    assert (events[1].data, events[3].data) == (b"hello", b"x" * 300)
    assert connection.fault is None


FATAL = {
    "no SETTINGS first": (b"", encode_frame(6, 0, 0, bytes(8)), PROTOCOL_ERROR),
    "an acknowledgement first": (b"", encode_frame(4, 1, 0, b""), PROTOCOL_ERROR),
}


@pytest.mark.parametrize(("before", "frame", "code"), FATAL.values(), ids=FATAL)
def test_connection_begins_with_settings(before, frame, code):
    connection = Connection(Limits(), 0.0)
    connection.receive(OPENING[:24] + before + frame, 0.0)
    assert connection.fault.code == code


CONNECTION_FAULTS = {
    "DATA on an idle stream": (data(1, b"x"), PROTOCOL_ERROR),
    "RST_STREAM on an idle stream": (reset(1), PROTOCOL_ERROR),
    "WINDOW_UPDATE on an idle stream": (window_update(1, 1), PROTOCOL_ERROR),
    "RST_STREAM of another size": (headers(1) + encode_frame(3, 0, 1, b"123"), ErrorCode.FRAME_SIZE_ERROR),
    "WINDOW_UPDATE of another size": (encode_frame(8, 0, 0, b"123"), ErrorCode.FRAME_SIZE_ERROR),
    "WINDOW_UPDATE by nothing": (window_update(0, 0), PROTOCOL_ERROR),
    "window too wide": (window_update(0, WINDOW_MAX), ErrorCode.FLOW_CONTROL_ERROR),
    "HEADERS of a server": (headers(2), PROTOCOL_ERROR),
    "a smaller id": (headers(5) + headers(3), PROTOCOL_ERROR),
    "HEADERS on a stream that was reset": (headers(1) + reset(1) + headers(1), STREAM_CLOSED),
    "a block that is interrupted": (encode_frame(1, 0, 1, BLOCK) + headers(3), PROTOCOL_ERROR),
    "padding": (encode_frame(0, 8, 1, b"\x05"), PROTOCOL_ERROR),
}


@pytest.mark.parametrize(("payload", "code"), CONNECTION_FAULTS.values(), ids=CONNECTION_FAULTS)
def test_fault_of_the_connection_ends_it(payload, code):
    connection = connect()
    events = connection.receive(payload, 0.0)
    assert connection.fault.code == code
    assert names(events).count("RequestReceived") == names(events).count("StreamEnded")
    assert connection.receive(headers(9), 0.0) == []
    assert read_output(connection)[-1][0] == 7


STREAM_FAULTS = {
    "DATA after the end": (data(1, b"x", END) + data(1, b"y"), STREAM_CLOSED),
    "HEADERS after the end": (data(1, b"x", END) + headers(1), STREAM_CLOSED),
    "trailers that do not end": (headers(1, END_HEADERS), PROTOCOL_ERROR),
    "trailers with a pseudo-header": (headers(1), PROTOCOL_ERROR),
    "WINDOW_UPDATE by nothing": (window_update(1, 0), PROTOCOL_ERROR),
    "window too wide": (window_update(1, WINDOW_MAX), ErrorCode.FLOW_CONTROL_ERROR),
    "PRIORITY cut off": (encode_frame(2, 0, 1, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
}


@pytest.mark.parametrize(("payload", "code"), STREAM_FAULTS.values(), ids=STREAM_FAULTS)
def test_fault_of_a_stream_resets_it_alone(payload, code):
    connection = connect()
    open_stream(connection, 1)
    other = open_stream(connection, 3)
    events = connection.receive(payload, 0.0)
    assert connection.fault is None
    assert names(events)[-1] == "StreamEnded"
    assert (3, 0, 1, code.to_bytes(4)) in read_output(connection)
    assert other.is_live


LENGTHS = {
    "longer": (data(1, b"123456", END), "longer than said"),
    "shorter": (data(1, b"1234", END), "shorter than said"),
    "longer in parts": (data(1, b"123") + data(1, b"456"), "longer"),
    "ended by trailers": (headers(1, block=encode_headers([(b"x", b"1")])), "shorter"),
}


@pytest.mark.parametrize("payload", [each for each, _ in LENGTHS.values()], ids=LENGTHS)
def test_body_of_another_length_than_said_is_a_fault(payload):
    connection = connect()
    block = encode_headers([*REQUEST, (b"content-length", b"5")])
    connection.receive(headers(1, END_HEADERS, block), 0.0)
    assert names(connection.receive(payload, 0.0))[-1] == "StreamEnded"
    assert (3, 0, 1, (1).to_bytes(4)) in read_output(connection)


def test_body_of_the_length_that_was_said_is_taken():
    connection = connect()
    block = encode_headers([*REQUEST, (b"content-length", b"5")])
    connection.receive(headers(1, END_HEADERS, block) + data(1, b"12345", END), 0.0)
    assert connection.streams.live
    assert not read_output(connection)
    connection.receive(headers(3, block=block), 0.0)  # no body at all
    assert (3, 0, 3, (1).to_bytes(4)) in read_output(connection)


def test_data_beyond_a_streams_window_is_a_fault_and_a_window_opens_only_when_asked():
    connection = connect()
    stream = open_stream(connection)
    frame = data(1, bytes(16_000))
    connection.receive(frame * 4, 0.0)
    assert read_output(connection) == []
    connection.open_window(stream, 1_000)
    assert read_output(connection) == []
    connection.open_window(stream, 20_000)
    assert read_output(connection) == [(8, 0, 1, (20_000 - (INITIAL - 64_000)).to_bytes(4))]
    connection.receive(frame, 0.0)
    assert stream.is_live
    connection.receive(frame, 0.0)
    assert not stream.is_live
    assert (3, 0, 1, (3).to_bytes(4)) in read_output(connection)


def test_padding_counts_for_windows():
    connection = connect(window_bytes=70_000)
    stream = open_stream(connection)
    connection.receive(data(1, b"\xff" + b"x" + bytes(255), 8), 0.0)
    assert stream.receive_window.size == INITIAL - 257


def test_connections_window_opens_by_itself_and_holds():
    connection = connect(window_bytes=70_000)
    open_stream(connection, 1)
    open_stream(connection, 3)
    events = connection.receive(data(1, bytes(16_000)) + data(3, bytes(16_000)) + data(1, bytes(16_000)), 0.0)
    assert len(events) == 3
    assert (8, 0, 0, (48_000).to_bytes(4)) in read_output(connection)


def test_streams_above_the_limit_are_refused_and_may_be_repeated():
    connection = connect(streams_max=2)
    streams = [open_stream(connection, number) for number in (1, 3)]
    assert connection.receive(headers(5), 0.0) == []
    assert read_output(connection) == [(3, 0, 5, (7).to_bytes(4))]
    for number in (7, 9):  # streams that the peer has reset are no streams to it, though their calls go on
        connection.receive(reset(streams[-1].id), 0.0)
        streams.append(open_stream(connection, number))
    assert connection.streams.in_use == 4
    connection.receive(reset(9), 0.0)
    connection.receive(headers(11), 0.0)
    assert read_output(connection) == [(3, 0, 11, (7).to_bytes(4))]  # but there are no more slots than that
    connection.release(streams[-1])
    assert names(connection.receive(headers(13), 0.0)) == ["RequestReceived"]


def test_headers_above_the_limit_are_an_event_without_a_request():
    connection = connect(list_bytes_max=1000)
    (event,) = connection.receive(headers(1, block=encode_headers([*REQUEST, (b"x", bytes(1000))])), 0.0)
    assert event.request is None


def test_stream_that_we_ended_may_still_get_data():
    connection = connect()
    stream = open_stream(connection)
    connection.end(stream, STATUS)
    read_output(connection)
    assert connection.receive(data(1, b"late") + data(1, b"r", END) + reset(1), 0.0) == []
    assert (connection.fault, read_output(connection)) == (None, [])


def test_reset_in_the_same_segment_is_seen_after_its_request():
    events = connect().receive(headers(1) + reset(1), 0.0)
    assert names(events) == ["RequestReceived", "StreamEnded"]
    assert not events[0].stream.is_live
