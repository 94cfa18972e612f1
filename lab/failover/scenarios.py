"""The sixteen scenarios, what is checked in each, and the verdict: the rules of Failover Bench, methodology 0.1.

pass: the caller got the whole answer (in S13, a clean error) and all checks hold. partial: so, but a check that is only
advice does not hold. safe: no answer, but a clean error in time and all required checks hold. fail: no end in time, a
part of the answer taken for all of it, or a required check that does not hold.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lab.failover.callers import Outcome
from lab.failover.exchange import ANSWER, Attempt, Timing
from lab.failover.provider import OK_MODEL, STRICT_MODEL

__all__ = ["SCENARIOS", "Evidence", "Scenario", "judge"]


@dataclass
class Evidence:
    """What the caller and the provider saw. S15 has many `outcomes`, and `sent_at_s` of each; the others have one."""

    timing: Timing
    outcomes: list[Outcome]
    attempts: list[Attempt]
    other: str
    is_alive_after: bool = True
    sent_at_s: list[float] = field(default_factory=list)

    @property
    def is_answered(self) -> bool:
        return all(each.code == "OK" and each.text == ANSWER for each in self.outcomes)

    @property
    def has_ended(self) -> bool:
        return all(each.code for each in self.outcomes)

    @property
    def is_cut_but_ok(self) -> bool:
        """Whether a part of the answer was taken for all of it."""
        return any(each.code == "OK" and each.text != ANSWER for each in self.outcomes)

    @property
    def took_s(self) -> float:
        return sum(each.took_s for each in self.outcomes)

    @property
    def tries_s(self) -> list[float]:
        """When the model was tried, not the other one."""
        return [each.at_s for each in self.attempts if each.model != self.other]

    @property
    def other_tries(self) -> int:
        return len(self.attempts) - len(self.tries_s)

    def count_tries_within(self, seconds: float) -> int:
        return sum(at_s - self.tries_s[0] < seconds for at_s in self.tries_s)


@dataclass(frozen=True)
class Check:
    """One rule. `is_required`: breaking it is a failure. `for_others`: only for callers with another model to ask."""

    name: str
    holds: Callable[[Evidence], bool]
    is_required: bool = True
    for_others: bool = False


@dataclass(frozen=True)
class Scenario:
    """One fault, the checks, and the time after which a call that has not ended is lost."""

    name: str
    fault: str
    end_s: float
    checks: Sequence[Check]
    wants_error: bool = False
    is_sequence: bool = False
    other: str = OK_MODEL


def judge(scenario: Scenario, evidence: Evidence, *, has_other: bool) -> tuple[str, list[str]]:
    """Return the verdict, and the checks that do not hold."""
    checks = [check for check in scenario.checks if has_other or not check.for_others]
    broken = [check for check in checks if not check.holds(evidence)]
    names = [check.name for check in broken]
    if not evidence.has_ended or evidence.is_cut_but_ok or any(check.is_required for check in broken):
        return "fail", names
    if scenario.wants_error:
        return ("partial" if evidence.is_answered else "pass"), names
    if evidence.is_answered:
        return ("partial" if broken else "pass"), names
    return "safe", names


def _is_tried_between(low: int, high: int) -> Callable[[Evidence], bool]:
    return lambda seen: low <= len(seen.tries_s) <= high


def _is_tried_within(seconds: float, most: int) -> Callable[[Evidence], bool]:
    return lambda seen: seen.count_tries_within(seconds) <= most


def _takes_at_most(seconds: float) -> Callable[[Evidence], bool]:
    return lambda seen: seen.took_s <= seconds


def _waits_as_told(seen: Evidence) -> bool:
    tries = seen.tries_s
    return len(tries) > 1 and tries[1] - tries[0] >= 0.9 * seen.timing.retry_after_s


def _is_served_in_outage(seen: Evidence) -> bool:
    served = zip(seen.sent_at_s, seen.outcomes, strict=True)
    return all(outcome.text == ANSWER for at_s, outcome in served if at_s < seen.timing.outage_s)


def _comes_back(seen: Evidence) -> bool:
    """Whether the model was used again within 30 seconds of its recovery."""
    good = [each.at_s for each in seen.attempts if each.model != seen.other and each.action == "200"]
    return bool(good) and min(good) - seen.timing.outage_s <= 30


def _names_the_other(seen: Evidence) -> bool:
    return not seen.other_tries or seen.outcomes[-1].model == seen.other


_NO_PART = Check("no part of an answer is taken for all", lambda seen: not seen.is_cut_but_ok)
_ENDS = Check("it ends", lambda seen: seen.has_ended)
_ALIVE = Check("a good call after it is answered", lambda seen: seen.is_alive_after)
_BOUNDED = Check("at most 6 attempts", _is_tried_between(0, 6))
_ONCE = Check("one attempt", _is_tried_between(1, 1))
_USAGE = Check("usage is told", lambda seen: seen.outcomes[-1].has_usage, is_required=False)
_RETRIED = Check("it is retried", _is_tried_between(2, 99), is_required=False)

SCENARIOS = (
    Scenario(
        "S01",
        "429 with Retry-After, once",
        20,
        (
            _RETRIED,
            Check("the wait is as told", _waits_as_told, is_required=False),
            Check("at most 2 attempts in 1.5 s", _is_tried_within(1.5, 2)),
        ),
    ),
    Scenario(
        "S02",
        "429 without Retry-After, each time",
        40,
        (Check("at most 4 attempts in 3 s", _is_tried_within(3, 4)), _BOUNDED, _ENDS),
    ),
    Scenario("S03", "500, once", 20, (_ENDS, _RETRIED)),
    Scenario("S04", "503, each time", 40, (_BOUNDED, _ENDS)),
    Scenario("S05", "reset before the head, once", 20, (_ENDS,)),
    Scenario(
        "S06",
        "no answer at all",
        130,
        (
            Check("at most 100 s", _takes_at_most(100)),
            _ENDS,
            Check("it is not retried", _is_tried_between(1, 1), is_required=False),
        ),
    ),
    Scenario(
        "S07",
        "the first token comes after 20 s",
        60,
        (_ENDS, Check("at most 15 s", _takes_at_most(15), is_required=False, for_others=True)),
    ),
    Scenario("S08", "the stream is cut", 40, (_NO_PART, _ENDS)),
    Scenario("S09", "the stream stalls", 70, (Check("at most 45 s", _takes_at_most(45)), _NO_PART, _ALIVE, _ENDS)),
    Scenario(
        "S10",
        "an event is no JSON",
        30,
        (_ALIVE, _NO_PART, _ENDS, Check("it is answered", lambda seen: seen.is_answered, is_required=False)),
    ),
    Scenario("S11", "no [DONE]", 30, (Check("at most 8 s", _takes_at_most(8)), _USAGE)),
    Scenario("S12", "400, the context is too long", 20, (_ONCE, _ENDS)),
    Scenario("S13", "400, the content is rejected", 20, (_ONCE, _ENDS), wants_error=True),
    Scenario(
        "S14",
        "the stream is cut; the other model refuses a prefill",
        40,
        (
            Check(
                "no refused prefill hides the failure",
                lambda seen: seen.is_answered or not any(each.is_prefilled for each in seen.attempts),
            ),
            _NO_PART,
        ),
        other=STRICT_MODEL,
    ),
    Scenario(
        "S15",
        "503 for 60 s, then well",
        30,
        (
            _ENDS,
            Check("answered during the outage", _is_served_in_outage, for_others=True),
            Check("used again in 30 s", _comes_back, for_others=True),
        ),
        is_sequence=True,
    ),
    Scenario(
        "S16",
        "503, each time: the accounts",
        40,
        (
            Check("the other model is named", _names_the_other, for_others=True),
            Check(_USAGE.name, _USAGE.holds, is_required=False, for_others=True),
            _BOUNDED,
        ),
    ),
)
