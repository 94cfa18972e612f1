"""The runner of lab/failover: no scenario fails, and its rules can tell a failure."""

import dataclasses

import pytest

from lab.failover.callers import CALLERS, Outcome
from lab.failover.exchange import ANSWER, Attempt, Timing
from lab.failover.provider import OK_MODEL
from lab.failover.run import run
from lab.failover.scenarios import SCENARIOS, Evidence, judge
from tests.kit.waiting import WAIT_S

BRIEF = Timing(1, 0.3, 0.4, 1.0, 0.6, 0, WAIT_S, 4, 0.3, 0.02)
"""The faults with short waits. The bridge does not give up before they are over."""
RULES = {scenario.name: scenario for scenario in SCENARIOS}
WHOLE = Outcome("OK", ANSWER, has_usage=True, took_s=1)
PART = Outcome("OK", ANSWER[:50])
REFUSED = Outcome("UNAVAILABLE")
LOST = Outcome("")


@pytest.mark.parametrize("name", CALLERS)
async def test_no_scenario_fails(name):
    verdicts = {cell.scenario.name: cell.verdict async for cell in run(CALLERS[name], BRIEF)}
    assert verdicts.keys() == RULES.keys()
    assert [name for name, verdict in verdicts.items() if verdict == "fail"] == []
    rescued = [name for name, verdict in verdicts.items() if verdict in {"pass", "partial"}]
    assert rescued == (list(RULES) if CALLERS[name].follows_status else ["S07", "S11", "S13"])


async def test_bridge_gives_up_on_a_provider_that_says_nothing():
    timing = dataclasses.replace(BRIEF, silence_s=WAIT_S, limit_s=0.1)
    (cell,) = [each async for each in run(CALLERS["a single call"], timing, scenarios=[RULES["S06"]])]
    assert cell.verdict == "safe"
    assert cell.evidence.outcomes[0].code == "DEADLINE_EXCEEDED"
    assert [attempt.action for attempt in cell.evidence.attempts] == ["nothing"]


def see(outcome, *at_s, **more):
    attempts = [Attempt(each, "S", is_prefilled=False, action="200") for each in at_s]
    return Evidence(BRIEF, [outcome], attempts, OK_MODEL, **more)


VERDICTS = {
    "answered after the wait": ("S01", see(WHOLE, 0, 1.0), "pass"),
    "answered, without the wait": ("S01", see(WHOLE, 0, 0.2), "partial"),
    "answered by hammering": ("S01", see(WHOLE, 0, 0.2, 0.3), "fail"),
    "refused": ("S01", see(REFUSED, 0), "safe"),
    "no end": ("S04", see(LOST, 0), "fail"),
    "seven attempts": ("S04", see(REFUSED, *range(7)), "fail"),
    "a part taken for all": ("S08", see(PART, 0), "fail"),
    "dead after it": ("S09", see(REFUSED, 0, is_alive_after=False), "fail"),
    "answered late without [DONE]": ("S11", see(Outcome("OK", ANSWER, has_usage=True, took_s=9), 0), "fail"),
    "answered without usage": ("S11", see(Outcome("OK", ANSWER), 0), "partial"),
    "retried a context too long": ("S12", see(REFUSED, 0, 1), "fail"),
    "a rejection told": ("S13", see(Outcome("INVALID_ARGUMENT"), 0), "pass"),
    "a rejection gone round": ("S13", see(WHOLE, 0), "partial"),
    "the other is named": ("S16", Evidence(BRIEF, [Outcome("OK", ANSWER, "ok", True)], [], OK_MODEL), "pass"),
}


@pytest.mark.parametrize(("name", "evidence", "verdict"), VERDICTS.values(), ids=VERDICTS)
def test_verdict(name, evidence, verdict):
    assert judge(RULES[name], evidence, has_other=True)[0] == verdict


def test_other_model_that_is_not_named_fails():
    attempts = [Attempt(0, "S16", is_prefilled=False), Attempt(1, OK_MODEL, is_prefilled=False)]
    evidence = Evidence(BRIEF, [Outcome("OK", ANSWER, "S16", has_usage=True)], attempts, OK_MODEL)
    assert judge(RULES["S16"], evidence, has_other=True) == ("fail", ["the other model is named"])
    assert judge(RULES["S16"], evidence, has_other=False)[0] == "pass"


@pytest.mark.parametrize(("served", "verdict"), [([WHOLE, WHOLE], "pass"), ([REFUSED, WHOLE], "fail")])
def test_outage_must_be_served_by_the_other_model(served, verdict):
    attempts = [Attempt(0.7, "S15", is_prefilled=False, action="200")]
    evidence = Evidence(BRIEF, served, attempts, OK_MODEL, sent_at_s=[0, 0.7])
    assert judge(RULES["S15"], evidence, has_other=True)[0] == verdict


def test_recovery_that_is_never_seen_fails():
    evidence = Evidence(BRIEF, [WHOLE], [Attempt(0, "S15", is_prefilled=False, action="503")], OK_MODEL, sent_at_s=[0])
    assert judge(RULES["S15"], evidence, has_other=True)[0] == "fail"
