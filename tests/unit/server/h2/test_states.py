"""Tests of bridge/server/h2/states.py: the table has each case of RFC 9113, 5.1."""

import pytest

from bridge.server.h2.frames import ErrorCode, Http2Error, StreamError
from bridge.server.h2.states import TRANSITIONS, Received, State, transit

PROTOCOL_ERROR, STREAM_CLOSED = ErrorCode.PROTOCOL_ERROR, ErrorCode.STREAM_CLOSED


def run(state: State, received: Received) -> object:
    try:
        return transit(7, state, received)
    except Http2Error as error:
        return ("connection", error.code)
    except StreamError as error:
        return ("stream" if error.stream_id == 7 else "another stream", error.code)


def test_table_has_every_state_and_every_frame():
    assert set(TRANSITIONS) == {(state, received) for state in State for received in Received}


IDLE = {
    Received.DATA: ("connection", PROTOCOL_ERROR),
    Received.DATA_END: ("connection", PROTOCOL_ERROR),
    Received.HEADERS: State.OPEN,
    Received.HEADERS_END: State.HALF_CLOSED,
    Received.RESET: ("connection", PROTOCOL_ERROR),
    Received.WINDOW_UPDATE: ("connection", PROTOCOL_ERROR),
}
OPEN = {
    Received.DATA: State.OPEN,
    Received.DATA_END: State.HALF_CLOSED,
    Received.HEADERS: ("stream", PROTOCOL_ERROR),  # trailers must end the stream (8.1)
    Received.HEADERS_END: State.HALF_CLOSED,
    Received.RESET: State.RESET,
    Received.WINDOW_UPDATE: State.OPEN,
}


@pytest.mark.parametrize(("state", "expected"), [(State.IDLE, IDLE), (State.OPEN, OPEN)])
def test_stream_goes_on_as_the_rules_have_it(state, expected):
    assert {received: run(state, received) for received in Received} == expected


@pytest.mark.parametrize("state", [State.HALF_CLOSED, State.ENDED, State.RESET])
@pytest.mark.parametrize("received", [Received.DATA, Received.DATA_END])
def test_data_after_the_end_is_a_fault_of_the_stream(state, received):
    assert run(state, received) == ("stream", STREAM_CLOSED)


@pytest.mark.parametrize("state", [State.ENDED, State.RESET])
@pytest.mark.parametrize("received", [Received.HEADERS, Received.HEADERS_END])
def test_headers_on_a_closed_stream_are_a_fault_of_the_connection(state, received):
    assert run(state, received) == ("connection", STREAM_CLOSED)


@pytest.mark.parametrize("received", Received)
def test_what_comes_for_a_stream_that_we_ended_is_ignored(received):
    assert run(State.ABANDONED, received) == (State.RESET if received is Received.RESET else State.ABANDONED)


@pytest.mark.parametrize("state", [State.HALF_CLOSED, State.ENDED, State.RESET, State.ABANDONED, State.FORGOTTEN])
def test_window_updates_and_resets_may_come_late(state):
    assert run(state, Received.WINDOW_UPDATE) is state
    assert isinstance(run(state, Received.RESET), State)


def test_no_frame_reopens_a_stream():
    closed = {State.ENDED, State.RESET, State.ABANDONED, State.FORGOTTEN}
    reached = {outcome for (state, _), outcome in TRANSITIONS.items() if state in closed and isinstance(outcome, State)}
    assert reached <= closed
