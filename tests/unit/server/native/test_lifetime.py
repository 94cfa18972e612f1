"""Tests of bridge/server/native/lifetime.py: by a clock of the test's own."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.server.native.lifetime import Action, Lifetime
from bridge.settings import ConnectionSettings

NEVER = {"age_s": None, "idle_s": 0, "ping_s": 0}


def make(chance: float = 0.5, **settings: float | None) -> Lifetime:
    return Lifetime(ConnectionSettings(**NEVER | settings), 0.0, chance)


def test_connection_without_limits_lives_for_ever():
    lifetime = make()
    assert lifetime.next_at == math.inf
    assert lifetime.check(1e9) is Action.NOTHING


@pytest.mark.parametrize(("chance", "age_s"), [(0.0, 90.0), (0.5, 100.0), (1.0, 110.0)])
def test_age_varies_by_a_tenth(chance, age_s):
    lifetime = make(chance, age_s=100)
    assert lifetime.next_at == pytest.approx(age_s)
    assert lifetime.check(age_s - 0.001) is Action.NOTHING
    assert lifetime.check(age_s + 0.001) is Action.GO_AWAY
    assert not lifetime.is_idle


def test_old_connection_is_closed_after_its_grace():
    lifetime = make(age_s=100, age_grace_s=20)
    lifetime.check(101.0)
    assert lifetime.next_at == pytest.approx(120.0)
    assert lifetime.check(119.0) is Action.NOTHING
    assert lifetime.check(120.5) is Action.CLOSE


def test_connection_without_a_call_is_idle():
    lifetime = make(idle_s=10)
    lifetime.idle_since = None
    assert (lifetime.check(50.0), lifetime.next_at) == (Action.NOTHING, math.inf)
    lifetime.idle_since = 60.0
    assert lifetime.next_at == 70.0
    assert lifetime.check(70.0) is Action.GO_AWAY
    assert lifetime.is_idle


def test_silent_peer_is_pinged_and_closed_if_it_does_not_answer():
    lifetime = make(ping_s=60, ping_timeout_s=20)
    assert lifetime.next_at == 60.0
    assert lifetime.check(60.0) is Action.PING
    assert lifetime.next_at == 80.0
    assert lifetime.check(79.0) is Action.NOTHING
    assert lifetime.check(80.0) is Action.CLOSE


def test_peer_that_answers_is_pinged_again_later():
    lifetime = make(ping_s=60, ping_timeout_s=20)
    lifetime.check(60.0)
    lifetime.received_at = 61.0
    assert lifetime.next_at == 121.0
    assert lifetime.check(80.0) is Action.NOTHING
    assert lifetime.check(121.0) is Action.PING


@given(st.lists(st.floats(0.01, 50), max_size=50))
def test_check_at_its_time_always_goes_on(gaps):
    """A check at `next_at` acts, or sets a later time: there is no loop of checks that do nothing."""
    lifetime = make(age_s=1000, idle_s=30, ping_s=20, ping_timeout_s=5)
    now = 0.0
    for gap in gaps:
        now += gap
        lifetime.received_at = now
        lifetime.idle_since = now if gap > 10 else None
        due = lifetime.next_at
        action = lifetime.check(max(due, now))
        if action in {Action.CLOSE, Action.GO_AWAY}:
            return
        assert action is Action.PING or lifetime.next_at > due
        now = max(due, now)
