"""Tests of bridge/server/h2/limits.py: budgets refill with time, up to their burst."""

from hypothesis import given
from hypothesis import strategies as st

from bridge.server.h2.limits import Budget, Limits


def test_budget_is_a_burst_and_then_a_rate():
    budget = Budget(3, 2, 0.0)
    assert [budget.spend(0.0) for _ in range(4)] == [True, True, True, False]
    assert [budget.spend(1.0) for _ in range(2)] == [True, False]


def test_budget_can_be_spent_by_many_at_once():
    budget = Budget(10, 5, 0.0)
    assert [budget.spend(0.0, count) for count in (4, 6, 0, 1)] == [True, True, True, False]
    assert [budget.spend(1.0, count) for count in (4, 1)] == [True, False]


@given(st.lists(st.floats(0, 1), max_size=200), st.integers(1, 10), st.integers(1, 20))
def test_budget_never_grants_more_than_its_burst_and_its_rate(gaps, burst, per_s):
    budget, now, granted = Budget(burst, per_s, 0.0), 0.0, 0
    for gap in gaps:
        now += gap
        granted += budget.spend(now)
    assert granted <= burst + per_s * now + 1e-6


def test_limits_are_those_that_protocols_and_clients_need():
    limits = Limits()
    assert limits.block_bytes_max >= limits.list_bytes_max
    assert limits.window_bytes >= 65_535
