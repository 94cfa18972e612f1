"""Tests of bridge/server/pace.py: how long a place in a queue will wait, by a clock of the test's own."""

import pytest

from bridge.server.pace import Pace


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make(turns: int, every_s: float) -> tuple[Pace, Clock]:
    clock = Clock()
    pace = Pace(clock)
    for _ in range(turns):
        clock.now += every_s
        pace.add_turn()
    return pace, clock


def test_wait_is_the_place_times_the_time_between_turns():
    pace, clock = make(64, 0.5)
    clock.now += 0.5
    assert pace.estimate_wait_s(1) == pytest.approx(0.5)
    assert pace.estimate_wait_s(10) == pytest.approx(5)


def test_nothing_is_known_of_few_turns_or_after_they_are_forgotten():
    assert make(7, 1)[0].estimate_wait_s(100) == 0
    pace, _ = make(20, 1)
    pace.forget()
    assert pace.estimate_wait_s(100) == 0


def test_queue_that_stands_still_is_slow():
    pace, clock = make(10, 0.1)
    before = pace.estimate_wait_s(1)
    clock.now += 60
    assert pace.estimate_wait_s(1) > 6 > before


def test_old_turns_count_no_more():
    pace, clock = make(64, 10)
    for _ in range(64):
        clock.now += 0.1
        pace.add_turn()
    assert pace.estimate_wait_s(1) == pytest.approx(0.1, rel=0.05)
