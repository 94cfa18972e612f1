"""The plan and the simulation behind docs/scale.md, and the page itself."""

import math
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.scale.__main__ import EVEN, PAGE, UNEVENNESS, build_result, describe_age, render_tables
from lab.scale.balance import (
    CASES,
    SEEDS,
    Case,
    LeastRequest,
    LoadReport,
    PickFirst,
    RoundRobin,
    Weighted,
    World,
    run_case,
    simulate_run,
)
from lab.scale.plan import RATES, Assumed, Costs, calculate_needs, count_log_line_bytes, count_series

SMALL = World(replicas=4, callers=12, open_per_replica=20, warm_s=60, join_at_s=200, end_s=900)
IDS = [f"{case.name} {case.age_s}" for case in CASES]
each_case = pytest.mark.parametrize("case", CASES, ids=IDS)


def get_new_loads(run, world=SMALL):
    return [loads[-1] for loads in run.loads[int(world.join_at_s) :]]


# The simulation


@each_case
def test_no_stream_is_lost_and_none_is_sent_to_a_missing_replica(case):
    run = simulate_run(SMALL, case, seed=7)
    assert len(run.loads) == SMALL.end_s
    assert sum(run.open_at_end) == run.streams_started - run.streams_ended
    assert all(loads[-1] == 0 for loads in run.loads[: int(SMALL.join_at_s)])
    assert min(map(min, run.loads)) >= 0


@given(
    case=st.sampled_from(CASES),
    seed=st.integers(0, 2**32),
    replicas=st.integers(1, 6),
    callers=st.integers(1, 20),
    age_s=st.none() | st.floats(5, 500),
)
@settings(max_examples=25)
def test_loads_are_never_negative_and_never_before_the_join_in_any_world(case, seed, replicas, callers, age_s):
    world = World(replicas=replicas, callers=callers, open_per_replica=8, warm_s=10, join_at_s=60, end_s=150)
    run = simulate_run(world, replace(case, age_s=age_s), seed)
    assert len(run.loads) == world.end_s
    assert min(map(min, run.loads)) >= 0
    assert not any(loads[-1] for loads in run.loads[:60])


def test_run_depends_only_on_the_seed():
    one, same, other = (simulate_run(SMALL, CASES[0], seed).loads for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_mean_number_of_open_streams_is_that_of_the_world():
    world = World()
    run = simulate_run(world, CASES[-1], seed=3)
    settled = run.loads[int(world.warm_s) :]
    assert sum(map(sum, settled)) / len(settled) == pytest.approx(world.replicas * world.open_per_replica, rel=0.05)


@pytest.mark.parametrize("kind", [PickFirst, RoundRobin])
def test_new_replica_gets_no_streams_from_name_resolving_callers_without_an_age(kind):
    assert not any(get_new_loads(simulate_run(SMALL, Case("no age", kind), seed=5)))
    assert any(get_new_loads(simulate_run(SMALL, Case("an age", kind, 60), seed=5)))


@pytest.mark.parametrize("age_s", [30.0, 300.0])
def test_pick_first_keeps_its_replica_for_the_age_within_a_tenth(age_s):
    world = replace(SMALL, replicas=1000)  # so that it rarely picks the same one twice
    balancer = PickFirst(world, Random(1), age_s)
    picks = [balancer.pick(second / 2) for second in range(round(40 * age_s))]
    changes = [number / 2 for number, (one, other) in enumerate(pairwise(picks), 1) if one != other]
    ages = [later - earlier for earlier, later in pairwise([0.0, *changes])]
    assert len(ages) >= 15
    assert all(0.9 * age_s - 1 <= age <= 1.1 * age_s + 1 for age in ages)


def test_round_robin_picks_all_in_turn_and_resolves_after_the_pause():
    world = replace(SMALL, join_at_s=100)
    balancer = RoundRobin(world, Random(1), 5.0)
    picks = [balancer.pick(number / 10) for number in range(4000)]
    first = picks.index(world.replicas) / 10
    assert 100 <= first <= 100 + world.resolve_pause_s + 1
    counts = [picks[2000:].count(replica) for replica in range(world.replicas + 1)]
    assert max(counts) - min(counts) <= 1


def test_least_request_prefers_the_one_with_fewer_open():
    balancer = LeastRequest(replace(SMALL, replicas=2, join_at_s=math.inf), Random(1), None)
    open_now = [0, 0]
    for _ in range(1000):
        open_now[balancer.pick(0.0)] += 1
    assert abs(open_now[0] - open_now[1]) <= 20  # random picks would differ by about 30
    for _ in range(200):
        balancer.on_end(0, 0.0, LoadReport(1, 1.0))
        open_now[0] -= 1
    later = [balancer.pick(0.0) for _ in range(200)]
    assert later.count(0) > 130


def test_weighted_takes_turns_by_the_reports_once_they_count():
    world = replace(SMALL, replicas=2, join_at_s=100)
    balancer = Weighted(world, Random(1), None)
    for replica, rate in enumerate((30.0, 10.0)):
        balancer.on_end(replica, 0.0, LoadReport(10, rate))
    assert [balancer.pick(5.0) for _ in range(100)].count(0) == 50
    assert 74 <= [balancer.pick(20.0) for _ in range(100)].count(0) <= 76
    newcomer = [balancer.pick(120.0) for _ in range(300)].count(2)
    assert 98 <= newcomer <= 102  # without a report that counts it has the mean of the others


def test_kept_outcome_is_that_of_this_simulation():
    kept = PAGE.read("balance").results
    outcomes = [(each.case, each.contender) for each in kept]
    assert outcomes == [(case.name, describe_age(case)) for case in CASES]
    now = build_result(run_case(World(), CASES[-1], SEEDS), len(SEEDS))
    assert now.figures[UNEVENNESS] == pytest.approx(kept[-1].figures[UNEVENNESS], rel=1e-4)
    assert now.figures[EVEN] == kept[-1].figures[EVEN]


def test_kept_outcomes_agree_with_the_text_of_the_page():
    kept = PAGE.read("balance").results
    unevenness = {(each.case, each.contender): each.figures[UNEVENNESS] for each in kept}
    even = {(each.case, each.contender): each.figures[EVEN] for each in kept}
    no_age, aged = "no connection age", "connection age 300 s"
    assert min(value for (name, _), value in unevenness.items() if name == "pick_first") > 1.5
    assert max(value for (name, _), value in unevenness.items() if name == "round_robin") < 1.2
    assert even["round_robin", no_age] == even["pick_first", no_age] == "never"
    for age_s in (300, 1800):
        assert int(even["round_robin", f"connection age {age_s} s"].removesuffix(" s")) < age_s
    one, each = ("least request, one proxy", no_age), ("least request, a proxy a caller", no_age)
    assert unevenness[one] < unevenness[each] < unevenness["round_robin", aged]


# The plan


@pytest.mark.parametrize("rate", RATES)
def test_pods_carry_the_rate_within_the_share_of_a_core(rate):
    costs, assumed = Costs.read(), Assumed()
    plan = calculate_needs(rate, costs, assumed)
    per_stream_us = costs.call_us + assumed.chunks_per_stream * costs.chunk_us
    used = rate / assumed.chunks_per_stream * per_stream_us / 1e6 / plan.pods
    assert used <= assumed.core_used
    if plan.pods > 1:
        assert rate / assumed.chunks_per_stream * per_stream_us / 1e6 / (plan.pods - 1) > assumed.core_used * 0.99
    assert plan.streams_per_pod * plan.pods == pytest.approx(plan.open_streams)


def test_each_model_adds_equally_many_series_and_a_log_line_has_a_usual_length():
    assert count_series(3) - count_series(2) == count_series(2) - count_series(1) > 0
    assert 200 < count_log_line_bytes() < 2000


def test_page_has_the_results_of_plan_and_simulation():
    page = PAGE.path.read_text(encoding="utf-8")
    for rows in render_tables().values():
        assert "\n".join(rows) in page, "run `make lab PART=scale`"
