"""What a CallRecord says of itself, and that an Observer may override as little as it likes."""

import pytest

from bridge.telemetry import NOT_FAILURES, Observer
from tests.unit.telemetry.records import RECORD, UNARY, make_record


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ({}, "whole"),
        ({"code": "ABORTED", "reason": "INCOMPLETE_COMPLETION"}, "INCOMPLETE_COMPLETION"),
        ({"code": "CANCELLED"}, "CANCELLED"),
        ({"code": "DEADLINE_EXCEEDED"}, "DEADLINE_EXCEEDED"),
        ({"code": "DEADLINE_EXCEEDED", "reason": "UPSTREAM_TIMEOUT"}, "UPSTREAM_TIMEOUT"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_stream_end_is_whole_else_the_reason_else_the_code(fields, end):
    assert make_record(**fields).stream_end == end
    assert make_record(**fields).error == ("" if end == "whole" else end)


def test_method_says_whether_a_call_is_a_stream():
    assert RECORD.streamed is True
    assert make_record(**UNARY).streamed is False


def test_cancelled_call_is_not_a_failure():
    assert frozenset({"OK", "CANCELLED"}) == NOT_FAILURES


def test_observer_that_overrides_nothing_can_be_notified_of_everything():
    observer = Observer()
    assert observer.start(RECORD.method) is None
    assert observer.add_chunks(RECORD.method, [0.1]) is None
    assert observer.end(RECORD) is None
