"""The list of failures: which calls are in it, in what order, how many."""

from bridge.telemetry.failures import FAILURES_MAX, Failure, Failures
from tests.unit.telemetry.records import RECORD, make_record


def test_last_failures_are_kept_the_newest_first():
    failures = Failures()
    for number in range(FAILURES_MAX + 5):
        failures.end(make_record(code="INTERNAL", reason="UPSTREAM_INTERNAL", request_id=str(number)))
        failures.end(RECORD)
        failures.end(make_record(code="CANCELLED"))
    assert [failure.request_id for failure in failures.last()] == [
        str(number) for number in range(FAILURES_MAX + 4, 4, -1)
    ]
    assert failures.last()[0].duration_s == 1.5


def make_failure(at: float) -> Failure:
    return Failure(
        at=at,
        method="",
        code="INTERNAL",
        reason="",
        model="",
        request_id=str(at),
        trace_id="",
        caller="",
        duration_s=1.0,
    )


def test_failures_of_workers_are_among_the_last_by_their_time():
    theirs = [make_failure(at) for at in (3.0, 1e12, 2.0)]
    failures = Failures(workers=lambda: theirs)
    failures.end(make_record(code="INTERNAL", request_id="own"))
    assert [failure.request_id for failure in failures.last()] == [str(1e12), "own", "3.0", "2.0"]
    theirs += [make_failure(1e13 + number) for number in range(FAILURES_MAX)]
    assert len(failures.last()) == FAILURES_MAX
    assert "own" not in [failure.request_id for failure in failures.last()]
