"""Tests of bridge/server/h2/flow.py: windows count, and know their bounds."""

from hypothesis import given
from hypothesis import strategies as st

from bridge.server.h2.flow import INITIAL, WINDOW_MAX, ReceiveWindow, SendWindow


def test_send_window_may_be_negative_and_not_too_large():
    window = SendWindow(10)
    assert window.widen(-20)
    assert window.size == -10
    assert window.widen(WINDOW_MAX + 10)
    assert not window.widen(1)


@given(st.lists(st.integers(0, 100_000), max_size=50))
def test_receive_window_never_promises_more_than_it_was_opened_to(takes):
    window, promised, taken = ReceiveWindow(), INITIAL, 0
    for count in takes:
        taken += count
        fits = window.take(count)
        assert fits == (taken <= promised)
        if not fits:
            return
        promised += window.open_to(INITIAL)
        assert window.size == promised - taken <= INITIAL


def test_window_is_not_opened_if_it_is_wide_enough():
    window = ReceiveWindow(100)
    assert (window.open_to(50), window.size) == (0, 100)
    assert window.open_to(WINDOW_MAX + 5) == WINDOW_MAX - 100
