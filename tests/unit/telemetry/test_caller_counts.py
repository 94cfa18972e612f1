"""Calls by caller: who is counted, what, and how many names there may be."""

from bridge.telemetry.caller_counts import CALLERS_MAX, OTHERS, CallerCount, CallerCounts, add_counts
from tests.unit.telemetry.records import make_record


def test_calls_are_counted_by_identity_and_failures_by_who_has_to_act():
    counts = CallerCounts()
    for fields in (
        {"completion_tokens": 80},
        {"code": "CANCELLED"},
        {"code": "NOT_FOUND", "reason": "UPSTREAM_NOT_FOUND"},
        {"code": "DEADLINE_EXCEEDED", "reason": ""},
        {"code": "UNAVAILABLE", "reason": "UPSTREAM_UNREACHABLE"},
        {"code": "RESOURCE_EXHAUSTED", "reason": "OVERLOADED"},
    ):
        counts.end(make_record(**{"caller": "spiffe://a/b", "completion_tokens": None} | fields))
    counts.end(make_record(caller=""))
    found = counts.read()
    assert list(found) == ["spiffe://a/b", ""]
    assert found["spiffe://a/b"][:5] == (6, 2, 1, 1, 80)
    assert found[""].calls == 1
    assert found[""].last_at >= found["spiffe://a/b"].last_at > 1e9


def test_call_that_was_refused_before_it_ran_counts_if_its_caller_is_known():
    counts = CallerCounts()
    counts.refuse("CreateChatCompletion")
    assert counts.read() == {}
    for caller in ("a", "a", ""):
        counts.refuse("CreateChatCompletion", caller)
    found = counts.read()
    assert {name: (count.calls, count.failed_bridge) for name, count in found.items()} == {"a": (2, 2), "": (1, 1)}
    assert found["a"].last_at > 1e9
    counts.end(make_record(caller="a"))
    assert counts.read()["a"].calls == 3


def test_names_of_callers_whose_calls_were_refused_are_bounded_too():
    counts = CallerCounts()
    for number in range(2 * CALLERS_MAX):
        counts.refuse("CreateChatCompletion", f"caller-{number}")
    counts.refuse("CreateChatCompletion", "caller-0")
    found = counts.read()
    assert len(found) == CALLERS_MAX + 1
    assert (found[OTHERS].calls, found["caller-0"].calls) == (CALLERS_MAX, 2)


def test_names_are_bounded_and_no_call_is_lost():
    counts = CallerCounts()
    for number in range(2 * CALLERS_MAX):
        counts.end(make_record(caller=f"caller-{number}"))
    counts.end(make_record(caller=""))
    found = counts.read()
    assert len(found) == CALLERS_MAX + 2
    assert found[OTHERS].calls == CALLERS_MAX
    assert found[""].calls == 1


def test_counts_of_workers_are_added():
    theirs = {"a": CallerCount(calls=2, tokens_out=5, last_at=9.0), "b": CallerCount(calls=1)}
    counts = CallerCounts(workers=lambda: theirs)
    counts.end(make_record(caller="a", completion_tokens=1))
    found = counts.read()
    assert (found["a"].calls, found["a"].tokens_out, found["b"].calls) == (3, 6, 1)
    assert add_counts([theirs, theirs])["a"] == CallerCount(calls=4, tokens_out=10, last_at=9.0)
