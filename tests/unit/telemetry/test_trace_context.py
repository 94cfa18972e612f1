"""Which `traceparent` is one, by https://www.w3.org/TR/trace-context/#traceparent-header."""

import pytest

from bridge.telemetry import find_trace_id
from tests.unit.telemetry.records import SPAN, TRACE, TRACEPARENT


@pytest.mark.parametrize(
    "value",
    [
        "",
        TRACE,
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01\n",
        f" 00-{TRACE}-{SPAN}-01",
    ],
)
def test_malformed_traceparent_is_none(value):
    assert find_trace_id([("traceparent", value)]) == ""


def test_trace_id_is_found_whatever_else_is_in_the_metadata():
    assert find_trace_id([("x", "y"), ("x-bin", b"\x00"), ("traceparent", TRACEPARENT)]) == TRACE
    assert find_trace_id([("traceparent", f"01-{TRACE}-{SPAN}-01-later-versions-may-say-more")]) == TRACE
    assert find_trace_id([("traceparent", TRACEPARENT.encode())]) == ""
    assert find_trace_id([]) == ""
