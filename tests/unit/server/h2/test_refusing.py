"""Tests of bridge/server/h2/refusing.py: requests that are refused as they come leave nothing, and loosen no rule."""

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.server.h2.connection import Connection
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
    data,
    headers,
    names,
    read_output,
    reset,
    settings,
    window_update,
)

FULL, OTHER = b"/service/method", b"/service/other"
ANSWER = encode_headers([(b":status", b"200"), (b"grpc-status", b"8")])
NO_ERROR = (0).to_bytes(4)


def refuse_full(path: bytes) -> bytes | None:
    return ANSWER if path == FULL else None


def connect(**limits: float) -> Connection:
    connection = Connection(Limits(**limits), 0.0, refuse_full)
    connection.receive(OPENING, 0.0)
    connection.sender.take_output()
    return connection


def answer(stream_id: int) -> tuple[int, int, int, bytes]:
    return (1, END | END_HEADERS, stream_id, ANSWER)


def count_what_is_left(connection: Connection) -> tuple[int, int, int]:
    streams = connection.streams
    return len(streams.live), streams.in_use, connection.held_bytes


REFUSED = {
    "a head alone": (headers(1), [answer(1)]),
    "its body in the same read": (headers(1, END_HEADERS) + data(1, b"ab") + data(1, b"c", END), [answer(1)]),
    "trailers in the same read": (headers(1, END_HEADERS) + headers(1), [answer(1)]),
    "no end yet": (headers(1, END_HEADERS) + data(1, b"ab"), [answer(1), (3, 0, 1, NO_ERROR)]),
    "reset in the same read": (headers(1, END_HEADERS) + reset(1), [answer(1)]),
    "a head in two frames": (
        encode_frame(1, END, 1, BLOCK[:9]) + encode_frame(9, END_HEADERS, 1, BLOCK[9:]),
        [answer(1)],
    ),
    "no request by HTTP's rules": (headers(1, block=encode_headers([*REQUEST, (b"UPPER", b"")])), [answer(1)]),
}


@pytest.mark.parametrize(("payload", "output"), REFUSED.values(), ids=REFUSED)
def test_request_is_answered_at_once_without_a_stream_or_an_event(payload, output):
    connection = connect()
    assert connection.receive(payload, 0.0) == []
    assert count_what_is_left(connection)[:2] == (0, 0)
    assert read_output(connection) == output
    assert count_what_is_left(connection) == (0, 0, 0)
    assert connection.fault is None


def test_rest_of_a_body_is_dropped_and_a_request_for_another_path_is_served():
    connection = connect()
    connection.receive(headers(1, END_HEADERS), 0.0)
    other = encode_headers([(name, OTHER if name == b":path" else value) for name, value in REQUEST])
    events = connection.receive(data(1, b"late") + headers(3, block=other) + data(1, b"r", END) + reset(1), 0.0)
    assert names(events) == ["RequestReceived"]
    assert events[0].request.path == OTHER
    assert connection.fault is None


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([b"1m", b"2m", b"3S"])), max_size=30))
def test_header_table_is_in_step_after_any_refusals(requests):
    connection, encoder = connect(), hpack.Encoder()
    expected, found = [], []
    for number, (is_refused, timeout) in enumerate(requests):
        fields = [*REQUEST[:2], (b":path", FULL if is_refused else OTHER), *REQUEST[3:], (b"grpc-timeout", timeout)]
        events = connection.receive(headers(2 * number + 1, block=encoder.encode(fields)), 0.0)
        found += [(event.request.path, event.request.get(b"grpc-timeout")) for event in events]
        for event in events:
            connection.reset(event.stream, 0)
            connection.release(event.stream)
        expected += [] if is_refused else [(OTHER, timeout)]
    assert (connection.fault, found) == (None, expected)


FAULTS = {
    "DATA beyond the connection's window": (
        headers(1, END_HEADERS) + b"".join(data(1, bytes(16_384)) for _ in range(5)),
        {"window_bytes": 20_000},
        ErrorCode.FLOW_CONTROL_ERROR,
    ),
    "a smaller id": (headers(5) + headers(3), {}, ErrorCode.PROTOCOL_ERROR),
    "the same id again": (headers(1) + headers(1), {}, ErrorCode.STREAM_CLOSED),
    "padding": (headers(1, END_HEADERS) + encode_frame(0, 8, 1, b"\x05"), {}, ErrorCode.PROTOCOL_ERROR),
    "an index that is not in the table": (headers(1, block=b"\xfe"), {}, ErrorCode.COMPRESSION_ERROR),
    "WINDOW_UPDATEs without end": (
        headers(1) + window_update(1, 1) * 20,
        {"control_burst": 5},
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
    "empty DATA without end": (
        headers(1, END_HEADERS) + data(1, b"") * 20,
        {"control_burst": 5},
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
}


@pytest.mark.parametrize(("payload", "limits", "code"), FAULTS.values(), ids=FAULTS)
def test_fault_on_a_refused_stream_is_one_as_on_any_other(payload, limits, code):
    connection = connect(**limits)
    connection.receive(payload, 0.0)
    assert connection.fault.code == code


def test_window_of_the_connection_opens_again_after_bodies_of_refused_requests():
    connection = connect(window_bytes=70_000)
    payload = headers(1, END_HEADERS) + b"".join(data(1, bytes(16_000)) for _ in range(3))
    connection.receive(payload, 0.0)
    assert (8, 0, 0, (48_000).to_bytes(4)) in read_output(connection)


def test_body_after_the_end_of_a_refused_request_is_a_fault_of_the_stream():
    connection = connect()
    connection.receive(headers(1, END_HEADERS) + data(1, b"x", END), 0.0)
    read_output(connection)
    connection.receive(data(1, b"y"), 0.0)
    assert read_output(connection) == [(3, 0, 1, ErrorCode.STREAM_CLOSED.to_bytes(4))]


def test_more_refusals_than_streams_at_once_are_no_fault():
    connection = connect(streams_max=2, reset_burst=5)
    numbers = range(1, 999, 2)
    connection.receive(b"".join(headers(number, END_HEADERS) + data(number, b"x", END) for number in numbers), 0.0)
    assert connection.fault is None
    assert read_output(connection) == [answer(number) for number in numbers]


def test_resets_of_refused_requests_are_no_fault():
    """A proxy resets a request that was refused before its body went out."""
    connection = connect(reset_burst=5, control_burst=5)
    for number in range(1, 999, 2):
        connection.receive(headers(number, END_HEADERS), 0.0)
        connection.receive(reset(number), 0.0)
    assert connection.fault is None


def test_peer_whose_table_shrinks_learns_of_it_with_a_refusal():
    connection = connect()
    connection.receive(settings(table=0), 0.0)
    read_output(connection)
    connection.receive(headers(1) + headers(3), 0.0)
    assert [frame[3] for frame in read_output(connection)] == [b"\x20" + ANSWER, ANSWER]


def test_requests_after_a_goaway_are_ignored_as_ever():
    connection = connect()
    connection.go_away()
    read_output(connection)
    assert connection.receive(headers(1), 0.0) == []
    assert read_output(connection) == []
