"""Tests of bridge/upstream/wait_timer.py, on a loop whose clock the test turns."""

import math
import weakref

import pytest

from bridge.upstream.wait_timer import WaitTimer


class Handle:
    def __init__(self) -> None:
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Clock:
    """An event loop's time and timers."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Handle, object]] = []
        self.made = 0

    def time(self) -> float:
        return self.now

    def call_at(self, when, callback):
        self.made += 1
        handle = Handle()
        self.timers.append((when, handle, callback))
        return handle

    def turn_to(self, now: float) -> None:
        self.now = now
        due = [each for each in self.timers if each[0] <= now]
        self.timers = [each for each in self.timers if each[0] > now]
        for _, handle, callback in due:
            if not handle.is_cancelled:
                callback()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def expired():
    return []


@pytest.fixture
def expire(clock, expired):
    return lambda: expired.append(clock.now)


@pytest.fixture
def timer(clock):
    return WaitTimer(clock)


def test_wait_that_is_overdue_expires(clock, timer, expire, expired):
    timer.start(5, expire)
    clock.turn_to(4)
    assert expired == []
    clock.turn_to(5)
    assert expired == [5]


def test_wait_that_is_over_does_not_expire(clock, timer, expire, expired):
    timer.start(5, expire)
    timer.pause()
    clock.turn_to(100)
    assert expired == []


def test_many_waits_make_few_timers(clock, timer, expire, expired):
    for moment in range(1000):
        clock.turn_to(moment / 100)
        timer.start(clock.now + 9, expire)
        timer.pause()
    assert clock.made == 2
    assert expired == []


def test_later_wait_expires_at_its_own_deadline(clock, timer, expire, expired):
    timer.start(5, expire)
    timer.pause()
    clock.turn_to(3)
    timer.start(8, expire)
    clock.turn_to(5)
    assert expired == []
    clock.turn_to(8)
    assert expired == [8]


def test_earlier_deadline_of_a_later_wait_counts(clock, timer, expire, expired):
    timer.start(50, expire)
    timer.pause()
    timer.start(2, expire)
    clock.turn_to(2)
    assert expired == [2]
    clock.turn_to(50)
    assert expired == [2]


def test_wait_without_a_deadline_makes_no_timer(clock, timer, expire):
    timer.start(math.inf, expire)
    assert clock.made == 0


def test_stopped_timer_does_not_expire(clock, timer, expire, expired):
    timer.start(5, expire)
    timer.stop()
    clock.turn_to(5)
    assert expired == []
    timer.start(7, expire)
    clock.turn_to(7)
    assert expired == [7]


def test_timer_holds_its_owner_only_while_it_waits(clock, timer):
    class Owner:
        def fail(self) -> None:
            pass

    owner = Owner()
    left = weakref.ref(owner)
    timer.start(5, owner.fail)
    timer.pause()
    del owner
    assert left() is None
