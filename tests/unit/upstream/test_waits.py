"""Tests of bridge/upstream/waits.py: which limit bounds a wait, and for how long."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from bridge.settings import UpstreamSettings
from bridge.upstream.call import UpstreamCall
from bridge.upstream.waits import Waits

SETTINGS = {"first_chunk_timeout_s": 40, "idle_timeout_s": 9}


def make(call: UpstreamCall | None = None, *, is_stream: bool = True, **settings: Any) -> Waits:
    return Waits(UpstreamSettings(**SETTINGS | settings), call or UpstreamCall(), is_stream=is_stream)


def begin(waits: Waits) -> tuple[float, str]:
    """Return how long the next wait may last, and the setting that says so."""
    left_s = waits.begin(time.monotonic())
    return left_s, waits.current.setting.removeprefix("upstream.")


def test_first_chunk_has_a_limit_of_its_own_and_the_others_the_idle_timeout():
    call = UpstreamCall()
    waits = make(call)
    call.waited_s = 39  # comments came meanwhile
    assert begin(waits) == (40, "first_chunk_timeout_s")
    call.first_chunk_at = 1.0
    assert begin(waits) == (9, "idle_timeout_s")


def test_body_that_is_no_stream_has_the_idle_timeout_from_its_start():
    waits = make(is_stream=False, stall_timeout_s=1)
    assert begin(waits) == (9, "idle_timeout_s")
    assert not waits.has_output_limit


def test_defaults_bound_silence_and_nothing_else():
    waits = Waits(UpstreamSettings(), UpstreamCall(), is_stream=True)
    assert begin(waits) == (300, "first_chunk_timeout_s")
    assert not waits.has_output_limit


@pytest.mark.parametrize(
    ("stall_s", "first"),
    [(5, (10, "first_chunk_timeout_s")), (50, (20, "stall_timeout_s"))],
    ids=["below the first chunk's", "above it"],
)
def test_first_output_may_take_the_longer_of_two_limits(stall_s, first):
    call = UpstreamCall(first_chunk_at=1.0)  # the role alone
    waits = make(call, stall_timeout_s=stall_s, idle_timeout_s=80)
    call.waited_s = 30
    assert begin(waits) == first


def test_time_without_output_is_that_of_the_waits_since_the_last():
    call = UpstreamCall(first_chunk_at=1.0)
    waits = make(call, stall_timeout_s=7)
    call.waited_s = 30
    waits.note_output()
    assert begin(waits) == (7, "stall_timeout_s")
    call.waited_s = 34
    assert begin(waits) == (3, "stall_timeout_s")
    call.waited_s = 38
    assert begin(waits) == (0, "stall_timeout_s")
    assert waits.current.what == "output"
    assert waits.current.limit_s == 7
    waits.note_output()
    assert begin(waits) == (7, "stall_timeout_s")


def test_nearest_limit_counts():
    call = UpstreamCall(first_chunk_at=1.0)
    waits = make(call, stall_timeout_s=100)
    waits.note_output()
    assert begin(waits) == (9, "idle_timeout_s")
    waits.end_within(2, anew=True)
    left_s, setting = begin(waits)
    assert (left_s <= 2, setting, waits.is_end_due) == (True, "finish_grace_s", True)
    waits.keep_open()
    assert begin(waits) == (9, "idle_timeout_s")
    assert not waits.is_end_due


def test_time_for_the_end_begins_again_only_if_that_is_said_or_the_limit_changes():
    clock = SimpleNamespace(now=100.0)
    settings = UpstreamSettings(idle_timeout_s=50, first_chunk_timeout_s=50)
    waits = Waits(settings, UpstreamCall(), is_stream=True, clock=lambda: clock.now)
    left = []
    for limit_s, anew in [(10, True), (10, False), (10, True), (20, False), (20, False)]:
        waits.end_within(limit_s, anew=anew)
        clock.now += 1
        left.append(waits.begin(clock.now))
    assert left == [9, 8, 9, 19, 18]


def test_body_is_over_once_its_end_had_its_time():
    waits = make()
    assert not waits.is_over()
    waits.end_within(100, anew=True)
    assert not waits.is_over()
    waits.end_within(0, anew=False)  # another limit begins anew
    assert waits.is_over()
